"""The complete key lists of single files: as diffusers' converters read them, and where each key stands."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from diffusers.loaders import single_file_utils

from runner.architectures import ARCHITECTURES, Place, place
from tests.architectures.ldm import PREFIX, ldm_names
from tests.architectures.models import (
    TRANSFORMER_NAMES,
    TRANSFORMERS,
    UNETS,
    main_component,
    model,
    transformer,
    unet,
)

LAYOUTS = ("checkpoint", "diffusers")


def place_in(name: str, layout: str, key: str) -> Place:
    return place(ARCHITECTURES[name], layout, key)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_key_of_a_model_has_a_place_with_names_the_architecture_knows(name: str, layout: str) -> None:
    architecture = ARCHITECTURES[name]
    for key in model(name, layout):
        found = place(architecture, layout, key)
        assert found.component != "other", key
        assert found.blocks, key
        assert set(found.blocks) <= {*architecture.blocks, *architecture.fine}, key


@pytest.mark.parametrize("name", UNETS)
def test_the_single_file_names_of_a_unet_are_those_of_diffusers_converter(name: str) -> None:
    own, names = unet(name), ldm_names(unet(name))
    checkpoint = {names[key]: torch.empty(own[key].shape, device="meta") for key in own}
    config = {"layers_per_block": 2, **UNETS[name], "class_embed_type": None}
    config = {"addition_embed_type": None, **config}
    converted = single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), config)
    assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == {
        key: spec.shape for key, spec in own.items()
    }
    assert all(converted[key] is checkpoint[names[key]] for key in own)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_single_file_names_of_a_transformer_are_those_of_diffusers_converter(name: str) -> None:
    width = 3072  # diffusers' converter of Flux knows no other
    checkpoint = {
        PREFIX + key: torch.empty(7 * width if ".linear1." in key else 6 * width, 2, device="meta")
        for key in TRANSFORMER_NAMES[name]
    }
    convert = (
        single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
        if name.startswith("flux")
        else single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers
    )
    assert set(convert(checkpoint)) == set(transformer(name))
    assert not checkpoint  # every one was used


def in_block(prefix: str, count: int, each: int, last: int | None = None) -> dict[str, int]:
    """A number of equal blocks, of which the last may be smaller."""
    blocks = {f"{prefix}{number:02d}": each for number in range(count)}
    return blocks | ({f"{prefix}{count - 1:02d}": last} if last else {})


@pytest.mark.parametrize(
    ("name", "layout", "expected"),
    [
        ("flux", "checkpoint", {"IN": 16, **in_block("D", 19, 24), **in_block("S", 38, 8), "OUT": 4}),
        ("flux", "diffusers", {"IN": 16, **in_block("D", 19, 32), **in_block("S", 38, 14), "OUT": 4}),
        ("sd3", "checkpoint", {"IN": 13, **in_block("J", 24, 20, last=14), "OUT": 4}),
        ("sd3", "diffusers", {"IN": 13, **in_block("J", 24, 28, last=22), "OUT": 4}),
        ("sd35_large", "checkpoint", {"IN": 13, **in_block("J", 38, 24, last=18), "OUT": 4}),
    ],
)
def test_each_block_of_a_transformer_has_its_tensors(
    name: str, layout: str, expected: dict[str, int]
) -> None:
    keys = main_component(name, layout)
    assert Counter(place_in(name, layout, key).blocks[0] for key in keys) == expected


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_without_prefix_has_the_places_of_one_with(name: str) -> None:
    for key in TRANSFORMER_NAMES[name]:
        assert place_in(name, "checkpoint", key) == place_in(name, "checkpoint", PREFIX + key)


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_without_prefix_has_the_places_of_one_with(name: str) -> None:
    for key in main_component(name, "checkpoint"):
        assert place_in(name, "checkpoint", key.removeprefix(PREFIX)) == place_in(name, "checkpoint", key)

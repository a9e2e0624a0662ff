"""Recognising models by their headers: variants, narrow ones, near relatives, and how long it takes."""

from __future__ import annotations

import time

import pytest
import torch
from diffusers import UNet2DConditionModel

from runner.architectures import ARCHITECTURES, detect, variant
from runner.tensors import TensorSpec
from tests.architectures.ldm import PREFIX, flux_names
from tests.architectures.models import (
    TINY,
    UNETS,
    Specs,
    main_component,
    model,
    specs_of,
    under,
    vae,
)

LAYOUTS = ("checkpoint", "diffusers")


def detected(layout: str, specs: Specs) -> str | None:
    found = detect(layout, specs)
    return found.name if found else None


def altered_unet(name: str, **changes: object) -> Specs:
    with torch.device("meta"):
        return under("unet/", specs_of(UNet2DConditionModel(**{**UNETS[name], **changes})))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_without_vae_and_text_encoders_is_recognised(name: str, layout: str) -> None:
    assert detected(layout, main_component(name, layout)) == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_single_file_without_prefix_is_recognised(name: str) -> None:
    keys = main_component(name, "checkpoint")
    assert detected("checkpoint", {key.removeprefix(PREFIX): spec for key, spec in keys.items()}) == name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TINY)
def test_a_model_narrower_than_any_real_one_is_recognised_by_its_structure(name: str, layout: str) -> None:
    assert detected(layout, model(name, layout, tiny=True)) == name


@pytest.mark.parametrize("name", TINY)
def test_levels_of_equal_width_do_not_confuse_it(name: str) -> None:
    equal = (32,) * len(UNETS[name]["block_out_channels"])
    assert detected("diffusers", altered_unet(name, **{**TINY[name], "block_out_channels": equal})) == name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("sd1", 9, "inpainting"),
        ("sd1", 8, "pix2pix"),
        ("sd1", 4, None),
        ("sd2", 9, "inpainting"),
        ("sd2", 5, "depth"),
        ("sdxl", 9, "inpainting"),
        ("sdxl", 8, "pix2pix"),
        ("sdxl", 4, None),
    ],
)
def test_a_variant_is_known_by_its_input_channels_and_stays_of_its_architecture(
    name: str, channels: int, expected: str | None, layout: str
) -> None:
    specs = model(name, layout, tiny=True, channels=channels)
    assert detected(layout, specs) == name
    assert variant(ARCHITECTURES[name], layout, specs) == expected


def test_flux_fill_is_an_inpainting_variant() -> None:
    for prefix in (PREFIX, ""):
        specs = {prefix + key: TensorSpec("F16", (8, 8)) for key in flux_names()}
        assert variant(ARCHITECTURES["flux"], "checkpoint", specs) is None
        specs[f"{prefix}img_in.weight"] = TensorSpec("F16", (3072, 384))
        assert detected("checkpoint", specs) == "flux"
        assert variant(ARCHITECTURES["flux"], "checkpoint", specs) == "inpainting"


def test_a_model_whose_first_layer_is_missing_is_no_variant() -> None:
    assert variant(ARCHITECTURES["sd1"], "diffusers", {}) is None


def test_a_distilled_sdxl_with_fewer_transformer_layers_is_sdxl() -> None:
    assert detected("diffusers", altered_unet("sdxl", transformer_layers_per_block=(1, 2, 4))) == "sdxl"


def kolors() -> Specs:
    return altered_unet("sdxl", encoder_hid_dim_type="text_proj", encoder_hid_dim=4096)


def upscaler() -> Specs:
    plain, cross = "{}Block2D", "CrossAttn{}Block2D"
    kinds = (plain, cross, cross, cross)
    return altered_unet(
        "sd2",
        down_block_types=tuple(kind.format("Down") for kind in kinds),
        up_block_types=tuple(kind.format("Up") for kind in reversed(kinds)),
        block_out_channels=(256, 512, 512, 1024),
        in_channels=7,
    )


UNKNOWN = {
    "Kolors": kolors,
    "the x4 upscaler": upscaler,
    "a UNet of three layers a level": lambda: altered_unet("sd1", layers_per_block=3),
    "a UNet of five levels": lambda: altered_unet(
        "sd1",
        block_out_channels=(32,) * 5,
        down_block_types=("CrossAttnDownBlock2D",) * 4 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 4,
    ),
    "a UNet of SD1's width that reads another text": lambda: altered_unet("sd1", cross_attention_dim=1280),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_folder_of_no_architecture_we_know_is_unknown(what: str) -> None:
    assert detected("diffusers", UNKNOWN[what]()) is None


def without(keys: list[str], *begins: str) -> Specs:
    return {key: TensorSpec("F16", (8, 8)) for key in keys if not key.startswith(begins)}


UNKNOWN_FILES = {
    "a VAE": vae,
    "Chroma, which has no vector": lambda: without(flux_names(guided=False), "vector_in."),
    "a ControlNet of Flux": lambda: without(flux_names(), "single_blocks.", "final_layer."),
    "a ControlNet of SD1": lambda: {
        key: spec
        for key, spec in main_component("sd1", "checkpoint").items()
        if ".output_blocks." not in key and ".out." not in key
    },
    "the keys of SD1 with shapes of nothing": lambda: {
        key: TensorSpec("F16", ()) for key in main_component("sd1", "checkpoint")
    },
}


@pytest.mark.parametrize("what", UNKNOWN_FILES)
def test_a_file_of_no_architecture_we_know_is_unknown(what: str) -> None:
    assert detected("checkpoint", UNKNOWN_FILES[what]()) is None


def test_recognising_the_largest_header_takes_milliseconds() -> None:
    specs = model("sdxl", "checkpoint") | {
        f"conditioner.{number}": TensorSpec("F16", ()) for number in range(800)
    }
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        assert detected("checkpoint", specs) == "sdxl"
        best = min(best, time.perf_counter() - start)
    assert best < 0.005

"""The benchmark's checkpoints have the keys, shapes, bytes and values that real files have."""

from dataclasses import replace
from pathlib import Path

import checkpoints
import layouts
import pytest
import torch
from families import FAMILIES, SDXL, Family
from safetensors.torch import load_file, save_file

COUNTS = {
    "sd15": {"unet": 686, "vae": 248, "text_encoder": 196, "single file": 1143},
    "sdxl": {"unet": 1680, "vae": 248, "text_encoder": 196, "text_encoder_2": 517, "single file": 2515},
}
TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "vocab_size": 514,
}
TINY = {
    "unet": {
        "block_out_channels": [32, 32, 32],
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "transformer_layers_per_block": [1, 1, 2],
    },
    "vae": {"block_out_channels": [16] * 4, "norm_num_groups": 8},
    "text_encoder": TINY_CLIP,
    "text_encoder_2": TINY_CLIP,
}


def tiny_sdxl() -> Family:
    """Returns SDXL with narrow layers."""
    components = {
        name: replace(component, config=component.config | TINY[name])
        for name, component in SDXL.components.items()
    }
    return replace(SDXL, components=components)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_layouts_have_the_keys_and_shapes_of_the_real_classes(name: str) -> None:
    family = FAMILIES[name]
    listed = layouts.weights(family)
    specs = checkpoints.single_specs(family, listed)
    folders = checkpoints.folder_specs(listed)
    counts = {component: len(found) for component, found in folders.items()} | {"single file": len(specs)}
    assert counts == COUNTS[name]
    for component, found in folders.items():
        shapes = {key: shape for key, (_, shape) in found.items()}
        assert layouts.unlike(shapes, layouts.model_shapes(family.components[component])) == []
    assert layouts.differences({key: shape for key, (_, shape) in specs.items()}, family) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pieces_cover_every_element_of_the_single_file_once(name: str) -> None:
    listed = layouts.weights(FAMILIES[name])
    ends: dict[str, int] = {}
    for weight in sorted(listed, key=lambda weight: (weight.single_key, weight.start)):
        assert weight.start == ends.get(weight.single_key, 0)
        ends[weight.single_key] = weight.start + weight.elements
    assert ends == {key: torch.Size(shape).numel() for key, shape in layouts.single_shapes(listed).items()}


def test_a_file_written_in_pieces_is_the_file_of_safetensors(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.float16).reshape(2, 3),
        "a": torch.arange(5, dtype=torch.float32),
        "c": torch.arange(3)[None],
        "scale": torch.tensor(2.5, dtype=torch.float16),
    }
    codes = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
    specs = {key: (codes[tensor.dtype], tuple(tensor.shape)) for key, tensor in tensors.items()}
    output = checkpoints.Output(tmp_path / "ours.safetensors", specs)
    for key, tensor in tensors.items():
        output.fill(key, tensor.numpy())
    output.finish()
    output.close()
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_both_layouts_hold_the_same_values_and_are_made_equal_again(tmp_path: Path) -> None:
    family, models = tiny_sdxl(), ["a", "b"]
    for folder in ("one", "two"):
        checkpoints.make(tmp_path / folder, family, models, single=True, folders=True)
    assert checkpoints.check(tmp_path / "one", family, models, single=True, folders=True) == []
    for path in (tmp_path / "one").rglob("*.*"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes(), path
    single = {model: load_file(tmp_path / "one" / f"{model}.safetensors") for model in models}
    for name, component in family.components.items():
        for model in models:
            folder = load_file(checkpoints.weights_path(tmp_path / "one" / model, name, component))
            converted = layouts.convert(single[model], name, component)
            assert [key for key, tensor in folder.items() if not torch.equal(tensor, converted[key])] == []


def test_b_is_a_with_small_deltas(tmp_path: Path) -> None:
    family = tiny_sdxl()
    checkpoints.make(tmp_path, family, ["a", "b"], single=True, folders=False)
    a, b = (load_file(tmp_path / f"{model}.safetensors") for model in ("a", "b"))
    matrices = [weight.single_key for weight in layouts.weights(family) if weight.elements > 1000]
    deltas = torch.cat([(b[key].float() - a[key].float()).flatten() for key in matrices])
    assert deltas.mean().abs() < 1e-5
    assert 0.0009 < deltas.std() < 0.0011
    assert all(tensor.isfinite().all() for tensor in a.values())

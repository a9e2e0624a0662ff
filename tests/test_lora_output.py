"""LoRAs as results: extracted from models and joined from others, and what they change when baked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.demo import demo_model
from runner.lora.names import Dialect, name_of
from tests.build import merge, planned
from tests.test_bake import KEYS, lora
from tests.test_mixed_layouts import read

SD1 = ARCHITECTURES["sd1"]
EXTRACT = {"method": "extract_lora", "models": {"base": "demo:base", "model": "demo:anime"}}
QUERY = "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"


def of(recipe: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe with other values."""
    return {**recipe, **changes}


def changes_in(path: Path) -> dict[str, Tensor]:
    """What a LoRA changes at strength 1, by the name of its module, as matrices in float64."""
    tensors = {key: tensor.double() for key, tensor in load_file(path).items()}
    found = {}
    for key, up in tensors.items():
        name, end, _ = key.partition(".lora_up.weight")
        if end:
            down = tensors[f"{name}.lora_down.weight"].flatten(1)
            found[name] = up.flatten(1) @ down * (tensors[f"{name}.alpha"] / len(down))
    return found


def join(folder: Path, strength: Any = 1.0, **more: Any) -> dict[str, Any]:
    """A recipe that joins one.safetensors and two.safetensors, which are made."""
    model = demo_model("photo", folder)
    for seed, name in enumerate(("one", "two")):
        save_file(lora(model, Dialect.KOHYA, seed)[0], folder / f"{name}.safetensors")
    models = {"a": "demo:photo", "one": "one.safetensors", "two": "two.safetensors"}
    return {"method": "join_loras", "models": models, "strength": strength, **more}


def test_an_extracted_lora_makes_the_model_of_the_base_as_nearly_as_it_says(
    cache: Path, tmp_path: Path
) -> None:
    path, outcome = merge(of(EXTRACT, rank=6), tmp_path, tmp_path / "lora", cache=cache)
    bake = {"method": "add_lora", "models": {"a": "demo:base", "lora": str(path)}}
    bake["output"] = {"dtype": "float32"}
    baked, _ = merge(bake, tmp_path, tmp_path / "baked", cache=cache)
    base, model, ours = (read(one) for one in (demo_model("base", cache), demo_model("anime", cache), baked))
    modules = {job.key for job in planned(of(EXTRACT, rank=6), tmp_path, cache).jobs}
    for component, (lacking, change) in outcome.moved.items():
        keys = [key for key in modules if key.startswith(f"{component}/")]
        rest = math.fsum(float((model[key].double() - ours[key].double()).square().sum()) for key in keys)
        assert math.isclose(rest, lacking, rel_tol=1e-3)
        assert 0 < lacking < change
    assert set(outcome.moved) == {"unet", "text_encoder"}
    for key in base.keys() - modules:
        assert torch.equal(ours[key], base[key].float())


def test_a_lora_that_was_baked_is_found_again(cache: Path, tmp_path: Path) -> None:
    tensors, changes = lora(demo_model("photo", cache), Dialect.KOHYA, 1)
    save_file(tensors, tmp_path / "lora.safetensors")
    bake = {"method": "add_lora", "models": {"a": "demo:photo", "lora": "lora.safetensors"}}
    bake["output"] = {"dtype": "float32", "name": "baked"}
    baked, _ = merge(bake, tmp_path, tmp_path / "out", cache=cache)
    recipe = of(EXTRACT, models={"base": "demo:photo", "model": str(baked)}, rank=3)
    path, outcome = merge(recipe, tmp_path, tmp_path / "lora", cache=cache)
    found = changes_in(path)
    for key, change in changes.items():
        expected = change.flatten(1)
        ours = found.pop(name_of(SD1, Dialect.KOHYA, key))
        assert float((ours - expected).norm() / expected.norm()) < 2e-3  # factors in float16
    assert found and all(not other.any() for other in found.values())
    assert all(lacking < 4e-6 * change for lacking, change in outcome.moved.values())


@pytest.mark.parametrize("strength", [1.0, {"one": 0.5, "two": {"default": -1.25, "text_encoder": 0}}])
def test_joined_loras_change_what_each_changes(strength: Any, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "photo").symlink_to(demo_model("photo", cache))
    recipe = join(tmp_path, strength, output={"dtype": "float32"})
    path, outcome = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    found = changes_in(path)
    each = [lora(demo_model("photo", cache), Dialect.KOHYA, seed)[1] for seed in range(2)]
    assert len(found) == len(KEYS)
    for key, rank in KEYS.items():
        weights = (1.0, 1.0) if strength == 1.0 else (0.5, 0.0 if key.startswith("text") else -1.25)
        name = name_of(SD1, Dialect.KOHYA, key)
        expected = sum(weight * change[key].flatten(1) for weight, change in zip(weights, each, strict=True))
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6)
        ranks = rank * sum(weight != 0 for weight in weights)
        assert load_file(path)[f"{name}.lora_down.weight"].shape[0] == ranks
    assert all(lacking < 1e-12 * change for lacking, change in outcome.moved.values())


def test_a_rank_keeps_the_strongest_directions_of_the_sum(cache: Path, tmp_path: Path) -> None:
    recipe = join(tmp_path, rank=2, output={"dtype": "float32"})
    path, _ = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    each = [lora(demo_model("photo", cache), Dialect.KOHYA, seed)[1] for seed in range(2)]
    for key in KEYS:
        left, values, right = torch.linalg.svd(each[0][key].flatten(1) + each[1][key].flatten(1))
        expected = left[:, :2] * values[:2] @ right[:2]
        ours = changes_in(path)[name_of(SD1, Dialect.KOHYA, key)]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)

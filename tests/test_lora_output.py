"""LoRAs as results: extracted from models and joined from others, and what they change when baked."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.demo.models import demo_model
from runner.errors import IncompatibleError, NumericError, RecipeError
from runner.lora.names import Dialect, name_of
from tests.build import merge, planned
from tests.engine.test_bake import KEYS, lora
from tests.stored import read

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


def join(cache: Path, folder: Path, strength: Any = 1.0, **more: Any) -> dict[str, Any]:
    """A recipe that joins one.safetensors and two.safetensors, which are made."""
    for seed, name in enumerate(("one", "two")):
        save_file(lora(demo_model("photo", cache), Dialect.KOHYA, seed)[0], folder / f"{name}.safetensors")
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
    recipe = join(cache, tmp_path, strength, output={"dtype": "float32"})
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
    recipe = join(cache, tmp_path, rank=2, output={"dtype": "float32"})
    path, _ = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    each = [lora(demo_model("photo", cache), Dialect.KOHYA, seed)[1] for seed in range(2)]
    for key in KEYS:
        left, values, right = torch.linalg.svd(each[0][key].flatten(1) + each[1][key].flatten(1))
        expected = left[:, :2] * values[:2] @ right[:2]
        ours = changes_in(path)[name_of(SD1, Dialect.KOHYA, key)]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_threads_do_not_change_a_byte(cache: Path, tmp_path: Path) -> None:
    for recipe in (of(EXTRACT, rank=4), join(cache, tmp_path), join(cache, tmp_path, rank=2)):
        digests = {
            outcome.contents[0]
            for threads in (1, 3)
            for _, outcome in [merge(recipe, tmp_path, tmp_path / "out", threads=threads, cache=cache)]
        }
        assert len(digests) == 1


def test_equal_models_give_factors_of_zeros(cache: Path, tmp_path: Path) -> None:
    recipe = of(EXTRACT, models={"base": "demo:base", "model": "demo:base"}, rank=2)
    path, outcome = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    assert all(not change.any() for change in changes_in(path).values())
    assert set(outcome.moved.values()) == {(0.0, 0.0)}


def test_the_header_says_what_readers_of_kohyas_files_look_for(cache: Path, tmp_path: Path) -> None:
    from runner.formats.safetensors import SafetensorsFile

    path, _ = merge(of(EXTRACT, rank=6, conv_rank=3), tmp_path, tmp_path / "out", cache=cache)
    said = SafetensorsFile().open(path, "lora", None)
    assert said.metadata["ss_network_module"] == "networks.lora"
    assert said.metadata["ss_network_dim"] == said.metadata["ss_network_alpha"] == "6"
    assert said.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert {spec.dtype for spec in said.specs.values()} == {"F16"}
    ranks = {
        (max(spec.shape[2:], default=1) > 1, spec.shape[0])
        for key, spec in said.specs.items()
        if key.endswith("lora_down.weight")
    }
    assert ranks == {(False, 6), (True, 3)}


def test_ranks_vary_by_place_and_0_leaves_out(cache: Path, tmp_path: Path) -> None:
    plan = planned(of(EXTRACT, rank={"default": 5, "text_encoder": 0, "M00": 2}), tmp_path, cache)
    assert {job.rank for job in plan.jobs} == {5, 4, 2}  # the image has four channels
    assert {job.place.component for job in plan.jobs} == {"unet"}
    assert all(key.startswith("text_encoder/") for key in plan.dropped["rank 0"])
    assert any(warning.startswith("not part of a LoRA (") for warning in plan.warnings)
    assert plan.determinism == "machine"


def test_only_the_header_of_the_base_is_read(cache: Path, tmp_path: Path) -> None:
    plan = planned(join(cache, tmp_path), tmp_path, cache)
    assert {load.model for job in plan.jobs for load in job.loads} == {1, 2}
    assert plan.determinism == "stable"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": {"format": "checkpoint"}}, "the result of extract_lora is a LoRA"),
        ({"output": {"max_shard_size": "5GB"}}, "a single file is not split"),
        ({"method": "expo", "output": {"format": "lora"}}, "the result of expo is a model"),
        ({"method": "expo", "models": {"base": "demo:base", "model": EXTRACT}}, "no part of another merge"),
    ],
)
def test_what_is_no_recipe_of_a_lora_is_refused(
    changes: dict[str, Any], message: str, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(of(EXTRACT, **changes), tmp_path, cache)


def loha(cache: Path) -> dict[str, Tensor]:
    """A LoHa of one tensor."""
    rows, columns = read(demo_model("photo", cache))[QUERY].shape
    generator = torch.Generator().manual_seed(4)
    name = name_of(SD1, Dialect.KOHYA, QUERY)
    factors = {f"{name}.hada_w{n}_a": torch.randn(rows, 2, generator=generator) for n in (1, 2)}
    return factors | {f"{name}.hada_w{n}_b": torch.randn(2, columns, generator=generator) for n in (1, 2)}


def test_a_loha_becomes_a_lora_of_the_rank_that_is_said(cache: Path, tmp_path: Path) -> None:
    factors = loha(cache)
    save_file(factors, tmp_path / "loha.safetensors")
    recipe = {"method": "join_loras", "models": {"a": "demo:photo", "x": "loha.safetensors"}}
    with pytest.raises(IncompatibleError, match="loha cannot be joined exactly; say rank"):
        planned(recipe, tmp_path, cache)
    output = {"dtype": "float32"}
    path, _ = merge(of(recipe, rank=4, output=output), tmp_path, tmp_path / "out", cache=cache)
    name = name_of(SD1, Dialect.KOHYA, QUERY)
    halves = [
        factors[f"{name}.hada_w{n}_a"].double() @ factors[f"{name}.hada_w{n}_b"].double() for n in (1, 2)
    ]
    expected = halves[0] * halves[1]  # of rank 4 at most
    torch.testing.assert_close(changes_in(path)[name], expected, rtol=1e-5, atol=1e-5)


def test_a_dora_is_refused(cache: Path, tmp_path: Path) -> None:
    tensors, _ = lora(demo_model("photo", cache), Dialect.KOHYA, 1)
    rows = read(demo_model("photo", cache))[QUERY].shape[0]
    tensors[f"{name_of(SD1, Dialect.KOHYA, QUERY)}.dora_scale"] = torch.ones(rows, 1)
    save_file(tensors, tmp_path / "dora.safetensors")
    recipe = {"method": "join_loras", "models": {"a": "demo:photo", "x": "dora.safetensors"}}
    with pytest.raises(IncompatibleError, match="DoRA's lengths follow from the weights"):
        planned(recipe, tmp_path, cache)


def test_nan_has_no_factors(cache: Path, tmp_path: Path) -> None:
    tensors, _ = lora(demo_model("photo", cache), Dialect.KOHYA, 1)
    next(tensor for key, tensor in tensors.items() if key.endswith("lora_up.weight"))[0] = math.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    recipe = {"method": "join_loras", "models": {"a": "demo:photo", "x": "nan.safetensors"}, "rank": 1}
    with pytest.raises(NumericError, match="NaN or Inf"):
        merge(recipe, tmp_path, tmp_path / "out", cache=cache)


def test_diffusers_knows_every_name_and_shape(cache: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    path, _ = merge(of(EXTRACT, rank=4), tmp_path, tmp_path / "out", cache=cache)
    found = StableDiffusionPipeline.lora_state_dict(str(path), weight_name=path.name)
    state, alphas = found[:2]
    pipeline = StableDiffusionPipeline.from_pretrained(demo_model("base", cache))
    modules = {f"unet.{name}": module for name, module in pipeline.unet.named_modules()}
    downs = {
        re.sub(r"\.processor|[._]lora.*", "", key): tensor
        for key, tensor in state.items()
        if ".down.weight" in key or "lora_A" in key
    }
    assert len(downs) == len(changes_in(path)) == len(alphas)
    for name, down in downs.items():
        if name.startswith("unet."):  # its older names of layers lack the number in to_out.0
            module = modules[name] if hasattr(modules[name], "weight") else modules[f"{name}.0"]
            assert module.weight.shape[1] == down.shape[1]


def test_a_lora_that_stands_twice_is_joined_twice(cache: Path, tmp_path: Path) -> None:
    recipe = of(join(cache, tmp_path, {"one": 1, "two": 0.5}), output={"dtype": "float32"})
    recipe["models"]["two"] = "one.safetensors"
    path, _ = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    for key, change in lora(demo_model("photo", cache), Dialect.KOHYA, 0)[1].items():
        ours = changes_in(path)[name_of(SD1, Dialect.KOHYA, key)]
        torch.testing.assert_close(ours, 1.5 * change.flatten(1), rtol=1e-5, atol=1e-5)

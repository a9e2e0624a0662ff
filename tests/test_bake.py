"""Adapters baked into models: the formula, for every dialect of names, tile and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.demo import demo_model
from runner.errors import IncompatibleError, RecipeError
from runner.lora.names import Dialect, name_of
from tests.build import merge, planned
from tests.test_mixed_layouts import as_single_file, read

SD1 = ARCHITECTURES["sd1"]
KEYS = {
    "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": 3,
    "unet/down_blocks.1.resnets.0.conv1.weight": 2,
    "unet/mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": 1,
    "text_encoder/text_model.encoder.layers.0.self_attn.q_proj.weight": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with the demo model as a folder and as a single file."""
    root = tmp_path_factory.mktemp("models")
    (root / "photo").symlink_to(demo_model("photo", cache))
    save_file(as_single_file("sd1", read(root / "photo")), root / "photo.safetensors", {"format": "pt"})
    return root


def lora(model: Path, dialect: Dialect, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a LoRA, and by key what it changes at strength 1, in float64."""
    generator = torch.Generator().manual_seed(seed)
    tensors, changes = {}, {}
    ends = {
        Dialect.KOHYA: ("lora_down.weight", "lora_up.weight"),
        Dialect.DIFFUSERS: ("lora_A.weight", "lora_B.weight"),
    }[dialect]
    shapes = {key: tensor.shape for key, tensor in read(model).items()}
    for key, rank in KEYS.items():
        shape = shapes[key]
        down = torch.randn(rank, *shape[1:], generator=generator).half()
        up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator).half()
        name = name_of(SD1, dialect, key)
        assert name is not None
        tensors |= {f"{name}.{ends[0]}": down, f"{name}.{ends[1]}": up}
        scale = 1.0
        if dialect is Dialect.KOHYA:
            tensors[f"{name}.alpha"] = torch.tensor(1.5).half()
            scale = 1.5 / rank
        product = up.double().reshape(shape[0], rank) @ down.double().reshape(rank, -1)
        changes[key] = scale * product.reshape(shape)
    return tensors, changes


def tree(base: str, **adapters: Any) -> dict[str, Any]:
    models = {"a": base, **{name: str(path) for name, (path, _) in adapters.items()}}
    strength = {name: strength for name, (_, strength) in adapters.items()}
    return {"method": "add_lora", "models": models, "strength": strength}


@pytest.mark.parametrize("dialect", [Dialect.KOHYA, Dialect.DIFFUSERS])
@pytest.mark.parametrize("source", ["photo", "photo.safetensors"])
def test_a_lora_adds_its_products_where_it_names_them(
    source: str, dialect: Dialect, base: Path, tmp_path: Path
) -> None:
    tensors, changes = lora(base / "photo", dialect, 1)
    save_file(tensors, tmp_path / "lora.safetensors")
    recipe = tree(source, detail=(tmp_path / "lora.safetensors", 0.7))
    recipe["output"] = {"format": "diffusers", "config": "photo", "dtype": "float32"}
    path, _ = merge(recipe, base, tmp_path / "out")
    before, after = read(base / "photo"), read(path)
    assert after.keys() == before.keys()
    for key, tensor in after.items():
        expected = before[key].double()
        if key in changes:
            expected = expected + 0.7 * changes[key]
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)


def test_several_loras_add_up_each_with_its_strength_by_place(base: Path, tmp_path: Path) -> None:
    found = {}
    for seed, name in enumerate(("one", "two")):
        tensors, found[name] = lora(base / "photo", Dialect.KOHYA, seed)
        save_file(tensors, tmp_path / f"{name}.safetensors")
    recipe = tree(
        "photo",
        one=(tmp_path / "one.safetensors", {"default": 0.5, "text_encoder": 0}),
        two=(tmp_path / "two.safetensors", {"default": 1, "M00": -0.25}),
    )
    recipe["output"] = {"dtype": "float32"}
    path, _ = merge(recipe, base, tmp_path / "out")
    before, after = read(base / "photo"), read(path)
    for key in KEYS:
        one = 0 if key.startswith("text_encoder") else 0.5
        two = -0.25 if "mid_block" in key else 1
        expected = before[key].double() + one * found["one"][key] + two * found["two"][key]
        torch.testing.assert_close(after[key].double(), expected, rtol=1e-6, atol=2e-6)


def test_tiles_and_threads_do_not_change_a_byte(base: Path, tmp_path: Path) -> None:
    tensors = {}
    for key in ("a", "b"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{key}.safetensors")
    large, _ = lora(base / "photo", Dialect.KOHYA, 3)
    tensors |= large
    save_file(tensors, tmp_path / "lora.safetensors")
    recipe = tree("photo", detail=(tmp_path / "lora.safetensors", 0.3))
    digests = {
        outcome.contents[0]
        for tile, threads in ((32768, 1), (65536, 3))
        for _, outcome in [merge(recipe, base, tmp_path / f"{tile}", tile_elements=tile, threads=threads)]
    }
    assert len(digests) == 1


def test_dora_gives_rows_their_lengths(base: Path, tmp_path: Path) -> None:
    key = "unet/mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    before = read(base / "photo")[key].double()
    generator = torch.Generator().manual_seed(2)
    up, down = torch.randn(before.shape[0], 2, generator=generator), torch.randn(2, before.shape[1])
    lengths = torch.rand(before.shape[0], 1, generator=generator) + 0.5
    name = name_of(SD1, Dialect.KOHYA, key)
    save_file(
        {
            f"{name}.lora_up.weight": up,
            f"{name}.lora_down.weight": down,
            f"{name}.dora_scale": lengths,
            f"{name}.alpha": torch.tensor(2.0),
        },
        tmp_path / "dora.safetensors",
    )
    recipe = tree("photo", detail=(tmp_path / "dora.safetensors", 1.0))
    recipe["output"] = {"dtype": "float32"}
    path, _ = merge(recipe, base, tmp_path / "out")
    changed = before + up.double() @ down.double()
    expected = changed / changed.norm(dim=1, keepdim=True) * lengths.double()
    torch.testing.assert_close(read(path)[key].double(), expected, rtol=1e-6, atol=1e-6)


def test_only_what_a_lora_changes_is_computed(base: Path, tmp_path: Path) -> None:
    tensors, _ = lora(base / "photo", Dialect.KOHYA, 1)
    save_file(tensors, tmp_path / "lora.safetensors")
    plan = planned(tree("photo", detail=(tmp_path / "lora.safetensors", 1)), base)
    assert {job.key for job in plan.jobs if job.steps} == set(KEYS)
    assert plan.determinism == "stable"
    none = planned(tree("photo", detail=(tmp_path / "lora.safetensors", 0)), base)
    assert not any(job.steps for job in none.jobs)


def test_a_lora_can_change_a_merge(base: Path, cache: Path, tmp_path: Path) -> None:
    tensors, changes = lora(base / "photo", Dialect.KOHYA, 1)
    save_file(tensors, tmp_path / "lora.safetensors")
    inner = {"method": "weighted_sum", "models": {"a": "photo", "b": "demo:anime"}, "alpha": 0.5}
    recipe = tree("photo", detail=(tmp_path / "lora.safetensors", 1))
    recipe["models"]["a"] = inner
    recipe["output"] = {"dtype": "float32"}
    path, _ = merge(recipe, base, tmp_path / "out", cache=cache)
    a, b = read(base / "photo"), read(demo_model("anime", cache))
    for key, change in changes.items():
        expected = 0.5 * a[key].double() + 0.5 * b[key].double() + change
        torch.testing.assert_close(read(path)[key].double(), expected, rtol=1e-6, atol=1e-6)


def test_what_has_no_place_is_an_error_that_lists_it(base: Path, tmp_path: Path) -> None:
    tensors, _ = lora(base / "photo", Dialect.KOHYA, 1)
    tensors["lora_unet_no_such_module.lora_up.weight"] = torch.ones(4, 2)
    tensors["lora_unet_no_such_module.lora_down.weight"] = torch.ones(2, 4)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(IncompatibleError, match="lora_unet_no_such_module") as caught:
        planned(tree("photo", detail=(tmp_path / "lora.safetensors", 1)), base)
    assert caught.value.exit_code == 5


def test_models_and_adapters_are_not_taken_for_each_other(base: Path, tmp_path: Path) -> None:
    tensors, _ = lora(base / "photo", Dialect.KOHYA, 1)
    save_file(tensors, tmp_path / "lora.safetensors")
    path = str(tmp_path / "lora.safetensors")
    with pytest.raises(RecipeError, match=r"models\.b: .* is a file of adapters, no model; add_lora"):
        planned({"method": "weighted_sum", "models": {"a": "photo", "b": path}}, base)
    with pytest.raises(RecipeError, match=r'models\.detail: "photo" is no file of adapters'):
        planned({"method": "add_lora", "models": {"a": "photo", "detail": "photo"}}, base)
    with pytest.raises(RecipeError, match=r"models\.a: .* is a file of adapters"):
        planned({"method": "add_lora", "models": {"a": path, "detail": path}}, base)


def test_the_demo_lora_changes_the_demo_model(cache: Path, tmp_path: Path) -> None:
    recipe = {"method": "add_lora", "models": {"a": "demo:photo", "detail": "demo:lora"}}
    path, outcome = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    assert outcome.moved["unet"][0] > 0 and outcome.moved["text_encoder"][0] > 0
    assert read(path).keys() == read(demo_model("photo", cache)).keys()
    assert len(load_file(demo_model("lora", cache))) > 100

"""Adapters baked into models: the formula, for every dialect of names, tile and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.demo.models import demo_model
from runner.errors import IncompatibleError, NumericError, RecipeError
from runner.formats.safetensors import SafetensorsFile
from runner.lora.names import Dialect, name_of
from runner.models.changes import changes_of
from tests.architectures.models import transformer
from tests.build import merge, planned
from tests.stored import as_single_file, read

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


def baked(base: Path, folder: Path, file: dict[str, Tensor], strength: float = 1.0) -> dict[str, Tensor]:
    """The tensors of the demo model with a file of adapters, in float32."""
    save_file(file, folder / "adapter.safetensors")
    recipe = tree("photo", detail=(folder / "adapter.safetensors", strength))
    recipe["output"] = {"dtype": "float32"}
    return read(merge(recipe, base, folder / "out")[0])


@pytest.mark.parametrize("key", list(KEYS)[:3])
def test_dora_gives_inputs_their_lengths(key: str, base: Path, tmp_path: Path) -> None:
    tensors, changes = lora(base / "photo", Dialect.KOHYA, 1)
    changed = read(base / "photo")[key].double() + changes[key]
    inputs = changed.shape[1]
    lengths = torch.rand(inputs, generator=torch.Generator().manual_seed(2)) + 0.5
    shape = (1, inputs, *(1 for _ in changed.shape[2:]))  # as LyCORIS has them
    name = name_of(SD1, Dialect.KOHYA, key)
    file = {end: tensor for end, tensor in tensors.items() if end.startswith(f"{name}.")}
    ours = baked(base, tmp_path, file | {f"{name}.dora_scale": lengths.reshape(shape)}, 0.5)[key]
    columns = changed.transpose(0, 1).flatten(1).norm(dim=1).reshape(shape)
    before = read(base / "photo")[key].double()
    expected = before + 0.5 * (changed / columns * lengths.double().reshape(shape) - before)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_tensor_whose_inputs_get_lengths_is_computed_whole(base: Path, tmp_path: Path) -> None:
    key = "unet/mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    tensors, _ = lora(base / "photo", Dialect.KOHYA, 1)
    name, inputs = name_of(SD1, Dialect.KOHYA, key), read(base / "photo")[key].shape[1]
    tensors[f"{name}.dora_scale"] = torch.ones(1, inputs)
    save_file(tensors, tmp_path / "lora.safetensors")
    plan = planned(tree("photo", detail=(tmp_path / "lora.safetensors", 1)), base)
    whole = {job.key for job in plan.jobs if job.steps and job.whole}
    assert whole == {key}


def test_lengths_of_inputs_over_several_tensors_are_refused(tmp_path: Path) -> None:
    """A single file of Flux stores query, key and value as one; DoRA of that has lengths over all three."""
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    base = {f"transformer/{key}": spec for key, spec in transformer("flux").items()}
    rows, columns = base["transformer/transformer_blocks.0.attn.to_q.weight"].shape
    file = {
        f"{name}.lora_up.weight": torch.ones(3 * rows, 2),
        f"{name}.lora_down.weight": torch.ones(2, columns),
        f"{name}.dora_scale": torch.ones(1, columns),
    }
    save_file(file, tmp_path / "dora.safetensors")
    opened = SafetensorsFile().open(tmp_path / "dora.safetensors", "dora", None)
    with pytest.raises(IncompatibleError, match="lengths of inputs over several tensors"):
        changes_of(ARCHITECTURES["flux"], base, opened, partial=False)


@pytest.mark.parametrize("alpha", [float("inf"), float("nan"), 1e9, -1e9])
def test_an_alpha_that_is_no_scale_is_one_clear_line(alpha: float, base: Path, tmp_path: Path) -> None:
    name = name_of(SD1, Dialect.KOHYA, next(iter(KEYS)))
    tensors, _ = lora(base / "photo", Dialect.KOHYA, 1)
    tensors[f"{name}.alpha"] = torch.tensor(alpha)
    with pytest.raises(NumericError, match=rf"{name}: alpha .* for rank 3 is no scale") as caught:
        baked(base, tmp_path, tensors)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value.message)


@pytest.mark.parametrize(
    ("up", "down", "why"),
    [
        ((1 << 20, 1), (1, 1 << 20), r"the product is \[1048576,1048576\], but"),  # 4 TiB of a few MiB
        ((32, 0), (0, 32), "a rank of 0"),
        ((32, 2), (3, 32), "ranks differ: 2 and 3"),
    ],
)
def test_factors_that_make_no_change_of_the_model_are_refused_before_anything_is_computed(
    up: tuple[int, int], down: tuple[int, int], why: str, base: Path, tmp_path: Path
) -> None:
    name = name_of(SD1, Dialect.KOHYA, next(iter(KEYS)))
    file = {
        f"{name}.lora_up.weight": torch.zeros(up, dtype=torch.float16),
        f"{name}.lora_down.weight": torch.zeros(down, dtype=torch.float16),
    }
    save_file(file, tmp_path / "lora.safetensors")
    for method in ("add_lora", "join_loras"):
        recipe = tree("photo", detail=(tmp_path / "lora.safetensors", 1)) | {"method": method}
        with pytest.raises(IncompatibleError, match=why):
            planned(recipe, base)


@pytest.fixture
def inpainting(base: Path, tmp_path: Path) -> Path:
    """The demo model as it is, and with nine channels of the image instead of four."""
    single = load_file(base / "photo.safetensors")
    save_file(single, tmp_path / "photo.safetensors", {"format": "pt"})
    conv = single[CONV_IN_STORED]
    more = torch.randn(conv.shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(5)).to(conv.dtype)
    save_file(
        single | {CONV_IN_STORED: torch.cat([conv, more], 1)},
        tmp_path / "inpaint.safetensors",
        {"format": "pt"},
    )
    return tmp_path


CONV_IN_STORED = "model.diffusion_model.input_blocks.0.0.weight"
CHANNELS = {
    "method": "weighted_sum",
    "models": {"a": "inpaint.safetensors", "b": "other.safetensors"},
    "alpha": 0.25,
    "shapes": "channels",
}


def conv_in_lora(channels: int, rows: int) -> dict[str, Tensor]:
    """A LoRA of the convolution that the image enters by."""
    generator = torch.Generator().manual_seed(7)
    return {
        "lora_unet_conv_in.lora_up.weight": torch.randn(rows, 2, 1, 1, generator=generator),
        "lora_unet_conv_in.lora_down.weight": torch.randn(2, channels, 3, 3, generator=generator),
        "lora_unet_conv_in.alpha": torch.tensor(2.0),
    }


def test_a_lora_changes_all_channels_of_a_merge_of_the_first_ones(inpainting: Path) -> None:
    other = load_file(inpainting / "photo.safetensors")
    other[CONV_IN_STORED] = other[CONV_IN_STORED] + 1
    save_file(other, inpainting / "other.safetensors", {"format": "pt"})
    nine = load_file(inpainting / "inpaint.safetensors")[CONV_IN_STORED].double()
    file = conv_in_lora(9, len(nine))
    save_file(file, inpainting / "lora.safetensors")
    recipe = {"method": "add_lora", "models": {"a": CHANNELS, "lora": "lora.safetensors"}}
    recipe |= {"shapes": "channels", "output": {"dtype": "float32"}}
    path, _ = merge(recipe, inpainting, inpainting / "out")
    up, down = (file[f"lora_unet_conv_in.lora_{end}.weight"].double() for end in ("up", "down"))
    expected = nine.clone()
    expected[:, :4] = 0.75 * nine[:, :4] + 0.25 * other[CONV_IN_STORED].double()
    expected += (up.flatten(1) @ down.flatten(1)).reshape(nine.shape)
    torch.testing.assert_close(load_file(path)[CONV_IN_STORED].double(), expected, rtol=1e-6, atol=1e-6)


def test_a_lora_for_four_channels_does_not_fit_nine(inpainting: Path) -> None:
    nine = load_file(inpainting / "inpaint.safetensors")[CONV_IN_STORED]
    save_file(conv_in_lora(4, len(nine)), inpainting / "lora.safetensors")
    recipe = {"method": "add_lora", "models": {"a": "inpaint.safetensors", "lora": "lora.safetensors"}}
    message = r"lora_unet_conv_in.*: the product is \[\d+,4,3,3\], but unet/conv_in.weight is \[\d+,9,3,3\]"
    with pytest.raises(IncompatibleError, match=message):
        planned(recipe | {"shapes": "channels"}, inpainting)


def test_a_lora_inside_a_merge_must_fit_the_first_model_too(inpainting: Path) -> None:
    four = load_file(inpainting / "photo.safetensors")[CONV_IN_STORED]
    save_file(conv_in_lora(4, len(four)), inpainting / "lora.safetensors")
    inner = {"method": "add_lora", "models": {"a": "photo.safetensors", "lora": "lora.safetensors"}}
    recipe = CHANNELS | {"models": {"a": "inpaint.safetensors", "b": inner}}
    with pytest.raises(
        IncompatibleError, match=r"product is \[\d+,4,3,3\], but unet/conv_in.weight is \[\d+,9,"
    ):
        planned(recipe, inpainting)

"""Models stored in fp8, plain and scaled: values against float64, every layout, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.demo.models import demo_model
from runner.describe import describe
from runner.engine.compute import dequantise
from runner.errors import IncompatibleError, NumericError
from runner.place import Devices, place
from runner.tensors import TensorSpec
from tests.build import merge, merged, planned
from tests.stored import as_single_file, equal, read

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
NAMES = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
KEY = "model.diffusion_model.linear.weight"
SCALES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "a scalar": lambda rows: (),
    "one number": lambda rows: (1,),
    "rows": lambda rows: (rows,),
    "a column": lambda rows: (rows, 1),
}
Tensors = dict[str, Tensor]


def codes(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random finite codes."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    found = bits.view(dtype)
    return torch.where(torch.isfinite(found.float()), bits, 0x31).to(torch.uint8).view(dtype)


def scale(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 0.01 + 1e-4).to(dtype)


def exact(stored: Tensor, factor: Tensor) -> Tensor:
    """code × scale: 4 by 24 bits fit into float64, so this is rounded once."""
    wide = factor.double()
    if wide.dim():
        wide = wide.reshape(-1, *[1] * (stored.dim() - 1))
    return (stored.double() * wide).float()


def copy(name: str = "a", **changes: Any) -> dict[str, Any]:
    """A recipe whose result is its first model."""
    models = {"a": f"{name}.safetensors", "b": f"{name}.safetensors"}
    return {"method": "weighted_sum", "models": models, "alpha": 0.0, **changes}


def save(folder: Path, name: str = "a", **tensors: Tensor) -> None:
    save_file(
        {key.replace("__", "."): tensor for key, tensor in tensors.items()}, folder / f"{name}.safetensors"
    )


# ---- Values.


@pytest.mark.parametrize("of", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("form", SCALES)
@pytest.mark.parametrize("dtype", FP8.values(), ids=FP8)
def test_a_scaled_tensor_is_code_times_scale_in_every_tile(
    dtype: torch.dtype, form: str, name: str, of: torch.dtype, tmp_path: Path
) -> None:
    stored, factor = codes(dtype, (301, 257)), scale(SCALES[form](301), of)  # rows are cut by tiles
    save_file({KEY: stored, f"model.diffusion_model.linear.{name}": factor}, tmp_path / "a.safetensors")
    result = merged(copy(output={"dtype": "float32"}), tmp_path, tmp_path / "out")
    assert result.keys() == {KEY}
    assert torch.equal(result[KEY], exact(stored, factor))


@given(
    dtype=st.sampled_from(sorted(FP8)),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    by_row=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(deadline=None)
def test_any_part_of_a_tensor_is_that_part_of_the_whole(
    dtype: str, rows: int, columns: int, by_row: bool, seed: int, data: st.DataObject
) -> None:
    stored = codes(FP8[dtype], (rows, columns), seed)
    factor = scale((rows,) if by_row else (), seed=seed)
    start = data.draw(st.integers(0, stored.numel() - 1))
    stop = data.draw(st.integers(start + 1, stored.numel()))
    out = bytearray(4 * (stop - start))
    first, last = (start // columns, (stop - 1) // columns) if by_row else (0, 0)
    dequantise(
        memoryview(bytearray(stored.view(torch.uint8).flatten()[start:stop].numpy().tobytes())),
        TensorSpec(dtype, (rows, columns)),
        start,
        memoryview(bytearray(factor.reshape(-1)[first : last + 1].numpy().tobytes())),
        TensorSpec("F32", tuple(factor.shape)),
        memoryview(out),
    )
    values = torch.frombuffer(out, dtype=torch.float32)
    assert torch.equal(values, exact(stored, factor).flatten()[start:stop])


@pytest.mark.parametrize("threads", [1, 3])
def test_values_are_merged_and_never_codes(threads: int, tmp_path: Path) -> None:
    stored, factor = codes(torch.float8_e4m3fn, (90, 1000)), scale((90, 1))
    plain = codes(torch.float8_e5m2, (90, 1000), 3)
    save(tmp_path, "a", x__weight=stored, x__weight_scale=factor)
    save(tmp_path, "b", x__weight=plain)
    tree = copy(alpha=0.25, output={"dtype": "float32"})
    tree["models"]["b"] = "b.safetensors"
    result = merged(tree, tmp_path, tmp_path / "out", threads=threads)
    assert torch.equal(result["x.weight"], exact(stored, factor) * 0.75 + plain.float() * 0.25)
    # The same as of models that hold the values.
    save(tmp_path, "c", x__weight=exact(stored, factor))
    save(tmp_path, "d", x__weight=plain.float())
    tree["models"] = {"a": "c.safetensors", "b": "d.safetensors"}
    assert equal(merged(tree, tmp_path, tmp_path / "again"), result)


@pytest.mark.parametrize("method", ["slerp", "ties", "model_stock"])
def test_methods_that_measure_see_the_values(method: str, tmp_path: Path) -> None:
    factor = scale((40, 1))
    for number, name in enumerate("abc"):
        stored = codes(torch.float8_e4m3fn, (40, 1000), number)
        save(tmp_path, name, x__weight=stored, x__scale_weight=factor)
        save(tmp_path, f"{name}_wide", x__weight=exact(stored, factor))
    roles = ("a", "b") if method == "slerp" else ("base", "x", "y")
    results = [
        merged(
            {
                "method": method,
                "models": {
                    role: f"{name}{end}.safetensors" for role, name in zip(roles, "abc", strict=False)
                },
                "output": {"dtype": "float32"},
            },
            tmp_path,
            tmp_path / f"out{end}",
        )
        for end in ("", "_wide")
    ]
    assert equal(*results)


# ---- What is written.


@pytest.mark.parametrize("dtype", FP8.values(), ids=FP8)
def test_an_unscaled_tensor_is_copied_to_its_dtype_byte_for_byte(dtype: torch.dtype, tmp_path: Path) -> None:
    every = torch.arange(256).to(torch.uint8)
    save(tmp_path, x=every.view(dtype), y__weight=codes(dtype, (40, 1000)))
    tree = copy(output={"dtype": NAMES[dtype]}, nonfinite=["x"])
    result = merged(tree, tmp_path, tmp_path / "out")
    there = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(result[key].view(torch.uint8), there[key].view(torch.uint8)) for key in there)


@pytest.mark.parametrize("scaled", [False, True])
def test_fp8_is_written_as_bfloat16_unless_the_recipe_says(scaled: bool, tmp_path: Path) -> None:
    stored, factor = codes(torch.float8_e5m2, (30, 20)), scale(())
    beside = {"x__scale_weight": factor} if scaled else {}
    save(tmp_path, x__weight=stored, n__bias=torch.ones(3).half(), **beside)
    plan = planned(copy(), tmp_path)
    (warning,) = [warning for warning in plan.warnings if "bfloat16" in warning]
    assert (
        warning.startswith("stored in fp8, written as bfloat16: output.dtype can say")
        and "x.weight" in warning
    )
    result = merged(copy(), tmp_path, tmp_path / "out")
    values = exact(stored, factor) if scaled else stored.float()
    assert torch.equal(result["x.weight"], values.bfloat16())
    assert result["n.bias"].dtype == torch.float16
    said = planned(copy(output={"dtype": "float16"}), tmp_path)
    assert not [warning for warning in said.warnings if "bfloat16" in warning]


def test_a_first_model_in_float16_decides_the_dtype(tmp_path: Path) -> None:
    save(tmp_path, "a", x__weight=torch.ones(4, 4).half())
    save(tmp_path, "b", x__weight=codes(torch.float8_e4m3fn, (4, 4)))
    tree = copy(alpha=0.5)
    tree["models"]["b"] = "b.safetensors"
    assert merged(tree, tmp_path, tmp_path / "out")["x.weight"].dtype == torch.float16


def test_each_component_can_be_written_in_another_fp8(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = {
        "model.diffusion_model.x.weight": "float8_e4m3fn",
        "first_stage_model.x.weight": "float8_e5m2",
        "cond_stage_model.x.weight": "bfloat16",
    }
    tensors = {key: torch.randn(40, 50, generator=generator) for key in keys}
    save_file(tensors, tmp_path / "a.safetensors")
    dtypes = {"model": "float8_e4m3fn", "vae": "float8_e5m2", "default": "bfloat16"}
    result = merged(copy(output={"dtype": dtypes}), tmp_path, tmp_path / "out")
    for key, dtype in keys.items():
        expected = tensors[key].to(getattr(torch, dtype))
        assert result[key].dtype == expected.dtype
        assert torch.equal(result[key].float(), expected.float())


@pytest.mark.parametrize("alpha", [0.0, 0.5], ids=["copied", "merged"])
@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float8_e4m3fn", 448.0, True),
        ("float8_e4m3fn", 449.0, False),
        ("float8_e4m3fn", -1e5, False),
        ("float8_e5m2", 57344.0, True),
        ("float8_e5m2", 60000.0, False),
    ],
)
@pytest.mark.parametrize("lenient", [False, True], ids=["", "NaN and Inf allowed"])
def test_what_fp8_cannot_hold_is_an_error_and_never_clamped(
    dtype: str, value: float, fits: bool, alpha: float, lenient: bool, tmp_path: Path
) -> None:
    for name in "ab":
        save(tmp_path, name, x=torch.tensor([1.0, value]))
    tree = copy(alpha=alpha, output={"dtype": dtype}, **({"nonfinite": ["*"]} if lenient else {}))
    tree["models"]["b"] = "b.safetensors"
    if fits:
        assert merged(tree, tmp_path, tmp_path / "out")["x"].float().tolist() == [1.0, value]
        return
    with pytest.raises(NumericError, match=rf'tensor "x": the result reaches {abs(value):.6g}, F8_'):
        merge(tree, tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_inf_passes_only_into_the_fp8_that_has_it(tmp_path: Path) -> None:
    save(tmp_path, x=torch.tensor([1.0, float("inf"), float("nan")]))
    tree = copy(nonfinite=["x"], output={"dtype": "float8_e5m2"})
    result = merged(tree, tmp_path, tmp_path / "out")["x"].float()
    assert result[:2].tolist() == [1.0, float("inf")] and result[2].isnan()
    with pytest.raises(NumericError, match="the result is not finite, F8_E4M3 holds at most 448"):
        merge({**tree, "output": {"dtype": "float8_e4m3fn"}}, tmp_path, tmp_path / "none")


def test_a_code_or_scale_that_is_not_finite_is_noticed(tmp_path: Path) -> None:
    bits = torch.tensor([0x38, 0x7F], dtype=torch.uint8)
    save(tmp_path, "a", x__weight=bits.view(torch.float8_e4m3fn), x__weight_scale=torch.tensor(0.5))
    whole = torch.ones(2).to(torch.float8_e4m3fn)
    save(tmp_path, "b", x__weight=whole, x__weight_scale=torch.tensor(float("nan")))
    for name, at in (("a", 1), ("b", 0)):
        with pytest.raises(NumericError, match=f'tensor "x.weight": NaN or Inf, first at element {at}'):
            merge(copy(name), tmp_path, tmp_path / "out")


# ---- What is no tensor of the model.


def comfy() -> Tensors:
    layer = "model.diffusion_model.x."
    return {
        "model.diffusion_model.scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn),
        f"{layer}weight": codes(torch.float8_e4m3fn, (6, 5)),
        f"{layer}scale_weight": scale(()),
        f"{layer}scale_input": scale(()),
        f"{layer}bias": torch.ones(6).half(),
    }


def other_tools() -> Tensors:
    layer = "model.diffusion_model.x."
    return {
        f"{layer}weight": codes(torch.float8_e4m3fn, (6, 5)),
        f"{layer}weight_scale": scale((6, 1)),
        f"{layer}input_scale": scale(()),
        f"{layer}comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
        f"{layer}bias": torch.ones(6).half(),
    }


@pytest.mark.parametrize("tensors", [comfy, other_tools])
def test_scales_and_markers_are_listed_as_dropped_with_a_reason(
    tensors: Callable[[], Tensors], tmp_path: Path
) -> None:
    stored = tensors()
    save_file(stored, tmp_path / "a.safetensors")
    plan = planned(copy(), tmp_path)
    assert {job.key for job in plan.jobs} == {key for key in stored if key.endswith(("x.weight", "bias"))}
    dropped = {key for keys in plan.dropped.values() for key in keys}
    assert dropped == stored.keys() - {job.key for job in plan.jobs}
    text = describe(plan, place(plan, Devices(("cpu",)), None, 1, 32768), 1 << 30, all_keys=True)
    assert all(any(key in line and "dropped: " in line for line in text.splitlines()) for key in dropped)
    codes_and_bias = 30 + 12
    assert plan.bytes_read == codes_and_bias


def test_a_model_without_fp8_keeps_tensors_that_are_called_so(tmp_path: Path) -> None:
    save(tmp_path, x__weight=torch.ones(3), x__weight_scale=torch.ones(3), input_scale=torch.ones(1))
    assert merged(copy(), tmp_path, tmp_path / "out").keys() == {"x.weight", "x.weight_scale", "input_scale"}


def test_a_scaled_model_and_one_that_is_not_have_the_same_keys(tmp_path: Path) -> None:
    save_file(comfy(), tmp_path / "a.safetensors")
    half = {
        key: torch.ones(t.shape).half() for key, t in comfy().items() if key.endswith(("x.weight", "bias"))
    }
    save_file(half, tmp_path / "b.safetensors")
    for first, second in ("ab", "ba"):
        tree = copy(alpha=0.5)
        tree["models"] = {"a": f"{first}.safetensors", "b": f"{second}.safetensors"}
        assert merged(tree, tmp_path, tmp_path / "out").keys() == half.keys()


# ---- Layouts.


def in_fp8(tensors: Tensors, by_row: bool) -> tuple[Tensors, Tensors]:
    """Weights of a model as scaled fp8, and as the values those have."""
    stored: Tensors = {}
    values: Tensors = {}
    for key, tensor in tensors.items():
        if not key.endswith("weight") or not tensor.is_floating_point():
            stored[key] = values[key] = tensor
            continue
        rows = tensor.float().abs().reshape(len(tensor), -1).amax(1).clamp(min=1e-6) / 448
        factor = (rows if by_row else rows.max()).float()
        wide = factor.reshape(-1, *[1] * (tensor.dim() - 1)) if by_row else factor
        code = (tensor.float() / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        if key.endswith(".weight"):
            stored[f"{key.removesuffix('weight')}scale_weight"] = factor
            values[key] = exact(code, factor)
        else:
            values[key] = code.float()
        stored[key] = code
    return stored, values


@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "a scale for each row"])
def test_every_layout_of_a_scaled_model_gives_the_same_tensors(
    by_row: bool, tmp_path: Path, cache: Path
) -> None:
    """SDXL has fused attention in its second text encoder, 1x1 convolutions, and a transposed matrix."""
    single = as_single_file("sdxl", read(demo_model("sdxl_photo", cache)))
    stored, values = in_fp8(single, by_row)
    save_file(stored, tmp_path / "fp8.safetensors")
    save_file(values, tmp_path / "wide.safetensors")
    (tmp_path / "config").symlink_to(demo_model("sdxl_photo", cache))
    for format_ in ("checkpoint", "diffusers"):
        results = [
            read(
                merge(
                    {
                        "method": "weighted_sum",
                        "models": {"a": f"{name}.safetensors", "b": "config"},
                        "alpha": 0.25,
                        "output": {"dtype": "float32", "format": format_},
                    },
                    tmp_path,
                    tmp_path / f"{format_}_{name}",
                )[0]
            )
            for name in ("fp8", "wide")
        ]
        assert equal(*results)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_scaled_component_by_itself_is_what_its_codes_stand_for(
    component: str, tmp_path: Path, cache: Path
) -> None:
    (file,) = (demo_model("photo", cache) / component).glob("*.safetensors")
    stored, values = in_fp8(load_file(file), by_row=False)
    save_file(
        {**stored, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, tmp_path / "fp8.safetensors"
    )
    taken = {
        "method": "copy",
        "models": {"a": "demo:base"},
        "components": {component: "fp8.safetensors"},
        "output": {"format": "diffusers", "dtype": {component: "float32"}},
    }
    made = read(merge(taken, tmp_path, tmp_path / "taken", cache=cache)[0])
    prefix = f"{component}/"
    found = {key.removeprefix(prefix): made[key] for key in made if key.startswith(prefix)}
    expected = {key: values[key].float() for key in found if values[key].is_floating_point()}
    assert found.keys() >= expected.keys() and len(expected) > 10
    assert equal({key: found[key] for key in expected}, expected)
    del taken["output"]
    plan = planned(taken, tmp_path, cache)
    scaled = {
        f"{prefix}{key.removesuffix('scale_weight')}weight" for key in stored if key.endswith("scale_weight")
    }
    dtypes = {job.key: job.spec.dtype for job in plan.jobs}
    assert {dtypes[key] for key in scaled} == {"BF16"}
    assert any("written as bfloat16" in one for one in plan.warnings)
    if component == "unet":  # which is a model too
        tree = {**copy("fp8"), "output": {"dtype": "float32"}}
        alone = merged(tree, tmp_path, tmp_path / "alone")
        assert equal(alone, {key: tensor.float() for key, tensor in values.items()})


@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "a scale for each row"])
def test_a_scaled_folder_is_read_and_its_config_says_so_no_more(
    by_row: bool, tmp_path: Path, cache: Path
) -> None:
    sources = {}
    for number, name in enumerate(("fp8", "wide")):
        sources[name] = tmp_path / name
        shutil.copytree(demo_model("sdxl_photo", cache), sources[name])
        for file in sorted(sources[name].glob("*/*.safetensors")):
            save_file(in_fp8(load_file(file), by_row)[number], file)
        config = sources[name] / "unet" / "config.json"
        said = {**json.loads(config.read_text()), "quantization_config": {"quant_method": "fp8"}}
        config.write_text(json.dumps(said))
    for format_ in ("checkpoint", "diffusers"):
        paths = [
            merge(
                {
                    "method": "weighted_sum",
                    "models": {"a": name, "b": name},
                    "alpha": 0.0,
                    "output": {"dtype": "float32", "format": format_},
                },
                tmp_path,
                tmp_path / f"{format_}_{name}",
            )[0]
            for name in sources
        ]
        assert equal(*map(read, paths))
    assert "quantization_config" not in json.loads((paths[0] / "unet" / "config.json").read_text())


def test_a_scaled_unet_alone_is_read_as_in_its_folder(tmp_path: Path, cache: Path) -> None:
    """With the names of a folder it is recognised in another way than a whole model is."""
    unet = load_file(next((demo_model("photo", cache) / "unet").glob("*.safetensors")))
    for name, tensors in zip(("fp8", "wide"), in_fp8(unet, by_row=True), strict=True):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    plan = planned(copy("fp8"), tmp_path)
    assert plan.resolved.primary.title == "Stable Diffusion 1.x"
    assert not [key for key in plan.resolved.primary.view.tensors if "scale_weight" in key]
    results = [
        merged(copy(name, output={"dtype": "float32"}), tmp_path, tmp_path / f"out_{name}")
        for name in ("fp8", "wide")
    ]
    assert equal(*results)


@pytest.mark.parametrize("form", ["a whole single file", "a whole folder", "alone"])
def test_a_component_taken_from_a_scaled_model_is_scaled(form: str, tmp_path: Path, cache: Path) -> None:
    photo = demo_model("photo", cache)
    for number, name in enumerate(("fp8", "wide")):
        if form == "a whole single file":
            tensors = as_single_file("sd1", read(photo))
            save_file(in_fp8(tensors, by_row=True)[number], tmp_path / f"{name}.safetensors")
        elif form == "alone":
            tensors = load_file(photo / "text_encoder" / "model.safetensors")
            save_file(in_fp8(tensors, by_row=True)[number], tmp_path / f"{name}.safetensors")
        else:
            shutil.copytree(photo, tmp_path / name)
            file = tmp_path / name / "text_encoder" / "model.safetensors"
            save_file(in_fp8(load_file(file), by_row=True)[number], file)
    suffix = "" if form == "a whole folder" else ".safetensors"
    results = []
    for name in ("fp8", "wide"):
        tree = copy(output={"dtype": "float32"}, components={"text_encoder": name + suffix})
        tree["models"] = {"a": str(photo), "b": str(photo)}
        results.append(read(merge(tree, tmp_path, tmp_path / f"out_{name}")[0]))
    assert equal(*results)


def test_of_a_scaled_source_only_what_stands_beside_the_components_taken_is_listed(
    tmp_path: Path, cache: Path
) -> None:
    tensors = as_single_file("sd1", read(demo_model("photo", cache)))
    stored, _ = in_fp8(tensors, by_row=False)
    stored["model.diffusion_model.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(stored, tmp_path / "fp8.safetensors")
    prefixes = {"vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
    beside = {key for key in stored if key.endswith(("scale_weight", "scaled_fp8"))}
    own = {one: {key for key in beside if key.startswith(prefix)} for one, prefix in prefixes.items()}

    def listed(*components: str, b: str = "demo:anime") -> set[str]:
        tree = copy(
            models={"a": "demo:base", "b": b}, components=dict.fromkeys(components, "fp8.safetensors")
        )
        plan = planned(tree, tmp_path, cache)
        assert len(plan.resolved.models) == (2 if b == "fp8.safetensors" else 3)
        return {key for reason, keys in plan.dropped.items() if "fp8" in reason for key in keys}

    assert listed("vae") == own["vae"] != set()
    assert listed("text_encoder", "vae") == own["vae"] | own["text_encoder"]
    assert listed("vae", b="fp8.safetensors") == beside


def test_a_unet_alone_in_a_format_that_is_not_read_is_refused(tmp_path: Path, cache: Path) -> None:
    unet = load_file(next((demo_model("photo", cache) / "unet").glob("*.safetensors")))
    key = next(key for key in unet if key.endswith("attn1.to_q.weight"))
    save_file({**unet, f"{key}.absmax": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(IncompatibleError, match="quantised as NF4 or FP4 of bitsandbytes"):
        planned(copy(), tmp_path)


@pytest.mark.parametrize("by_row", [False, True], ids=["one scale", "a scale for each row"])
def test_the_rows_of_a_fused_layer_take_their_scales_along(by_row: bool, tmp_path: Path) -> None:
    """FLUX stores query, key and value as one tensor, a folder as three."""
    prefix = "model.diffusion_model."
    tensors = {
        f"{prefix}img_in.weight": torch.ones(4, 64),
        f"{prefix}txt_in.weight": torch.ones(4, 8),
        f"{prefix}vector_in.in_layer.weight": torch.ones(4, 8),
        f"{prefix}single_blocks.0.linear1.weight": torch.randn(35, 6),
        f"{prefix}double_blocks.0.img_attn.qkv.weight": torch.randn(12, 5),
    }
    stored, values = in_fp8(tensors, by_row)
    save_file(stored, tmp_path / "fp8.safetensors")
    save_file(values, tmp_path / "wide.safetensors")
    tree = {"method": "weighted_sum", "alpha": 0.25, "output": {"dtype": "float32"}}
    results = []
    for first, second in (("fp8", "fp8"), ("fp8", "wide"), ("wide", "wide")):
        models = {"a": f"{first}.safetensors", "b": f"{second}.safetensors"}
        plan = planned({**tree, "models": models}, tmp_path)
        assert plan.resolved.primary.title.startswith("Flux")
        assert len([job for job in plan.jobs if "transformer_blocks.0.attn.to_" in job.key]) == 6
        results.append(merged({**tree, "models": models}, tmp_path, tmp_path / "out"))
    assert equal(results[0], results[2]) and equal(results[1], results[2])


def test_a_scale_can_lie_in_another_shard(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(demo_model("photo", cache), folder)
    (file,) = (folder / "unet").glob("*.safetensors")
    stored, values = in_fp8(load_file(file), by_row=True)
    file.unlink()
    parts = [{}, {}]
    for key, tensor in stored.items():
        parts[key.endswith("scale_weight")][key] = tensor
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / "unet" / name)
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    tree = {"method": "weighted_sum", "models": {"a": "a", "b": "a"}, "alpha": 0.0}
    path, _ = merge({**tree, "output": {"dtype": "float32"}}, tmp_path, tmp_path / "out")
    result = {key: tensor for key, tensor in read(path).items() if key.startswith("unet/")}
    assert equal(result, {f"unet/{key}": tensor.float() for key, tensor in values.items()})


# ---- What is refused.

WEIGHT = {"x.weight": torch.zeros(8, 4, dtype=torch.uint8)}
EIGHT = {"x.weight": torch.zeros(8, 4).to(torch.float8_e4m3fn)}
REFUSED: dict[str, tuple[str, Tensors]] = {
    "NF4": ("NF4 or FP4 of bitsandbytes", {**WEIGHT, "x.weight.absmax": torch.ones(1)}),
    "NF4 by its state": (
        "NF4 or FP4 of bitsandbytes",
        {**WEIGHT, "x.weight.quant_state.bitsandbytes__nf4": torch.ones(1).byte()},
    ),
    "int8 of bitsandbytes": (
        "int8 of bitsandbytes",
        {"x.weight": torch.ones(2).char(), "x.SCB": torch.ones(2)},
    ),
    "int8": ("I8 with a scale", {"x.weight": torch.ones(2, 2).char(), "x.weight_scale": torch.ones(2)}),
    "GPTQ": ("GPTQ or AWQ", {"x.qweight": torch.ones(2, 2).int(), "x.qzeros": torch.ones(2).int()}),
    "SVDQuant": ("SVDQuant", {"x.qweight": torch.ones(2, 2).char(), "x.wscales": torch.ones(2)}),
    "quanto": ("quanto", {"x.weight._data": torch.ones(2, 2).char(), "x.weight._scale": torch.ones(2)}),
    "NVFP4": (
        "NVFP4",
        {
            **WEIGHT,
            "x.weight_scale": torch.ones(8, 1).to(torch.float8_e4m3fn),
            "x.weight_scale_2": torch.ones(()),
        },
    ),
    "packed": (
        "packed integers",
        {"x.weight_packed": torch.ones(2, 2).int(), "x.weight_scale": torch.ones(2)},
    ),
    "blocks": ("fp8 with a scale for each block", {**EIGHT, "x.weight_scale_inv": torch.ones(1, 1)}),
    "blocks of MXFP8": ("F8_E8M0", {**EIGHT, "x.weight_scale": torch.ones(8, 1).to(torch.float8_e8m0fnu)}),
    "a scale for each column": (
        "is F32 [4]: expected one number",
        {**EIGHT, "x.weight_scale": torch.ones(4)},
    ),
    "a grid": ("is F32 [2,2]: expected one number", {**EIGHT, "x.weight_scale": torch.ones(2, 2)}),
    "a scale in float64": ("is F64 []: expected", {**EIGHT, "x.weight_scale": torch.ones(()).double()}),
    "two scales": (
        "two scales",
        {**EIGHT, "x.weight_scale": torch.ones(()), "x.scale_weight": torch.ones(())},
    ),
    "a scale for what is no fp8": (
        "BF16 with a scale",
        {
            "scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn),
            "x.weight": torch.ones(2, 2).bfloat16(),
            "x.scale_weight": torch.ones(()),
        },
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_else_is_quantised_is_refused_by_name_in_one_line(case: str, tmp_path: Path) -> None:
    what, tensors = REFUSED[case]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        planned(copy(), tmp_path)
    assert caught.value.message.startswith("a.safetensors: ") and what in caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint and caught.value.exit_code == 5


@pytest.mark.parametrize("compat", ["diffusers", "a1111"])
def test_compat_does_not_cover_fp8(compat: str, tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path, name, model__weight=codes(torch.float8_e4m3fn, (4, 4)))
    tree = copy(alpha=0.5, compat=compat)
    tree["models"]["b"] = "b.safetensors"
    with pytest.raises(IncompatibleError, match="does not cover tensors in fp8"):
        planned(tree, tmp_path)

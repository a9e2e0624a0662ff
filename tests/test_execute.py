"""The engine: values against float64, bytes against every setting, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import runner.execute
from runner.errors import IncompatibleError, InputError, NumericError
from runner.execute import execute
from runner.methods import METHODS
from runner.methods.registry import Weight, method
from runner.place import Devices, Placement, place
from runner.write import Staging
from tests.build import SHAPES, merge, merged, planned, random_tensors, write_models

KEY = "model.diffusion_model.linear.weight"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def two(alpha: Any = 0.3, **changes: Any) -> dict[str, Any]:
    return {
        "method": "weighted_sum",
        "models": {"a": "a.safetensors", "b": "b.safetensors"},
        "alpha": alpha,
        **changes,
    }


def formula(name: str, a: Tensor, b: Tensor, c: Tensor, alpha: float) -> Tensor:
    import math

    smooth = alpha * alpha * (3 - 2 * alpha)
    inverse = 0.5 - math.sin(math.asin(1 - 2 * alpha) / 3)
    return {
        "weighted_sum": a * (1 - alpha) + b * alpha,
        "sigmoid": a + (b - a) * smooth,
        "inv_sigmoid": a + (b - a) * inverse,
        "add_difference": a + (b - c) * alpha,
    }[name]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["weighted_sum", "sigmoid", "inv_sigmoid", "add_difference"])
def test_values_are_the_formula_in_double_rounded_to_the_dtype(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    models = write_models(tmp_path, dtype, a=1, b=2, c=3)
    roles = ("a", "b", "c") if name == "add_difference" else ("a", "b")
    tree = {"method": name, "models": {role: f"{role}.safetensors" for role in roles}, "alpha": 0.3}
    result = merged(tree, tmp_path, tmp_path / "out")
    assert {key: tensor.shape for key, tensor in result.items()} == {
        k: torch.Size(s) for k, s in SHAPES.items()
    }
    for key, tensor in result.items():
        a, b, c = (models[role][key].double() for role in ("a", "b", "c"))
        expected = formula(name, a, b, c, 0.3)
        # Half a unit of the output's rounding, and what float32 arithmetic adds.
        scale = a.abs() + b.abs() + c.abs()
        wide = torch.finfo(torch.float32 if dtype != torch.float64 else torch.float64).eps
        bound = expected.abs() * torch.finfo(dtype).eps / 2 + 4 * wide * scale + torch.finfo(dtype).tiny
        assert tensor.dtype == dtype
        assert ((tensor.double() - expected).abs() <= bound).all(), key


def test_half_precision_is_computed_in_float32_and_rounded_once(tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2)
    for key, tensor in merged(two(), tmp_path, tmp_path / "out").items():
        a, b = models["a"][key].float(), models["b"][key].float()
        assert torch.equal(tensor, (a * 0.7 + b * 0.3).half()), key


def test_mixed_dtypes_meet_in_float32_and_the_output_has_the_primarys(tmp_path: Path) -> None:
    a, b = random_tensors(1, torch.float16), random_tensors(2, torch.float64)
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    result = merged(two(), tmp_path, tmp_path / "out")[KEY]
    assert torch.equal(result, (a[KEY].float() * 0.7 + b[KEY].float() * 0.3).half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(name for name, tool in METHODS if tool is None))
def test_merging_a_model_with_itself_returns_it(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    models = write_models(tmp_path, dtype, a=1)
    entry = METHODS[name, None]
    more = () if entry.variadic is None else ("one", "two")
    tree = {"method": name, "models": dict.fromkeys((*entry.roles, *more), "a.safetensors")}
    for key, tensor in merged(tree, tmp_path, tmp_path / "out").items():
        assert torch.equal(tensor, models["a"][key]), key


def test_nested_merges_are_not_rounded_in_between(tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2, c=3)
    inner = {"method": "add_difference", "models": {r: f"{r}.safetensors" for r in "abc"}, "alpha": 0.6}
    tree = {"method": "weighted_sum", "models": {"a": "a.safetensors", "b": inner}, "alpha": 0.35}
    for key, tensor in merged(tree, tmp_path, tmp_path / "out").items():
        a, b, c = (models[role][key].float() for role in "abc")
        assert torch.equal(tensor, (a * 0.65 + (a + (b - c) * 0.6) * 0.35).half()), key


@pytest.mark.parametrize(("alpha", "name"), [(0, "a"), (1, "b")])
def test_the_ends_are_the_models_bit_for_bit(alpha: int, name: str, tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2)
    odd = torch.tensor(
        [-0.0, 6e-8, -6e-8, 65504.0], dtype=torch.float16
    )  # signed zero, subnormals, the largest
    for model in models:
        save_file({**models[model], "odd": odd}, tmp_path / f"{model}.safetensors")
    result = merged(two(alpha), tmp_path, tmp_path / "out")
    for key, tensor in {**models[name], "odd": odd}.items():
        assert torch.equal(result[key].view(torch.int16), tensor.view(torch.int16)), key


def test_every_setting_gives_the_same_bytes(tmp_path: Path) -> None:
    shapes = {**SHAPES, "model.diffusion_model.big.weight": (500, 401)}
    for seed, name in enumerate("abc"):
        save_file(random_tensors(seed, torch.float16, shapes), tmp_path / f"{name}.safetensors")
    inner = {"method": "add_difference", "models": {r: f"{r}.safetensors" for r in "abc"}}
    tree = {"method": "weighted_sum", "models": {"a": "a.safetensors", "b": inner}, "alpha": 0.35}
    digests, moved = set(), set()
    for number, (threads, tile, budget) in enumerate(
        [(1, 32768, None), (2, 32768, None), (3, 65536, None), (4, 262144, None), (2, 32768, 3_000_000)]
    ):
        target, outcome = merge(
            tree, tmp_path, tmp_path / str(number), threads=threads, tile_elements=tile, host_budget=budget
        )
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
        assert outcome.digests == [hashlib.sha256(target.read_bytes()).hexdigest()]
        moved.add(tuple(sorted(outcome.moved.items())))
    assert len(digests) == 1
    assert len(moved) == 1


def test_the_order_of_keys_in_an_input_does_not_matter(tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2)
    _, first = merge(two(), tmp_path, tmp_path / "one")
    tensors = load_file(tmp_path / "b.safetensors")
    renamed = dict(reversed(tensors.items()))
    (tmp_path / "b.safetensors").unlink()
    # The library sorts by name, so the order is changed by hand: header entries shuffled, data as it was.
    save_file(renamed, tmp_path / "b.safetensors")
    _, second = merge(two(), tmp_path, tmp_path / "two")
    assert first.digests == second.digests


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_names_file_key_and_element(bad: float, tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2)
    models["b"][KEY].reshape(-1)[77] = bad
    save_file(models["b"], tmp_path / "b.safetensors")
    with pytest.raises(
        NumericError, match=rf'b\.safetensors: tensor "{KEY}": NaN or Inf, first at element 77'
    ):
        merge(two(), tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(NumericError):
        merge(two(1), tmp_path, tmp_path / "out")  # a copy is checked too
    merge(two(0), tmp_path, tmp_path / "out")  # b is not used
    merge(two(nonfinite=["*linear*"]), tmp_path, tmp_path / "out")  # the recipe allows it


def test_an_overflow_names_key_value_and_limit(tmp_path: Path) -> None:
    models = write_models(tmp_path, torch.float32, a=1, b=2)
    models["a"][KEY][0, 0] = 70000
    save_file(models["a"], tmp_path / "a.safetensors")
    output = {"dtype": "float16"}
    for alpha in (0, 0.01):
        with pytest.raises(
            NumericError, match=r"the result reaches (70000|69300).*, F16 holds at most 65504"
        ):
            merge(two(alpha, output=output), tmp_path, tmp_path / "out")
    models["a"][KEY][0, 0] = 65519  # rounds to the largest
    save_file(models["a"], tmp_path / "a.safetensors")
    assert float(merged(two(0, output=output), tmp_path, tmp_path / "out")[KEY][0, 0]) == 65504


def test_integers_are_copied_if_equal_and_refused_if_not(tmp_path: Path) -> None:
    ids = torch.arange(77)
    for name, values in (("a", ids), ("b", ids)):
        save_file({**random_tensors(1), "position_ids": values}, tmp_path / f"{name}.safetensors")
    assert torch.equal(merged(two(), tmp_path, tmp_path / "out")["position_ids"], ids)
    save_file({**random_tensors(1), "position_ids": ids + (ids > 40)}, tmp_path / "b.safetensors")
    with pytest.raises(IncompatibleError, match="element 41"):
        merge(two(), tmp_path, tmp_path / "out")
    kept = merged(two(integers="keep"), tmp_path, tmp_path / "out")
    assert torch.equal(kept["position_ids"], ids)


def test_an_input_that_changes_under_the_merge_is_noticed(tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2)
    plan = planned(two(), tmp_path)
    os.utime(tmp_path / "b.safetensors", (1, 1))
    placement = place(plan, Devices(("cpu",)), None, 1, 32768)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="changed"), Staging(plan.layout, out / "x") as staging:
        execute(plan, placement, staging, lambda count: None)
    assert list(out.iterdir()) == []


def test_an_error_leaves_no_thread_behind(tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2)
    models["b"][KEY][0, 0] = float("nan")
    save_file(models["b"], tmp_path / "b.safetensors")
    before = threading.active_count()
    with pytest.raises(NumericError):
        merge(two(), tmp_path, tmp_path / "out", threads=4)
    assert threading.active_count() == before


@pytest.fixture
def whole_tensor_method() -> Any:
    """A method that needs its tensors whole, registered for one test."""

    @method(name="test_mean", determinism="stable", elementwise=False)
    def test_mean(a: Weight, b: Weight) -> Weight:
        """a with its mean replaced by b's."""
        return a - a.mean() + b.mean()

    yield
    del METHODS["test_mean", None]


@pytest.mark.usefixtures("whole_tensor_method")
def test_a_whole_tensor_method_gets_its_tensors_whole_and_one_at_a_time_if_memory_is_short(
    tmp_path: Path,
) -> None:
    models = write_models(tmp_path, a=1, b=2)
    tree = {"method": "test_mean", "models": {"a": "a.safetensors", "b": "b.safetensors"}}
    for budget in (None, 150_000):
        for key, tensor in merged(tree, tmp_path, tmp_path / f"{budget}", host_budget=budget).items():
            a, b = (models[name][key].float() for name in "ab")
            if a.numel():
                torch.testing.assert_close(tensor, (a - a.mean() + b.mean()).half())


class FailingDevice:
    """A GPU that is the host, and is out of memory for more elements than it has."""

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self.real = runner.execute.Scratch.run

    def run(self, scratch: Any, job: Any, start: int, count: int, out: Any, device: Any) -> Any:
        if device.type == "meta" and count > self.elements:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real(scratch, job, start, count, out, torch.device("cpu"))


@pytest.mark.parametrize("elements", [1 << 30, 10_000, 0])
def test_a_gpu_without_memory_gets_halves_and_then_the_host_takes_over(
    elements: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {**SHAPES, "model.diffusion_model.big.weight": (500, 401)}
    for seed, name in enumerate("ab"):
        save_file(random_tensors(seed, torch.float16, shapes), tmp_path / f"{name}.safetensors")
    _, host = merge(two(), tmp_path, tmp_path / "host")
    plan = planned(two(), tmp_path)
    placement = place(plan, Devices((0,), {0: 1 << 30}), None, 1, 65536)
    assert isinstance(placement, Placement) and 0 in placement.device_of
    fake = FailingDevice(elements)
    monkeypatch.setattr(
        runner.execute.Scratch, "run", lambda scratch, *arguments: fake.run(scratch, *arguments)
    )
    monkeypatch.setattr(
        runner.execute, "torch_device", lambda device: torch.device("cpu" if device == "cpu" else "meta")
    )
    out = tmp_path / "gpu"
    out.mkdir()
    with Staging(plan.layout, out / "x") as staging:
        outcome = execute(plan, placement, staging, lambda count: None)
    assert outcome.digests == host.digests
    assert bool(outcome.fallbacks) == (elements < 1 << 30)
    assert any("halved" in what for what in outcome.fallbacks) == (elements < 1 << 30)
    assert any("on the host" in what for what in outcome.fallbacks) == (elements == 0)


def test_a_gpu_that_rounds_otherwise_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path, a=1, b=2)
    _, host = merge(two(), tmp_path, tmp_path / "host")
    plan = planned(two(), tmp_path)
    placement = place(plan, Devices((0,), {0: 1 << 30}), None, 1, 32768)
    real = runner.execute.Scratch.run

    def run(scratch: Any, job: Any, start: int, count: int, out: Any, device: Any) -> Any:
        moved = real(scratch, job, start, count, out, torch.device("cpu"))
        if device.type == "meta":
            out[0] ^= 1
        return moved

    monkeypatch.setattr(runner.execute.Scratch, "run", run)
    monkeypatch.setattr(
        runner.execute, "torch_device", lambda device: torch.device("cpu" if device == "cpu" else "meta")
    )
    out = tmp_path / "gpu"
    out.mkdir()
    with Staging(plan.layout, out / "x") as staging:
        outcome = execute(plan, placement, staging, lambda count: None)
    assert outcome.digests == host.digests
    assert any("other bytes" in what for what in outcome.fallbacks)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    alpha=st.floats(0, 1),
    shape=st.lists(st.integers(0, 7), max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_share_lies_between_the_models(
    tmp_path: Path, alpha: float, shape: list[int], dtype: torch.dtype, seed: int
) -> None:
    a, b = (random_tensors(seed + n, dtype, {"x": tuple(shape), "y": (3,)}) for n in range(2))
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    for key, tensor in merged(two(alpha), tmp_path, tmp_path / "out").items():
        low, high = torch.minimum(a[key], b[key]), torch.maximum(a[key], b[key])
        slack = torch.finfo(dtype).eps * (low.abs() + high.abs())
        assert (tensor >= low - slack).all() and (tensor <= high + slack).all()

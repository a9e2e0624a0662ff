"""The engine: values against float64, bytes against every setting, and what it refuses."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from runner.engine import execute as engine
from runner.engine import reading
from runner.engine.execute import Outcome, execute
from runner.errors import IncompatibleError, InputError, NumericError, OutOfMemoryError
from runner.methods import METHODS
from runner.methods.registry import Weight, method
from runner.place import RESULTS_PER_WORKER, Devices, Placement, place, working_bytes
from runner.planning.plan import Plan
from runner.write import Staging
from tests.build import SHAPES, data_of, merge, merged, planned, random_tensors, write_in_order, write_models

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["weighted_sum", "sigmoid", "inv_sigmoid", "add_difference"])
def test_half_precision_is_computed_in_float32_and_rounded_once(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    models = write_models(tmp_path, dtype, a=1, b=2, c=3)
    roles = ("a", "b", "c") if name == "add_difference" else ("a", "b")
    tree = {"method": name, "models": {role: f"{role}.safetensors" for role in roles}, "alpha": 0.3}
    for key, tensor in merged(tree, tmp_path, tmp_path / "out").items():
        a, b, c = (models[role][key].float() for role in ("a", "b", "c"))
        assert torch.equal(tensor, formula(name, a, b, c, 0.3).to(dtype)), key


@pytest.mark.parametrize("first", DTYPES, ids=str)
@pytest.mark.parametrize("second", DTYPES, ids=str)
def test_every_pair_of_dtypes_is_merged_to_any_dtype(
    first: torch.dtype, second: torch.dtype, tmp_path: Path
) -> None:
    a, b = random_tensors(1, first), random_tensors(2, second)
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    compute = torch.float64 if {first, second} == {torch.float64} else torch.float32
    for dtype in DTYPES:
        output = {"dtype": str(dtype).removeprefix("torch.")}
        found = merged(two(output=output), tmp_path, tmp_path / "out")[KEY]
        expected = a[KEY].to(compute) * 0.7 + b[KEY].to(compute) * 0.3
        assert torch.equal(found, expected.to(dtype))


def test_mixed_dtypes_meet_in_float32_and_the_output_has_the_primarys(tmp_path: Path) -> None:
    a, b = random_tensors(1, torch.float16), random_tensors(2, torch.float64)
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    result = merged(two(), tmp_path, tmp_path / "out")[KEY]
    assert torch.equal(result, (a[KEY].float() * 0.7 + b[KEY].float() * 0.3).half())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name",
    sorted(
        {name for (name, tool), method in METHODS.items() if tool is None and method.result == "tensor"}
        - {"add_noise", "add_lora"}
    ),
)
def test_merging_a_model_with_itself_returns_it(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    models = write_models(tmp_path, dtype, a=1)
    entry = METHODS[name, None]
    more = () if entry.variadic is None else ("one", "two")
    needed = {name: 0.3 for name, parameter in entry.parameters.items() if parameter.default is None}
    tree = {"method": name, "models": dict.fromkeys((*entry.roles, *more), "a.safetensors"), **needed}
    for key, tensor in merged(tree, tmp_path, tmp_path / "out").items():
        assert torch.equal(tensor, models["a"][key]), key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["weighted_sum", "sigmoid", "inv_sigmoid", "slerp"])
def test_merging_a_model_with_itself_returns_it_for_any_share(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    models = write_models(tmp_path, dtype, a=1)
    for alpha in (1e-9, 0.1, 1 / 3, 0.7, 1 - 1e-9):
        tree = {"method": name, "models": dict.fromkeys("ab", "a.safetensors"), "alpha": alpha}
        for key, tensor in merged(tree, tmp_path, tmp_path / "out").items():
            assert torch.equal(tensor, models["a"][key]), (key, alpha)


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


BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_copies_keep_even_the_bits_of_nan(dtype: torch.dtype, tmp_path: Path) -> None:
    """Every pattern of 16 bits, or 2^16 random ones of 32: subnormals, zeros, Inf, NaN of any payload."""
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    if dtype == torch.float32:
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=generator).to(torch.int32)
        bits[:4] = torch.tensor([0x7F800001, 0x7FC01234, 0x7F800000, 1])
    for name in "ab":
        save_file({KEY: bits.view(dtype)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(NumericError):
        merge(two(0), tmp_path, tmp_path / "out")
    for alpha in (0, 1):
        result = merged(two(alpha, nonfinite=["*"]), tmp_path, tmp_path / "out")[KEY]
        assert torch.equal(result.view(BITS[dtype]), bits)


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
        assert outcome.contents == [hashlib.sha256(data_of(target)).hexdigest()]
        moved.add(tuple(sorted(outcome.moved.items())))
    assert len(digests) == 1
    assert len(moved) == 1


@pytest.mark.parametrize("method", ["slerp", "ties", "dare_linear", "model_stock"])
def test_methods_that_sum_or_draw_give_the_same_bytes_too(method: str, tmp_path: Path) -> None:
    shapes = {**SHAPES, "model.diffusion_model.big.weight": (500, 401)}
    for seed, name in enumerate("abc"):
        save_file(random_tensors(seed, torch.float16, shapes), tmp_path / f"{name}.safetensors")
    roles = {
        role: f"{name}.safetensors"
        for role, name in zip(("a", "b") if method == "slerp" else ("base", "x", "y"), "abc", strict=False)
    }
    density = {"density": 0.4} if method in ("ties", "dare_linear") else {}
    results = {
        (outcome.contents[0], tuple(sorted(outcome.moved.items())))
        for threads, tile, budget in ((1, 32768, None), (2, 65536, None), (4, 262144, 30_000_000))
        for _, outcome in [
            merge(
                {"method": method, "models": roles, **density},
                tmp_path,
                tmp_path / "out",
                threads=threads,
                tile_elements=tile,
                host_budget=budget,
            )
        ]
    }
    assert len(results) == 1


HASHED = """
import sys
from pathlib import Path
from tests.build import merge
folder = Path(sys.argv[1])
inner = {"method": "add_difference", "models": {r: f"{r}.safetensors" for r in "abc"}}
tree = {
    "method": "weighted_sum", "models": {"a": "a.safetensors", "b": inner}, "extra": "keep",
    "alpha": {"default": 0.35, "vae": 0.2, "model": 0.3, "text_encoder": 0}, "missing": "keep",
}
print(merge(tree, folder, folder / sys.argv[2])[1].contents)
"""


def test_the_seed_of_pythons_hashes_changes_no_byte(tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2, c=3)
    more = {f"model.diffusion_model.more.{number}": torch.ones(3) * number for number in range(20)}
    save_file({**models["c"], **more}, tmp_path / "c.safetensors")
    save_file({**models["b"], **dict(reversed(more.items()))}, tmp_path / "b.safetensors")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", HASHED, str(tmp_path), seed],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (run.communicate(timeout=60)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert first == second and len(first) > 64


def test_the_order_of_tensors_in_an_input_does_not_matter(tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2)
    _, first = merge(two(), tmp_path, tmp_path / "one")
    for name, tensors in models.items():
        write_in_order(tmp_path / f"{name}.safetensors", dict(reversed(tensors.items())))
    _, second = merge(two(), tmp_path, tmp_path / "two")
    assert first.contents == second.contents


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


def three(method: str, **values: float) -> dict[str, Any]:
    return {"method": method, "models": {role: f"{role}.safetensors" for role in "abc"}, **values}


@pytest.mark.parametrize(
    "tree",
    [
        three("add_difference"),
        pytest.param(three("train_difference")),
        pytest.param(
            {
                "method": "ties",
                "models": {"base": "c.safetensors", "x": "b.safetensors", "y": "b.safetensors"},
            }
        ),
        pytest.param(
            {
                "method": "add_difference",
                "models": {"a": "a.safetensors", **dict.fromkeys("bc", three("add_difference"))},
            }
        ),
    ],
    ids=["add_difference", "train_difference", "ties", "nested"],
)
def test_finite_models_never_give_what_is_not_finite(tree: dict[str, Any], tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 3e38), ("c", -3e38)):
        save_file({KEY: torch.tensor([1.0, value])}, tmp_path / f"{name}.safetensors")
    with pytest.raises(NumericError, match=KEY) as caught:
        merge(tree, tmp_path, tmp_path / "out")
    assert caught.value.exit_code == 6
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float8_e5m2, 49152.0),
        pytest.param(*(torch.float8_e4m3fn, 384.0)),
    ],
)
def test_eight_bits_overflow_is_refused_and_not_clamped(
    dtype: torch.dtype, value: float, tmp_path: Path
) -> None:
    for name, sign in (("a", 1), ("b", 1), ("c", -1)):
        save_file({KEY: torch.full((4,), sign * value).to(dtype)}, tmp_path / f"{name}.safetensors")
    output = {"dtype": str(dtype).removeprefix("torch.")}
    with pytest.raises(NumericError, match=rf"the result reaches {3 * value:g}"):
        merge({**three("add_difference"), "output": output}, tmp_path, tmp_path / "out")
    mean = merged(two(output=output), tmp_path, tmp_path / "out")[KEY]
    assert mean.dtype == dtype and torch.equal(mean.float(), torch.full((4,), value))


def test_a_model_of_nothing_but_empty_tensors_is_merged(tmp_path: Path) -> None:
    for name in "ab":
        save_file({KEY: torch.zeros(0, 4), "x": torch.zeros(3, 0)}, tmp_path / f"{name}.safetensors")
    result = merged(two(), tmp_path, tmp_path / "out")
    assert {key: tensor.shape for key, tensor in result.items()} == {KEY: (0, 4), "x": (3, 0)}


def test_integers_are_copied_if_equal_and_refused_if_not(tmp_path: Path) -> None:
    ids = torch.arange(77)
    for name, values in (("a", ids), ("b", ids)):
        save_file({**random_tensors(1), "position_ids": values}, tmp_path / f"{name}.safetensors")
    assert torch.equal(merged(two(), tmp_path, tmp_path / "out")["position_ids"], ids)
    save_file({**random_tensors(1), "position_ids": ids + (ids > 40)}, tmp_path / "b.safetensors")
    with pytest.raises(IncompatibleError, match=r'tensor "position_ids": .* differ at element 41') as caught:
        merge(two(), tmp_path, tmp_path / "none")
    assert caught.value.exit_code == 5 and list((tmp_path / "none").iterdir()) == []
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


def write_over(path: Path) -> None:
    """Other data of the same size, in place."""
    with path.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(bytes(16))


@pytest.mark.parametrize(
    ("change", "tag"),
    [
        (write_over, "CHANGED"),
        (lambda path: os.utime(path, (1, 1)), "CHANGED"),
        (lambda path: os.truncate(path, 3000), "TRUNCATED"),
    ],
    ids=["written", "touched", "truncated"],
)
def test_an_input_that_changes_while_it_is_read_leaves_no_output(
    change: Any, tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path, a=1, b=2)
    real = engine.Scratch.run
    todo = [change]

    def run(scratch: Any, *arguments: Any) -> Any:
        if todo:  # the first piece: all files are open by now
            todo.pop()(tmp_path / "b.safetensors")
        return real(scratch, *arguments)

    monkeypatch.setattr(engine.Scratch, "run", run)
    with pytest.raises(InputError, match=r"b\.safetensors") as caught:
        merge(two(), tmp_path, tmp_path / "out", threads=1)
    assert (caught.value.tag, caught.value.exit_code) == (tag, 4)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_input_that_is_replaced_while_it_is_read_is_read_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path, a=1, b=2)
    write_models(tmp_path, other=3)
    _, before = merge(two(), tmp_path, tmp_path / "one")
    real = engine.Scratch.run

    def run(scratch: Any, *arguments: Any) -> Any:
        if (tmp_path / "other.safetensors").exists():
            (tmp_path / "other.safetensors").replace(tmp_path / "b.safetensors")
        return real(scratch, *arguments)

    monkeypatch.setattr(engine.Scratch, "run", run)
    try:
        _, after = merge(two(), tmp_path, tmp_path / "two", threads=1)
    except InputError as error:  # its ctime changes with the last name it had
        assert error.tag == "CHANGED" and list((tmp_path / "two").iterdir()) == []
    else:
        assert after.contents == before.contents


BIG = {"model.diffusion_model.big.weight": (80, 32768)}


def write_big(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Two models of one tensor of 80 tiles."""
    models = {name: random_tensors(seed, shapes=BIG) for seed, name in enumerate("ab")}
    for name, tensors in models.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return models


def test_an_error_stops_the_other_workers_promptly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = write_big(tmp_path)
    models["b"][next(iter(BIG))][0, 5] = float("nan")
    save_file(models["b"], tmp_path / "b.safetensors")
    real = engine.Scratch.run
    started: list[int] = []

    def run(scratch: Any, job: Any, start: int, *arguments: Any) -> Any:
        started.append(start)
        return real(scratch, job, start, *arguments)

    monkeypatch.setattr(engine.Scratch, "run", run)
    for budget in (None, 2_000_000):
        started.clear()
        with pytest.raises(NumericError, match="first at element 5"):
            merge(two(), tmp_path, tmp_path / "out", threads=3, host_budget=budget)
        assert len(started) <= 4 * RESULTS_PER_WORKER < 80
        assert list((tmp_path / "out").iterdir()) == []


def test_an_interruption_stops_all_workers_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_big(tmp_path)
    plan = planned(two(), tmp_path)
    placement = place(plan, Devices(("cpu",)), None, 2, 32768)
    real = engine.Scratch.run
    interrupted = threading.Event()

    def run(scratch: Any, *arguments: Any) -> Any:
        assert interrupted.wait(20)  # the signal comes while both workers are at work
        return real(scratch, *arguments)

    def advance(count: int) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.Scratch, "run", run)
    before = threading.active_count()
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt), Staging(plan.layout, tmp_path / "out" / "x") as staging:
        execute(plan, placement, staging, advance)
    assert threading.active_count() == before
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interruption_does_not_wait_for_a_long_operation_and_leaves_its_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_big(tmp_path)
    plan = planned(two(), tmp_path)
    placement = place(plan, Devices(("cpu",)), None, 1, 32768)
    at_work, goes_on = threading.Event(), threading.Event()
    put: list[int] = []

    def run(*arguments: Any) -> None:
        at_work.set()
        assert goes_on.wait(20)  # as a decomposition of a large matrix does

    def write(staging: Staging, file: int, data: memoryview, offset: int) -> Any:
        put.append(os.fstat(opened[0]).st_nlink)  # the file is open, and has no name any more
        raise OSError

    def advance(count: int) -> None:
        assert at_work.wait(20)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.Scratch, "run", run)
    monkeypatch.setattr(Staging, "write", write)
    out = tmp_path / "out"
    out.mkdir()
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), Staging(plan.layout, out / "x") as staging:
        opened = list(staging._descriptors)
        execute(plan, placement, staging, advance)
    (left,) = set(threading.enumerate()) - before
    assert staging.in_use and list(out.iterdir()) == []
    goes_on.set()
    left.join(20)
    assert put == [0]
    os.close(opened[0])


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["python", "torch"],
)
def test_a_host_without_memory_is_said_with_tensor_and_bytes(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path, a=1, b=2)

    def run(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(engine.Scratch, "run", run)
    with pytest.raises(OutOfMemoryError, match=r'tensor ".+": no memory for \d+ bytes') as caught:
        merge(two(), tmp_path, tmp_path / "out")
    assert caught.value.exit_code == 8 and "tile_elements=" in str(caught.value.hint)


@pytest.mark.parametrize("density", ["tensor", "model"])
def test_a_host_without_memory_to_measure_in_is_said_too(
    density: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path, a=1, b=2)

    def walk(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(engine.Scratch, "walk", walk)
    models = {"base": "a.safetensors", "other": "b.safetensors"}
    with pytest.raises(OutOfMemoryError, match="no memory for its operands"):
        merge(
            {"method": "ties", "models": models, "density": 0.5, "trim": density}, tmp_path, tmp_path / "out"
        )


def test_an_interruption_ends_what_is_measured_over_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_big(tmp_path)
    models = {"base": "a.safetensors", "other": "b.safetensors"}
    plan = planned({"method": "ties", "models": models, "density": 0.5, "trim": "model"}, tmp_path)
    placement = place(plan, Devices(("cpu",)), None, 2, 32768)
    real = reading.read_into
    interrupted = threading.Event()
    reads: list[int] = []

    def read_into(*arguments: Any) -> None:
        reads.append(1)
        assert interrupted.wait(20)  # the signal comes while the first tile is read
        real(*arguments)

    class Interrupted(threading.Event):
        def set(self) -> None:
            super().set()
            interrupted.set()

    def advance(count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "read_into", read_into)
    (tmp_path / "out").mkdir()
    with Staging(plan.layout, tmp_path / "out" / "x") as staging:
        merging = engine._Engine(plan, placement, staging, {})
        merging.stopped = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            merging.run(advance)
        merging.close()
    assert len(reads) == 1


def test_an_error_leaves_no_thread_behind(tmp_path: Path) -> None:
    models = write_models(tmp_path, a=1, b=2)
    models["b"][KEY][0, 0] = float("nan")
    save_file(models["b"], tmp_path / "b.safetensors")
    before = threading.active_count()
    with pytest.raises(NumericError):
        merge(two(), tmp_path, tmp_path / "out", threads=4)
    assert threading.active_count() == before


@pytest.fixture
def whole_tensor_method() -> Iterator[None]:
    """A method that needs its tensors whole, registered for one test."""

    @method(name="test_mean", determinism="stable", scope="tensor")
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


@pytest.fixture
def in_flight(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Receives the bytes in flight each time a worker took a piece."""
    real, seen = engine._Engine.take, []

    def take(merging: Any, device: Any) -> Any:
        taken = real(merging, device)
        seen.append(merging.in_flight)
        return taken

    monkeypatch.setattr(engine._Engine, "take", take)
    return seen


MEAN = {"method": "test_mean", "models": {"a": "a.safetensors", "b": "b.safetensors"}}
MEASURED = {
    "method": "slerp",
    "models": {"a": {**MEAN, "method": "slerp", "per": "row"}, "b": "b.safetensors"},
}


@pytest.mark.usefixtures("whole_tensor_method")
@pytest.mark.parametrize("tree", [MEAN, two(), MEASURED], ids=["whole", "tiles", "measured"])
def test_what_is_under_way_stays_within_the_budget(
    tree: dict[str, Any], tmp_path: Path, in_flight: list[int]
) -> None:
    shapes = {f"model.diffusion_model.{number}": (100 + 10 * number, 64) for number in range(30)}
    for seed, name in enumerate("ab"):
        save_file(random_tensors(seed, shapes=shapes), tmp_path / f"{name}.safetensors")
    plan = planned(tree, tmp_path)
    need = max(working_bytes(plan, job) for job in plan.jobs)
    digests = set()
    for budget in (need, 3 * need, 1 << 30):
        in_flight.clear()
        _, outcome = merge(tree, tmp_path, tmp_path / "out", threads=4, host_budget=budget)
        assert 0 < max(in_flight) <= budget
        digests |= set(outcome.contents)
    assert len(digests) == 1
    with pytest.raises(OutOfMemoryError) as caught:
        merge(tree, tmp_path, tmp_path / "out", host_budget=need - 1)
    assert caught.value.exit_code == 8


@pytest.mark.usefixtures("whole_tensor_method")
@pytest.mark.parametrize("tree", [MEAN, two(), MEASURED], ids=["whole", "tiles", "measured"])
def test_no_more_is_under_way_than_the_plan_says(
    tree: dict[str, Any], tmp_path: Path, in_flight: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {f"model.diffusion_model.{number:02}": (512, 64) for number in range(30)}
    for seed, name in enumerate("ab"):
        save_file(random_tensors(seed, shapes=shapes), tmp_path / f"{name}.safetensors")
    plan = planned(tree, tmp_path)
    peak = place(plan, Devices(("cpu",)), None, 2, 32768).peak_bytes
    real = engine.Scratch.run
    exceeded = threading.Event()

    def run(scratch: Any, job: Any, *arguments: Any) -> Any:
        if max(in_flight) > peak:
            exceeded.set()
        if job is plan.jobs[0]:  # a slow first piece: the other worker goes ahead as far as it may
            exceeded.wait(0.5)
        return real(scratch, job, *arguments)

    monkeypatch.setattr(engine.Scratch, "run", run)
    (tmp_path / "out").mkdir()
    with Staging(plan.layout, tmp_path / "out" / "x") as staging:
        execute(plan, place(plan, Devices(("cpu",)), None, 2, 32768), staging, lambda count: None)
    assert max(in_flight) <= peak


def on_a_gpu(
    plan: Plan, placement: Placement, folder: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> Outcome:
    """Executes a plan with a GPU that is not there: `run` computes its pieces, not Scratch.run."""
    monkeypatch.setattr(engine.Scratch, "run", run)
    monkeypatch.setattr(
        engine, "torch_device", lambda device: torch.device("cpu" if device == "cpu" else "meta")
    )
    folder.mkdir()
    with Staging(plan.layout, folder / "x") as staging:
        return execute(plan, placement, staging, lambda count: None)


class FailingDevice:
    """A GPU that is the host, and is out of memory for more elements than it has."""

    def __init__(self, elements: int) -> None:
        self.elements = elements
        self.real = engine.Scratch.run

    def run(
        self, scratch: Any, job: Any, start: int, count: int, out: Any, device: Any, measured: Any
    ) -> Any:
        if device.type == "meta" and count > self.elements:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real(scratch, job, start, count, out, torch.device("cpu"), measured)


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
    outcome = on_a_gpu(plan, placement, tmp_path / "gpu", lambda *given: fake.run(*given), monkeypatch)
    assert outcome.contents == host.contents
    assert bool(outcome.fallbacks) == (elements < 1 << 30)
    assert any("halved" in what for what in outcome.fallbacks) == (elements < 1 << 30)
    assert any("on the host" in what for what in outcome.fallbacks) == (elements == 0)


def test_a_gpu_that_rounds_otherwise_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path, a=1, b=2)
    _, host = merge(two(), tmp_path, tmp_path / "host")
    plan = planned(two(), tmp_path)
    placement = place(plan, Devices((0,), {0: 1 << 30}), None, 1, 32768)
    real = engine.Scratch.run

    def run(scratch: Any, job: Any, start: int, count: int, out: Any, device: Any, measured: Any) -> Any:
        moved = real(scratch, job, start, count, out, torch.device("cpu"), measured)
        if device.type == "meta":
            out[0] ^= 1
        return moved

    outcome = on_a_gpu(plan, placement, tmp_path / "gpu", run, monkeypatch)
    assert outcome.contents == host.contents
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

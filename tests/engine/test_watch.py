"""What is odd about numbers is seen on their way: NaN that a method looks past, zeros, numbers lost."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.errors import NumericError
from runner.methods import METHODS, Method
from tests.build import merge
from tests.methods.test_every_method import label, operands, values

KEY = "model.diffusion_model.linear.weight"
BAD = (math.nan, math.inf, -math.inf)
OVERLOOKING = {
    "nearswap": {"t": 0.1},
    "smooth_add": {},
    "tensor_sum": {"alpha": 0.3},
    "top_k_tensor_sum": {"width": 0.5},
    "truncate_rank": {"rank": 2},
    "iso_c": {},
    "magmax": {},
    "clamp": {},
}


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.spreads], ids=label)
def test_what_is_not_finite_shows_in_the_result_of_a_method_that_says_so(method: Method) -> None:
    count = len(operands(method, (7, 9)))
    for at, bad, where in itertools.product(range(count), BAD, (0, 31, 62)):
        tensors = operands(method, (7, 9))
        tensors[at].reshape(-1)[where] = bad
        assert not torch.isfinite(method.function(*tensors, **values(method))).all()


def models(folder: Path, shape: tuple[int, ...] = (8, 9)) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return {name: {KEY: torch.randn(shape, generator=generator)} for name in "abc"}


def save(folder: Path, made: dict[str, dict[str, torch.Tensor]]) -> None:
    for name, tensors in made.items():
        save_file(tensors, folder / f"{name}.safetensors")


def tree(method: str, **more: Any) -> dict[str, Any]:
    entry = METHODS[method, None]
    roles = [*entry.roles, *("x", "y")[: entry.variadic or 0], *(["x"] if entry.variadic == 1 else [])]
    roles = list(dict.fromkeys(roles))
    return {
        "method": method,
        "models": {role: f"{'abc'[at]}.safetensors" for at, role in enumerate(roles)},
        **more,
    }


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("method", OVERLOOKING)
def test_what_a_method_looks_past_is_refused_by_file_key_and_place(
    tmp_path: Path, method: str, bad: float
) -> None:
    recipe = tree(method, **OVERLOOKING[method])
    for name in "abc"[: len(recipe["models"])]:
        made = models(tmp_path)
        made[name][KEY].reshape(-1)[[40, 71]] = bad
        save(tmp_path, made)
        where = rf'{name}\.safetensors: tensor "{KEY}": NaN or Inf, first at element 40, 2 in all'
        with pytest.raises(NumericError, match=where):
            merge(recipe, tmp_path, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


def test_a_recipe_may_allow_what_a_method_looks_past(tmp_path: Path) -> None:
    made = models(tmp_path)
    made["b"][KEY][0, 0] = math.inf
    save(tmp_path, made)
    path, _ = merge(tree("nearswap", t=0.1, nonfinite=["*"]), tmp_path, tmp_path / "out")
    assert torch.isfinite(load_file(path)[KEY]).all()


def to_half(folder: Path, a: torch.Tensor, b: torch.Tensor, dtype: str = "float16") -> list[str]:
    save(folder, {"a": {KEY: a}, "b": {KEY: b}})
    recipe = tree("weighted_sum", alpha=0.5, output={"dtype": dtype})
    return merge(recipe, folder, folder / "out")[1].warnings


def test_numbers_that_the_cast_makes_zeros_are_counted_and_named(tmp_path: Path) -> None:
    a = torch.full((50, 40), 0.5)
    a[0, :2] = torch.tensor([1e-9, -1e-9])
    a[1:3] = 0.0  # zeros are not lost: 2 of 1920
    (warning,) = to_half(tmp_path, a, a)
    assert warning == (f"2 numbers too small for the dtype of the output became 0, in 1 tensor: {KEY} (0.1%)")
    a[0, 1] = 0.5  # 1 of 1920
    assert to_half(tmp_path, a, a) == []


def test_the_smallest_numbers_of_a_dtype_are_kept(tmp_path: Path) -> None:
    smallest = torch.full((20, 20), 2.0**-24)
    assert to_half(tmp_path, smallest, smallest) == []
    assert to_half(tmp_path, smallest / 4, smallest / 4) != []
    assert (load_file(tmp_path / "out" / "test.safetensors")[KEY] == 0).all()
    assert to_half(tmp_path, smallest / 4, smallest / 4, "bfloat16") == []


def test_a_copy_that_is_cast_is_counted_too(tmp_path: Path) -> None:
    save(tmp_path, {"a": {KEY: torch.full((4, 4), 1e-9)}, "b": {KEY: torch.ones(4, 4)}})
    recipe = tree("weighted_sum", alpha=0, output={"dtype": "float16"})
    (warning,) = merge(recipe, tmp_path, tmp_path / "out")[1].warnings
    assert "16 numbers too small" in warning


def test_an_input_of_zeros_alone_is_named(tmp_path: Path) -> None:
    made = {name: {KEY: torch.ones(300, 200), "bias": torch.zeros(9)} for name in "ab"}
    made["b"][KEY][:] = 0
    save(tmp_path, made)
    (warning,) = merge(tree("weighted_sum", alpha=0.5), tmp_path, tmp_path / "out")[1].warnings
    assert warning == (f"b.safetensors: 1 tensor of zeros alone (a download that was not finished?): {KEY}")
    made["b"][KEY][299, 199] = 1e-30
    save(tmp_path, made)
    assert merge(tree("weighted_sum", alpha=0.5), tmp_path, tmp_path / "out")[1].warnings == []

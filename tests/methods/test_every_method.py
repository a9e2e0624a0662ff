"""The contract of every registered method, in every variant."""

from __future__ import annotations

import ast
import inspect
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import runner.methods
from runner.methods import METHODS, Method
from runner.methods.factors import Factors, sides
from runner.methods.random import Random
from runner.methods.tiles import Part, Tile
from runner.tensors import SUM_ELEMENTS

SHAPES = ((), (1,), (3,), (5, 1), (7, 9), (4, 3, 3, 3), (0, 4))
# What gives factors is no tensor of the primary's shape: its contracts stand at the end.
EVERY = [method for method in METHODS.values() if method.result == "tensor"]
STANDARD = [method for method in EVERY if not method.compat]
FACTORS = [method for method in METHODS.values() if method.result == "factors"]


def label(method: Method) -> str:
    return method.label


def operands(method: Method, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    count = len(method.roles) + (0 if method.variadic is None else max(2, method.variadic))
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


# Where 0.3 will not do: beside the density of della it gives no probability, and not every matrix can be
# turned by part of its rotation.
OTHER = {"epsilon": 0.1, "alignment": 1.0}


def values(method: Method, start: int = 0) -> dict[str, Any]:
    """Parameters inside their ranges that are no end of them, for a piece from `start` on."""
    names = [name for name, parameter in method.parameters.items() if not parameter.choices]
    numbers = {name: OTHER.get(name, 0.3) for name in names}
    streams = Random(0, "merge", [str(number) for number in range(9)], "key", start)
    return {**numbers, "random": streams} if method.draws else numbers


@pytest.mark.parametrize("method", EVERY, ids=label)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_gives_the_shape_of_the_primary(method: Method, shape: tuple[int, ...]) -> None:
    result = method.function(*operands(method, shape), **values(method))
    assert result.shape == shape
    assert result.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", EVERY, ids=label)
def test_operands_are_not_changed(method: Method, dtype: torch.dtype) -> None:
    tensors = operands(method, (6, 5), dtype)
    before = [tensor.clone() for tensor in tensors]
    method.function(*tensors, **values(method))
    assert all(torch.equal(*pair) for pair in zip(tensors, before, strict=True))


@pytest.mark.parametrize("method", EVERY, ids=label)
def test_a_tensor_that_is_not_contiguous_gives_the_same(method: Method) -> None:
    tensors = operands(method, (6, 5))
    turned = [tensor.t().contiguous().t() for tensor in tensors]
    assert torch.equal(
        method.function(*tensors, **values(method)), method.function(*turned, **values(method))
    )


def of_parameters(method: Method, what: Any, words: dict[str, Any]) -> Any:
    """A property of a method that may depend on its parameters."""
    count = max(2, method.variadic or 0)
    numbers: dict[str, Any] = {
        name: (OTHER.get(name, 0.3),) * count if parameter.per_model else OTHER.get(name, 0.3)
        for name, parameter in method.parameters.items()
        if not parameter.choices
    }
    return what(**numbers, **words) if callable(what) else what


def with_words() -> list[Any]:
    """Every method with every combination of its words."""
    cases = []
    for method in EVERY:
        choices = {name: p.choices for name, p in method.parameters.items() if p.choices}
        for words in itertools.product(*choices.values()):
            chosen = dict(zip(choices, words, strict=True))
            text = " ".join([method.label, *map(str, words)])
            cases.append(pytest.param(method, chosen, id=text))
    return cases


def in_parts(
    method: Method, words: dict[str, Any], shape: tuple[int, ...], step: int
) -> tuple[Tensor, Tensor]:
    """The result of a method for a whole tensor, and what it is if the engine cuts it."""
    tensors = operands(method, shape)
    row = math.prod(shape[1:])
    given = {**values(method), **words}

    def keywords(part: Part) -> dict[str, Any]:
        streams = {"random": values(method, part.start)["random"]} if method.draws else {}
        return {**given, **streams, **({"part": part} if method.placed else {})}

    parts = [Part("key", "unet", shape, start * row) for start in range(0, shape[0], step)]

    def cut(part: Part) -> list[Tensor]:
        return [tensor[part.start // row : part.start // row + step] for tensor in tensors]

    whole = method.function(*tensors, **keywords(Part("key", "unet", shape)))
    measured = {}
    if of_parameters(method, method.over, words):
        assert method.measure
        tiles = [Tile(tuple(cut(part)), None, part, keywords(part).get("random")) for part in parts]
        measured = {"measured": method.measure(tiles, **method.measured_by(given))}
    pieces = [method.function(*cut(part), **keywords(part), **measured) for part in parts]
    return whole, torch.cat(pieces)


@pytest.mark.parametrize(("method", "words"), with_words())
def test_a_method_may_be_cut_as_its_scope_says(method: Method, words: dict[str, Any]) -> None:
    scope = of_parameters(method, method.scope, words)
    over = of_parameters(method, method.over, words)
    if scope == "element":
        # What is measured is summed in pieces, and tiles are whole numbers of them.
        for step in (SUM_ELEMENTS, 2 * SUM_ELEMENTS) if over else (1, 7, 500, 1000):
            whole, parts = in_parts(method, words, (SUM_ELEMENTS * 3 + 5 if over else 1001,), step)
            assert torch.equal(parts, whole)
    elif scope == "row":
        for step in (1, 2, 6):
            whole, parts = in_parts(method, words, (7, 4, 3, 3), step)
            assert torch.equal(parts, whole)


@pytest.mark.parametrize("method", STANDARD, ids=label)
def test_the_operand_a_method_names_as_its_result_is_its_result(method: Method) -> None:
    """result_is only saves work: computing gives the same, up to rounding."""
    tensors = operands(method, (64,), torch.float64)
    count = max(2, method.variadic or 0)
    for value in (0.0, 0.3, 1.0):
        numbers: dict[str, Any] = {
            name: (max(value, 0.3), *(0.0,) * (count - 1)) if parameter.per_model else value
            for name, parameter in method.parameters.items()
            if not parameter.choices and not (parameter.per_model and name in ("density", "epsilon"))
        }
        words = {n: p.default for n, p in method.parameters.items() if p.choices}
        fixed = {"density": (0.5,) * count, "epsilon": (0.1,) * count}
        density = {n: fixed[n] for n, p in method.parameters.items() if n in fixed and n not in numbers}
        number = method.result_is(**numbers, **words, **density)
        if number is not None:
            streams = {"random": values(method)["random"]} if method.draws else {}
            computed = method.function(*tensors, **numbers, **words, **density, **streams)
            torch.testing.assert_close(computed, tensors[number], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", STANDARD, ids=label)
def test_float32_is_within_one_unit_of_float64(method: Method) -> None:
    exact = method.function(*operands(method, (4096,), torch.float64), **values(method))
    single = method.function(*operands(method, (4096,)), **values(method))
    scale = sum((tensor.abs() for tensor in operands(method, (4096,), torch.float64)), exact.abs())
    assert ((single.double() - exact).abs() / scale).max() < 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("method", METHODS.values(), ids=label)
def test_a_method_explains_itself(method: Method) -> None:
    text = inspect.getdoc(method.function) or ""
    assert len(method.summary) > 10
    assert method.compat or ("Source:" in text and "Args:" in text)
    assert method.compat is None or method.differs


# What gives other bytes on other machines, or with other numbers of threads (see docs/design.md).
FORBIDDEN = {
    *("lerp", "lerp_", "addcmul", "addcmul_", "addcdiv", "addcdiv_", "compile", "log1p", "softmax"),
    *("sigmoid", "atan2", "dot", "randn", "rand", "bernoulli", "pow"),
}


def test_no_method_uses_an_operation_that_differs_between_machines() -> None:
    for path in Path(runner.methods.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in FORBIDDEN, f"{path.name}:{node.lineno}: {node.func.attr}"
                if node.func.attr in ("add", "sub", "add_", "sub_"):
                    assert not any(keyword.arg == "alpha" for keyword in node.keywords)


def test_the_seed_methods_follow_their_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b, c = (torch.randn(500, generator=generator, dtype=torch.float64) for _ in range(3))
    for alpha in (0.1, 0.25, 0.5, 0.9):
        smooth = alpha * alpha * (3 - 2 * alpha)
        inverse = 0.5 - math.sin(math.asin(1 - 2 * alpha) / 3)
        expected = {
            "weighted_sum": (1 - alpha) * a + alpha * b,
            "sigmoid": a + (b - a) * smooth,
            "inv_sigmoid": a + (b - a) * inverse,
            "add_difference": a + alpha * (b - c),
        }
        for name, result in expected.items():
            method = METHODS[name, None]
            computed = method.function(*(a, b, c)[: len(method.roles)], alpha=alpha)
            torch.testing.assert_close(computed, result, rtol=1e-14, atol=1e-14)
        assert math.isclose(inverse * inverse * (3 - 2 * inverse), alpha, abs_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compat_methods_round_as_the_merger_did(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(400, generator=generator)  # loaded in float32
    b, c = (torch.randn(400, generator=generator).to(dtype) for _ in range(2))
    alpha = 0.3
    merger = {
        ("weighted_sum", "diffusers"): ((1 - alpha) * a) + (alpha * b),
        ("add_difference", "invokeai-2.3"): ((1 - alpha) * a) + (alpha * b),
        ("add_diff", "diffusers"): a + (b - c) * (1.0 - alpha),
        ("sigmoid", "diffusers"): a + ((b - a) * (alpha * alpha * (3 - (2 * alpha)))),
    }
    for (name, tool), expected in merger.items():
        method = METHODS[name, tool]
        result = method.function(*(a, b, c)[: len(method.roles)], alpha=alpha)
        assert torch.equal(result, expected) and result.dtype == torch.float32


def test_compat_cuts_integers_as_the_merger_did() -> None:
    ids = torch.arange(77)
    method = METHODS["weighted_sum", "diffusers"]
    wrong = {
        alpha: int((method.function(ids, ids, alpha=alpha).to(torch.int64) != ids).sum())
        for alpha in (0.1, 0.5)
    }
    assert wrong == {0.1: 22, 0.5: 0}  # position ids one too small, as in models merged with it


def given_to(method: Method, shape: tuple[int, ...]) -> list[Any]:
    """What a method that gives factors is given for a tensor of a shape."""
    generator = torch.Generator().manual_seed(5)
    if not method.adapters:
        return [torch.randn(shape, generator=generator) for _ in method.roles]
    rows, columns = sides(shape)
    pairs = [
        (torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator))
        for rank in (2, 3)
    ]
    return [shape, *((up.double(), down.double()) for up, down in pairs)]


@pytest.mark.parametrize("rank", [0, 1, 4, 100])
@pytest.mark.parametrize("shape", [(7, 9), (9, 7), (5, 1), (4, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("method", FACTORS, ids=label)
def test_factors_have_the_rank_that_is_planned(method: Method, shape: tuple[int, ...], rank: int) -> None:
    operands = given_to(method, shape)
    numbers: dict[str, Any] = {name: p.default for name, p in method.parameters.items()} | {"rank": rank}
    assert method.rank
    planned = method.rank(
        shape, [len(down) for _, down in operands[1:]] if method.adapters else [], **numbers
    )
    if planned == 0:
        return
    streams = {"random": Random(0, "merge", method.roles, "key", 0)} if method.draws else {}
    found = method.function(*operands, **numbers, **streams)
    rows, columns = sides(shape)
    assert found.change.shape == (rows, columns) and found.change.dtype == torch.float64
    assert found.up.shape[0] == rows and found.down.shape[1] == columns
    assert found.up.shape[1] == found.down.shape[0] <= planned
    if planned >= min(rows, columns):
        torch.testing.assert_close(found.up @ found.down, found.change, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [2, 257])
def test_what_is_written_of_factors_is_what_is_read(rank: int, dtype: torch.dtype, alpha: bool) -> None:
    up, down = operands_of_rank_two()
    out = torch.empty(alpha + rank * (6 + 5), dtype=dtype)
    product = Factors(up, down, up @ down).write(out, rank, alpha)
    scale = float(out[0]) / rank if alpha else 1.0
    read = out[int(alpha) :].double()
    by_reader = scale * read[rank * 5 :].view(6, rank) @ read[: rank * 5].view(rank, 5)
    torch.testing.assert_close(product, by_reader, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(product, up @ down, rtol=0, atol=8 * torch.finfo(dtype).eps)


def operands_of_rank_two() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    up = torch.rand((6, 2), generator=generator, dtype=torch.float64)
    return up, torch.rand((2, 5), generator=generator, dtype=torch.float64)

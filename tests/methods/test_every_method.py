"""The contract of every registered method, in every variant."""

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import runner.methods
from runner.methods import METHODS, Method

SHAPES = ((), (1,), (3,), (5, 1), (7, 9), (4, 3, 3, 3), (0, 4))
STANDARD = [method for method in METHODS.values() if not method.compat]
EVERY = list(METHODS.values())


def label(method: Method) -> str:
    return method.label


def operands(method: Method, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in method.roles]


def values(method: Method) -> dict[str, float]:
    """Parameters inside their ranges that are no end of them."""
    return {name: 0.3 for name, parameter in method.parameters.items() if not parameter.choices}


@pytest.mark.parametrize("method", EVERY, ids=label)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_gives_the_shape_of_the_primary(method: Method, shape: tuple[int, ...]) -> None:
    result = method.function(*operands(method, shape), **values(method))
    assert result.shape == shape
    assert result.dtype == torch.float32


@pytest.mark.parametrize("method", EVERY, ids=label)
def test_operands_are_not_changed(method: Method) -> None:
    tensors = operands(method, (6, 5))
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


@pytest.mark.parametrize("method", [m for m in EVERY if m.elementwise], ids=label)
def test_an_elementwise_method_may_be_cut_anywhere(method: Method) -> None:
    tensors = operands(method, (1001,))
    whole = method.function(*tensors, **values(method))
    for cut in (1, 7, 500, 1000):
        parts = [
            method.function(*(tensor[part] for tensor in tensors), **values(method))
            for part in (slice(None, cut), slice(cut, None))
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("method", STANDARD, ids=label)
def test_the_role_a_method_names_as_its_result_is_its_result(method: Method) -> None:
    """result_is only saves work: computing gives the same, up to rounding."""
    tensors = dict(zip(method.roles, operands(method, (64,), torch.float64), strict=True))
    named = 0
    for value in (0.0, 0.3, 1.0):
        parameters = dict.fromkeys(values(method), value)
        role = method.result_is(**parameters)
        if role is not None:
            named += 1
            computed = method.function(*tensors.values(), **parameters)
            torch.testing.assert_close(computed, tensors[role], rtol=1e-12, atol=1e-12)
    assert named >= 1


@pytest.mark.parametrize("method", STANDARD, ids=label)
def test_float32_is_within_one_unit_of_float64(method: Method) -> None:
    exact = method.function(*operands(method, (4096,), torch.float64), **values(method))
    single = method.function(*operands(method, (4096,)), **values(method))
    scale = torch.stack([tensor.abs() for tensor in operands(method, (4096,), torch.float64)]).sum(0)
    assert ((single.double() - exact).abs() / scale).max() < 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("method", EVERY, ids=label)
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

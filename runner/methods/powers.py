"""geometric_sum and multiply_difference: weighted geometric means, of weights and of differences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Range, Weight, either_end, method

if TYPE_CHECKING:
    from torch import Tensor


def _mean(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """|a|^(1 − alpha)·|b|^alpha, in float64; 0 where one of them is 0."""
    if alpha in (0, 1):  # 0⁰ is 1
        return (b if alpha else a).double().abs()
    # A logarithm of 0 is minus infinity, and its exponential 0 again.
    return a.double().abs().log_().mul_(1 - alpha).add_(b.double().abs().log_().mul_(alpha)).exp_()


@method(determinism="stable", scope="element", copies=(0, 7), idempotent=True, result_is=either_end)
def geometric_sum(a: Weight, b: Weight, *, alpha: Annotated[float, Range(0, 1)] = 0.5) -> Weight:
    """The real part of a^(1 − alpha)·b^alpha: a weighted sum of logarithms.

    That is |a|^(1 − alpha)·|b|^alpha where both are positive, and a cosine times that where one is not;
    so where signs differ the result is near 0 at 0.5, and it is 0 where one of them is.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second.
        alpha: share of b; 0 gives a, 1 gives b, both bit for bit.

    Source: sd-mecha, geometric_sum.
    """
    result = _mean(a, b, alpha)
    # The real part of (−1)^p is cos(p·π).
    factors = result.new_tensor([1, math.cos(math.pi * (1 - alpha)), math.cos(math.pi * alpha), -1])
    negative = (b < 0).long().mul_(2).add_(a < 0)
    return result.mul_(factors[negative]).to(a.dtype)


@method(
    determinism="stable",
    scope="element",
    copies=(0, 9),
    result_is=lambda alpha, beta: {(0, 0): 0, (1, 1): 1}.get((alpha, beta)),
)
def multiply_difference(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, 1)] = 0.5,
    beta: Annotated[float, Range(0, 1)] = 0.5,
) -> Weight:
    """c ± |a − c|^(1 − alpha)·|b − c|^alpha: what both learned counts, what only one learned does not.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second.
        c: tensor of the model both were trained from.
        alpha: share of b in the size of the difference.
        beta: share of b in its sign, which is that of (1 − beta)·a + beta·b − c. (0, 0) gives a,
            (1, 1) gives b.

    Source: sd-meh, multiply_difference.
    """
    of_a, of_b = a.double() - c, b.double() - c
    size = _mean(of_a, of_b, alpha)
    return size.mul_(of_a.mul_(1 - beta).add_(of_b.mul_(beta)).sign_()).add_(c).to(a.dtype)

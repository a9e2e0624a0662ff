"""slerp: between two models along the great circle, so that the norm does not shrink on the way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.registry import Range, Weight, either_end, method
from runner.methods.sums import as_matrix, cosine, dot, norm, row_dots

if TYPE_CHECKING:
    from torch import Tensor

MIN_SINE = 1e-6  # below, the vectors are parallel or opposite, and the weighted sum is taken


def _shares(
    product: float, norm_a: float, norm_b: float, alpha: float, magnitude: str
) -> tuple[float, float]:
    """What of a and of b is summed."""
    angle = math.acos(cosine(product, norm_a, norm_b))
    sine = math.sin(angle)
    if norm_a == 0 or norm_b == 0 or sine < MIN_SINE:
        return 1 - alpha, alpha
    share_a, share_b = math.sin((1 - alpha) * angle) / sine, math.sin(alpha * angle) / sine
    if magnitude == "lerp":
        length = (1 - alpha) * norm_a + alpha * norm_b
        return share_a * length / norm_a, share_b * length / norm_b
    return share_a, share_b


def _by_rows(a: Tensor, b: Tensor, alpha: float, magnitude: str) -> Tensor:
    """slerp of each row of two matrices."""
    products = row_dots(a, b).flatten().tolist()
    squares_a, squares_b = row_dots(a, a).flatten().tolist(), row_dots(b, b).flatten().tolist()
    shares = [
        _shares(product, math.sqrt(of_a), math.sqrt(of_b), alpha, magnitude)
        for product, of_a, of_b in zip(products, squares_a, squares_b, strict=True)
    ]
    of_a, of_b = (a.new_tensor([share[side] for share in shares]).unsqueeze(1) for side in (0, 1))
    return (a * of_a).add_(b * of_b)


@method(
    determinism="stable",
    elementwise=False,
    copies=(2, 3),
    result_is=either_end,
)
def slerp(
    a: Weight,
    b: Weight,
    *,
    alpha: Annotated[float, Range(0, 1, "warn")] = 0.5,
    per: Literal["tensor", "row", "column"] = "tensor",
    magnitude: Literal["raw", "lerp"] = "raw",
) -> Weight:
    """(sin((1 − alpha)·θ)·a + sin(alpha·θ)·b) / sin θ, θ the angle between a and b.

    Parallel, opposite or zero vectors have no such circle; they are summed as by weighted_sum.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second, same shape.
        alpha: 0 gives a, 1 gives b, both bit for bit.
        per: whether θ is taken over the "tensor", each "row" (of a convolution: each filter) or "column".
        magnitude: "raw" turns the tensors themselves; "lerp" turns their directions and gives the
            result the length (1 − alpha)·‖a‖ + alpha·‖b‖.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    if a.equal(b):
        return a.clone()
    if per == "tensor":
        share_a, share_b = _shares(dot(a, b), norm(a), norm(b), alpha, magnitude)
        return (a * share_a).add_(b * share_b)
    rows_a, rows_b = as_matrix(a), as_matrix(b)
    if per == "column":
        rows_a, rows_b = rows_a.t().contiguous(), rows_b.t().contiguous()
    mixed = _by_rows(rows_a, rows_b, alpha, magnitude)
    return (mixed.t() if per == "column" else mixed).reshape(a.shape)

"""slerp and nuslerp: between two models along the great circle, so that the norm does not shrink."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.combination import Combination, all_equal, vectors
from runner.methods.registry import PerModel, Range, Scope, Weight, each, either_end, method
from runner.methods.sums import Gram, as_matrix, gram, row_dots
from runner.methods.tiles import Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor

MIN_SINE = 1e-6  # below, the vectors are parallel or opposite, and the weighted sum is taken


def _shares(products: Gram, alpha: float, magnitude: str, linear_above: float) -> Combination:
    """What of a and of b is summed."""
    if all_equal(products):
        return Combination((1.0, 0.0))
    norm_a, norm_b, cosine = products.norm(0), products.norm(1), products.cosine(0, 1)
    angle = math.acos(cosine)
    sine = math.sin(angle)
    if norm_a == 0 or norm_b == 0 or sine < MIN_SINE or abs(cosine) > linear_above:
        return Combination((1 - alpha, alpha), "zero, parallel or opposite vectors: weighted sum")
    share_a, share_b = math.sin((1 - alpha) * angle) / sine, math.sin(alpha * angle) / sine
    if magnitude == "lerp":
        length = (1 - alpha) * norm_a + alpha * norm_b
        return Combination((share_a * length / norm_a, share_b * length / norm_b))
    return Combination((share_a, share_b))


def _measure(tiles: Tiles, alpha: float, magnitude: str, linear_above: float) -> Combination:
    return _shares(gram(tiles, vectors), alpha, magnitude, linear_above)


def _by_rows(a: Tensor, b: Tensor, alpha: float, magnitude: str, linear_above: float) -> Tensor:
    """slerp of each row of two matrices."""
    products = [row_dots(*pair).flatten().tolist() for pair in ((a, a), (a, b), (b, b))]
    shares = [
        _shares(Gram(((aa, ab), (ab, bb))), alpha, magnitude, linear_above).shares
        for aa, ab, bb in zip(*products, strict=True)
    ]
    of_a, of_b = (a.new_tensor([share[side] for share in shares]).unsqueeze(1) for side in (0, 1))
    return (a * of_a).add_(b * of_b)


def _scope(per: str, **_: object) -> Scope:
    return "row" if per == "row" else "tensor" if per == "column" else "element"


def _between(
    a: Tensor,
    b: Tensor,
    base: Tensor | None,
    alpha: float,
    per: str,
    magnitude: str,
    linear_above: float,
    measured: Combination | None,
) -> Tensor:
    if per == "tensor":
        measured = measured or _measure(whole(a, b, base=base), alpha, magnitude, linear_above)
        return measured.of((a, b), base)
    rows_a, rows_b = (as_matrix(model if base is None else model - base) for model in (a, b))
    if per == "column":
        rows_a, rows_b = rows_a.t().contiguous(), rows_b.t().contiguous()
    mixed = _by_rows(rows_a, rows_b, alpha, magnitude, linear_above)
    mixed = (mixed.t() if per == "column" else mixed).reshape(a.shape)
    return mixed if base is None else mixed.add(base)


@method(
    determinism="stable",
    scope=_scope,
    measure=_measure,
    over=lambda per, **_: "tensor" if per == "tensor" else None,
    copies=(2, 4),
    result_is=either_end,
)
def slerp(
    a: Weight,
    b: Weight,
    *,
    base: Weight | None = None,
    alpha: Annotated[float, Range(0, 1, "warn")] = 0.5,
    per: Literal["tensor", "row", "column"] = "tensor",
    magnitude: Literal["raw", "lerp"] = "raw",
    linear_above: Annotated[float, Range(0, 1)] = 1.0,
    measured: Combination | None = None,
) -> Weight:
    """(sin((1 − alpha)·θ)·a + sin(alpha·θ)·b) / sin θ, θ the angle between a and b.

    Parallel, opposite or zero vectors have no such circle; they are summed as by weighted_sum.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second, same shape.
        base: if given, the differences of a and b from it are turned, and it is added again.
        alpha: 0 gives a, 1 gives b, both bit for bit.
        per: whether θ is taken over the "tensor", each "row" (of a convolution: each filter) or "column".
        magnitude: "raw" turns the tensors themselves; "lerp" turns their directions and gives the
            result the length (1 − alpha)·‖a‖ + alpha·‖b‖.
        linear_above: cosine above which the weighted sum is taken too; other tools have 0.9995.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    return _between(a, b, base, alpha, per, magnitude, linear_above, measured)


def _alpha_of(weight: PerModel) -> float:
    """The share of b: its weight in the sum of both."""
    of_a, of_b = each(weight, 2)
    return of_b / (of_a + of_b) if of_a + of_b else 0.5


def _measure_weighted(tiles: Tiles, weight: PerModel) -> Combination:
    return _measure(tiles, _alpha_of(weight), "raw", 1.0)


@method(
    determinism="stable",
    scope=_scope,
    measure=_measure_weighted,
    over=lambda per, **_: "tensor" if per == "tensor" else None,
    copies=(2, 4),
    result_is=lambda weight, **_: either_end(_alpha_of(weight)),
)
def nuslerp(
    a: Weight,
    b: Weight,
    *,
    base: Weight | None = None,
    weight: PerModel = 1.0,
    per: Literal["tensor", "row", "column"] = "tensor",
    measured: Combination | None = None,
) -> Weight:
    """slerp with weights in the place of alpha: alpha = w_b / (w_a + w_b).

    Args:
        a, b, base, per: as in slerp.
        weight: of a and of b; a model of weight 0 has no part, weights that add up to 0 mean one half.

    Source: mergekit, merge_methods/nuslerp.py.
    """
    return _between(a, b, base, _alpha_of(weight), per, "raw", 1.0, measured)

"""euclidean_add_difference: the differences of two models combined by the root of their squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Range, Weight, either_end, method
from runner.methods.sums import gram
from runner.methods.tiles import Tile, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor


def _measure(tiles: Tiles, alpha: float) -> tuple[float, float]:
    """What each difference is multiplied by before it is squared."""

    def differences(tile: Tile) -> Sequence[Tensor]:
        a, b, c = tile.operands
        of_a, of_b = a - c, b - c
        return of_a, of_b, of_a * (1 - alpha) + of_b * alpha

    products = gram(tiles, differences)
    of_a, of_b, length = (products.norm(number) for number in range(3))
    # The squares of a vector of length 1 add up to 1, so the norm of the roots is known.
    of_roots = math.sqrt((1 - alpha) * (of_a > 0) + alpha * (of_b > 0))
    factor = length / of_roots if of_roots else 0.0
    return (
        factor * math.sqrt(1 - alpha) / of_a if of_a else 0.0,
        factor * math.sqrt(alpha) / of_b if of_b else 0.0,
    )


@method(determinism="stable", scope="element", measure=_measure, copies=(0, 6), result_is=either_end)
def euclidean_add_difference(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, 1)] = 0.5,
    measured: tuple[float, float] | None = None,
) -> Weight:
    """c ± √((1 − alpha)·(a − c)² + alpha·(b − c)²), of unit vectors, at the length of the weighted sum.

    The sign is that of the weighted sum's difference from c. Where one model changed a weight and the
    other did not, more of the change is left than in a weighted sum.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second.
        c: tensor of the model both were trained from.
        alpha: share of b; 0 gives a, 1 gives b, both bit for bit.

    Source: sd-meh, euclidean_add_difference.
    """
    factor_a, factor_b = measured or _measure(whole(a, b, c), alpha)
    of_a, of_b = a - c, b - c
    negative = (of_a * (1 - alpha)).add_(of_b * alpha) < 0
    of_a.mul_(factor_a)
    of_b.mul_(factor_b)
    size = of_a.mul_(of_a).add_(of_b.mul_(of_b)).sqrt_()
    return size.where(~negative, -size).add_(c)

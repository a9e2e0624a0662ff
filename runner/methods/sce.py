"""sce: selects where models differ most, weighs them by how much they learned there, erases minorities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Delta, Range, Weight, method
from runner.methods.selection import Largest, largest
from runner.methods.sums import total
from runner.methods.tiles import WHOLE, Part, Tile, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Selected:
    """What was measured of a tensor.

    Attributes:
        where: the elements that are merged; None: all.
        weights: of the models.
    """

    where: Largest | None
    weights: tuple[float, ...]

    def of(self, deltas: Sequence[Tensor], part: Part) -> list[Tensor]:
        """The differences with what is not selected set to 0."""
        if self.where is None:
            return list(deltas)
        mask = self.where.mask(_variance(deltas), part)
        return [delta * mask for delta in deltas]


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """The variance over models, in float64; exactly 0 where all are equal."""
    from_first = [delta.double() - deltas[0] for delta in deltas[1:]]
    mean = sum(from_first, deltas[0].double() * 0) / len(deltas)
    result = mean * mean
    for one in from_first:
        result.add_(one.sub_(mean).square_())
    return result.div_(len(deltas))


def _measure(tiles: Tiles, select_topk: float) -> Selected:
    def variance(tile: Tile) -> Sequence[Tensor]:
        return [_variance(tile.operands[1:])]

    def count(elements: int, nonzero: int) -> list[int]:
        return [int(select_topk * nonzero)]

    where = largest(tiles, variance, [count])[0][0] if select_topk < 1 else None
    squares: list[list[float]] = []
    for tile in tiles:
        deltas = Selected(where, ()).of(tile.operands[1:], tile.part)
        squares = squares or [[] for _ in deltas]
        for found, delta in zip(squares, deltas, strict=True):
            found += total(delta.double().square())
    sums = [math.fsum(found) for found in squares]
    learned = math.fsum(sums)
    return Selected(where, tuple(one / learned if learned else 1 / len(sums) for one in sums))


@method(
    determinism="stable",
    scope="element",
    measure=_measure,
    copies=(4, 10),
    result_is=lambda select_topk, scale, **_: 0 if 0 in (select_topk, scale) else None,
)
def sce(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    measured: Selected | None = None,
    select_topk: Annotated[float, Range(0, 1)] = 1.0,
    scale: float = 1.0,
) -> Weight:
    """base + scale·Σ W_i·d_i / Σ W_i over the differences d_i = x_i − base that agree with most of their sum.

    Select: only the elements whose variance over the models is largest are merged. Calculate: a
    model's weight W_i is its share of the squared differences there. Erase: where a difference has
    not the sign of their sum, it does not count.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        part: which elements these are.
        select_topk: share of the elements that vary which are merged; 1 merges all elements, 0 none.
        scale: of the merged difference; 0 gives the base bit for bit.

    Source: Wan et al., FuseChat, https://arxiv.org/abs/2408.07990.
    """
    measured = measured or _measure(whole(base, *models, part=part), select_topk)
    deltas = measured.of(models, part)
    votes = deltas[0].clone()
    for delta in deltas[1:]:
        votes.add_(delta)
    positive = votes >= 0
    result = deltas[0] * 0
    shares = deltas[0] * 0
    for delta, weight in zip(deltas, measured.weights, strict=True):
        agrees = ((delta > 0) & positive) | ((delta < 0) & ~positive)
        result.add_((delta * agrees).mul_(weight))
        shares.add_(agrees.to(shares.dtype).mul_(weight))
    return result.div_(shares.masked_fill_(shares == 0, 1)).mul_(scale).add_(base)

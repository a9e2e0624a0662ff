"""trust_region: adds what several models learned, except where they pull at the same weights most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Delta, PerModel, Range, Weight, each, first_without_scale, method
from runner.methods.selection import largest
from runner.methods.tiles import Tile, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor


def _conflict(deltas: Sequence[Tensor]) -> Tensor:
    """Σ |d_i|·|d_j| over all i ≠ j, in float64."""
    seen = deltas[0].abs().double()
    result = seen * 0
    for delta in deltas[1:]:
        size = delta.abs().double()
        result.add_((size * seen).mul_(2))
        seen.add_(size)
    return result


def _measure(tiles: Tiles, quantile: float) -> float:
    """The conflict at which differences are dropped: the quantile over all tensors."""

    def conflict(tile: Tile) -> Sequence[Tensor]:
        return [_conflict(tile.operands[1:])]

    def count(elements: int, nonzero: int) -> list[int]:
        return [elements - math.ceil(quantile * (elements - 1))]

    return largest(tiles, conflict, [count])[0][0].threshold


@method(
    determinism="stable",
    scope="element",
    measure=_measure,
    over="model",
    at_least=2,
    copies=(2, 8),
    result_is=first_without_scale,
)
def trust_region(
    base: Weight,
    *models: Delta,
    measured: float | None = None,
    weight: PerModel = 1.0,
    scale: float = 1.0,
    quantile: Annotated[float, Range(0, 1)] = 0.99,
) -> Weight:
    """base + scale·Σ w_i·(x_i − base), but the base where Σ |d_i|·|d_j| is among the largest of the model.

    Where at most one model changed a weight there is no conflict, and nothing is dropped.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it.
        weight: of each model; it has no part in the conflict.
        scale: of the sum; 0 gives the base bit for bit.
        quantile: share of the model's elements that is safe; it is looked for over all its tensors.

    Source: Sun et al., Task Arithmetic in Trust Region, https://arxiv.org/abs/2501.15065; FusionBench.
    """
    threshold = _measure(whole(base, *models), quantile) if measured is None else measured
    conflict = _conflict(models)
    safe = (conflict < threshold) | (conflict == 0)
    result = base.clone()
    for model, weight_i in zip(models, each(weight, len(models)), strict=True):
        if weight_i != 0:
            result.add_((model * safe).mul_(weight_i * scale))
    return result

"""ram and ram_plus: what one model alone changed is kept in full, what several changed is averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Delta, Range, Weight, first_without_scale, method
from runner.methods.tiles import Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor


def _changed(models: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Where each model changed a weight, and how many did."""
    changed = [model.abs() > epsilon for model in models]
    count = changed[0].to(models[0].dtype)
    for one in changed[1:]:
        count.add_(one)
    return changed, count


def _measure(tiles: Tiles, epsilon: float, r: float, alpha: float) -> tuple[float, ...]:
    """The factor of what each model alone changed."""
    shared: list[int] = []
    alone: list[int] = []
    for tile in tiles:
        changed, count = _changed(tile.operands[1:], epsilon)
        shared, alone = shared or [0] * len(changed), alone or [0] * len(changed)
        for number, one in enumerate(changed):
            alone[number] += int((one & (count == 1)).sum())
            shared[number] += int((one & (count > 1)).sum())
    return tuple(
        1 + r * min(both / one, alpha) if one else 1.0 for both, one in zip(shared, alone, strict=True)
    )


def _merged(
    base: Tensor, models: Sequence[Tensor], epsilon: float, scale: float, factors: Sequence[float]
) -> Tensor:
    changed, count = _changed(models, epsilon)
    alone = count == 1
    result = base * 0
    for model, one, factor in zip(models, changed, factors, strict=True):
        term = model * one
        result.add_(term if factor == 1 else (term * factor).where(alone, term))
    return result.div_(count.clamp_(min=1)).mul_(scale).add_(base)


@method(determinism="exact", scope="element", copies=(1, 3), result_is=first_without_scale)
def ram(
    base: Weight,
    *models: Delta,
    epsilon: Annotated[float, Range(0, math.inf)] = 1e-5,
    scale: float = 1.0,
) -> Weight:
    """base + scale·Δ, Δ the mean of the differences of those models that changed a weight at all.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        epsilon: up to this, in the unit of the weights, a difference is none.
        scale: of the merged difference; 0 gives the base bit for bit.

    Source: Reinforced Agent Merging, https://arxiv.org/abs/2601.13572; mergekit, merge_methods/ram.py.
    """
    return _merged(base, models, epsilon, scale, [1.0] * len(models))


@method(determinism="exact", scope="element", measure=_measure, copies=(1, 3), result_is=first_without_scale)
def ram_plus(
    base: Weight,
    *models: Delta,
    measured: tuple[float, ...] | None = None,
    epsilon: Annotated[float, Range(0, math.inf)] = 1e-5,
    r: Annotated[float, Range(0, math.inf)] = 0.1,
    alpha: Annotated[float, Range(0, math.inf)] = 0.2,
    scale: float = 1.0,
) -> Weight:
    """ram, with what one model alone changed enlarged by 1 + r·min(shared / alone, alpha).

    Args:
        base, models, epsilon, scale: as in ram.
        r: how much it is enlarged.
        alpha: the most that the number of weights it changed with others, divided by the number it
            changed alone, counts. Both are counted in each tensor.

    Source: Reinforced Agent Merging, https://arxiv.org/abs/2601.13572; mergekit, merge_methods/ram.py.
    """
    factors = measured or _measure(whole(base, *models), epsilon, r, alpha)
    return _merged(base, models, epsilon, scale, factors)

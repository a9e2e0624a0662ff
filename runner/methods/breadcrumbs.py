"""breadcrumbs and breadcrumbs_ties: what several models learned without its largest and smallest parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.registry import Delta, PerModel, Range, Weight, each, first_without_scale, method
from runner.methods.selection import Largest, largest
from runner.methods.ties import dense, elect
from runner.methods.tiles import WHOLE, Part, Tile, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor

Kept = tuple[Largest, Largest]  # the elements of the first that are not among the second


def _counts(density: float, gamma: float) -> Callable[[int, int], list[int]]:
    """For largest: the outliers with what is kept, and the outliers alone."""

    def counts(count: int, nonzero: int) -> list[int]:
        kept = max(1, int(density * count))
        outliers = max(0, min(int(gamma * count), count - kept))
        return [outliers + kept, outliers]

    return counts


def _measure(tiles: Tiles, density: PerModel, gamma: PerModel) -> tuple[Kept | None, ...]:
    """Of each difference what is kept; None where all is."""
    count = len(next(iter(tiles)).operands) - 1
    densities, gammas = each(density, count), each(gamma, count)
    thinned = [number for number, one in enumerate(densities) if one < 1]
    if not thinned:
        return (None,) * count

    def deltas(tile: Tile) -> Sequence[Tensor]:
        return [tile.operands[1 + number] for number in thinned]

    found = largest(tiles, deltas, [_counts(densities[number], gammas[number]) for number in thinned])
    kept = {number: (sets[0], sets[1]) for number, sets in zip(thinned, found, strict=True)}
    return tuple(kept.get(number) for number in range(count))


def _thinned(
    base: Tensor,
    models: Sequence[Tensor],
    weights: Sequence[float],
    density: PerModel,
    gamma: PerModel,
    part: Part,
    measured: tuple[Kept | None, ...] | None,
) -> list[Tensor]:
    """Each difference that counts, thinned and weighted."""
    kept = measured or _measure(whole(base, *models, part=part), density, gamma)
    result = []
    for model, weight, sets in zip(models, weights, kept, strict=True):
        if weight == 0:
            continue
        delta = model * weight
        if sets:
            delta.mul_(sets[0].mask(model, part) & ~sets[1].mask(model, part))
        result.append(delta)
    return result


@method(
    determinism=lambda **parameters: "exact" if dense(**parameters) else "stable",
    scope="element",
    measure=_measure,
    over=lambda **parameters: None if dense(**parameters) else "tensor",
    copies=(2, 6),
    result_is=first_without_scale,
)
def breadcrumbs(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    measured: tuple[Kept | None, ...] | None = None,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 0.9,
    gamma: Annotated[PerModel, Range(0, 0.999999)] = 0.01,
    scale: float = 1.0,
    normalize: bool = False,
) -> Weight:
    """base + scale·Σ w_i·mask_i·(x_i − base), mask_i the middle of what each model learned.

    Of each difference the share gamma of its elements, the largest, is removed, and of the smallest as
    many as leave the share density.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        part: which elements these are.
        weight: of each model.
        density: share that is kept; 1 keeps all. Where density + gamma is above 1 fewer outliers are removed.
        gamma: share that is removed as outliers.
        scale: of the sum; 0 gives the base bit for bit.
        normalize: divides the sum by Σ |w_i|.

    Source: Davari and Belilovsky, Model Breadcrumbs, https://arxiv.org/abs/2312.06795.
    """
    weights = each(weight, len(models))
    divisor = sum(map(abs, weights)) if normalize else 1.0
    result = base.clone()
    for delta in _thinned(base, models, weights, density, gamma, part, measured):
        result.add_(delta.mul_(scale / divisor))
    return result


@method(
    determinism=lambda **parameters: "exact" if dense(**parameters) else "stable",
    scope="element",
    measure=_measure,
    over=lambda **parameters: None if dense(**parameters) else "tensor",
    copies=(2, 6),
    result_is=first_without_scale,
)
def breadcrumbs_ties(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    measured: tuple[Kept | None, ...] | None = None,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 0.9,
    gamma: Annotated[PerModel, Range(0, 0.999999)] = 0.01,
    scale: float = 1.0,
    vote: Literal["mass", "count"] = "mass",
    normalize: bool = False,
) -> Weight:
    """breadcrumbs' middle parts, merged by ties' election of signs.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        part: which elements these are.
        weight, density, gamma, scale: as in breadcrumbs.
        vote, normalize: as in ties.

    Source: Davari and Belilovsky, Model Breadcrumbs, https://arxiv.org/abs/2312.06795.
    """
    weights = each(weight, len(models))
    deltas = _thinned(base, models, weights, density, gamma, part, measured)
    if not deltas:
        return base.clone()
    return elect(deltas, [one for one in weights if one != 0], vote, normalize).mul_(scale).add_(base)

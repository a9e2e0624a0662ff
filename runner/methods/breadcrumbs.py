"""breadcrumbs and breadcrumbs_ties: what several models learned without its largest and smallest parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.registry import Delta, PerModel, Range, Weight, each, first_without_scale, method
from runner.methods.selection import Counts, Largest
from runner.methods.ties import added, dense, elected, largest_of_deltas
from runner.methods.tiles import WHOLE, Part, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor

Kept = tuple[Largest, Largest]  # the elements of the first that are not among the second


def _counts(density: float, gamma: float) -> Counts:
    """For largest: the outliers with what is kept, and the outliers alone."""

    def counts(count: int, nonzero: int) -> list[int]:
        kept = max(1, int(density * count))
        outliers = max(0, min(int(gamma * count), count - kept))
        return [outliers + kept, outliers]

    return counts


def _measure(tiles: Tiles, density: PerModel, gamma: PerModel) -> tuple[Kept | None, ...]:
    """Of each difference what is kept; None where all is."""

    def counts(number: int, share: float) -> Counts:
        return _counts(share, gamma[number] if isinstance(gamma, Sequence) else gamma)

    found = largest_of_deltas(tiles, density, counts)
    return tuple((sets[0], sets[1]) if sets else None for sets in found)


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
    return added(
        base, _thinned(base, models, weights, density, gamma, part, measured), weights, scale, normalize
    )


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
    return elected(base, deltas, weights, scale, vote, normalize)

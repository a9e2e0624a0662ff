"""dare_linear and dare_ties: random parts of what several models learned, scaled up for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from runner.methods.random import Random
from runner.methods.registry import (
    Delta,
    Determinism,
    Over,
    PerModel,
    Range,
    Weight,
    each,
    first_without_scale,
    method,
)
from runner.methods.sums import total
from runner.methods.ties import added, dense, elected
from runner.methods.tiles import Tile, Tiles

if TYPE_CHECKING:
    from torch import Tensor


def _measure(tiles: Tiles, density: PerModel) -> tuple[float, ...]:
    """Σ |d| / Σ |masked d| of each difference; 1 where nothing is left."""
    kept: list[list[float]] = []
    all_of_it: list[list[float]] = []
    for tile in tiles:
        deltas = tile.operands[1:]
        assert tile.random is not None
        kept = kept or [[] for _ in deltas]
        all_of_it = all_of_it or [[] for _ in deltas]
        for number, (delta, share) in enumerate(zip(deltas, each(density, len(deltas)), strict=True)):
            size = delta.abs()
            all_of_it[number] += total(size)
            kept[number] += total(size.mul_(tile.random.keep(number + 1, delta, share)))
    sums = [(math.fsum(one), math.fsum(left)) for one, left in zip(all_of_it, kept, strict=True)]
    return tuple(one / left if left else 1.0 for one, left in sums)


def _over(rescale: str, density: tuple[float, ...], **_: object) -> Over | None:
    return "tensor" if rescale == "l1" and not dense(density) else None


def _determinism(**parameters: Any) -> Determinism:
    return "stable" if _over(**parameters) else "exact"


def _masked(
    models: Sequence[Tensor],
    weights: list[float],
    density: PerModel,
    rescale: str,
    random: Random,
    measured: tuple[float, ...] | None,
) -> list[Tensor]:
    """Each difference that counts with a random part kept, weighted and rescaled."""
    densities = each(density, len(models))
    if rescale == "l1" and measured is None and not dense(densities):
        measured = _measure((Tile((models[0], *models), random=random),), density)
    masked = []
    for number, (model, weight, share) in enumerate(zip(models, weights, densities, strict=True)):
        if weight == 0:
            continue
        if share == 1:
            masked.append(model * weight)
            continue
        factor = weight / share if rescale == "inverse_p" else weight
        factor *= measured[number] if measured else 1
        masked.append((model * random.keep(number + 1, model, share)).mul_(factor))
    return masked


@method(
    determinism=_determinism,
    scope="element",
    measure=_measure,
    over=_over,
    copies=(2, 3),
    result_is=first_without_scale,
)
def dare_linear(
    base: Weight,
    *models: Delta,
    random: Random,
    measured: tuple[float, ...] | None = None,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse_p", "l1", "none"] = "inverse_p",
    normalize: bool = False,
) -> Weight:
    """base + scale·Σ w_i·mask_i·(x_i − base) / density, each element kept with probability density.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        random: streams of the merge; the recipe's seed chooses them.
        weight: of each model.
        density: share that is kept; 1 keeps all. Small values add noise: the variance grows as 1/density.
        scale: of the sum; 0 gives the base bit for bit.
        rescale: "inverse_p" divides by the density, so that the mean stays; "l1" restores Σ|x − base| of
            each tensor; "none" does neither.
        normalize: divides the sum by Σ |w_i|.

    Source: Yu et al., Language models are super Mario, https://arxiv.org/abs/2311.03099.
    """
    weights = each(weight, len(models))
    return added(
        base, _masked(models, weights, density, rescale, random, measured), weights, scale, normalize
    )


@method(
    determinism=_determinism,
    scope="element",
    measure=_measure,
    over=_over,
    copies=(2, 3),
    result_is=first_without_scale,
)
def dare_ties(
    base: Weight,
    *models: Delta,
    random: Random,
    measured: tuple[float, ...] | None = None,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse_p", "l1", "none"] = "inverse_p",
    vote: Literal["mass", "count"] = "mass",
    normalize: bool = False,
) -> Weight:
    """dare_linear's random parts, merged by ties' election of signs.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        random: streams of the merge; the recipe's seed chooses them.
        weight, density, scale, rescale: as in dare_linear.
        vote, normalize: as in ties.

    Source: Yu et al., Language models are super Mario, https://arxiv.org/abs/2311.03099.
    """
    weights = each(weight, len(models))
    deltas = _masked(models, weights, density, rescale, random, measured)
    return elected(base, deltas, weights, scale, vote, normalize)

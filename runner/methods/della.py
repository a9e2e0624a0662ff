"""della_linear and della: random parts of what several models learned, large changes kept more often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.random import Random
from runner.methods.registry import (
    Delta,
    PerModel,
    Range,
    Scope,
    Weight,
    each,
    first_without_scale,
    method,
)
from runner.methods.sums import as_matrix, total
from runner.methods.ties import added, elected

if TYPE_CHECKING:
    from torch import Tensor


def _scope(rank: str, rescale: str, **_: object) -> Scope:
    return "tensor" if rank == "tensor" or rescale == "l1" else "row"


def _check(density: Sequence[float], epsilon: Sequence[float], **_: object) -> str | None:
    for middle, half in zip(density, epsilon, strict=True):
        if middle < 1 and not 0 < middle - half <= middle + half < 1:
            return (
                f"density {middle:g} with epsilon {half:g} gives probabilities from "
                f"{middle - half:g} to {middle + half:g}; choose them so that all are between 0 and 1"
            )
    return None


def _probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """For each element of each row how likely it is kept, growing with its rank by magnitude; float64."""
    last = delta.shape[1] - 1
    if last == 0:
        return delta.new_ones(delta.shape).double().mul_(density)
    order = delta.abs().sort(dim=1, stable=True).indices
    steps = delta.new_ones(delta.shape[1]).double().cumsum(0).sub_(1)  # 0, 1, … exactly
    ranks = steps.new_empty(delta.shape).scatter_(1, order, steps.expand(delta.shape))
    return ranks.mul_(2 * epsilon).div_(last).add_(density - epsilon)


def _masked(
    models: Sequence[Tensor],
    weights: Sequence[float],
    density: PerModel,
    epsilon: PerModel,
    rank: str,
    rescale: str,
    random: Random,
) -> list[Tensor]:
    """Each difference that counts with a random part kept, weighted and rescaled."""
    densities, widths = each(density, len(models)), each(epsilon, len(models))
    masked = []
    for number, (model, weight) in enumerate(zip(models, weights, strict=True)):
        if weight == 0:
            continue
        if densities[number] == 1 or not model.numel():
            masked.append(model * weight)
            continue
        rows = model.reshape(1, -1) if rank == "tensor" else as_matrix(model)
        likely = _probabilities(rows, densities[number], widths[number])
        kept = rows * random.keep(number + 1, rows, likely)
        if rescale == "inverse_p":
            kept.mul_((weight / likely).to(kept.dtype))
        else:
            left = math.fsum(total(kept.abs())) if rescale == "l1" else 0.0
            kept.mul_(weight * math.fsum(total(model.abs())) / left if left else weight)
        masked.append(kept.reshape(model.shape))
    return masked


@method(determinism="stable", scope=_scope, copies=(2, 16), check=_check, result_is=first_without_scale)
def della_linear(
    base: Weight,
    *models: Delta,
    random: Random,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 0.5,
    epsilon: Annotated[PerModel, Range(0, 0.5)] = 0.15,
    scale: float = 1.0,
    rank: Literal["row", "tensor"] = "row",
    rescale: Literal["inverse_p", "l1", "none"] = "inverse_p",
    normalize: bool = False,
) -> Weight:
    """base + scale·Σ w_i·mask_i·(x_i − base) / p, p growing with the size of the change.

    In a row of L elements the one of rank r by magnitude (0 the least) is kept with probability
    p = density − epsilon + 2·epsilon·r/(L − 1).

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        random: streams of the merge; the recipe's seed chooses them.
        weight: of each model.
        density: share that is kept; 1 keeps all, whatever epsilon is.
        epsilon: how much more than density the largest change is kept, and less the smallest; density ±
            epsilon must lie between 0 and 1.
        scale: of the sum; 0 gives the base bit for bit.
        rank: whether magnitudes are ranked in each "row" (of a convolution: each filter) or the "tensor".
        rescale: "inverse_p" divides each element by its own p, so that the mean stays; "l1" restores
            Σ|x − base| of each tensor; "none" does neither.
        normalize: divides the sum by Σ |w_i|.

    Source: Deep et al., DELLA-Merging, https://arxiv.org/abs/2406.11617.
    """
    weights = each(weight, len(models))
    return added(
        base, _masked(models, weights, density, epsilon, rank, rescale, random), weights, scale, normalize
    )


@method(determinism="stable", scope=_scope, copies=(2, 16), check=_check, result_is=first_without_scale)
def della(
    base: Weight,
    *models: Delta,
    random: Random,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 0.5,
    epsilon: Annotated[PerModel, Range(0, 0.5)] = 0.15,
    scale: float = 1.0,
    rank: Literal["row", "tensor"] = "row",
    rescale: Literal["inverse_p", "l1", "none"] = "inverse_p",
    vote: Literal["mass", "count"] = "mass",
    normalize: bool = True,
) -> Weight:
    """della_linear's random parts, merged by ties' election of signs.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        random: streams of the merge; the recipe's seed chooses them.
        weight, density, epsilon, scale, rank, rescale: as in della_linear.
        vote, normalize: as in ties.

    Source: Deep et al., DELLA-Merging, https://arxiv.org/abs/2406.11617.
    """
    weights = each(weight, len(models))
    deltas = _masked(models, weights, density, epsilon, rank, rescale, random)
    return elected(base, deltas, weights, scale, vote, normalize)

"""dare_linear and dare_ties: random parts of what several models learned, scaled up for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.random import Random
from runner.methods.registry import Delta, PerModel, Range, Weight, each, first_without_scale, method
from runner.methods.ties import elect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def _masked(
    models: Sequence[Tensor], weights: list[float], densities: list[float], rescale: str, random: Random
) -> list[Tensor]:
    """Each difference that counts with a random part kept, weighted and rescaled."""
    masked = []
    for number, (model, weight, density) in enumerate(zip(models, weights, densities, strict=True), start=1):
        if weight == 0:
            continue
        if density == 1:
            masked.append(model * weight)
            continue
        factor = weight / density if rescale == "inverse_p" else weight
        masked.append((model * random.keep(number, model, density)).mul_(factor))
    return masked


@method(determinism="exact", elementwise=True, result_is=first_without_scale)
def dare_linear(
    base: Weight,
    *models: Delta,
    random: Random,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse_p", "none"] = "inverse_p",
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
        rescale: "inverse_p" divides by the density, so that the mean stays; "none" does not.
        normalize: divides the sum by Σ |w_i|.

    Source: Yu et al., Language models are super Mario, https://arxiv.org/abs/2311.03099.
    """
    weights = each(weight, len(models))
    total = sum(map(abs, weights)) if normalize else 1.0
    result = base.clone()
    for delta in _masked(models, weights, each(density, len(models)), rescale, random):
        result.add_(delta.mul_(scale / total))
    return result


@method(determinism="exact", elementwise=True, result_is=first_without_scale)
def dare_ties(
    base: Weight,
    *models: Delta,
    random: Random,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 1.0,
    scale: float = 1.0,
    rescale: Literal["inverse_p", "none"] = "inverse_p",
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
    deltas = _masked(models, weights, each(density, len(models)), rescale, random)
    if not deltas:
        return base.clone()
    used = [one for one in weights if one != 0]
    return elect(deltas, used, vote, normalize).mul_(scale).add_(base)

"""ties: trims what several models learned to its largest part, elects a sign, and merges what agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.registry import Delta, PerModel, Range, Weight, each, first_without_scale, method
from runner.methods.selection import largest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def elect(deltas: Sequence[Tensor], weights: Sequence[float], vote: str, normalize: bool) -> Tensor:
    """The disjoint merge: the sum (or weighted mean) of the deltas that have the elected sign.

    Args:
        deltas: weighted and trimmed.
        weights: of each, for the mean.
        vote: "mass" elects the sign of the sum, "count" that of most deltas; a tie is positive.
        normalize: divides by Σ |w_i| of the deltas that agree.
    """
    votes = deltas[0].sign() if vote == "count" else deltas[0].clone()
    for delta in deltas[1:]:
        votes.add_(delta.sign() if vote == "count" else delta)
    positive = votes >= 0
    result = deltas[0] * 0
    shares = deltas[0] * 0
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = ((delta > 0) & positive) | ((delta < 0) & ~positive)
        result.add_(delta * agrees)
        shares.add_(agrees.to(shares.dtype).mul_(abs(weight)))
    return result.div_(shares.masked_fill_(shares == 0, 1)) if normalize else result


def _dense(density: tuple[float, ...], **_: object) -> bool:
    return all(one == 1 for one in density)


@method(
    determinism=lambda **parameters: "exact" if _dense(**parameters) else "stable",
    elementwise=_dense,
    copies=(2, 6),
    result_is=first_without_scale,
)
def ties(
    base: Weight,
    *models: Delta,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 1.0,
    scale: float = 1.0,
    vote: Literal["mass", "count"] = "mass",
    normalize: bool = True,
) -> Weight:
    """base + scale·Δ, Δ the mean of the trimmed differences that have the sign most of their mass has.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        weight: of each model.
        density: share of each difference that is kept, the largest; 1 trims nothing, 0.2 is the paper's.
        scale: of the merged difference; 0 gives the base bit for bit.
        vote: whether the sign is elected by "mass" or by "count" of models.
        normalize: the mean of what agrees; false its sum.

    Source: Yadav et al., TIES-Merging, https://arxiv.org/abs/2306.01708.
    """
    weights, densities = each(weight, len(models)), each(density, len(models))
    used = [number for number, one in enumerate(weights) if one != 0]
    if not used:
        return base.clone()
    trimmed = [models[n] * weights[n] for n in used]
    for delta, n in zip(trimmed, used, strict=True):
        if densities[n] < 1:
            delta.mul_(largest(models[n], densities[n]))
    return elect(trimmed, [weights[n] for n in used], vote, normalize).mul_(scale).add_(base)

"""ties: trims what several models learned to its largest part, elects a sign, and merges what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.registry import Delta, PerModel, Range, Weight, each, first_without_scale, method
from runner.methods.selection import Largest, largest, top
from runner.methods.tiles import WHOLE, Part, Tile, Tiles, whole

if TYPE_CHECKING:
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


def largest_deltas(tiles: Tiles, density: PerModel) -> tuple[Largest | None, ...]:
    """Of each difference the share that is kept, the largest elements; None where all are."""
    count = len(next(iter(tiles)).operands) - 1
    densities = each(density, count)
    trimmed = [number for number, one in enumerate(densities) if one < 1]
    if not trimmed:
        return (None,) * count

    def deltas(tile: Tile) -> Sequence[Tensor]:
        return [tile.operands[1 + number] for number in trimmed]

    found = largest(tiles, deltas, [top(densities[number]) for number in trimmed])
    kept = dict(zip(trimmed, found, strict=True))
    return tuple(kept[number][0] if number in kept else None for number in range(count))


def dense(density: PerModel, **_: object) -> bool:
    """Whether nothing is trimmed."""
    return all(one == 1 for one in (density if isinstance(density, Sequence) else (density,)))


@method(
    determinism=lambda **parameters: "exact" if dense(**parameters) else "stable",
    scope="element",
    measure=largest_deltas,
    over=lambda trim, **parameters: None if dense(**parameters) else trim,
    copies=(2, 6),
    result_is=first_without_scale,
)
def ties(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    measured: tuple[Largest | None, ...] | None = None,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 1.0,
    scale: float = 1.0,
    vote: Literal["mass", "count"] = "mass",
    trim: Literal["tensor", "model"] = "tensor",
    normalize: bool = True,
) -> Weight:
    """base + scale·Δ, Δ the mean of the trimmed differences that have the sign most of their mass has.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        part: which elements these are.
        weight: of each model.
        density: share of each difference that is kept, the largest; 1 trims nothing, 0.2 is the paper's.
        scale: of the merged difference; 0 gives the base bit for bit.
        vote: whether the sign is elected by "mass" or by "count" of models.
        trim: whether the largest are looked for in each "tensor", or in the whole "model" as in the paper.
        normalize: the mean of what agrees; false its sum.

    Source: Yadav et al., TIES-Merging, https://arxiv.org/abs/2306.01708.
    """
    weights = each(weight, len(models))
    used = [number for number, one in enumerate(weights) if one != 0]
    if not used:
        return base.clone()
    kept = measured or largest_deltas(whole(base, *models, part=part), density)
    trimmed = []
    for number in used:
        delta = models[number] * weights[number]
        if largest_of_it := kept[number]:
            delta.mul_(largest_of_it.mask(models[number], part))
        trimmed.append(delta)
    return elect(trimmed, [weights[n] for n in used], vote, normalize).mul_(scale).add_(base)

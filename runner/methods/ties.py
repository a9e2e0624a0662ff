"""ties: trims what several models learned to its largest part, elects a sign, and merges what agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.registry import Delta, PerModel, Range, Weight, each, first_without_scale, method
from runner.methods.selection import Counts, Largest, largest, top
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


def added(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], scale: float, normalize: bool
) -> Tensor:
    """The base with the scaled sum of the deltas, divided by Σ |w_i| of all models if wanted.

    Args:
        base: tensor of the base.
        deltas: weighted, of the models that count; they are overwritten.
        weights: of all models.
        scale: of the sum.
        normalize: whether it is divided.
    """
    divisor = sum(map(abs, weights)) if normalize else 1.0
    result = base.clone()
    for delta in deltas:
        result.add_(delta.mul_(scale / divisor))
    return result


def elected(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], scale: float, vote: str, normalize: bool
) -> Tensor:
    """The base with the scaled disjoint merge of the deltas; the base if there are none.

    Args:
        base: tensor of the base.
        deltas: weighted and thinned, of the models whose weight is not 0.
        weights: of all models.
        scale: of the merge.
        vote, normalize: as in elect.
    """
    if not deltas:
        return base.clone()
    return elect(deltas, [one for one in weights if one != 0], vote, normalize).mul_(scale).add_(base)


def largest_of_deltas(
    tiles: Tiles, density: PerModel, counts: Callable[[int, float], Counts]
) -> list[list[Largest] | None]:
    """For each difference the sets that `counts` asks for; None where the density keeps all.

    Args:
        tiles: the base and the differences.
        density: share of each difference that is kept.
        counts: number of a difference and its density → how many elements are wanted, for largest.
    """
    count = len(density) if isinstance(density, Sequence) else len(next(iter(tiles)).operands) - 1
    densities = each(density, count)
    trimmed = [number for number, one in enumerate(densities) if one < 1]
    found: list[list[Largest] | None] = [None] * count
    if not trimmed:
        return found

    def deltas(tile: Tile) -> Sequence[Tensor]:
        return [tile.operands[1 + number] for number in trimmed]

    asked = [counts(number, densities[number]) for number in trimmed]
    for number, sets in zip(trimmed, largest(tiles, deltas, asked), strict=True):
        found[number] = sets
    return found


def largest_deltas(tiles: Tiles, density: PerModel) -> tuple[Largest | None, ...]:
    """Of each difference the share that is kept, the largest elements; None where all are."""
    found = largest_of_deltas(tiles, density, lambda number, share: top(share))
    return tuple(sets[0] if sets else None for sets in found)


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
    kept = measured or largest_deltas(whole(base, *models, part=part), density)
    trimmed = []
    for model, one, largest_of_it in zip(models, weights, kept, strict=True):
        if one == 0:
            continue
        delta = model * one
        if largest_of_it:
            delta.mul_(largest_of_it.mask(model, part))
        trimmed.append(delta)
    return elected(base, trimmed, weights, scale, vote, normalize)

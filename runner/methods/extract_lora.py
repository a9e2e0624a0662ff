"""extract_lora: what a model learned beyond its base, as a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.factors import Factors, Shape, sides
from runner.methods.lowrank import extract, rank_of_energy
from runner.methods.random import Random
from runner.methods.registry import Over, Range, Weight, method
from runner.methods.subspace import OVERSAMPLING, wide_matrix
from runner.methods.tiles import Tiles

if TYPE_CHECKING:
    from torch import Tensor


def _rank(shape: Shape, of: Sequence[int], rank: float, conv_rank: float, **_: object) -> int:
    kernel = any(size > 1 for size in shape[2:])
    return min(int(conv_rank if kernel and conv_rank >= 0 else rank), *sides(shape))


def _over(energy: float, **_: object) -> Over | None:
    return "rank" if energy < 1 else None


def _start(change: Tensor, rank: int, solver: str, random: Random | None) -> Tensor | None:
    """Random columns for the randomized solver; none where they would be nearly as many as the rows."""
    side = min(change.shape)
    if solver == "exact" or random is None or 2 * (rank + OVERSAMPLING) > side:
        return None
    return random.normal(1, change.new_empty(side, rank + OVERSAMPLING))


def energy_rank(
    tiles: Tiles, rank: float, conv_rank: float, energy: float, solver: str, iterations: float
) -> int:
    """The rank of factors: the least that has the energy, at most the rank; 0 if nothing changed."""
    (tile,) = tiles  # the tensor is not cut
    base, model = tile.operands
    most = _rank(tuple(base.shape), (), rank, conv_rank)
    change = wide_matrix(model) - wide_matrix(base)
    start = _start(change, most, solver, tile.random)
    return rank_of_energy(change, energy, most, start=start, iterations=int(iterations))


@method(
    determinism="machine",
    scope="tensor",
    copies=(2, 24),
    rank=_rank,
    measure=energy_rank,
    over=_over,
)
def extract_lora(
    base: Weight,
    model: Weight,
    *,
    random: Random,
    rank: Annotated[float, Range(0, 100_000)] = 32,
    conv_rank: Annotated[float, Range(-1, 100_000)] = -1,
    energy: Annotated[float, Range(0, 1)] = 1.0,
    solver: Literal["exact", "randomized"] = "exact",
    iterations: Annotated[float, Range(0, 100)] = 4,
    measured: int | None = None,
) -> Factors:
    """A LoRA: the best approximation of model − base by a matrix of low rank, as its two factors.

    Written are the weights of linear layers and convolutions of the main component and the text encoders.
    A tensor in which the models are equal has factors of zeros, or with energy none.

    Args:
        base: tensor of the model the other was trained from.
        model: tensor of the other.
        random: streams of the merge; the recipe's seed chooses them.
        rank: of the factors, cut to an integer, and at most that of the tensor; 0 leaves the tensor out.
        conv_rank: the same for convolutions with kernels larger than 1×1; below 0 it is rank.
        energy: below 1, each tensor has the least rank that keeps this share of its squared change, and
            rank is only the most. It takes one more walk over the models, before anything is written.
        solver: "exact" finds all directions of the change, "randomized" looks for the strongest among
            random ones. It is faster where the rank is small, and nearly as good.
        iterations: of the randomized solver: more come closer to the exact one.
        measured: the rank that the energy gave.

    Source: Eckart and Young, Psychometrika 1, 1936; Halko et al., https://arxiv.org/abs/0909.4061;
    kohya-ss/sd-scripts, extract_lora_from_models.py.
    """
    change = wide_matrix(model) - wide_matrix(base)
    most = _rank(tuple(base.shape), (), rank, conv_rank)
    start = _start(change, most, solver, random)
    found = extract(
        change, rank=most if measured is None else measured, start=start, iterations=int(iterations)
    )
    return Factors(found.up, found.down, change)

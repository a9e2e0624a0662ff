"""extract_lora: what a model learned beyond its base, as a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from runner.methods.factors import Factors, Shape, sides
from runner.methods.lowrank import extract
from runner.methods.registry import Range, Weight, method
from runner.methods.subspace import wide_matrix


def _rank(shape: Shape, of: Sequence[int], rank: float, conv_rank: float) -> int:
    kernel = any(size > 1 for size in shape[2:])
    return min(int(conv_rank if kernel and conv_rank >= 0 else rank), *sides(shape))


@method(
    determinism="machine",
    scope="tensor",
    copies=(2, 24),
    rank=_rank,
    refuses={
        "energy": "ranks are decided from the headers, before a tensor is read; say rank, by place if need be"
    },
)
def extract_lora(
    base: Weight,
    model: Weight,
    *,
    rank: Annotated[float, Range(0, 100_000)] = 32,
    conv_rank: Annotated[float, Range(-1, 100_000)] = -1,
) -> Factors:
    """A LoRA: the best approximation of model − base by a matrix of low rank, as its two factors.

    Written are the weights of linear layers and convolutions of the main component and the text encoders.
    A tensor in which the models are equal has factors of zeros.

    Args:
        base: tensor of the model the other was trained from.
        model: tensor of the other.
        rank: of the factors, cut to an integer, and at most that of the tensor; 0 leaves the tensor out.
        conv_rank: the same for convolutions with kernels larger than 1×1; below 0 it is rank.

    Source: Eckart and Young, Psychometrika 1, 1936; kohya-ss/sd-scripts, extract_lora_from_models.py.
    """
    change = wide_matrix(model) - wide_matrix(base)
    found = extract(change, rank=_rank(tuple(base.shape), (), rank, conv_rank))
    return Factors(found.up, found.down, change)

"""join_loras: several LoRAs as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from runner.methods.factors import Factors, Shape, sides
from runner.methods.lowrank import compress, join
from runner.methods.registry import Determinism, Outline, Pair, PerModel, Range, each, method


def _rank(shape: Shape, of: Sequence[int], rank: float, strength: PerModel) -> int:
    return min(int(rank), sum(of), *sides(shape)) if int(rank) else sum(of)


def _class(rank: float, **_: object) -> Determinism:
    return "machine" if int(rank) else "stable"


@method(determinism=_class, scope="tensor", copies=(4, 12), rank=_rank)
def join_loras(
    a: Outline, *loras: Pair, strength: PerModel = 1.0, rank: Annotated[float, Range(0, 100_000)] = 0
) -> Factors:
    """A LoRA: Σ strength_i·Δ_i, Δ_i what LoRA i changes of the tensor.

    Args:
        a: shape of the tensor in the model the LoRAs are for; the model's weights are not read.
        loras: up and down of each, its scale with them.
        strength: of each LoRA; 0 leaves it out.
        rank: of the result, cut to an integer: the best approximation of the sum. 0 joins the factors, so
            that the ranks add up and nothing is lost but what rounding loses.

    Source: kohya-ss/sd-scripts, networks/merge_lora.py (concat) and svd_merge_lora.py.
    """
    joined = join(loras, each(strength, len(loras)))
    change = joined.up.double() @ joined.down.double()
    wanted = _rank(a, [len(down) for _, down in loras], rank, strength)
    found = compress(joined, rank=wanted) if wanted < joined.rank else joined
    return Factors(found.up, found.down, change)

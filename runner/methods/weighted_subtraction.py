"""weighted_subtraction: takes a model out of a weighted sum again."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, method

LARGEST = 0.999  # share that can be taken out: the rest is divided by what is left


def _check(alpha: float, beta: float) -> str | None:
    if alpha * beta <= LARGEST:
        return None
    return (
        f"alpha times beta is {alpha * beta:g}, expected at most {LARGEST:g}; lower alpha: a model of "
        "which nothing else is left cannot be taken out"
    )


@method(
    determinism="exact",
    scope="element",
    check=_check,
    result_is=lambda alpha, beta: 0 if alpha * beta == 0 else None,
)
def weighted_subtraction(
    a: Weight,
    b: Weight,
    *,
    alpha: Annotated[float, Range(0, 1)] = 0.5,
    beta: Annotated[float, Range(0, 1)] = 1.0,
) -> Weight:
    """(a − t·b) / (1 − t) with t = alpha·beta: what was mixed with a share t of b to give a.

    Args:
        a: tensor of the mixed model, any shape.
        b: tensor of the model that is taken out.
        alpha: share of b that is in a; 0 gives a bit for bit.
        beta: how much of it is taken out. alpha·beta is at most 0.999.

    Source: sd-meh, weighted_subtraction.
    """
    share = alpha * beta
    return (a - b).mul_(share / (1 - share)).add_(a)

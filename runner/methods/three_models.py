"""triple_sum and sum_twice: the weighted mean of three models, with the weights said in two ways."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, method


def _combined(a: Weight, b: Weight, c: Weight, shares: tuple[float, float, float]) -> Weight:
    # A share of 0 leaves its model out: what is not finite in it does not matter.
    terms = [model * share for model, share in zip((a, b, c), shares, strict=True) if share != 0]
    result = terms[0] if terms else a * 0
    for term in terms[1:]:
        result.add_(term)
    return result


@method(
    determinism="exact",
    scope="element",
    idempotent=True,
    result_is=lambda alpha, beta: {(0, 0): 0, (1, 0): 1, (0, 1): 2}.get((alpha, beta)),
    spreads=True,
)
def triple_sum(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, 1, "warn")] = 1 / 3,
    beta: Annotated[float, Range(0, 1, "warn")] = 1 / 3,
) -> Weight:
    """(1 − alpha − beta)·a + alpha·b + beta·c.

    Args:
        a, b, c: tensors of the three models, same shape.
        alpha: share of b.
        beta: share of c; (0, 0) gives a, (1, 0) gives b, (0, 1) gives c.

    Source: hako-mikan sd-webui-supermerger, "Triple sum".
    """
    return _combined(a, b, c, (1 - alpha - beta, alpha, beta))


def _twice_ends(alpha: float, beta: float) -> int | None:
    if beta == 1:
        return 2
    return {0.0: 0, 1.0: 1}.get(alpha) if beta == 0 else None


@method(determinism="exact", scope="element", idempotent=True, result_is=_twice_ends, spreads=True)
def sum_twice(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, 1, "warn")] = 0.5,
    beta: Annotated[float, Range(0, 1, "warn")] = 0.5,
) -> Weight:
    """(1 − beta)·((1 − alpha)·a + alpha·b) + beta·c: a weighted sum of a weighted sum, rounded once.

    Args:
        a, b, c: tensors of the three models, same shape.
        alpha: share of b in the first sum.
        beta: share of c in the second; 0 gives the weighted sum of a and b, 1 gives c.

    Source: hako-mikan sd-webui-supermerger, "sum Twice".
    """
    return _combined(a, b, c, ((1 - alpha) * (1 - beta), alpha * (1 - beta), beta))

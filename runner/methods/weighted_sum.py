"""weighted_sum: the mean of two models with weights that add up to one."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, either_end, method


@method(determinism="exact", scope="element", idempotent=True, result_is=either_end, spreads=True)
def weighted_sum(a: Weight, b: Weight, *, alpha: Annotated[float, Range(0, 1, "ask")] = 0.5) -> Weight:
    """(1 − alpha)·a + alpha·b: the share alpha of b mixed into a.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second, same shape and dtype.
        alpha: share of b; 0 gives a, 1 gives b, both bit for bit; outside extrapolates.

    Source: AUTOMATIC1111 stable-diffusion-webui, modules/extras.py, "Weighted sum".
    """
    return (a * (1 - alpha)).add_(b * alpha)

"""sigmoid and inv_sigmoid: a weighted sum whose share of b runs along a smooth step."""

from __future__ import annotations

import math
from typing import Annotated

from runner.methods.registry import Range, Weight, either_end, method


@method(determinism="exact", scope="element", result_is=either_end, spreads=True)
def sigmoid(a: Weight, b: Weight, *, alpha: Annotated[float, Range(0, 1)] = 0.5) -> Weight:
    """a + s·(b − a) with s = alpha²·(3 − 2·alpha): pulled towards the nearer model.

    Smoothstep, not a logistic function; the name is the one InvokeAI gave it.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second, same shape and dtype.
        alpha: 0 gives a, 1 gives b, both bit for bit; 0.5 the mean; 0.25 a share of 0.15625.

    Source: diffusers, examples/community/checkpoint_merger.py, `sigmoid`.
    """
    share = alpha * alpha * (3 - 2 * alpha)
    return (b - a).mul_(share).add_(a)


@method(determinism="exact", scope="element", result_is=either_end, spreads=True)
def inv_sigmoid(a: Weight, b: Weight, *, alpha: Annotated[float, Range(0, 1)] = 0.5) -> Weight:
    """a + s·(b − a) with s = ½ − sin(asin(1 − 2·alpha) / 3): pushed away from the nearer model.

    The inverse of sigmoid's step: inv_sigmoid of what sigmoid makes of alpha is alpha.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second, same shape and dtype.
        alpha: 0 gives a, 1 gives b, both bit for bit; 0.5 the mean; 0.25 a share of 0.32635.

    Source: diffusers, examples/community/checkpoint_merger.py, `inv_sigmoid`.
    """
    share = 0.5 - math.sin(math.asin(1 - 2 * alpha) / 3)
    return (b - a).mul_(share).add_(a)

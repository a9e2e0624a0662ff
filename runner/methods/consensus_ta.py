"""consensus_ta: task_arithmetic where at least so many models matter."""

from __future__ import annotations

import math
from typing import Annotated

from runner.methods.registry import Delta, Range, Weight, first_without_scale, method


@method(determinism="exact", scope="element", copies=(0, 6), result_is=first_without_scale)
def consensus_ta(
    base: Weight,
    *models: Delta,
    threshold: Annotated[float, Range(0, math.inf)] = 0.4,
    k: Annotated[float, Range(0, math.inf)] = 2,
    scale: float = 1.0,
) -> Weight:
    """base + scale·D, D the sum of the differences where at least k models matter, 0 elsewhere.

    A model matters where its difference is larger than threshold times what all others sum to.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        threshold: usually 0.2 to 0.6; the authors write λ.
        k: how many must matter; 1 also keeps what one model alone learned.
        scale: of the sum; 0 gives the base bit for bit.

    Source: Wang et al., Localizing task information, https://arxiv.org/abs/2405.07813; fusion_bench.
    """
    total = models[0].clone()
    for model in models[1:]:
        total.add_(model)
    count = total * 0
    for model in models:
        others = (total - model).abs_().mul_(threshold)
        count.add_(model.abs() > others)
    return total.mul_(count >= k).mul_(scale).add_(base)

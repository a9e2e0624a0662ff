"""nearswap: each weight moved towards another model's, at most so far."""

from __future__ import annotations

import math
from typing import Annotated

from runner.methods.registry import Range, Weight, method


@method(determinism="exact", scope="element", copies=(0, 3), result_is=lambda t: 0 if t == 0 else None)
def nearswap(a: Weight, b: Weight, *, t: Annotated[float, Range(0, math.inf)]) -> Weight:
    """a + min(max(b − a, −t), t): weights that are nearer than t become b's, others move by t.

    Args:
        a: tensor of the model that is changed, any shape.
        b: tensor of the model it is moved to.
        t: how far, in the unit of the weights; 0 gives a bit for bit, more than any distance gives b.

    Source: alchemonaut, model card of QuartetAnemoi-70B-t0.0001; mergekit, merge_methods/nearswap.py.
    """
    way = b - a
    near = way.abs() <= t
    return b.where(near, way.clamp_(-t, t).add_(a))

"""tensor_sum and top_k_tensor_sum: some of a tensor from one model, the rest from another, nothing mixed."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from runner.methods.registry import Range, Weight, either_end, method
from runner.methods.tiles import WHOLE, Part

LONG = 100  # elements of the second axis above which "auto" exchanges along it


@method(determinism="exact", scope="row", copies=(0, 2), result_is=either_end)
def tensor_sum(
    a: Weight,
    b: Weight,
    *,
    part: Part = WHOLE,
    alpha: Annotated[float, Range(0, 1)] = 0.5,
    beta: Annotated[float, Range(0, 1)] = 0.0,
    axis: Literal["0", "auto"] = "0",
) -> Weight:
    """Rows beta·n to (alpha + beta)·n of n from b, the others from a; beyond n it goes on from row 0.

    Args:
        a: tensor of the first model, any shape. A single number is b's if alpha is above 0.5.
        b: tensor of the second.
        part: which rows of which tensor these are.
        alpha: share of rows from b; 0 gives a, 1 gives b, both bit for bit.
        beta: where they begin, as a share of all rows.
        axis: rows run along the first axis ("0"), or along the second if it is longer than 100 ("auto").

    Source: hako-mikan sd-webui-supermerger, calcmodes tensor and tensor2.
    """
    if a.dim() == 0 or alpha in (0, 1):
        return (b if alpha > 0.5 else a).clone()
    shape = part.shape or tuple(a.shape)
    along = 1 if axis == "auto" and len(shape) > 1 and shape[1] > LONG else 0
    length = shape[along]
    # Row of the whole tensor that is the first one here.
    first = 0 if along else part.start // max(1, math.prod(shape[1:]))

    def row(share: float) -> int:
        return min(max(int(length * share) - first, 0), a.shape[along])

    inside = alpha + beta <= 1
    outer, inner = (a, b) if inside else (b, a)
    start, stop = (row(beta), row(alpha + beta)) if inside else (row(alpha + beta - 1), row(beta))
    result = outer.clone()
    if start < stop:
        result.narrow(along, start, stop - start).copy_(inner.narrow(along, start, stop - start))
    return result


@method(
    determinism="stable",
    scope="tensor",
    copies=(0, 8),
    result_is=lambda width, **_: 0 if width == 0 else None,
)
def top_k_tensor_sum(
    a: Weight,
    b: Weight,
    *,
    width: Annotated[float, Range(0, 1)] = 1.0,
    offset: Annotated[float, Range(0, 1)] = 0.0,
) -> Weight:
    """a's values in the order of b's, where their magnitude is in a window; elsewhere a as it is.

    Args:
        a: tensor of the model that gives the values, any shape.
        b: tensor of the model that gives the order: its largest element becomes a's largest value.
        width: of the window, as a share of all magnitudes of a; 0 gives a bit for bit, 1 takes all.
        offset: where it begins; beyond the largest magnitude it goes on from the smallest.

    Source: sd-meh, top_k_tensor_sum; sd-mecha, top_k_tensor_sum.
    """
    import numpy as np
    import torch

    if a.numel() == 0:
        return a.clone()
    values, order = a.reshape(-1).numpy(), np.argsort(b.reshape(-1).numpy(), kind="stable")
    moved = np.empty_like(values)
    moved[order] = np.sort(values, kind="stable")
    magnitudes = np.sort(np.abs(values))

    def bound(share: float) -> float:
        number = round(share * values.size)
        return float(magnitudes[number - 1]) if number > 0 else -1.0

    inside = width + offset <= 1
    low, high = (offset, width + offset) if inside else (width + offset - 1, offset)
    sizes = np.abs(moved)
    window = (bound(low) < sizes) & (sizes <= bound(high))
    return torch.from_numpy(np.where(window == inside, moved, values)).reshape(a.shape)

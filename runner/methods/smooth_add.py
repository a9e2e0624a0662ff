"""smooth_add: add_difference with a difference that was smoothed like an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Range, Weight, method

if TYPE_CHECKING:
    from torch import Tensor

NEIGHBOURS = (-1, 0, 1)  # the window of the median along each axis
DEVIATIONS = 4  # where the bell curve ends
WINDOW_ELEMENTS = 1 << 20  # of the copies a filter makes at a time


def _shifted(x: Tensor, axis: int, by: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Elements start + by … stop + by along an axis; beyond the ends it runs backwards again."""
    import torch

    length = x.shape[axis]
    index = torch.arange(start, length if stop is None else stop).add_(by).remainder_(2 * length)
    return x.index_select(axis, index.minimum(2 * length - 1 - index))


def _blocks(x: Tensor, copies: int) -> list[tuple[int, int]]:
    """Rows of which that many copies may be made at a time."""
    rows = max(1, WINDOW_ELEMENTS * len(x) // max(1, x.numel() * copies))
    return [(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]


def _median(x: Tensor) -> Tensor:
    """The median of each element and its neighbours along all axes."""
    import torch

    # Along an axis of one element every value is there three times: the median is the same.
    axes = [axis for axis, length in enumerate(x.shape) if length > 1]
    if not axes:
        return x
    result = torch.empty_like(x)
    count = len(NEIGHBOURS) ** len(axes)
    for start, stop in _blocks(x, count):
        windows = [x[start:stop]]
        if axes[0] == 0:
            windows = [_shifted(x, 0, by, start, stop) for by in NEIGHBOURS]
        for axis in axes:
            if axis:
                windows = [_shifted(window, axis, by) for window in windows for by in NEIGHBOURS]
        together = torch.stack(windows, -1)
        together.numpy().sort(-1)
        result[start:stop] = together[..., count // 2]
    return result


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """The mean with the neighbours by a bell curve, one axis after the other."""
    import torch

    radius = int(DEVIATIONS * sigma + 0.5)
    weights = {by: math.exp(-by * by / (2 * sigma * sigma)) for by in range(-radius, radius + 1) if radius}
    total = math.fsum(weights.values())
    for axis, length in enumerate(x.shape):
        if length == 1 or not weights:
            continue
        result = torch.empty_like(x)
        for start, stop in _blocks(x, 4):
            mean = torch.zeros_like(x[start:stop], dtype=torch.float64)
            for by, weight in weights.items():
                if axis == 0:
                    neighbour = _shifted(x, 0, by, start, stop)
                else:
                    neighbour = _shifted(x[start:stop], axis, by)
                mean.add_(neighbour.double().mul_(weight / total))
            result[start:stop] = mean
        x = result
    return x


@method(
    determinism="stable",
    scope="tensor",
    copies=(0, 3),
    result_is=lambda alpha, **_: 0 if alpha == 0 else None,
)
def smooth_add(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, math.inf)] = 1.0,
    sigma: Annotated[float, Range(0, 10)] = 1.0,
) -> Weight:
    """a + alpha·Gauss(Median(b − c)): what b learned since c, without its single large values.

    The filters are those of image processing: the median of three neighbours along each axis, then a
    Gaussian blur. Neighbouring rows of a weight matrix are not alike as pixels are; it is a habit.

    Args:
        a: tensor of the model that is changed, any shape.
        b: tensor of the fine-tuned model.
        c: tensor of the model b was trained from.
        alpha: strength; 0 gives a bit for bit.
        sigma: width of the blur in elements; below 0.125 there is none.

    Source: hako-mikan sd-webui-supermerger, calcmode smoothAdd.
    """
    return _blurred(_median(b - c), sigma).mul(alpha).add_(a)

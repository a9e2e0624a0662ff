"""What diffusers' checkpoint merger and InvokeAI really computed, for recipes that must give its bytes.

a comes in the dtype the pipeline was loaded in (torch_dtype, default float32), b and c in the dtype
of their files, so that `alpha * b` and `b - c` are rounded in it before they are promoted. Integer
tensors take part: the sum is cut towards zero when it is copied back.
Source: diffusers, examples/community/checkpoint_merger.py; InvokeAI 2.3.5, ldm/invoke/merge_diffusers.py.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated

from runner.methods.registry import Range, Weight, method

_TOOLS = ("diffusers", "invokeai-2.3")
_merger = functools.partial(method, determinism="exact", scope="element", reads="pipeline")
_ROUNDED = "b (and c) are rounded in the dtype of their files before the sum"


@_merger(name="weighted_sum", compat=_TOOLS, differs=f"{_ROUNDED}; integer tensors are merged and cut")
def weighted_sum_compat(a: Weight, b: Weight, *, alpha: float = 0.5) -> Weight:
    """(1 − alpha)·a + alpha·b, each product in the dtype of its operand."""
    return ((1 - alpha) * a) + (alpha * b)


@_merger(name="sigmoid", compat=_TOOLS, differs=_ROUNDED)
def sigmoid_compat(a: Weight, b: Weight, *, alpha: float = 0.5) -> Weight:
    """a + s·(b − a) with s = alpha²·(3 − 2·alpha)."""
    return a + ((b - a) * (alpha * alpha * (3 - (2 * alpha))))


@_merger(name="inv_sigmoid", compat=_TOOLS, differs=_ROUNDED)
def inv_sigmoid_compat(a: Weight, b: Weight, *, alpha: Annotated[float, Range(0, 1)] = 0.5) -> Weight:
    """a + s·(b − a) with s = ½ − sin(asin(1 − 2·alpha) / 3)."""
    return a + ((b - a) * (0.5 - math.sin(math.asin(1.0 - 2.0 * alpha) / 3.0)))


@_merger(name="add_diff", compat=("diffusers",), differs=f"the strength is 1 - alpha; {_ROUNDED}")
def add_diff_compat(a: Weight, b: Weight, c: Weight, *, alpha: float = 0.5) -> Weight:
    """a + (b − c)·(1 − alpha): diffusers counts alpha the other way round."""
    return a + ((b - c) * (1.0 - alpha))


@_merger(
    name="add_difference",
    compat=_TOOLS,
    differs="the merger did not know this name: the result is the weighted sum of a and b, c has no effect",
)
def add_difference_compat(a: Weight, b: Weight, c: Weight, *, alpha: float = 0.5) -> Weight:
    """(1 − alpha)·a + alpha·b: InvokeAI 2.3 sent this name, diffusers took it for a weighted sum."""
    return ((1 - alpha) * a) + (alpha * b)

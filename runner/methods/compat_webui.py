"""What the web UI of AUTOMATIC1111 and its extension supermerger really computed, for recipes that need it.

The web UI computes in the dtype of the files, so that every operation is rounded in it; supermerger
mixes in float32 and rounds differences in the dtype of b. Each merges only the keys its filter knows;
the others stay as they are in a. supermerger's torch.lerp rounds differently from one processor to the
next; here each operation is rounded, so that rarely the last bit of a float32 is another.
Source: stable-diffusion-webui, modules/extras.py; sd-webui-supermerger, scripts/mergers/mergers.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from runner.methods.registry import Weight, method

if TYPE_CHECKING:
    from torch import Tensor

_WEBUI_ROUNDS = "computed in the dtype of the files; only keys with 'model' in them are merged"
_SUPERMERGER_KEYS = "only keys with 'weight' or 'bias' in them are merged"


def _webui_merges(key: str) -> bool:
    # Position ids are left out there too, and by us everywhere: they are integers.
    return "model" in key


def _supermerger_merges(key: str) -> bool:
    return "weight" in key or "bias" in key


_exact = functools.partial(method, determinism="exact", scope="element", reads="file")
_webui = functools.partial(_exact, compat=("a1111",), merges=_webui_merges)
_supermerger = functools.partial(_exact, compat=("supermerger",), merges=_supermerger_merges)


def _mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    """torch.lerp in float32: from the nearer end."""
    a, b = a.float(), b.float()
    return a + (b - a) * share if abs(share) < 0.5 else b - (b - a) * (1 - share)


@_webui(name="weighted_sum", differs=_WEBUI_ROUNDS)
def weighted_sum_webui(a: Weight, b: Weight, *, alpha: float = 0.3) -> Weight:
    """(1 − alpha)·a + alpha·b, each operation rounded in the dtype of the files."""
    return (1 - alpha) * a + alpha * b


@_webui(name="add_difference", differs=f"{_WEBUI_ROUNDS}; a key that c lacks is left as it is in a")
def add_difference_webui(a: Weight, b: Weight, c: Weight, *, alpha: float = 0.3) -> Weight:
    """a + alpha·(b − c), each operation rounded in the dtype of the files."""
    return a + alpha * (b - c)


@_supermerger(
    name="weighted_sum",
    differs=f"mixed in float32 from the nearer end; {_SUPERMERGER_KEYS}",
    result_is=lambda alpha: {1.0: 1}.get(alpha),
)
def weighted_sum_supermerger(a: Weight, b: Weight, *, alpha: float = 0.5) -> Weight:
    """a + alpha·(b − a) in float32; from b where alpha is one half or more."""
    return _mixed(a, b, alpha)


@_supermerger(name="add_difference", differs=f"b - c is rounded in the dtype of b; {_SUPERMERGER_KEYS}")
def add_difference_supermerger(a: Weight, b: Weight, c: Weight, *, alpha: float = 1.0) -> Weight:
    """a + alpha·(b − c), the difference rounded in the dtype of b."""
    return a + alpha * (b - c).to(b.dtype)


@_supermerger(name="triple_sum", differs=f"two mixes in float32; {_SUPERMERGER_KEYS}")
def triple_sum_supermerger(
    a: Weight, b: Weight, c: Weight, *, alpha: float = 0.5, beta: float = 0.25
) -> Weight:
    """a mixed with the mix of b and c; the plain sum where alpha and beta cancel."""
    both = alpha + beta
    if both == 0:
        return (1 - alpha - beta) * a.float() + alpha * b.float() + beta * c.float()
    return _mixed(a, _mixed(b, c, beta / both), both)


@_supermerger(name="sum_twice", differs=f"two mixes in float32; {_SUPERMERGER_KEYS}")
def sum_twice_supermerger(
    a: Weight, b: Weight, c: Weight, *, alpha: float = 0.5, beta: float = 0.25
) -> Weight:
    """The mix of a and b mixed with c, in float32."""
    return _mixed(_mixed(a, b, alpha), c, beta)

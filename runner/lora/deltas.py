"""What adapters change, from their factors, some rows at a time.

The rows are those of the change as a matrix: its first dimension by all others. Only those asked for are
made, so that a change is never there whole. A product of matrices is of the class stable, and its rows may
differ in the last bits from those of a product of more rows; who needs the same bytes for any cutting cuts
at the same rows. Factors come in the dtype that is computed in, float32 or float64.

Formulas after kohya-ss/sd-scripts, networks/lora.py (merge_to); KohakuBlueleaf/LyCORIS 4.1.3,
lycoris/functional/locon.py, loha.py, lokr.py and general.py; huggingface/peft 0.21, tuners/lora/layer.py and
tuners/lora/dora.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from runner.lora.algebra import Kind

if TYPE_CHECKING:
    from torch import Tensor

Factors = Mapping[str, "Tensor"]


def change_rows(kind: Kind, factors: Factors, start: int, stop: int, scale: float = 1.0) -> Tensor:
    """Rows of a change as a matrix, from start up to but not with stop.

    Args:
        kind: of algebra.
        factors: by role.
        start: the first of the rows.
        stop: the row after the last.
        scale: of the product. A change that is given whole has none but the strength it is merged with.
    """
    rows = _ROWS[kind](factors, start, stop)
    return rows if scale == 1 else rows * scale


def _lora(factors: Factors, start: int, stop: int) -> Tensor:
    """Rows of up × down; the columns of a convolution's down are inputs and places of the kernel."""
    return _matrix(factors["up"])[start:stop] @ _matrix(factors["down"])


def _tucker(factors: Factors, start: int, stop: int) -> Tensor:
    """Rows of up and down on the two sides of a core, for each place of the kernel."""
    up, down, mid = _matrix(factors["up"]), _matrix(factors["down"]), factors["mid"]
    return _cored(up[start:stop], down, mid)


def _loha(factors: Factors, start: int, stop: int) -> Tensor:
    """Rows of the element-wise product of two products, which may have cores.

    LyCORIS 4.1.3 scales it twice where it merges (LohaModule.get_diff_weight) and once where it trains;
    so do others, and so is it here.
    """
    one, two = (_half(factors, f"hada_w{half}", f"hada_t{half}", start, stop) for half in (1, 2))
    return one * two


def _lokr(factors: Factors, start: int, stop: int) -> Tensor:
    """Rows of the Kronecker product of two matrices, each of which may be a product."""
    if "lokr_w1" in factors:
        one = _matrix(factors["lokr_w1"])
    else:
        one = _half(factors, "lokr_w1", "lokr_t1", 0, _height(factors, "lokr_w1", "lokr_t1"))
    high = _height(factors, "lokr_w2", "lokr_t2")
    first, last = start // high, -(-stop // high)
    # Of the second matrix all rows are needed, unless the rows lie in one block of its height.
    low, top = (start - first * high, stop - first * high) if last - first == 1 else (0, high)
    if "lokr_w2" in factors:
        two = _matrix(factors["lokr_w2"])[low:top]
    else:
        two = _half(factors, "lokr_w2", "lokr_t2", low, top)
    blocks = one[first:last, None, :, None] * two[None, :, None, :]
    rows = blocks.reshape((last - first) * (top - low), -1)
    skip = start - first * high - low
    return rows[skip : skip + stop - start]


def _whole(role: str) -> Callable[[Factors, int, int], Tensor]:
    def rows(factors: Factors, start: int, stop: int) -> Tensor:
        return factors[role][start:stop].reshape(stop - start, -1)

    return rows


def _bias(factors: Factors, start: int, stop: int) -> Tensor:
    (change,) = factors.values()
    return change[start:stop].reshape(stop - start, -1)


_ROWS: dict[Kind, Callable[[Factors, int, int], Tensor]] = {
    Kind.LORA: _lora,
    Kind.TUCKER: _tucker,
    Kind.LOHA: _loha,
    Kind.LOKR: _lokr,
    Kind.DIFF: _whole("diff"),
    Kind.NORM: _whole("w_norm"),
    Kind.BIAS: _bias,
}


def _half(factors: Factors, name: str, core: str, start: int, stop: int) -> Tensor:
    """Rows of the product of two factors; around a core the first one is stored with its rank first."""
    a, b = factors[f"{name}_a"], factors[f"{name}_b"]
    if core in factors:
        return _cored(_matrix(a).T[start:stop], _matrix(b), factors[core])
    return _matrix(a)[start:stop] @ _matrix(b)


def _height(factors: Factors, name: str, core: str) -> int:
    """How many rows a matrix has that may be a product."""
    if name in factors:
        return factors[name].shape[0]
    return factors[f"{name}_a"].shape[1 if core in factors else 0]


def _cored(up: Tensor, down: Tensor, core: Tensor) -> Tensor:
    """Rows as of up, columns of the inputs of down at each place of the core's kernel."""
    rank, other = core.shape[:2]
    places = core[0, 0].numel()
    # rank × kernel × inputs: as many elements as the change has in a few of its rows.
    inner = core.reshape(rank, other, places).transpose(1, 2) @ down
    inner = inner.transpose(1, 2).reshape(rank, -1)
    return up @ inner


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1)


def dora_rows(base: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """What DoRA changes where it gives rows their lengths.

    The base and the change together are the direction, the magnitude is the length (PEFT, DoraLinearLayer;
    LyCORIS, weight_decompose). A row of zeros stays one; LyCORIS adds an epsilon to the lengths for that.

    Args:
        base: rows of the base as a matrix.
        change: the same rows of the change, scaled.
        magnitude: a length for each of the rows.
    """
    changed = base + change
    return changed * _ratio(magnitude, (changed * changed).sum(1)).reshape(-1, 1) - base


def dora_inputs(base: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """What DoRA changes where it gives inputs their lengths (LyCORIS, with wd_on_out off).

    Args:
        base: all rows of the base as a matrix.
        change: all rows of the change, scaled.
        magnitude: a length for each input; each has as many columns as the kernel has places.
    """
    changed = base + change
    inputs = magnitude.numel()
    squares = (changed * changed).sum(0).reshape(inputs, -1).sum(1)
    return changed * _ratio(magnitude, squares).repeat_interleave(base.shape[1] // inputs) - base


def _ratio(magnitude: Tensor, squares: Tensor) -> Tensor:
    lengths = squares.sqrt()
    return magnitude.reshape(-1) / lengths.where(lengths != 0, 1.0)

"""cosine_a and cosine_b: columns where two models are alike keep the first, others take the second."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.registry import Range, Weight, method
from runner.methods.sums import column_dots, cosine
from runner.methods.tiles import WHOLE, Part, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor

Limits = tuple[float, float]  # the least and the largest similarity of a model's columns
Similarity = Callable[["Tensor", "Tensor"], "Tensor"]
LEFT_OUT = "vae"  # component that has no part in a range over the whole model, and stays a's


def _matrix(a: Tensor) -> Tensor:
    """A tensor as columns over its first dimension; one of one or no dimension is a single column."""
    return a.reshape(-1, 1) if a.dim() < 2 else a.flatten(1)


def _products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """⟨a, a⟩, ⟨a, b⟩ and ⟨b, b⟩ of each column."""
    a, b = _matrix(a), _matrix(b)
    return column_dots(a, a), column_dots(a, b), column_dots(b, b)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each column of a with that of b, in float64; 0 if one is zero."""
    return _of_products(*_products(a, b))


def _of_products(aa: Tensor, ab: Tensor, bb: Tensor) -> Tensor:
    lengths = aa.sqrt() * bb.sqrt()
    return (ab / lengths.masked_fill(lengths == 0, 1)).clamp_(-1, 1)


def _with_mean(a: Tensor, b: Tensor) -> Tensor:
    """The mean of each column's cosine and the mean cosine of the columns that are not zero."""
    aa, ab, bb = _products(a, b)
    found = _of_products(aa, ab, bb)
    used = found[(aa != 0) & (bb != 0)].tolist()
    return found.add_(math.fsum(used) / len(used) if used else 0.0).div_(2)


def _with_whole(a: Tensor, b: Tensor) -> Tensor:
    """The mean of each column's cosine and the cosine of the whole tensors."""
    products = _products(a, b)
    aa, ab, bb = (math.fsum(one.tolist()) for one in products)
    return _of_products(*products).add_(cosine(ab, math.sqrt(aa), math.sqrt(bb))).div_(2)


def _limits(tiles: Tiles, similarity: Similarity) -> Limits:
    """The range of the similarities of a model's columns, without the outer hundredths."""
    import numpy as np

    found = [
        similarity(*tile.operands).numpy()
        for tile in tiles
        if tile.part.component != LEFT_OUT and tile.operands[0].numel()
    ]
    if not found:
        return 0.0, 0.0
    values = np.concatenate(found)
    values = values[values >= np.percentile(values, 1, method="midpoint")]
    values = values[values <= np.percentile(values, 99, method="midpoint")]
    return float(values.min()), float(values.max())


def _measure_a(tiles: Tiles) -> Limits:
    return _limits(tiles, _cosines)


def _measure_b(tiles: Tiles) -> Limits:
    return _limits(tiles, _with_whole)


def _mixed(a: Tensor, b: Tensor, similarity: Tensor, limits: Limits | None, off: float) -> Tensor:
    """k·a + (1 − k)·b, k the similarity of a column less `off`."""
    if limits:
        low, high = limits
        similarity = (similarity - low) / (high - low) if high > low else similarity * 0 + 1
    keep = (similarity - off).clamp_(0, 1)
    mixed = (_matrix(a) * keep.to(a.dtype)).add_(_matrix(b) * (1 - keep).to(a.dtype))
    return mixed.reshape(a.shape)


@method(
    determinism="stable",
    scope="tensor",
    measure=_measure_a,
    over=lambda range, **_: "model" if range == "global" else None,
    copies=(0, 4),
    idempotent=True,
)
def cosine_a(
    a: Weight,
    b: Weight,
    *,
    part: Part = WHOLE,
    measured: Limits | None = None,
    alpha: Annotated[float, Range(0, 1)] = 0.5,
    range: Literal["global", "none"] = "global",
) -> Weight:
    """k·a + (1 − k)·b, k for each column how alike it is in both, less alpha: likeness of columns counts.

    A column is what the first dimension runs over. k is the column's cosine between a and b, averaged
    with the tensor's mean and scaled to the range of cosines in the model, less alpha, within 0 to 1.
    The VAE stays as it is in a.

    Args:
        a: tensor of the first model, any shape.
        b: tensor of the second.
        part: which tensor it is.
        alpha: 1 gives b; 0 is not a, but leaves a what is alike in both.
        range: "global" scales the cosines to their range in the whole model; "none" takes the column's
            own cosine as it is.

    Source: hako-mikan sd-webui-supermerger, calcmode cosineA; sd-mecha, add_cosine_a.
    """
    if range == "global" and part.component == LEFT_OUT:
        return a.clone()
    if alpha == 1:
        return b.clone()
    if range == "none":
        return _mixed(a, b, _cosines(a, b), None, alpha)
    return _mixed(a, b, _with_mean(a, b), measured or _measure_a(whole(a, b, part=part)), abs(alpha))


@method(
    determinism="stable",
    scope="tensor",
    measure=_measure_b,
    over=lambda range, **_: "model" if range == "global" else None,
    copies=(0, 4),
    idempotent=True,
    result_is=lambda alpha, **_: 0 if alpha == -1 else None,
)
def cosine_b(
    a: Weight,
    b: Weight,
    *,
    part: Part = WHOLE,
    measured: Limits | None = None,
    alpha: Annotated[float, Range(-1, 1)] = 0.5,
    range: Literal["global", "none"] = "global",
) -> Weight:
    """cosine_a with the cosine of the whole tensors in the place of their columns' mean.

    Args:
        a, b, part: as in cosine_a.
        alpha: 1 gives b, −1 gives a.
        range: "global" scales the similarities to their range in the whole model; "none" does not.

    Source: hako-mikan sd-webui-supermerger, calcmode cosineB; sd-mecha, add_cosine_b.
    """
    if alpha == -1 or (range == "global" and part.component == LEFT_OUT):
        return a.clone()
    if alpha == 1:
        return b.clone()
    limits = None if range == "none" else measured or _measure_b(whole(a, b, part=part))
    return _mixed(a, b, _with_whole(a, b), limits, alpha)

"""model_stock: the mean of several fine-tunes, drawn to their base the more they disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from runner.methods.combination import Combination
from runner.methods.registry import Delta, Weight, method
from runner.methods.sums import as_matrix, gram, row_dots
from runner.methods.tiles import Tile, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor


def _share(cosine_mean: float, count: int, clamp: bool) -> float:
    """t = n·c / (1 + (n − 1)·c): how much of the mean of the models; 0 where it is not defined."""
    below = 1 + (count - 1) * cosine_mean
    share = 0.0 if abs(below) < 1e-6 else count * cosine_mean / below
    return max(0.0, min(1.0, share)) if clamp else share


def _pairs(count: int, cosine: str) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(i + 1, count) if cosine != "adjacent" or j == i + 1]


def _deltas(tile: Tile) -> Sequence[Tensor]:
    return tile.operands[1:]


def _measure(tiles: Tiles, cosine: str, clamp: bool) -> Combination:
    products = gram(tiles, _deltas)
    count = len(products.products)
    pairs = _pairs(count, cosine)
    cosines = [products.cosine(i, j) for i, j in pairs]
    if cosine == "angle":
        mean = math.cos(math.fsum(map(math.acos, cosines)) / len(pairs))
    else:
        mean = math.fsum(cosines) / len(pairs)
    share = _share(mean, count, clamp)
    note = "" if -1e-9 <= share <= 1 + 1e-9 else "opposing differences: t outside 0 to 1"
    return Combination((share / count,) * count, note)


def _row_shares(deltas: Sequence[Tensor], cosine: str, clamp: bool) -> Tensor:
    """The share of each delta for each row, shape [rows, 1]."""
    matrices = [as_matrix(delta) for delta in deltas]
    count, pairs = len(matrices), _pairs(len(matrices), cosine)
    norms = [row_dots(matrix, matrix).sqrt_() for matrix in matrices]
    cosines = []
    for i, j in pairs:
        product = norms[i] * norms[j]
        found = (row_dots(matrices[i], matrices[j]) / product.masked_fill(product == 0, 1)).clamp_(-1, 1)
        cosines.append(found.acos() if cosine == "angle" else found)
    mean = sum(cosines[1:], cosines[0]) / len(pairs)
    mean = mean.cos() if cosine == "angle" else mean
    below = 1 + (count - 1) * mean
    share = (count * mean / below).masked_fill_(below.abs() < 1e-6, 0)
    return (share.clamp_(0, 1) if clamp else share) / count


@method(
    determinism="stable",
    scope=lambda per, **_: "row" if per == "row" else "element",
    measure=_measure,
    over=lambda per, **_: "tensor" if per == "tensor" else None,
    at_least=2,
    copies=(2, 4),
)
def model_stock(
    base: Weight,
    *models: Delta,
    per: Literal["tensor", "row"] = "tensor",
    cosine: Literal["pairs", "adjacent", "angle"] = "pairs",
    clamp: bool = False,
    measured: Combination | None = None,
) -> Weight:
    """t·mean(x_i) + (1 − t)·base with t = n·c / (1 + (n − 1)·c), c the mean cosine between the differences.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it. Parallel ones give their mean (t = 1),
            orthogonal ones the base (t = 0).
        per: whether c is taken over the "tensor" or each "row" (of a convolution: each filter).
        cosine: all "pairs" of models, or "adjacent" ones only; "angle" takes the cosine of the mean angle.
        clamp: limits t to 0 to 1; opposing differences give t below 0.

    Source: Jang et al., Model Stock, https://arxiv.org/abs/2403.19522.
    """
    if per == "row":
        shares = _row_shares(models, cosine, clamp).to(base.dtype)
        total = as_matrix(models[0]) * shares
        for delta in models[1:]:
            total.add_(as_matrix(delta) * shares)
        return total.reshape(base.shape).add_(base)
    measured = measured or _measure(whole(base, *models), cosine, clamp)
    return measured.of(models, None).add_(base)

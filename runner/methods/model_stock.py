"""model_stock: the mean of several fine-tunes, drawn to their base the more they disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from runner.methods.registry import Delta, Weight, method
from runner.methods.sums import as_matrix, cosine, gram, row_dots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def _share(cosine_mean: float, count: int, clamp: bool) -> float:
    """t = n·c / (1 + (n − 1)·c): how much of the mean of the models; 0 where it is not defined."""
    below = 1 + (count - 1) * cosine_mean
    share = 0.0 if abs(below) < 1e-6 else count * cosine_mean / below
    return max(0.0, min(1.0, share)) if clamp else share


def _row_shares(deltas: Sequence[Tensor], pairs: Sequence[tuple[int, int]], clamp: bool) -> Tensor:
    """The share for each row, shape [rows, 1]."""
    matrices = [as_matrix(delta) for delta in deltas]
    norms = [row_dots(matrix, matrix).sqrt_() for matrix in matrices]
    total = norms[0] * 0
    for i, j in pairs:
        product = norms[i] * norms[j]
        total += (row_dots(matrices[i], matrices[j]) / product.masked_fill(product == 0, 1)).clamp_(-1, 1)
    mean, count = total / len(pairs), len(deltas)
    below = 1 + (count - 1) * mean
    share = (count * mean / below).masked_fill_(below.abs() < 1e-6, 0)
    return share.clamp_(0, 1) if clamp else share


@method(determinism="stable", elementwise=False, at_least=2, copies=(1, 4))
def model_stock(
    base: Weight,
    *models: Delta,
    per: Literal["tensor", "row"] = "tensor",
    cosine_of: Literal["pairs", "adjacent"] = "pairs",
    clamp: bool = False,
) -> Weight:
    """t·mean(x_i) + (1 − t)·base with t = n·c / (1 + (n − 1)·c), c the mean cosine between the differences.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it. Parallel ones give their mean (t = 1),
            orthogonal ones the base (t = 0).
        per: whether c is taken over the "tensor" or each "row" (of a convolution: each filter).
        cosine_of: all "pairs" of models, or "adjacent" ones only.
        clamp: limits t to 0 to 1; opposing differences give t below 0.

    Source: Jang et al., Model Stock, https://arxiv.org/abs/2403.19522.
    """
    count = len(models)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count) if cosine_of == "pairs" or j == i + 1]
    mean = models[0].clone()
    for delta in models[1:]:
        mean.add_(delta)
    mean.mul_(1 / count)
    if per == "row":
        moved = as_matrix(mean) * _row_shares(models, pairs, clamp).to(mean.dtype)
        return moved.reshape(base.shape).add_(base)
    products = gram(list(models))
    norms = [products[i][i] ** 0.5 for i in range(count)]
    mean_cosine = sum(cosine(products[i][j], norms[i], norms[j]) for i, j in pairs) / len(pairs)
    return mean.mul_(_share(mean_cosine, count, clamp)).add_(base)

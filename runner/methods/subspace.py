"""What methods on the singular vectors of several models' differences share.

They look at matrices (a convolution as [out, in·k·k]), in float64. What is no matrix, and embeddings
unless the recipe says otherwise, becomes the mean of the weighted differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from runner.methods.registry import PerModel, each
from runner.methods.sums import as_matrix

if TYPE_CHECKING:
    from torch import Tensor

RANK_TOLERANCE = 1e-6  # of the largest singular value: what is not above it is no direction of the matrix
OVERSAMPLING = 8  # columns beyond the rank in which randomized methods look for it
# Tables with a row for each token or position, in the names of transformers, open_clip and T5.
EMBEDDINGS = {
    *("token_embedding", "position_embedding", "positional_embedding", "embed_tokens", "shared"),
    *("pos_embed", "relative_attention_bias"),
}
Exclude = Literal["embeddings", "none"]


def is_excluded(key: str, exclude: str) -> bool:
    """Whether a tensor is one of the embeddings that are left out."""
    name = key.rpartition("/")[2].removesuffix(".weight").rpartition(".")[2]
    return exclude == "embeddings" and name in EMBEDDINGS


def wide_matrix(tensor: Tensor) -> Tensor:
    """A tensor as a matrix in float64, row by row in memory."""
    return as_matrix(tensor).double().contiguous()


def svd(matrix: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The singular vectors and values U, σ, Vᵀ of a matrix, as many as its numerical rank.

    Args:
        matrix: in float64.
        least: values that are not above it are dropped too.
    """
    import torch

    if not matrix.numel() or not matrix.count_nonzero():
        return matrix[:, :0], matrix.new_empty(0), matrix[:0]
    if matrix.shape[0] < matrix.shape[1]:  # of a tall one it is faster
        v, values, u = torch.linalg.svd(matrix.t(), full_matrices=False)
        left, right = u.t(), v.t()
    else:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > max(least, RANK_TOLERANCE * float(values[0]))).sum())
    return left[:, :rank], values[:rank], right[:rank]


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns: WZᵀ of its singular vectors W, Z."""
    left, _, right = svd(matrix)
    return left @ right


def merge_matrices(
    base: Tensor,
    models: Sequence[Tensor],
    weight: PerModel,
    scale: float,
    excluded: bool,
    merge: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """base + scale·Δ, Δ what `merge` makes of the weighted differences as matrices; else their mean.

    Args:
        base: of the models.
        models: their differences from it.
        weight: of each model; one of weight 0 is a matrix of zeros.
        scale: of the merged difference.
        excluded: whether the mean is taken of a matrix too.
        merge: the matrices, in float64, to one.
    """
    weights = each(weight, len(models))
    used = [(model, one) for model, one in zip(models, weights, strict=True) if one != 0]
    if not used or not base.numel():
        return base.clone()
    if excluded or base.dim() < 2:
        mean = used[0][0] * (used[0][1] * scale / len(models))
        for model, one in used[1:]:
            mean.add_(model * (one * scale / len(models)))
        return mean.add_(base)
    matrices = [
        wide_matrix(model).mul(one) if one != 0 else wide_matrix(base).new_zeros(as_matrix(base).shape)
        for model, one in zip(models, weights, strict=True)
    ]
    return merge(matrices).mul_(scale).reshape(base.shape).to(base.dtype).add_(base)

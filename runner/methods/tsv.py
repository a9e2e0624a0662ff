"""tsv_m: the leading singular vectors of every model, turned out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.methods.registry import Delta, PerModel, Weight, first_without_scale, method
from runner.methods.subspace import Exclude, is_excluded, merge_matrices, polar, svd
from runner.methods.tiles import WHOLE, Part

if TYPE_CHECKING:
    from torch import Tensor


def _merge(matrices: Sequence[Tensor]) -> Tensor:
    """P(U)·diag(σ)·P(V)ᵀ of the leading singular vectors of all; the mean if there is not one for each."""
    import torch

    count = min(matrices[0].shape) // len(matrices)
    if count == 0:
        return sum(matrices[1:], matrices[0]) / len(matrices)
    left, values, right = zip(
        *((u[:, :count], s[:count], v[:count]) for u, s, v in map(svd, matrices)), strict=True
    )
    turned = polar(torch.cat(left, 1)) * torch.cat(values)
    return turned @ polar(torch.cat(right).t()).t()


@method(determinism="machine", scope="tensor", at_least=2, copies=(6, 16), result_is=first_without_scale)
def tsv_m(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    weight: PerModel = 1.0,
    scale: float = 1.0,
    exclude: Exclude = "embeddings",
) -> Weight:
    """base + scale·P(U)·diag(σ)·P(V)ᵀ, U, σ, V the leading singular triples of every model's difference.

    Each of T models gives min(rows, columns) // T triples; P, the polar factor, makes the vectors of
    all models orthogonal to each other. Embeddings and what is no matrix: the mean of the differences.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it.
        part: which tensor it is.
        weight: of each model.
        scale: of the merged difference; 0 gives the base bit for bit.
        exclude: "embeddings" takes the mean of token and position embeddings; "none" treats them as others.

    Source: Gargiulo et al., Task Singular Vectors, https://arxiv.org/abs/2412.00081.
    """
    return merge_matrices(base, models, weight, scale, is_excluded(part.key, exclude), _merge)

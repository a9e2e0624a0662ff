"""wudi: the difference that disturbs what each model learned least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.methods.registry import Delta, PerModel, Weight, first_without_scale, method
from runner.methods.subspace import Exclude, is_excluded, merge_matrices, svd
from runner.methods.tiles import WHOLE, Part

if TYPE_CHECKING:
    from torch import Tensor


def _least_disturbing(matrices: Sequence[Tensor]) -> Tensor:
    """(Σ D_i·G_i)·(Σ G_i)⁺ with G_i = D_iᵀ·D_i / ‖D_i‖².

    Σ G_i = V·σ²·Vᵀ, σ and V of all D_i / ‖D_i‖ on top of each other; so no square of columns is needed.
    """
    import torch

    unit = [(matrix / matrix.norm(), matrix.norm()) for matrix in matrices if matrix.count_nonzero()]
    if not unit:
        return matrices[0] * 0
    _, values, right = svd(torch.cat([one for one, _ in unit]))
    result = matrices[0].new_zeros(matrices[0].shape[0], len(values))
    for one, norm in unit:
        seen = one @ right.t()
        result.add_(seen @ (seen.t() @ seen) * norm)
    return (result / values.square()) @ right


@method(determinism="machine", scope="tensor", at_least=2, copies=(15, 10), result_is=first_without_scale)
def wudi(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    weight: PerModel = 1.0,
    scale: float = 1.0,
    exclude: Exclude = "embeddings",
) -> Weight:
    """base + scale·τ, τ the least Σ ‖(τ − D_i)·D_iᵀ‖² / ‖D_i‖²: little disturbance where models learned.

    It is solved exactly, not by the steps of the paper. Embeddings and what is no matrix: the mean of
    the differences.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it.
        part: which tensor it is.
        weight: of each model.
        scale: of the merged difference; 0 gives the base bit for bit.
        exclude: "embeddings" takes the mean of token and position embeddings; "none" treats them as others.

    Source: Cheng et al., WUDI-Merging, https://arxiv.org/abs/2503.08099.
    """
    return merge_matrices(base, models, weight, scale, is_excluded(part.key, exclude), _least_disturbing)

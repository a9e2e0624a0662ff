"""iso_c and iso_cts: the directions several models learned, all made equally strong."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Delta, PerModel, Range, Weight, first_without_scale, method
from runner.methods.subspace import (
    RANK_TOLERANCE,
    Exclude,
    is_excluded,
    merge_matrices,
    polar,
    svd,
)
from runner.methods.tiles import WHOLE, Part

if TYPE_CHECKING:
    from torch import Tensor


def _flat(matrices: Sequence[Tensor]) -> Tensor:
    """The sum of all with its singular values replaced by their mean."""
    left, values, right = svd(sum(matrices[1:], matrices[0]))
    return (left @ right).mul_(values.mean() if len(values) else 0)


def _common_and_specific(matrices: Sequence[Tensor], common: float) -> Tensor:
    """The leading directions of the sum, and of each matrix what is not in them, made equally strong."""
    import torch

    rank, tasks = min(matrices[0].shape), len(matrices)
    specific = min(round((rank - int(rank * common)) / tasks), rank // tasks)
    if specific == 0:
        return _flat(matrices)
    shared = rank - specific * tasks
    u, s, v = svd(sum(matrices[1:], matrices[0]))
    left, values, right = [u[:, :shared]], [s[:shared]], [v[:shared]]
    for matrix in matrices:
        rest = matrix - left[0] @ (left[0].t() @ matrix)
        u, s, v = svd(rest, RANK_TOLERANCE * float(matrix.norm()))  # less is what rounding left of it
        left.append(u[:, :specific])
        values.append(s[:specific])
        right.append(v[:specific])
    strength = torch.cat(values)
    turned = polar(torch.cat(left, 1)) @ polar(torch.cat(right).t()).t()
    return turned.mul_(strength.mean() if len(strength) else 0)


@method(determinism="machine", scope="tensor", at_least=2, copies=(5, 10), result_is=first_without_scale)
def iso_c(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    weight: PerModel = 1.0,
    scale: float = 1.0,
    exclude: Exclude = "embeddings",
) -> Weight:
    """base + scale·σ̄·UVᵀ, U, V the singular vectors of the summed differences, σ̄ the mean singular value.

    Embeddings and what is no matrix: the mean of the differences.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it.
        part: which tensor it is.
        weight: of each model.
        scale: of the merged difference; 0 gives the base bit for bit.
        exclude: "embeddings" takes the mean of token and position embeddings; "none" treats them as others.

    Source: Marczak et al., No Task Left Behind, https://arxiv.org/abs/2502.04959.
    """
    return merge_matrices(base, models, weight, scale, is_excluded(part.key, exclude), _flat)


@method(determinism="machine", scope="tensor", at_least=2, copies=(9, 20), result_is=first_without_scale)
def iso_cts(
    base: Weight,
    *models: Delta,
    part: Part = WHOLE,
    weight: PerModel = 1.0,
    scale: float = 1.0,
    common: Annotated[float, Range(0, 1)] = 0.8,
    exclude: Exclude = "embeddings",
) -> Weight:
    """iso_c with some of the directions taken from each model alone, so that no model is drowned.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it.
        part: which tensor it is.
        weight: of each model.
        scale: of the merged difference; 0 gives the base bit for bit.
        common: share of the directions that come from the sum of all; 1 is iso_c.
        exclude: "embeddings" takes the mean of token and position embeddings; "none" treats them as others.

    Source: Marczak et al., No Task Left Behind, https://arxiv.org/abs/2502.04959.
    """
    merge = functools.partial(_common_and_specific, common=common)
    return merge_matrices(base, models, weight, scale, is_excluded(part.key, exclude), merge)

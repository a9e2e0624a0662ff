"""knots: merges several models in the space of the directions they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.dare import dare_ties
from runner.methods.random import Random
from runner.methods.registry import Delta, PerModel, Range, Weight, first_without_scale, method
from runner.methods.subspace import Exclude, is_excluded, merge_matrices, svd
from runner.methods.ties import ties
from runner.methods.tiles import WHOLE, Part

if TYPE_CHECKING:
    from torch import Tensor


@method(determinism="machine", scope="tensor", at_least=2, copies=(9, 14), result_is=first_without_scale)
def knots(
    base: Weight,
    *models: Delta,
    random: Random,
    part: Part = WHOLE,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range(1e-6, 1)] = 1.0,
    scale: float = 1.0,
    inner: Literal["ties", "dare_ties"] = "ties",
    exclude: Exclude = "embeddings",
) -> Weight:
    """base + scale·U·merged: `inner` merges what remains of the models in their common directions U.

    The singular vectors of all matrices side by side, [D_1 | … | D_T] = U·Σ·[V_1ᵀ | … | V_Tᵀ], give
    the parts Σ·V_iᵀ that are merged. Embeddings and what is no matrix: the mean of the differences.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of two or more others from it.
        random: streams of the merge, for dare_ties; the recipe's seed chooses them.
        part: which tensor it is.
        weight: of each model.
        density: of each model, as in `inner`.
        scale: of the merged difference; 0 gives the base bit for bit.
        inner: "ties" or "dare_ties", with their defaults; of a linear method the result would be its own.
        exclude: "embeddings" takes the mean of token and position embeddings; "none" treats them as others.

    Source: Stoica et al., Model merging with SVD to tie the KnOTS, https://arxiv.org/abs/2410.19735.
    """
    import torch

    def merge(matrices: Sequence[Tensor]) -> Tensor:
        common, values, right = svd(torch.cat(list(matrices), 1))
        parts = (values.unsqueeze(1) * right).chunk(len(matrices), 1)
        zero = torch.zeros_like(parts[0])
        if inner == "ties":
            return common @ ties(zero, *parts, density=density)
        return common @ dare_ties(zero, *parts, random=random, density=density)

    return merge_matrices(base, models, weight, scale, is_excluded(part.key, exclude), merge)

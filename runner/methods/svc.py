"""svc: takes back what a merge counts more than once, direction by direction."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import PerModel, Range, Weight, each, method
from runner.methods.subspace import svd, wide_matrix


@method(determinism="machine", scope="tensor", copies=(1, 20))
def svc(
    a: Weight,
    base: Weight,
    *models: Weight,
    weight: PerModel = 1.0,
    alpha: Annotated[float, Range(1e-6, 1)] = 1.0,
) -> Weight:
    """A merge with each singular value of its difference from the base divided by how often it counts.

    For direction r of a − base and each of T models, s is the share of the model's own change along r
    that the merge has; the singular value is multiplied by T / Σ max(alpha, s). What is no matrix is a's.

    Args:
        a: tensor of the merge.
        base: tensor of the model all others were trained from.
        models: tensors of the models that were merged.
        weight: they were merged with.
        alpha: 1 only shrinks; less lets directions grow that the merge has weakened.

    Source: When Shared Knowledge Hurts, https://arxiv.org/abs/2602.05536.
    """
    if a.dim() < 2 or not a.numel():
        return a.clone()
    origin = wide_matrix(base)
    left, values, right = svd(wide_matrix(a) - origin)
    if not len(values):
        return a.clone()
    counted = values * 0
    for model, weight_i in zip(models, each(weight, len(models)), strict=True):
        if weight_i == 0:
            counted.add_(alpha)
            continue
        along = left.t() @ ((wide_matrix(model) - origin) * weight_i)
        squares = along.square().sum(1)
        share = (along * right).sum(1).mul_(values).div_(squares.masked_fill(squares == 0, 1))
        counted.add_(share.masked_fill_(squares == 0, alpha).clamp_(min=alpha))
    corrected = (left * (values * len(models) / counted)) @ right
    return corrected.add_(origin).reshape(a.shape).to(a.dtype)

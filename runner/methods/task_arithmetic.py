"""task_arithmetic: what several models learned since their common base, added up."""

from __future__ import annotations

from runner.methods.registry import Delta, PerModel, Weight, each, first_without_scale, method


@method(determinism="exact", scope="element", result_is=first_without_scale, spreads=True)
def task_arithmetic(
    base: Weight, *models: Delta, weight: PerModel = 1.0, scale: float = 1.0, normalize: bool = False
) -> Weight:
    """base + scale·Σ w_i·(x_i − base).

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it.
        weight: of each model; negative makes the result forget what that model learned.
        scale: of the sum; 0 gives the base bit for bit.
        normalize: divides the sum by Σ |w_i|.

    Source: Ilharco et al., Editing models with task arithmetic, https://arxiv.org/abs/2212.04089.
    """
    weights = each(weight, len(models))
    total = sum(map(abs, weights)) if normalize else 1.0
    result = base.clone()
    for model, one in zip(models, weights, strict=True):
        if one != 0:
            result.add_(model * (scale * one / total))
    return result

"""expo: further along the way a model took from its base."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, method


@method(determinism="exact", scope="element", result_is=lambda alpha: {0.0: 1, -1.0: 0}.get(alpha))
def expo(base: Weight, model: Weight, *, alpha: Annotated[float, Range(0, 1, "warn")] = 0.1) -> Weight:
    """model + alpha·(model − base): what training began is carried on.

    Args:
        base: tensor of the model the other was trained from.
        model: tensor of the fine-tuned model.
        alpha: how far; 0 gives the model, 1 doubles what it learned, −1 gives the base.

    Source: Zheng et al., ExPO, https://arxiv.org/abs/2404.16792; fusion_bench.
    """
    return (model - base).mul_(alpha).add_(model)

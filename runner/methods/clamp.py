"""clamp: a merge held between the models it was made of."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, method


@method(determinism="exact", scope="element", at_least=2, copies=(0, 7))
def clamp(a: Weight, *models: Weight, stiffness: Annotated[float, Range(0, 1)] = 0.0) -> Weight:
    """a, but nowhere below the least of the other models nor above the largest.

    Args:
        a: tensor that is held, usually of a merge; any shape.
        models: tensors of two or more models that are the bounds.
        stiffness: moves both bounds towards the models that are next to the mean of all; of two models
            these are the bounds themselves.

    Source: sd-mecha, clamp; sd-meh, weights_clip.
    """
    low = high = models[0]
    for model in models[1:]:
        low, high = low.minimum(model), high.maximum(model)
    if stiffness:
        mean = models[0].clone()
        for model in models[1:]:
            mean.add_(model)
        mean.div_(len(models))
        below, above = low, high
        for model in models:
            below = model.maximum(below).where(model <= mean, below)
            above = model.minimum(above).where(model >= mean, above)
        if stiffness == 1:
            low, high = below, above
        else:
            low = (below - low).mul_(stiffness).add_(low)
            high = (above - high).mul_(stiffness).add_(high)
    return a.maximum(low).minimum(high)

"""magmax: of what several models learned, element by element the largest change."""

from __future__ import annotations

from runner.methods.registry import Delta, Weight, first_without_scale, method


@method(determinism="exact", scope="element", copies=(0, 4), result_is=first_without_scale)
def magmax(base: Weight, *models: Delta, scale: float = 1.0) -> Weight:
    """base + scale·d, d at each element the difference of largest magnitude.

    Args:
        base: tensor of the model all others were trained from.
        models: differences of the others from it; of equal magnitudes the later model's is taken.
        scale: of the difference; 0 gives the base bit for bit, 0.5 is the authors' choice.

    Source: Marczak et al., MagMax, https://arxiv.org/abs/2407.06322.
    """
    chosen, size = models[0], models[0].abs()
    for model in models[1:]:
        other = model.abs()
        chosen = model.where(other >= size, chosen)
        size = size.maximum(other)
    return (chosen * scale).add_(base)

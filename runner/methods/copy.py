"""copy: one model as it is, for another dtype, layout or size of files."""

from __future__ import annotations

from runner.methods.registry import Weight, method


@method(determinism="exact", scope="element", result_is=lambda scale: 0 if scale == 1 else None)
def copy(a: Weight, *, scale: float = 1.0) -> Weight:
    """scale·a: the model itself, or its weights times a number.

    Args:
        a: tensor of the model, any shape.
        scale: 1 gives a bit for bit, 0 gives zeros.

    Source: "No interpolation" of AUTOMATIC1111 stable-diffusion-webui, modules/extras.py.
    """
    return a * scale

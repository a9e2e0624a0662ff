"""add_difference: what training made of one model, added to another."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, method


@method(
    determinism="exact",
    scope="element",
    result_is=lambda alpha: 0 if alpha == 0 else None,
    spreads=True,
)
def add_difference(
    a: Weight, b: Weight, c: Weight, *, alpha: Annotated[float, Range(0, 2, "warn")] = 1.0
) -> Weight:
    """a + alpha·(b − c): what b learned since c, added to a.

    Args:
        a: tensor of the model that is changed, any shape.
        b: tensor of the fine-tuned model, same shape and dtype.
        c: tensor of the model b was trained from.
        alpha: strength, any finite number, usually 0 to 2; 0 gives a bit for bit, 1 adds it all.

    Source: AUTOMATIC1111 stable-diffusion-webui, modules/extras.py, "Add difference".
    """
    return (b - c).mul_(alpha).add_(a)

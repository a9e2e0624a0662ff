"""similarity_add_difference: adds a difference where two models disagree, and mixes them where they agree."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, method


@method(
    determinism="exact",
    scope="element",
    copies=(0, 5),
    result_is=lambda alpha, **_: 0 if alpha == 0 else None,
)
def similarity_add_difference(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, 1)] = 0.5,
    beta: Annotated[float, Range(0, 1)] = 0.5,
) -> Weight:
    """(1 − s)·(a + alpha·(b − c)) + s·(a + alpha·(b − a)/2), s = beta·(a·b / max(|a|, |b|)² + 1)/2.

    Args:
        a: tensor of the model that is changed, any shape.
        b: tensor of the fine-tuned model.
        c: tensor of the model b was trained from.
        alpha: strength; 0 gives a bit for bit.
        beta: how much of an element is mixed where a and b are equal; 0 is add_difference.

    Source: sd-meh, similarity_add_difference.
    """
    largest = a.abs().maximum(b.abs())
    # One of the two factors is 1 or −1: nothing is squared that could vanish.
    divisor = largest.masked_fill(largest == 0, 1)
    alike = (a / divisor).mul_(b).div_(divisor).masked_fill_(largest == 0, 1)
    share = alike.add_(1).mul_(beta / 2)
    added = (b - c).mul_(1 - share)
    return (b - a).mul_(share.div_(2)).add_(added).mul_(alpha).add_(a)

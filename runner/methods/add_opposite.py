"""add_opposite and add_strict_opposite: adds a difference where two models went opposite ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Range, Weight, method

if TYPE_CHECKING:
    from torch import Tensor


def _without_alpha(alpha: float) -> int | None:
    return 0 if alpha == 0 else None


def _quotient(part: Tensor, total: Tensor) -> Tensor:
    """part / total, in part; 0 where total is 0."""
    return part.div_(total.masked_fill(total == 0, 1))


@method(determinism="exact", scope="element", copies=(0, 5), result_is=_without_alpha)
def add_opposite(
    a: Weight, b: Weight, c: Weight, *, alpha: Annotated[float, Range(0, 2, "warn")] = 1.0
) -> Weight:
    """a + 2·alpha·s·(b − c) with s = |a − b| / (|a − b| + |a + b − 2·c|): c between a and b counts most.

    Args:
        a: tensor of the model that is changed, any shape.
        b: tensor of the fine-tuned model.
        c: tensor of the model both were trained from.
        alpha: strength; 0 gives a bit for bit. Where a equals c half of s is left, which adds all of
            alpha; where a equals b nothing is added.

    Source: sd-mecha, add_opposite_mask.
    """
    learned = b - c
    apart = (a - b).abs_()
    together = (a - c).add_(learned).abs_()
    return _quotient(apart, together.add_(apart)).mul_(learned).mul_(2 * alpha).add_(a)


@method(determinism="exact", scope="element", copies=(0, 5), result_is=_without_alpha)
def add_strict_opposite(
    a: Weight, b: Weight, c: Weight, *, alpha: Annotated[float, Range(0, 2, "warn")] = 1.0
) -> Weight:
    """add_opposite with s = max(0, (c − a)·(b − c)) / max(|a − c|, |b − c|)²: only where c is between.

    Args:
        a, b, c: as in add_opposite.
        alpha: strength; 0 gives a bit for bit. Where a and b changed alike, nothing is added.

    Source: sd-mecha, add_strict_opposite_mask.
    """
    learned = b - c
    away = c - a
    largest = away.abs().maximum(learned.abs())
    # One of the two factors is 1 or −1: nothing is squared that could vanish.
    share = _quotient(_quotient(away, largest).mul_(learned), largest).clamp_(min=0)
    return share.mul_(learned).mul_(2 * alpha).add_(a)

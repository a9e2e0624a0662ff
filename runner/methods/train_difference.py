"""train_difference: what training made of b since c, given to a where a is far from b."""

from __future__ import annotations

from typing import Annotated

from runner.methods.registry import Range, Weight, method


@method(determinism="exact", scope="element", result_is=lambda alpha: 0 if alpha == 0 else None)
def train_difference(
    a: Weight, b: Weight, c: Weight, *, alpha: Annotated[float, Range(0, 10, "warn")] = 1.0
) -> Weight:
    """a + 1.8·alpha·s·(b − c) with s = |b − a| / (|b − a| + |b − c|), and s = 0 where b = a.

    Args:
        a: tensor of the model that is changed, any shape.
        b: tensor of the fine-tuned model.
        c: tensor of the model b was trained from.
        alpha: strength; 0 gives a bit for bit. Where a equals c, 0.9·alpha of the difference is
            added; where a is far from both, up to 1.8·alpha.

    Source: hako-mikan sd-webui-supermerger, calcmode trainDifference.
    """
    difference = b - c
    distance = (b - a).abs_()
    total = difference.abs().add_(distance)
    share = distance.div_(total.masked_fill_(total == 0, 1))
    return share.mul_(difference).mul_(1.8 * alpha).add_(a)

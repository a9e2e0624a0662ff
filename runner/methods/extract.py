"""extract: what two fine-tunes learned alike, or what they learned differently."""

from __future__ import annotations

import math
from typing import Annotated

from runner.methods.registry import Range, Weight, method
from runner.methods.sums import as_matrix, row_dots


def _ends(alpha: float, beta: float, gamma: float) -> int | None:
    if gamma != 0:  # then every row counts as alike
        return None
    if beta == 1:
        return 0
    return {0.0: 1, 1.0: 2}.get(alpha) if beta == 0 else None


@method(determinism="stable", scope="row", copies=(1, 3), result_is=_ends)
def extract(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, 1)] = 0.0,
    beta: Annotated[float, Range(0, 1)] = 0.0,
    gamma: Annotated[float, Range(0, math.inf)] = 1.0,
) -> Weight:
    """a + d·((1 − beta)·s + beta·(1 − s)), d between b − a and c − a, s how alike these are in a row.

    s = ((cosine + 1) / 2)^gamma for each row (of a convolution: each filter); a row that is zero in one
    has cosine 0.

    Args:
        a: tensor of the model both others were trained from, any shape.
        b: tensor of the first.
        c: tensor of the second.
        alpha: 0 adds what b learned, 1 what c learned.
        beta: 0 takes rows where they learned alike, 1 rows where they did not; 0.5 half of all.
        gamma: how strict that is; 0 takes every row as alike.

    Source: hako-mikan sd-webui-supermerger, calcmode extract.
    """
    of_b, of_c = as_matrix(b - a), as_matrix(c - a)
    lengths = row_dots(of_b, of_b).sqrt_().mul_(row_dots(of_c, of_c).sqrt_())
    alike = row_dots(of_b, of_c).div_(lengths.masked_fill_(lengths == 0, 1)).clamp_(-1, 1).add_(1).div_(2)
    if gamma == 0:
        alike = alike * 0 + 1
    elif gamma != 1:
        alike = alike.log_().mul_(gamma).exp_()
    taken = alike * (1 - beta) + (1 - alike) * beta
    learned = of_b.mul_(1 - alpha).add_(of_c.mul_(alpha))
    return learned.mul_(taken.to(a.dtype)).reshape(a.shape).add_(a)

"""arcee_fusion: takes over only the weights of a model that changed in a way that matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.methods.registry import Weight, method
from runner.methods.sums import as_matrix, row_dots

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-8  # added to each probability, so that its logarithm is finite


def _probabilities(rows: Tensor) -> Tensor:
    """The softmax of each row in float64, plus a little."""
    powers = (rows.double() - rows.amax(1, keepdim=True)).exp_()
    return powers.div_(row_dots(powers, powers.new_ones(1).expand(powers.shape))).add_(LEAST)


def _importance(model: Tensor, base: Tensor) -> Tensor:
    """|x − base|·KL(p‖q) for each element, the divergence being that of its row."""
    p, q = _probabilities(model), _probabilities(base)
    divergence = row_dots(p, q.reciprocal_().mul_(p).log_())
    return (model.double() - base.double()).abs_().mul_(divergence)


@method(determinism="stable", scope="tensor", copies=(2, 14))
def arcee_fusion(base: Weight, model: Weight) -> Weight:
    """The model where |x − base| times the divergence of the row is an outlier in its tensor, else the base.

    The threshold is the median plus 1.5 times the distance between the quartiles. Rows are compared by
    the softmax of their weights.

    Args:
        base: tensor of the model the other was trained from.
        model: tensor of the other.

    Source: mergekit, merge_methods/arcee_fusion.py.
    """
    if not base.numel():
        return base.clone()
    importance = _importance(as_matrix(model), as_matrix(base)).reshape(-1)
    ordered = importance.sort().values
    last = len(ordered) - 1
    quarter, median, three = (float(ordered[int(share * last)]) for share in (0.25, 0.5, 0.75))
    if float(ordered[0]) == float(ordered[-1]) == 0:
        return base.clone()
    chosen = importance >= median + 1.5 * (three - quarter)
    return model.where(chosen.reshape(base.shape), base)

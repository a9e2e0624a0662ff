"""add_perpendicular: what one fine-tune learned that another does not have yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from runner.methods.registry import Range, Weight, method
from runner.methods.sums import gram
from runner.methods.tiles import Tile, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor


def _differences(tile: Tile) -> Sequence[Tensor]:
    a, b, c = tile.operands
    return a - c, b - c


def _measure(tiles: Tiles) -> float:
    """How much of a − c is in b − c."""
    products = gram(tiles, _differences).products
    return products[0][1] / products[0][0] if products[0][0] else 0.0


@method(
    determinism="stable",
    scope="element",
    measure=_measure,
    copies=(0, 3),
    result_is=lambda alpha, **_: 0 if alpha == 0 else None,
)
def add_perpendicular(
    a: Weight,
    b: Weight,
    c: Weight,
    *,
    alpha: Annotated[float, Range(0, 2, "warn")] = 1.0,
    measured: float | None = None,
) -> Weight:
    """a + alpha·(d − p), d = b − c and p its projection on a − c: only what is new in b is added.

    Args:
        a: tensor of the model that is changed, any shape. If it equals c, all of d is new.
        b: tensor of the fine-tuned model.
        c: tensor of the model both were trained from.
        alpha: strength; 0 gives a bit for bit.

    Source: sd-mecha, add_perpendicular.
    """
    share = _measure(whole(a, b, c)) if measured is None else measured
    return (b - c).sub_((a - c).mul_(share)).mul_(alpha).add_(a)

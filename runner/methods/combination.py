"""Sums of models whose shares follow from the products between the models alone (their Gram matrix)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.methods.sums import Gram

if TYPE_CHECKING:
    from torch import Tensor

    from runner.methods.tiles import Tile


@dataclass(frozen=True, slots=True)
class Combination:
    """What was measured of a tensor: the share of each model in the result.

    Attributes:
        shares: in the order of the operands.
        note: what is unusual about this tensor, for the record; "" if nothing is.
    """

    shares: tuple[float, ...]
    note: str = ""

    def of(self, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
        """The sum of the models' shares, or the base with the shares of their differences from it."""
        terms = [
            (model if base is None else model - base) * share
            for model, share in zip(models, self.shares, strict=True)
            if share != 0
        ]
        result = terms[0] if terms else models[0] * 0
        for term in terms[1:]:
            result.add_(term)
        return result if base is None else result.add_(base)


def vectors(tile: Tile) -> Sequence[Tensor]:
    """The models of a tile as they are combined: themselves, or their differences from the base."""
    if tile.base is None:
        return tile.operands
    return [operand - tile.base for operand in tile.operands]


def all_equal(gram: Gram) -> bool:
    """Whether all vectors are one and the same: then their products are equal to the last bit."""
    return len({product for row in gram.products for product in row}) == 1


def first_of(count: int) -> Combination:
    """The first model itself."""
    return Combination((1.0, *(0.0,) * (count - 1)))

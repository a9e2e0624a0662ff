"""The result of a method that gives a LoRA: two factors of low rank, and what they stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Factors:
    """A change of a tensor as the product of two matrices.

    Attributes:
        up: rows × rank.
        down: rank × columns.
        change: what their product stands for, as a matrix in float64.
    """

    up: Tensor
    down: Tensor
    change: Tensor

    def write(self, out: Tensor, rank: int, alpha: bool) -> Tensor:
        """Puts them into memory as the file has them: alpha, down, up.

        Args:
            out: as many elements as they are, of the dtype that is written.
            rank: as it is written; zeros fill what the factors lack of it.
            alpha: whether alpha is written. It is the rank, so that the scale of the product is 1.

        Returns:
            The change that who reads them gets.
        """
        rows, columns = self.change.shape
        out.zero_()
        scale = 1.0
        if alpha:
            out[0] = rank
            scale = rank / float(out[0])  # not every rank is a number in 16 bits
        factors = out[int(alpha) :]
        down = factors[: rank * columns].view(rank, columns)
        up = factors[rank * columns :].view(rows, rank)
        down[: len(self.down)].copy_(self.down)
        up[:, : len(self.down)].copy_(self.up * scale)
        return (up.double() @ down.double()) / scale


def sides(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix."""
    return shape[0], math.prod(shape[1:])

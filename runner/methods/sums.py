"""Sums over elements that do not depend on threads or tiles: fixed pieces in float64, combined exactly.

Each piece of 32,768 elements is summed alone and the partial sums are added by math.fsum, which
rounds once whatever their order. Tiles are whole numbers of pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.tensors import SUM_ELEMENTS

if TYPE_CHECKING:
    from torch import Tensor

    from runner.methods.tiles import Tile, Tiles

PIECES_AT_A_TIME = 32  # of rows: bounds the float64 copies to 8 MiB each


def total(values: Tensor) -> list[float]:
    """The sum of each piece, in float64; to be added by math.fsum."""
    values = values.reshape(-1)
    whole = values.numel() // SUM_ELEMENTS * SUM_ELEMENTS
    parts: list[float] = values[:whole].view(-1, SUM_ELEMENTS).double().sum(1).tolist()
    if whole < values.numel():
        parts.append(float(values[whole:].double().sum()))
    return parts


@dataclass(frozen=True)
class Gram:
    """The products ⟨v_i, v_j⟩ of some vectors, in float64."""

    products: tuple[tuple[float, ...], ...]

    def norm(self, i: int) -> float:
        """‖v_i‖."""
        return math.sqrt(self.products[i][i])

    def cosine(self, i: int, j: int) -> float:
        """The cosine between two vectors; 0 if one is zero."""
        return cosine(self.products[i][j], self.norm(i), self.norm(j))


def _of_operands(tile: Tile) -> Sequence[Tensor]:
    return tile.operands


def gram(tiles: Tiles, vectors: Callable[[Tile], Sequence[Tensor]] = _of_operands) -> Gram:
    """The products of some vectors, seen in tiles.

    Args:
        tiles: of the tensors.
        vectors: what of a tile is multiplied; the operands.
    """
    parts: dict[tuple[int, int], list[float]] = {}
    count = 0
    for tile in tiles:
        flat = [vector.reshape(-1) for vector in vectors(tile)]
        count = len(flat)
        for start in range(0, flat[0].numel(), SUM_ELEMENTS):  # a piece at a time stays in the cache
            wide = [vector[start : start + SUM_ELEMENTS].double() for vector in flat]
            for i in range(count):
                for j in range(i, count):
                    parts.setdefault((i, j), []).append(float((wide[i] * wide[j]).sum()))
    sums = {pair: math.fsum(found) for pair, found in parts.items()}
    return Gram(
        tuple(tuple(sums.get((min(i, j), max(i, j)), 0.0) for j in range(count)) for i in range(count))
    )


def cosine(product: float, norm_a: float, norm_b: float) -> float:
    """The cosine of two vectors from their product and norms; 0 if one is zero."""
    if norm_a == 0 or norm_b == 0:
        return 0.0
    return max(-1.0, min(1.0, product / norm_a / norm_b))


def as_matrix(a: Tensor) -> Tensor:
    """A tensor as rows: a convolution is [out, in·k·k], one of one or no dimension is a single row."""
    return a.reshape(1, -1) if a.dim() < 2 else a.flatten(1)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_i, b_i⟩ for each row of two matrices, in float64, shape [rows, 1]."""
    if a.shape[1] > SUM_ELEMENTS:  # a row that torch's threads would share
        return a.double().new_tensor(
            [[math.fsum(total(one.double() * other.double()))] for one, other in zip(a, b, strict=True)]
        )
    result = a.new_empty((a.shape[0], 1)).double()
    rows = max(1, SUM_ELEMENTS * PIECES_AT_A_TIME // max(1, a.shape[1]))
    for start in range(0, a.shape[0], rows):
        part = slice(start, start + rows)
        result[part] = (a[part].double() * b[part].double()).sum(1, keepdim=True)
    return result


def column_dots(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_j, b_j⟩ for each column of two matrices, in float64, shape [columns].

    Halves of the rows are added until one is left: single additions, in an order that rows alone decide.
    """
    result = a.new_zeros(a.shape[1]).double()
    columns = max(1, SUM_ELEMENTS * PIECES_AT_A_TIME // max(1, a.shape[0]))
    for start in range(0, a.shape[1] if a.shape[0] else 0, columns):
        part = slice(start, start + columns)
        products = a[:, part].double() * b[:, part].double()
        while (rows := products.shape[0]) > 1:
            half = (rows + 1) // 2
            products[: rows - half].add_(products[half:])
            products = products[:half]
        result[part] = products[0]
    return result

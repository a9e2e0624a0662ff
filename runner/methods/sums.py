"""Sums over elements that do not depend on threads: fixed pieces in float64, combined exactly.

Each piece of 32,768 elements is summed alone and the partial sums are added by math.fsum, which
rounds once whatever their order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runner.tensors import SUM_ELEMENTS

if TYPE_CHECKING:
    from torch import Tensor

PIECES_AT_A_TIME = 32  # bounds the float64 copies to 8 MiB each


def dot(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ over all elements, in float64."""
    a, b = a.reshape(-1), b.reshape(-1)
    step = SUM_ELEMENTS * PIECES_AT_A_TIME
    parts: list[float] = []
    for start in range(0, a.numel(), step):
        product = a[start : start + step].double() * b[start : start + step].double()
        whole = product.numel() // SUM_ELEMENTS * SUM_ELEMENTS
        parts += product[:whole].view(-1, SUM_ELEMENTS).sum(1).tolist()
        parts.append(float(product[whole:].sum()))
    return math.fsum(parts)


def norm(a: Tensor) -> float:
    """‖a‖ over all elements, in float64."""
    return math.sqrt(dot(a, a))


def gram(vectors: list[Tensor]) -> list[list[float]]:
    """⟨v_i, v_j⟩ for all pairs, in float64."""
    products = [[0.0] * len(vectors) for _ in vectors]
    for i, v in enumerate(vectors):
        for j in range(i, len(vectors)):
            products[i][j] = products[j][i] = dot(v, vectors[j])
    return products


def cosine(product: float, norm_a: float, norm_b: float) -> float:
    """The cosine of two vectors from their product and norms; 0 if one is zero."""
    if norm_a == 0 or norm_b == 0:
        return 0.0
    return max(-1.0, min(1.0, product / (norm_a * norm_b)))


def as_matrix(a: Tensor) -> Tensor:
    """A tensor as rows: a convolution is [out, in·k·k], one of one or no dimension is a single row."""
    return a.reshape(1, -1) if a.dim() < 2 else a.reshape(a.shape[0], -1)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_i, b_i⟩ for each row of two matrices, in float64, shape [rows, 1]."""
    if a.shape[1] > SUM_ELEMENTS:  # a row that torch's threads would share
        return a.double().new_tensor([[dot(row_a, row_b)] for row_a, row_b in zip(a, b, strict=True)])
    result = a.new_empty((a.shape[0], 1)).double()
    rows = max(1, SUM_ELEMENTS * PIECES_AT_A_TIME // max(1, a.shape[1]))
    for start in range(0, a.shape[0], rows):
        part = slice(start, start + rows)
        result[part] = (a[part].double() * b[part].double()).sum(1, keepdim=True)
    return result

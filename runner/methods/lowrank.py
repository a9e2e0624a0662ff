"""Low-rank changes as pairs of factors: joined exactly, compressed to a rank, taken out of a change.

A pair is up × down, its scale in its factors, so that alpha is the rank. Decompositions are of the class
machine. Compare kohya-ss/sd-scripts, networks/svd_merge_lora.py and extract_lora_from_models.py, which put
the singular values into up and cut off the largest elements of both factors (clamp_quantile 0.99); here the
values are shared by both factors, and nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """A change as the product of two matrices.

    Attributes:
        up: rows × rank.
        down: rank × columns.
        residual: how far the product is from what it stands for: the length of the difference, as a share
            of the length of that.
    """

    up: Tensor
    down: Tensor
    residual: float = 0.0

    @property
    def rank(self) -> int:
        """Of the factors."""
        return self.down.shape[0]


def join(pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> LowRank:
    """The weighted sum of changes of one tensor, exactly: the ranks add up.

    Args:
        pairs: up and down of each, as matrices.
        weights: of each, its scale with it.
    """
    import torch

    ups = [up if weight == 1 else up * weight for (up, _), weight in zip(pairs, weights, strict=True)]
    return LowRank(torch.cat(ups, 1), torch.cat([down for _, down in pairs]))


def join_cores(
    triples: Sequence[tuple[Tensor, Tensor, Tensor]], weights: Sequence[float]
) -> tuple[Tensor, ...]:
    """The weighted sum of changes with cores, exactly: up, down and a core of blocks.

    Args:
        triples: up, down and core of each.
        weights: of each, its scale with it.
    """
    joined = join([(up, down) for up, down, _ in triples], weights)
    cores = [core for _, _, core in triples]
    core = cores[0].new_zeros((joined.up.shape[1], joined.rank, *cores[0].shape[2:]))
    row = column = 0
    for each in cores:
        core[row : row + each.shape[0], column : column + each.shape[1]] = each
        row, column = row + each.shape[0], column + each.shape[1]
    return joined.up, joined.down, core


def compress(pair: LowRank, *, rank: int | None = None, energy: float | None = None) -> LowRank:
    """The nearest change of a smaller rank; the product is never made, a matrix of its rank is decomposed.

    Args:
        pair: a change.
        rank: at most this one.
        energy: at least this share of the sum of the squared singular values.
    """
    import torch

    columns, left = torch.linalg.qr(pair.up)
    rows, right = torch.linalg.qr(pair.down.T)
    found = _kept(left @ right.T, rank, energy)
    return LowRank(columns @ found.up, found.down @ rows.T, found.residual)


def extract(change: Tensor, *, rank: int | None = None, energy: float | None = None) -> LowRank:
    """The nearest change of a rank.

    Args:
        change: a matrix, or the weight of a convolution: then its rows.
        rank: at most this one.
        energy: at least this share of the sum of the squared singular values.
    """
    return _kept(change.reshape(change.shape[0], -1), rank, energy)


def _kept(matrix: Tensor, rank: int | None, energy: float | None) -> LowRank:
    """The largest singular values, half of each in both factors, so that neither is small in 16 bits."""
    import torch

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    squares = values.double() ** 2
    total = float(squares.sum())
    count = max(1, int((values > 0).sum()))
    if rank is not None:
        count = min(count, rank)
    if energy is not None and total > 0:
        # The rank is the first whose share is enough; the last is, whatever rounding says.
        enough = (squares.cumsum(0) >= energy * total).nonzero()
        count = min(count, int(enough[0]) + 1 if len(enough) else len(squares))
    rest = float(squares[count:].sum())
    roots = values[:count].sqrt()
    residual = (rest / total) ** 0.5 if total > 0 else 0.0
    return LowRank(left[:, :count] * roots, right[:count] * roots.reshape(-1, 1), residual)

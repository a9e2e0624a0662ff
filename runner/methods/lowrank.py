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

from runner.methods.subspace import RANK_TOLERANCE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """A change as the product of two matrices.

    Attributes:
        up: rows × rank.
        down: rank × columns.
    """

    up: Tensor
    down: Tensor

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


def compress(pair: LowRank, *, rank: int | None = None) -> LowRank:
    """The nearest change of a smaller rank; the product is never made, a matrix of its rank is decomposed.

    Args:
        pair: a change.
        rank: at most this one.
    """
    import torch

    columns, left = torch.linalg.qr(pair.up)
    rows, right = torch.linalg.qr(pair.down.T)
    first, values, last = torch.linalg.svd(left @ right.T, full_matrices=False)
    count = max(1, int((values > 0).sum()))
    count = count if rank is None else min(count, rank)
    roots = values[:count].sqrt()
    return LowRank(columns @ first[:, :count] * roots, roots.reshape(-1, 1) * last[:count] @ rows.T)


def extract(
    change: Tensor,
    *,
    rank: int | None = None,
    start: Tensor | None = None,
    iterations: int = 0,
) -> LowRank:
    """The nearest change of a rank.

    Args:
        change: a matrix in float64, or the weight of a convolution: then its rows.
        rank: at most this one.
        start: random columns as long as the matrix' shorter side, more than the rank: the directions are
            looked for among their images alone. None: all are found.
        iterations: how often the images are multiplied by the matrix and its transpose again.
    """
    matrix = change.reshape(change.shape[0], -1)
    squares, directions, _ = _directions(matrix, start, iterations)
    count = max(1, _above_rounding(squares, rank))
    kept = squares[:count].clamp_min(0)
    # Half of each value in both factors, so that neither is small in 16 bits.
    roots = kept.sqrt().sqrt()
    shares = roots.where(roots > 0, 1.0)
    own = directions[:, :count]
    if matrix.shape[0] > matrix.shape[1]:
        return LowRank(matrix @ own / shares, roots.reshape(-1, 1) * own.T)
    return LowRank(own * roots, own.T @ matrix / shares.reshape(-1, 1))


def rank_of_energy(
    change: Tensor, energy: float, rank: int, *, start: Tensor | None = None, iterations: int = 0
) -> int:
    """The least rank whose share of the squared singular values is an energy; 0 if the change is none.

    Args:
        change: as there.
        energy: below 1.
        rank: the most it may be.
        start, iterations: as there.
    """
    import torch

    matrix = change.reshape(change.shape[0], -1)
    if start is None:  # the values alone take a third of the time
        gram = _gram(matrix)
        squares, total = torch.linalg.eigvalsh(gram).flip(0), float(gram.trace())
    else:
        squares, _, total = _directions(matrix, start, iterations)
    count = _above_rounding(squares, rank)
    if total > 0:
        # The rank is the first whose share is enough; the last is, whatever rounding says.
        enough = (squares.cumsum(0) >= energy * total).nonzero()
        count = min(count, int(enough[0]) + 1 if len(enough) else len(squares))
    return count


def _gram(matrix: Tensor) -> Tensor:
    """The products of the rows of a matrix, or of its columns if those are fewer."""
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _directions(matrix: Tensor, start: Tensor | None, iterations: int) -> tuple[Tensor, Tensor, float]:
    """The squared singular values, the largest first, their directions on the shorter side, and their sum.

    They are the eigenvalues and eigenvectors of the products of the rows, which take a fraction of the time
    of a decomposition of the matrix. Values below some 1e-7 of the largest are lost in
    rounding; nor does the difference of two models in 16 or 32 bits have any that mean something.
    """
    import torch

    if start is None:
        gram = _gram(matrix)
        squares, directions = torch.linalg.eigh(gram)
        return squares.flip(0), directions.flip(1), float(gram.trace())
    short, long = (matrix, matrix.T) if matrix.shape[0] <= matrix.shape[1] else (matrix.T, matrix)
    basis = torch.linalg.qr(short @ (long @ start)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(short @ (long @ basis)).Q
    images = long @ basis
    squares, turns = torch.linalg.eigh(images.T @ images)
    return squares.flip(0), (basis @ turns).flip(1), float(matrix.square().sum())


def _above_rounding(squares: Tensor, rank: int | None) -> int:
    """How many singular values are above rounding, at most a rank."""
    count = int((squares > RANK_TOLERANCE**2 * squares[0].clamp_min(0)).sum())
    return count if rank is None else min(count, rank)

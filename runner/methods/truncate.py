"""truncate_rank and truncate_kronecker: what a model learned, written with far fewer numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from runner.methods.random import Random
from runner.methods.registry import Range, Weight, method
from runner.methods.subspace import OVERSAMPLING, svd, wide_matrix

if TYPE_CHECKING:
    from torch import Tensor

POWER_ITERATIONS = 2


def _rank(matrix: Tensor, rank: float, ratio: float) -> int:
    full = min(matrix.shape)
    return min(full, round(ratio * full) if ratio < 1 else int(rank))


def _rank_of_energy(values: Tensor, energy: float) -> int:
    """How many singular values have that share of the sum of their squares."""
    if not len(values):
        return 0
    squares = (values / values[0]).square().cumsum(0)
    return int((squares < energy * float(squares[-1])).sum()) + 1 if energy > 0 else 0


def _randomized(matrix: Tensor, rank: int, random: Random) -> Tensor:
    """Nearly the best approximation of that rank, from random mixtures of the columns."""
    import torch

    if matrix.shape[0] < matrix.shape[1]:
        return _randomized(matrix.t().contiguous(), rank, random).t()
    columns = min(rank + OVERSAMPLING, matrix.shape[1])
    found = random.normal(1, matrix.new_empty(matrix.shape[1], columns))
    basis = torch.linalg.qr(matrix @ found).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix.t() @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, values, right = svd(basis.t() @ matrix)
    reduced: Tensor = (basis @ left[:, :rank] * values[:rank]) @ right[:rank]
    return reduced


@method(determinism="machine", scope="tensor", copies=(2, 16))
def truncate_rank(
    base: Weight,
    model: Weight,
    *,
    random: Random,
    rank: Annotated[float, Range(0, 100_000)] = 8,
    ratio: Annotated[float, Range(0, 1)] = 1.0,
    energy: Annotated[float, Range(0, 1)] = 1.0,
    solver: Literal["exact", "randomized"] = "exact",
) -> Weight:
    """base + the best approximation of model − base by a matrix of low rank.

    What is no matrix is the model's. A rank that no matrix exceeds gives the model, 0 gives the base.

    Args:
        base: tensor of the model the other was trained from.
        model: tensor of the other.
        random: streams of the merge; the recipe's seed chooses them.
        rank: of the difference, cut to an integer.
        ratio: below 1, the rank is this share of the full one instead.
        energy: below 1, the rank is the least that has this share of the squared difference instead.
        solver: "exact" takes all singular values; "randomized" is faster for low ranks and nearly as
            good. With energy all are taken in any case.

    Source: Eckart and Young, Psychometrika 1, 1936; Halko et al., https://arxiv.org/abs/0909.4061.
    """
    if base.dim() < 2 or not base.numel():
        return model.clone()
    matrix = wide_matrix(model) - wide_matrix(base)
    wanted = min(matrix.shape) if energy < 1 else _rank(matrix, rank, ratio)
    if wanted == 0:
        return base.clone()
    if energy == 1 and wanted == min(matrix.shape):
        return model.clone()
    if solver == "randomized" and energy == 1:
        reduced = _randomized(matrix, wanted, random)
    else:
        left, values, right = svd(matrix)
        wanted = wanted if energy == 1 else _rank_of_energy(values, energy)
        reduced = (left[:, :wanted] * values[:wanted]) @ right[:wanted]
    return reduced.reshape(base.shape).to(base.dtype).add_(base)


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _factor_shape(shape: tuple[int, ...], ratio: float) -> tuple[int, int]:
    """Rows and columns of the first factor of a tensor whose further dimensions the second one keeps."""
    rows, columns = shape[:2]
    middle = math.log(math.prod(shape)) / 2
    pairs = [(m, n) for m in _divisors(rows) for n in _divisors(columns)]
    sizes = {pair: math.log(pair[0] * pair[1]) - middle for pair in pairs}
    wanted = (2 * ratio - 1) * max(map(abs, sizes.values()))

    def distance(pair: tuple[int, int]) -> tuple[float, float]:
        balance = abs(math.log(pair[0] ** 2 / rows)) + abs(math.log(pair[1] ** 2 / columns))
        return round(abs(sizes[pair] - wanted), 9), round(balance, 9)  # equal ones are equal

    return min(pairs, key=distance)


@method(determinism="machine", scope="tensor", copies=(2, 16))
def truncate_kronecker(base: Weight, model: Weight, *, ratio: Annotated[float, Range(0, 1)] = 0.5) -> Weight:
    """base + the Kronecker product A⊗B that is nearest to model − base.

    What is no matrix is the model's.

    Args:
        base: tensor of the model the other was trained from.
        model: tensor of the other.
        ratio: of the sizes of the factors: 0.5 makes A and B equally large as nearly as divisors allow,
            0 makes A as small, 1 as large as they allow.

    Source: Van Loan and Pitsianis, Approximation with Kronecker products, 1993; sd-mecha, truncate_kronecker.
    """
    if base.dim() < 2 or not base.numel():
        return model.clone()
    m, n = _factor_shape(tuple(base.shape), ratio)
    rows, columns = base.shape[0] // m, base.shape[1] // n
    rest = math.prod(base.shape[2:])
    delta = (wide_matrix(model) - wide_matrix(base)).reshape(m, rows, n, columns * rest)
    left, values, right = svd(delta.transpose(1, 2).reshape(m * n, -1))
    product = ((left[:, :1] * values[:1]) @ right[:1]).reshape(m, n, rows, columns * rest)
    return product.transpose(1, 2).reshape(base.shape).to(base.dtype).add_(base)

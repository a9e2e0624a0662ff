"""rotate: turns one model's matrices onto another's, as far as turning brings them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from runner.errors import RecipeError, quote
from runner.methods.registry import Range, Weight, method
from runner.methods.subspace import RANK_TOLERANCE, wide_matrix
from runner.methods.tiles import WHOLE, Part

if TYPE_CHECKING:
    from torch import Tensor

GENERIC_ANGLE = 0.7390851332151607  # no two angles of a rotation are expected to add up to twice of it


def _end(alignment: float, alpha: float, **_: object) -> int | None:
    """For result_is: a if nothing is done, b if all is."""
    return {(0.0, 0.0): 0, (1.0, 1.0): 1}.get((alignment, alpha))


def _transform(a: Tensor, b: Tensor, proper: bool) -> tuple[Tensor, Tensor]:
    """U and V of the rotation UVᵀ of columns that brings A nearest to B.

    Args:
        a, b: matrices.
        proper: whether the rotation must not mirror.
    """
    import torch

    if a.shape[0] < a.shape[1]:  # then A and B span only part of the space: U and V are thin
        span_a, of_a = torch.linalg.qr(a.t())
        span_b, of_b = torch.linalg.qr(b.t())
        left, _, right = torch.linalg.svd(of_a @ of_b.t())
        return span_a @ left, span_b @ right.t()
    left, _, right = torch.linalg.svd(a.t() @ b)
    if proper and float(torch.linalg.slogdet(left @ right)[0]) < 0:
        left[:, -1].neg_()
    return left, right.t()


def _power(rotation: Tensor, share: float) -> Tensor:
    """The rotation by that share of each of its angles."""
    import torch

    # Vectors of a Hermitian matrix are orthogonal even where angles are equal, those of `eig` are not.
    turned = rotation * torch.exp(torch.tensor(-1j * GENERIC_ANGLE, dtype=torch.complex128))
    _, vectors = torch.linalg.eigh((turned + turned.mH) / 2)
    images = rotation.to(torch.complex128) @ vectors
    angles = (vectors.conj() * images).sum(0).angle()
    half_turns = angles.abs() > torch.pi - RANK_TOLERANCE
    result: Tensor = (vectors * torch.exp(1j * share * angles.masked_fill(half_turns, 0))) @ vectors.mH
    result = result.real
    if count := int(half_turns.sum()):
        # Half turns come in pairs, and in the real plane of a pair either direction is as good.
        plane = (vectors[:, half_turns] @ vectors[:, half_turns].mH).real
        plane = torch.linalg.eigh(plane).eigenvectors[:, -count:]
        first, second = plane[:, 0 : count - 1 : 2], plane[:, 1:count:2]
        angle = torch.tensor(share * torch.pi, dtype=torch.float64)
        turn = (first @ second.t() - second @ first.t()) * angle.sin()
        result = result + (first @ first.t() + second @ second.t()) * (angle.cos() - 1) + turn
    return result


@method(determinism="machine", scope="tensor", copies=(8, 32), result_is=_end)
def rotate(
    a: Weight,
    b: Weight,
    *,
    part: Part = WHOLE,
    alignment: Annotated[float, Range(0, 1)] = 1.0,
    alpha: Annotated[float, Range(0, 1)] = 0.0,
    centralization: Annotated[float, Range(0, 1)] = 1.0,
) -> Weight:
    """((1 − alpha)·A + alpha·B·Qᵀ)·Q^alignment, Q the rotation of A's columns that brings it nearest to B.

    The means of the columns are taken off before and go from a's to b's with alignment. What is no
    matrix is a weighted sum. (alignment, alpha) = (0, 0) gives a and (1, 1) gives b, bit for bit.

    Args:
        a: tensor of the first model.
        b: tensor of the second, same shape.
        part: which tensor it is.
        alignment: share of the rotation. Matrices with fewer rows than columns, as most convolutions
            are, can be turned as a whole only: 0 or 1.
        alpha: share of b in what is no rotation.
        centralization: share of the means that is taken off before.

    Source: Schönemann, Psychometrika 31, 1966; sd-mecha, rotate.
    """
    import torch

    if a.dim() < 2 or not a.numel():
        return (a * (1 - alpha)).add_(b * alpha)
    if torch.equal(a, b):
        return a.clone()
    wide = a.reshape(a.shape[0], -1).shape[0] < a[0].numel()
    if wide and alignment not in (0, 1):
        raise RecipeError(
            f"rotate: tensor {quote(part.key)} has fewer rows than columns and cannot be turned by part of "
            f"its rotation (alignment {alignment:g}); give 0 or 1 there"
        )
    matrix_a, matrix_b = wide_matrix(a), wide_matrix(b)
    mean_a, mean_b = (one.mean(0) * centralization for one in (matrix_a, matrix_b))
    matrix_a, matrix_b = matrix_a - mean_a, matrix_b - mean_b
    if matrix_a.count_nonzero() and matrix_b.count_nonzero():
        left, right = _transform(matrix_a, matrix_b, proper=0 < alignment < 1)
        mixed = matrix_a
        if alpha:
            mixed = matrix_a * (1 - alpha) + (matrix_b @ right @ left.t()) * alpha
        if alignment == 1:
            mixed = mixed @ left @ right.t()
        elif alignment:
            mixed = mixed @ _power(left @ right.t(), alignment)
    else:  # nothing to be turned, or nothing to turn it to
        mixed = matrix_a * (1 - alpha) + matrix_b * alpha
    mixed = mixed + mean_a * (1 - alignment) + mean_b * alignment
    return mixed.reshape(a.shape).to(a.dtype)

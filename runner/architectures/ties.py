"""How tensors of one layout are made of tensors of the other: the algebra behind the maps of layouts.

A Tie holds one tensor of a single file to the tensors of a folder that have its elements. Only rows move:
every tensor is a concatenation along its first dimension of ranges of rows of others. Beside that, one that
is not fused may be a transpose or lack the dimensions of size 1 of a 1x1 convolution. The way back is never
written down: it is derived from the way there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from runner.tensors import TensorSpec

Shape = tuple[int, ...]
Form = Literal["rows", "transposed", "pointwise"]


class MisfitError(Exception):
    """Shapes or dtypes that a tie cannot be applied to, in words."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a source tensor, as they stand in a result.

    Attributes:
        key: of the source.
        first: the first of its rows.
        rows: how many of them.
        source: shape of the whole source.
        transposed: whether the source, a matrix taken whole, is transposed. If not, the elements of the
            piece are the same in the same order, and lie together.
        shape: what the piece is in the result.
    """

    key: str
    first: int
    rows: int
    source: Shape
    transposed: bool
    shape: Shape

    @property
    def offset(self) -> int:
        """Elements of the source before the piece."""
        return self.first * math.prod(self.source[1:])

    @property
    def elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor as it is made of others.

    Attributes:
        pieces: what it is the concatenation of along its first dimension.
        spec: its dtype and shape.
    """

    pieces: tuple[Piece, ...]
    spec: TensorSpec

    @property
    def transposed(self) -> bool:
        """Whether it must be made whole; if not, any range of elements can be read from the sources."""
        return any(piece.transposed for piece in self.pieces)

    def reads(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Where the elements from start up to but not with stop lie, unless the tensor is transposed.

        Yields:
            Key of a source, elements of it to skip, and elements to take, in order.
        """
        assert not self.transposed
        for piece in self.pieces:
            begin, end = max(start, 0), min(stop, piece.elements)
            if begin < end:
                yield piece.key, piece.offset + begin, end - begin
            start, stop = start - piece.elements, stop - piece.elements


class Run(NamedTuple):
    """Rows that the two layouts share, in equal units of rows.

    Attributes:
        part: index of the folder's tensor.
        first: where they begin in it.
        units: how many they are.
    """

    part: int
    first: int
    units: int


_WHOLE = (Run(0, 0, 1),)


@dataclass(frozen=True, slots=True)
class Tie:
    """One tensor of a single file, and those of a folder that have its elements.

    Attributes:
        single: key of the former.
        parts: keys of the latter.
        runs: which rows of the parts the rows of the single tensor are, in order.
        form: what else tells them apart: nothing, a transpose, or the two dimensions of a 1x1 convolution.
    """

    single: str
    parts: tuple[str, ...]
    runs: tuple[Run, ...] = _WHOLE
    form: Form = "rows"

    def split(self, key: str, spec: TensorSpec) -> dict[str, Made]:
        """The folder's tensors as made of the single file's.

        Args:
            key: what the single file calls the tensor.
            spec: of the tensor there.

        Raises:
            MisfitError: if it cannot be of that shape.
        """
        units, rows, shape = sum(run.units for run in self.runs), _rows(spec.shape), spec.shape
        if self.form != "rows":
            piece = Piece(key, 0, rows, shape, self.form == "transposed", _matrix(self.form, spec))
            return {self.parts[0]: _joined([piece], spec.dtype)}
        if rows % units:
            raise MisfitError(f"{spec} cannot be divided into {units} equal parts")
        found: dict[str, list[tuple[int, Piece]]] = {part: [] for part in self.parts}
        first = 0
        for run in self.runs:
            count = run.units * (rows // units)
            piece = Piece(key, first, count, shape, False, _with_rows(shape, count))
            found[self.parts[run.part]].append((run.first, piece))
            first += count
        return {part: _joined(_in_order(placed), spec.dtype) for part, placed in found.items()}

    def join(self, keys: Sequence[str], specs: Sequence[TensorSpec]) -> Made:
        """The single file's tensor as made of the folder's.

        Args:
            keys: what the folder calls the parts, in order.
            specs: of the parts.

        Raises:
            MisfitError: if these do not make one.
        """
        whole = self._whole(specs)
        names = dict(zip(self.parts, keys, strict=True))
        parts = {names[part]: made for part, made in self.split(self.single, whole).items()}
        return inverse(parts, {self.single: whole})[self.single]

    def _whole(self, specs: Sequence[TensorSpec]) -> TensorSpec:
        """The spec of the single file's tensor."""
        dtype, shape = specs[0].dtype, specs[0].shape
        if self.form != "rows":
            if len(shape) != 2:
                raise MisfitError(f"{specs[0]} is no matrix")
            return TensorSpec(dtype, shape[::-1] if self.form == "transposed" else (*shape, 1, 1))
        shares = [sum(run.units for run in self.runs if run.part == part) for part in range(len(specs))]
        units = {_rows(spec.shape) / share for spec, share in zip(specs, shares, strict=True)}
        alike = {(spec.dtype, len(spec.shape), spec.shape[1:]) for spec in specs}
        if len(units) > 1 or len(alike) > 1:
            shares_of = f" in proportion {':'.join(map(str, shares))}" if len(set(shares)) > 1 else ""
            raise MisfitError(f"these are not rows{shares_of} of one tensor: {', '.join(map(str, specs))}")
        return TensorSpec(dtype, _with_rows(shape, sum(_rows(spec.shape) for spec in specs)))


def inverse(made: Mapping[str, Made], specs: Mapping[str, TensorSpec]) -> dict[str, Made]:
    """The sources as made of the results.

    Args:
        made: results that together have every row of each of their sources once.
        specs: of the sources.
    """
    found: dict[str, list[tuple[int, Piece]]] = {}
    for key, result in made.items():
        at = 0
        for piece in result.pieces:
            rows = _rows(piece.shape)
            back = piece.source if piece.transposed else _with_rows(piece.source, piece.rows)
            source = Piece(key, at, rows, result.spec.shape, piece.transposed, back)
            found.setdefault(piece.key, []).append((piece.first, source))
            at += rows
    return {key: _joined(_in_order(placed), specs[key].dtype) for key, placed in found.items()}


def _in_order(placed: Iterable[tuple[int, Piece]]) -> list[Piece]:
    """Pieces by the row they begin at."""
    return [piece for _, piece in sorted(placed, key=lambda each: each[0])]


def _joined(pieces: Sequence[Piece], dtype: str) -> Made:
    rows = sum(_rows(piece.shape) for piece in pieces)
    return Made(tuple(pieces), TensorSpec(dtype, _with_rows(pieces[0].shape, rows)))


def _rows(shape: Shape) -> int:
    return shape[0] if shape else 1


def _with_rows(shape: Shape, rows: int) -> Shape:
    return (rows, *shape[1:]) if shape else ()


def _matrix(form: Form, spec: TensorSpec) -> Shape:
    """The shape of the folder's matrix."""
    shape = spec.shape
    if form == "transposed":
        if len(shape) != 2:
            raise MisfitError(f"{spec} is no matrix")
        return shape[::-1]
    # Convolutions over lines or images, and what somebody made linear already.
    if not 2 <= len(shape) <= 4 or set(shape[2:]) - {1}:
        raise MisfitError(f"{spec} is no 1x1 convolution")
    return shape[:2]


def tied(pairs: Mapping[str, str], *, ends: Sequence[str] = (".weight", ".bias")) -> list[Tie]:
    """Ties of modules that only have another name.

    Args:
        pairs: name in a single file → name in a folder.
        ends: of the names of their tensors.
    """
    return [Tie(single + end, (part + end,)) for single, part in pairs.items() for end in ends]


def fused(
    single: str, parts: Sequence[str], shares: Sequence[int] | None = None, sep: str = "."
) -> list[Tie]:
    """Ties of a layer whose rows are those of several, weights and biases.

    Args:
        single: its name.
        parts: names of the several.
        shares: of the rows; equal if not said.
        sep: what stands between name and "weight" in the single file.
    """
    runs = tuple(Run(part, 0, share) for part, share in enumerate(shares or [1] * len(parts)))
    return [
        Tie(f"{single}{sep}{end}", tuple(f"{part}.{end}" for part in parts), runs)
        for end in ("weight", "bias")
    ]


def swapped(single: str, part: str) -> list[Tie]:
    """Ties of a layer whose halves, shift and scale, change places."""
    runs = (Run(0, 1, 1), Run(0, 0, 1))
    return [Tie(f"{single}.{end}", (f"{part}.{end}",), runs) for end in ("weight", "bias")]

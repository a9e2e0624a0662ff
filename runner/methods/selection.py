"""The largest elements of a tensor that is seen in tiles: exactly those the definition names, no sort.

The first walk counts magnitudes by the leading bits of their floating-point numbers, which order
them; the second looks only at those that share the leading bits with the threshold. If these are too
many to remember in which tiles they are, a third counts those that are equal to the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from runner.methods.tiles import Part, Tile, Tiles

    Array = np.ndarray[Any, np.dtype[Any]]

LEADING_BITS = 16  # of a magnitude: 65,536 counts
KEPT_VALUES = 1 << 21  # that may be the threshold, with their tiles, of each set: 24 MB in float32
# How many elements there are, and how many of them are not 0 → how many are wanted, for each set.
Counts = Callable[[int, int], Sequence[int]]


@dataclass(frozen=True)
class Largest:
    """The elements of largest magnitude; of equals the first.

    Attributes:
        threshold: magnitude of the least of them; elements above are in, below are out.
        equals: by tensor and start of a tile, how many of its elements equal to the threshold are in.
    """

    threshold: float
    equals: dict[tuple[str, int], int]

    def mask(self, values: Tensor, part: Part) -> Tensor:
        """Which elements of a tile are among them, in the shape of the values."""
        import numpy as np
        import torch

        magnitudes = _magnitudes(values)
        with np.errstate(over="ignore"):
            limit = magnitudes.dtype.type(self.threshold)
        # The threshold may be from a tensor of another dtype, and no number in this one.
        mask = magnitudes >= limit if float(limit) > self.threshold else magnitudes > limit
        if count := self.equals.get((part.key, part.start), 0):
            mask[(magnitudes == self.threshold).nonzero()[0][:count]] = True
        return torch.from_numpy(mask).reshape(values.shape)


def top(density: float) -> Counts:
    """For largest: k = max(1, int(density·N)) of N elements."""
    return lambda count, nonzero: [max(1, int(density * count))]


def largest(
    tiles: Tiles,
    values: Callable[[Tile], Sequence[Tensor]],
    counts: Sequence[Counts],
) -> list[list[Largest]]:
    """The elements of largest magnitude of some tensors.

    Args:
        tiles: are walked over twice, or three times.
        values: of a tile, in which the largest are looked for; one tensor for each of `counts`.
        counts: given the number of elements and of those that are not 0, how many are wanted; several
            numbers give several sets.
    """
    import numpy as np

    histograms: list[Array] = [np.zeros(1 << LEADING_BITS, np.int64) for _ in counts]
    nonzero = [0] * len(counts)
    for tile in tiles:
        for at, tensor in enumerate(values(tile)):
            magnitudes = _magnitudes(tensor)
            histograms[at] += np.bincount(_leading(magnitudes), minlength=1 << LEADING_BITS)
            nonzero[at] += int(np.count_nonzero(magnitudes))
    wanted = [
        [_Wanted(histogram, count) for count in ask(int(histogram.sum()), some)]
        for ask, histogram, some in zip(counts, histograms, nonzero, strict=True)
    ]
    for tile in tiles:
        for tensor, sets in zip(values(tile), wanted, strict=True):
            magnitudes = _magnitudes(tensor)
            leading = _leading(magnitudes)
            for one in sets:
                one.look(magnitudes, leading, (tile.part.key, tile.part.start))
    if undecided := [one for sets in wanted for one in sets if one.decide()]:
        for tile in tiles:
            if not any(one.left for one in undecided):
                break
            for tensor, sets in zip(values(tile), wanted, strict=True):
                magnitudes = _magnitudes(tensor)
                for one in sets:
                    one.look_again(magnitudes, (tile.part.key, tile.part.start))
    return [[one.found() for one in sets] for sets in wanted]


def _magnitudes(tensor: Tensor) -> Array:
    magnitudes: Array = tensor.abs().reshape(-1).numpy()
    return magnitudes


def _leading(magnitudes: Array) -> Array:
    """The leading bits of each magnitude in float32: they order those of any dtype, the sign bit being 0."""
    import numpy as np

    with np.errstate(over="ignore"):
        single: Array = magnitudes.astype(np.float32, copy=False)
    return single.view(np.uint32) >> (32 - LEADING_BITS)


class _Wanted:
    """Looks for the `count` largest, once it is known how many have which leading bits."""

    def __init__(self, histogram: Array, count: int) -> None:
        import numpy as np

        above = np.cumsum(histogram[::-1])[::-1]  # how many have these leading bits or larger ones
        self.count = min(count, int(above[0]))
        self.leading = int(np.count_nonzero(above >= self.count)) - 1
        self.left = self.count - int(above[self.leading] - histogram[self.leading])
        self.values: list[Array] = []
        self.counts: list[Array] = []
        self.places: list[tuple[str, int]] | None = []  # None: too many values to know where each is
        self.kept = 0
        self.threshold = float("inf")
        self.equals: dict[tuple[str, int], int] = {}

    def look(self, magnitudes: Array, leading: Array, place: tuple[str, int]) -> None:
        """Notes what of a tile may be the threshold."""
        import numpy as np

        if self.count == 0:
            return
        values, counts = np.unique(magnitudes[leading == self.leading], return_counts=True)
        self.values.append(values)
        self.counts.append(counts)
        self.kept += len(values)
        if self.places is not None:
            self.places.append(place)
        if self.kept > KEPT_VALUES:
            values, counts = self._together()
            self.values, self.counts, self.places, self.kept = [values], [counts], None, 0

    def _together(self) -> tuple[Array, Array]:
        import numpy as np

        values, inverse = np.unique(np.concatenate(self.values), return_inverse=True)
        return values, np.bincount(inverse, np.concatenate(self.counts), len(values)).astype(np.int64)

    def decide(self) -> bool:
        """Finds the threshold; returns whether the tiles must be looked at for what is equal to it."""
        import numpy as np

        if self.count == 0:
            return False
        values, counts = self._together()
        above = np.cumsum(counts[::-1])[::-1]
        at = int(np.count_nonzero(above >= self.left)) - 1
        self.left -= int(above[at] - counts[at])
        self.threshold = float(values[at])
        if self.places is None:
            return True
        for tile_values, tile_counts, place in zip(self.values, self.counts, self.places, strict=True):
            self._take(int(tile_counts[tile_values == values[at]].sum()), place)
        return False

    def look_again(self, magnitudes: Array, place: tuple[str, int]) -> None:
        """Counts what of a tile is equal to the threshold, if that is not known."""
        if self.places is None and self.left:
            self._take(int((magnitudes == self.threshold).sum()), place)

    def _take(self, there: int, place: tuple[str, int]) -> None:
        if taken := min(there, self.left):
            self.equals[place] = taken
            self.left -= taken

    def found(self) -> Largest:
        """What it all comes to."""
        return Largest(self.threshold, self.equals)

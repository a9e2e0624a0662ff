"""How far one model is from another: ‖b − a‖ and ‖a‖ of each tensor, read tile by tile.

The sums are the engine's: over pieces of fixed size, which no thread shares, added without regard to order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from runner.checkpoint import Checkpoint
from runner.engine.compute import Moved, squares
from runner.engine.evaluation import torch_dtype
from runner.engine.reading import ModelFiles
from runner.engine.watch import INTEGERS
from runner.engine.workers import workers
from runner.models.view import View
from runner.place import processors
from runner.tensors import DTYPES


def distances(
    models: Sequence[tuple[Checkpoint, View]],
    keys: Sequence[str],
    threads: int,
    tile_elements: int,
    advance: Callable[[int], None],
) -> dict[str, Moved]:
    """How far the tensors of the second of two models are from those of the first.

    Args:
        models: the two.
        keys: floats that both have, of the same shape.
        threads: how many tensors are read at a time; 0: one for each processor.
        tile_elements: at a time of each.
        advance: called with the number of bytes read, from the calling thread.

    Raises:
        InputError: a file ended early, or changed meanwhile.
    """
    with _opened(models) as both, workers(threads or processors()) as pool:
        found = {}
        apart = pool.map(lambda key: _apart(both[0], both[1], tile_elements, key), keys)
        for key, moved in zip(keys, apart, strict=True):
            found[key] = moved
            advance(sum(view.tensors[key].spec.nbytes for _, view in models))
        return found


def ulps(
    models: Sequence[tuple[Checkpoint, View]], keys: Sequence[str], threads: int, tile_elements: int
) -> dict[str, int]:
    """How many numbers of its dtype lie at most between an element of one and that of the other, by key.

    Args:
        models: the two.
        keys: floats that both have, of the same dtype and shape.
        threads, tile_elements: as for distances.

    Raises:
        InputError: a file ended early, or changed meanwhile.
    """
    with _opened(models) as both, workers(threads or processors()) as pool:
        most = pool.map(lambda key: _ulps(both[0], both[1], tile_elements, key), keys)
        return dict(zip(keys, most, strict=True))


@dataclass(frozen=True)
class _Opened:
    """A model whose files are open."""

    view: View
    files: ModelFiles

    def read(self, key: str, start: int, count: int) -> Tensor:
        """Elements start … start + count of a tensor."""
        spec = self.view.tensors[key].spec
        data = memoryview(bytearray(count * DTYPES[spec.dtype].bits // 8))
        self.files.read(key, data, start, count)
        return torch.frombuffer(data, dtype=torch_dtype(spec))


@contextmanager
def _opened(models: Sequence[tuple[Checkpoint, View]]) -> Iterator[list[_Opened]]:
    """Models that are read, of which no file may have changed at the end."""
    with ExitStack() as opened:
        found = []
        for checkpoint, view in models:
            files = ModelFiles(checkpoint, view, checkpoint.tensors)
            opened.callback(files.close)
            found.append(_Opened(view, files))
        yield found
        for one in found:
            one.files.check_unchanged()


def _apart(first: _Opened, second: _Opened, tile_elements: int, key: str) -> Moved:
    made = first.view.tensors[key], second.view.tensors[key]
    elements = made[0].spec.elements
    tile = elements if any(one.transposed for one in made) else tile_elements
    dtype = torch.float64 if any(one.spec.dtype == "F64" for one in made) else torch.float32
    moved = Moved([], [])
    for start in range(0, elements, max(1, tile)):
        count = min(tile, elements - start)
        a, b = (one.read(key, start, count).to(dtype) for one in (first, second))
        moved.difference += squares(b - a)
        moved.original += squares(a)
    return moved


def _ulps(first: _Opened, second: _Opened, tile_elements: int, key: str) -> int:
    elements, most = first.view.tensors[key].spec.elements, 0
    for start in range(0, elements, max(1, tile_elements)):
        count = min(tile_elements, elements - start)
        a, b = (_ordered(one.read(key, start, count)) for one in (first, second))
        far = (a.double() - b.double()).abs() > _FAR
        most = max(most, int(torch.where(far, int(_FAR), (a - b).abs()).max()))
    return most


_FAR = 2.0**62  # beyond it the difference of two numbers of 64 bits would not fit into one


def _ordered(values: Tensor) -> Tensor:
    """Floats as whole numbers in the same order, neighbours one apart: the bits of the size, signed."""
    bits = values.view(INTEGERS[values.element_size()]).to(torch.int64)
    size = bits & ((1 << (8 * values.element_size() - 1)) - 1)
    return torch.where(bits < 0, -size, size)


def relative(moved: Iterable[Moved]) -> float | None:
    """‖b − a‖ / ‖a‖ over some tensors; None if that is no finite number."""
    parts = list(moved)
    difference = math.fsum(part for one in parts for part in one.difference)
    original = math.fsum(part for one in parts for part in one.original)
    if not original:
        return None if difference else 0.0
    found = math.sqrt(difference / original)
    return found if math.isfinite(found) else None

"""Models, open: their tensors by the names of views, read by position, fp8 times its scale."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from runner.checkpoint import Checkpoint
from runner.disk.files import read_into
from runner.engine.compute import dequantise, transposed
from runner.models.model import Model
from runner.models.view import View
from runner.planning.plan import Load, Plan
from runner.tensors import DTYPES


class AbandonedError(Exception):
    """Work given up because of an error elsewhere."""


class ModelFiles:
    """The open files of a model: its tensors read by position, under the names of its view.

    Args:
        checkpoint: where the tensors are stored.
        view: what they are made of.
        stored: keys of the stored tensors that will be read, or their scales.
        abandoned: whether nobody waits for what is read any more.

    Raises:
        InputError: a file cannot be opened.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        view: View,
        stored: Iterable[str],
        abandoned: Callable[[], bool] = lambda: False,
    ) -> None:
        self._checkpoint = checkpoint
        self._view = view
        self._abandoned = abandoned
        self._descriptors: dict[int, int] = {}
        scales, used = view.quantised.scales, set(stored)
        used |= {scales[key] for key in used if key in scales}  # which may lie in another shard
        try:
            for file in sorted({checkpoint.tensors[key].file for key in used}):
                self._descriptors[file] = checkpoint.files[file].open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def check_unchanged(self) -> None:
        """Raises: InputError if a file is not what it was when its header was read."""
        for file, descriptor in self._descriptors.items():
            self._checkpoint.files[file].check_unchanged(descriptor)

    def read(self, key: str, buffer: memoryview, start: int, count: int) -> None:
        """Fills a buffer with elements start … start + count of a tensor, from the pieces it is made of."""
        made = self._view.tensors[key]
        size = DTYPES[made.spec.dtype].bits // 8
        if made.transposed:
            (piece,) = made.pieces
            whole = memoryview(bytearray(piece.elements * size))
            self._read_stored(piece.key, whole, 0, piece.elements)
            buffer[:] = transposed(whole, piece.source, size)[start * size : (start + count) * size]
            return
        at = 0
        for stored, skipped, elements in made.reads(start, start + count):
            self._read_stored(stored, buffer[at : at + elements * size], skipped, elements)
            at += elements * size

    def _read_stored(self, key: str, buffer: memoryview, start: int, count: int) -> None:
        """Fills a buffer with elements start … start + count of a stored tensor, fp8 times its scale."""
        name = self._view.quantised.scales.get(key)
        if name is None:
            self.read_raw(key, buffer, start)
            return
        spec, scale = (self._checkpoint.tensors[one].spec for one in (key, name))
        first, last = 0, 0
        if scale.elements > 1:
            row = spec.elements // spec.shape[0]
            first, last = start // row, (start + count - 1) // row
        codes = memoryview(bytearray(count))
        scales = memoryview(bytearray((last + 1 - first) * DTYPES[scale.dtype].bits // 8))
        self.read_raw(key, codes, start)
        self.read_raw(name, scales, first)
        dequantise(codes, spec, start, scales, scale, buffer)

    def read_raw(self, key: str, buffer: memoryview, start: int = 0) -> None:
        """Fills a buffer with the elements of a stored tensor from one on, as they are."""
        if self._abandoned():  # nobody waits for it any more, and a survey has far to go
            raise AbandonedError
        stored = self._checkpoint.tensors[key]
        file = self._checkpoint.files[stored.file]
        offset = stored.offset + start * DTYPES[stored.spec.dtype].bits // 8
        read_into(self._descriptors[stored.file], buffer, offset, file.label)


class Inputs:
    """The files that the jobs of a plan read.

    Args:
        plan: whose.
        abandoned: whether nobody waits for what is read any more.

    Raises:
        InputError: a file cannot be opened.
    """

    def __init__(self, plan: Plan, abandoned: Callable[[], bool] = lambda: False) -> None:
        self._models: list[ModelFiles] = []
        try:
            for number, model in enumerate(plan.resolved.models):
                used = {key for load in _loads(plan, number) for key in _stored_keys(model, load)}
                self._models.append(ModelFiles(model.checkpoint, model.view, used, abandoned))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the files."""
        for model in self._models:
            model.close()

    def check_unchanged(self) -> None:
        """Raises: InputError if a file is not what it was when its header was read."""
        for model in self._models:
            model.check_unchanged()

    def read(self, load: Load, buffer: memoryview, start: int, count: int) -> None:
        """Fills a buffer with elements start … start + count of a tensor."""
        self._models[load.model].read(load.key, buffer, start, count)

    def read_raw(self, model: int, key: str, buffer: memoryview) -> None:
        """Fills a buffer with a stored tensor, as it is."""
        self._models[model].read_raw(key, buffer)


def _stored_keys(model: Model, load: Load) -> Iterator[str]:
    """The stored tensors that a load reads."""
    if model.adapters:
        for change in model.changes[load.key]:
            yield from change.adapter.keys
        return
    for piece in model.view.tensors[load.key].pieces:
        yield piece.key


def _loads(plan: Plan, model: int) -> Iterator[Load]:
    return (load for job in plan.jobs for load in (*job.loads, *job.equal) if load.model == model)

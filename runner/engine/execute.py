"""Read, apply, cast, write: walks the plan with a few workers in a budget of bytes. Knows no recipe.

Pieces are taken in file order and may finish in any order; their bytes go to their positions at
once and are hashed in file order by threads of their own. So threads and tiles never change a byte.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any

import torch

from runner.disk.read_back import Written
from runner.engine.compute import Moved, Scratch
from runner.engine.evaluation import Measured
from runner.engine.measure import Measuring
from runner.engine.reading import Inputs
from runner.engine.tensor_digests import TensorHasher
from runner.engine.watch import Watch
from runner.engine.workers import memory, one_torch_thread
from runner.errors import KeyPath, OutOfMemoryError, quote
from runner.place import CPU, Device, Placement, working_bytes
from runner.planning.plan import Job, Plan
from runner.tensors import DTYPES
from runner.write import Staging

log = logging.getLogger(__name__)
FLUSH_BYTES, FLUSH_SECONDS = 256 << 20, 0.05
STOP_SECONDS = 0.5  # that threads are waited for after a signal
KEPT_BYTES = 32 << 20  # the most glibc accepts as a threshold
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
MIN_CHUNK_ELEMENTS = 4096  # a GPU that cannot hold this is not used


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a job: all of it, or a tile.

    Attributes:
        number: in file order, from 0.
        job: index in the plan.
        start, count: in elements.
        cost: bytes it holds while in flight.
    """

    number: int
    job: int
    start: int
    count: int
    cost: int


@dataclass
class Outcome:
    """What was measured while the plan was executed.

    Attributes:
        contents: SHA-256 of the data of each weight file, as it was in memory.
        tensors: SHA-256 of the data of each tensor of the output, by its name there.
        written: the pieces, with checksums to compare with what is read back.
        moved: by component, the sums of squares of (result − a) and of a; of factors, of what they lack of
            the change they stand for and of the change.
        fallbacks: what was moved from a device to another place, and how often.
        notes: what methods found unusual, and the keys where they did.
        warnings: what is unusual about numbers that were read or written, a line each.
    """

    contents: list[str] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=dict)
    written: list[Written] = field(default_factory=list)
    moved: dict[str, tuple[float, float]] = field(default_factory=dict)
    fallbacks: Counter[str] = field(default_factory=Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def pieces(plan: Plan, tile_elements: int) -> Iterator[Piece]:
    """The work in file order: each job cut as its scope allows."""
    number = 0
    for index, job in enumerate(plan.jobs):
        elements, size = job.spec.elements, job.piece_elements(tile_elements)
        cost = working_bytes(plan, job, size)
        for start in range(0, elements, size):
            yield Piece(number, index, start, min(size, elements - start), cost)
            number += 1


def execute(
    plan: Plan,
    placement: Placement,
    staging: Staging,
    advance: Callable[[int], None],
    identities: Mapping[KeyPath, str] = MappingProxyType({}),
) -> Outcome:
    """Runs every job of the plan.

    Args:
        plan: what to compute.
        placement: where.
        staging: receives the bytes.
        advance: called with the number of output bytes done, from the calling thread.
        identities: of the merges that draw random numbers, by their place in the recipe.

    Raises:
        RunnerError: the first thing that went wrong; the staging is then to be discarded.
    """
    _keep_freed_memory()
    engine = _Engine(plan, placement, staging, identities)
    try:
        return engine.run(advance)
    finally:
        engine.close()


def _keep_freed_memory() -> None:
    """Has glibc keep the memory of freed temporaries, instead of mapping and clearing it for each tile."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


class _Engine:
    """The state the workers share, guarded by one lock.

    Workers wait for `room`, the first hasher for `ready`, the second hasher for the first; the calling
    thread looks in ten times a second.
    """

    def __init__(
        self, plan: Plan, placement: Placement, staging: Staging, identities: Mapping[KeyPath, str]
    ) -> None:
        self.plan = plan
        self.identities = identities
        self.placement = placement
        self.staging = staging
        lock = threading.Lock()
        self.room, self.ready = threading.Condition(lock), threading.Condition(lock)
        self.stopped = threading.Event()
        self.waiting: dict[Device, deque[Piece]] = {}
        for piece in pieces(plan, placement.tile_elements):
            self.waiting.setdefault(placement.device_of[piece.job], deque()).append(piece)
        self.total = sum(map(len, self.waiting.values()))
        self.finished: dict[int, tuple[Piece, memoryview]] = {}
        self.awaited = 0  # the piece whose bytes are hashed next
        self.hashed_once: SimpleQueue[tuple[Piece, memoryview] | None] = SimpleQueue()
        self.hashed = 0
        self.in_flight = 0
        self.measured_now = 0  # jobs that are being measured
        self.bytes_done = 0
        self.error: BaseException | None = None
        self.unlike: set[Device] = set()  # GPUs that round otherwise than the host
        self.outcome = Outcome()
        self.watch = Watch()
        self.measuring = Measuring(plan)
        self.parts: dict[int, dict[int, Moved]] = {}
        self.buffers: list[bytearray] = []
        self.inputs = Inputs(plan, lambda: self.error is not None)
        self.threads: list[threading.Thread] = []

    def close(self) -> None:
        """Closes the inputs, unless a thread that could not be stopped still reads them."""
        self.staging.in_use = any(thread.is_alive() for thread in self.threads)
        if not self.staging.in_use:
            self.inputs.close()

    def run(self, advance: Callable[[int], None]) -> Outcome:
        tasks = [("hash", self._hash), ("hash-tensors", self._hash_tensors), ("flush", self._flush)]
        if not self.measuring.surveyed:
            tasks.append(("survey", self._survey))
        for device in self.waiting:
            for number in range(self.placement.threads if device == CPU else 1):
                tasks.append((f"{device}-{number}", _Worker(self, device).run))
        self.threads = [
            threading.Thread(target=self._guard, args=(task,), name=name, daemon=True) for name, task in tasks
        ]
        try:
            for thread in self.threads:
                thread.start()
            reported = 0
            while not self.stopped.wait(timeout=0.1):  # the time-out lets signals in
                advance(self.bytes_done - reported)
                reported = self.bytes_done
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._join()
        if self.error is not None:
            raise self.error
        self.inputs.check_unchanged()
        self._sum_up()
        self.outcome.notes = {note: sorted(keys) for note, keys in sorted(self.measuring.notes.items())}
        self.outcome.warnings = self.watch.warnings(self.plan)
        return self.outcome

    def _join(self) -> None:
        """Waits for the threads; after a signal not for ever: one may be within a long operation."""
        stopped = self.error is not None and not isinstance(self.error, Exception)
        latest = time.monotonic() + STOP_SECONDS
        for thread in self.threads:
            if thread.ident is not None:  # a signal can come before all are started
                thread.join(max(0.0, latest - time.monotonic()) if stopped else None)

    def _sum_up(self) -> None:
        difference: dict[str, list[float]] = {}
        original: dict[str, list[float]] = {}
        for job, moved in sorted(self.parts.items()):
            component = self.plan.jobs[job].place.component
            for _, part in sorted(moved.items()):
                difference.setdefault(component, []).extend(part.difference)
                original.setdefault(component, []).extend(part.original)
        self.outcome.moved = {
            component: (math.fsum(difference[component]), math.fsum(original[component]))
            for component in sorted(difference)
        }

    def _guard(self, work: Callable[[], None]) -> None:
        one_torch_thread()
        try:
            work()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self.room:
            self.error = self.error or error
            self.stopped.set()
            self.room.notify_all()
            self.ready.notify_all()
            self.hashed_once.put(None)

    def take(self, device: Device) -> tuple[Piece, memoryview] | int | None:
        """What a worker of a device is to do next; None when there is no more.

        The next piece and the memory for its result; or, while that must wait, a job to measure. The
        earliest unfinished piece, or the measuring of its job, is admitted whatever room there is once no
        job is being measured, so waiting for room ends.
        """
        waiting = self.waiting[device]
        with self.room:
            while waiting and self.error is None:
                if not self.measuring.surveyed:
                    self.room.wait()
                    continue
                if (offered := self.offer(waiting)) is not None:
                    return offered
                self.room.wait()
            return None

    def offer(self, waiting: deque[Piece]) -> tuple[Piece, memoryview] | int | None:
        """What can be begun now, for `take`: the first of some pieces, or a job to measure."""
        piece = waiting[0]
        first = piece.number == self.hashed
        ahead = piece.number >= self.hashed + self.placement.pieces_ahead
        if self.measuring.is_done(piece.job):
            if self._fits(piece.cost, first) and not ahead:
                waiting.popleft()
                self.in_flight += piece.cost
                return piece, self._buffer(piece)
            if first:  # as soon as the measuring under way ends
                return None
        job = self.measuring.next(piece.job, self.placement.pieces_ahead)
        if job is None or not self._fits(self._cost(job), first and job == piece.job):
            return None
        self.measuring.begin(job)
        self.measured_now += 1
        self.in_flight += self._cost(job)
        return job

    def _fits(self, cost: int, needed: bool) -> bool:
        """Whether there is room for more bytes; for what all wait for also when nothing will make any."""
        return self.in_flight + cost <= self.placement.memory[CPU] or (needed and not self.measured_now)

    def _cost(self, job: int) -> int:
        """Bytes that are held while a job is measured."""
        elements = self.plan.jobs[job].piece_elements(self.placement.tile_elements)
        return working_bytes(self.plan, self.plan.jobs[job], elements)

    def measured(self, job: int, found: dict[int, Any]) -> None:
        """Takes what was measured of a job."""
        with self.room:
            self.in_flight -= self._cost(job)
            self.measured_now -= 1
            self.measuring.done(job, found)
            self.room.notify_all()

    def scratch(self) -> Scratch:
        """What a worker computes in."""
        tile = self.placement.tile_elements
        return Scratch(self.plan, self.inputs.read, self.inputs.read_raw, self.identities, tile, self.watch)

    def _survey(self) -> None:
        """Measures what is measured over the whole model; the workers wait for it."""
        with memory("what is measured over the model"):
            self.measuring.survey(self.scratch())
        with self.room:
            self.room.notify_all()

    def _buffer(self, piece: Piece) -> memoryview:
        job = self.plan.jobs[piece.job]
        elements = job.written_elements if job.rank else piece.count
        size = elements * DTYPES[job.spec.dtype].bits // 8
        reusable = self.placement.tile_elements * 8
        if size > reusable:
            return memoryview(bytearray(size))
        buffer = self.buffers.pop() if self.buffers else bytearray(reusable)
        return memoryview(buffer)[:size]

    def finish(self, piece: Piece, data: memoryview, moved: Moved | None, written: Written) -> None:
        """Hands a piece that is written to the hasher."""
        with self.ready:
            self.outcome.written.append(written)
            if moved is not None:
                self.parts.setdefault(piece.job, {})[piece.start] = moved
            self.finished[piece.number] = piece, data
            if piece.number == self.awaited:
                self.ready.notify()

    def _hash(self) -> None:
        """Hashes the pieces in file order, the data of each weight file as one."""
        hashers = [hashlib.sha256() for _ in self.plan.layout.files]
        for number in range(self.total):
            with self.ready:
                self.awaited = number
                while number not in self.finished and self.error is None:
                    self.ready.wait()
                if self.error is not None:
                    return
                piece, data = self.finished.pop(number)
            hashers[self.plan.jobs[piece.job].file].update(data)
            self.hashed_once.put((piece, data))
        self.outcome.contents = [hasher.hexdigest() for hasher in hashers]
        self.hashed_once.put(None)

    def _hash_tensors(self) -> None:
        """Hashes the same pieces once more, each tensor by itself, and lets them go."""
        hashers = [TensorHasher(file) for file in self.plan.layout.files]
        while (taken := self.hashed_once.get()) is not None:
            piece, data = taken
            hashers[self.plan.jobs[piece.job].file].update(data)
            self._release(piece, data)
        for hasher in hashers:
            self.outcome.tensors |= hasher.digests
        self.stopped.set()

    def _release(self, piece: Piece, data: memoryview) -> None:
        buffer = data.obj
        with self.room:
            if piece.start + piece.count == self.plan.jobs[piece.job].spec.elements:
                self.measuring.forget(piece.job)
            self.hashed += 1
            self.in_flight -= piece.cost
            self.bytes_done += len(data)
            if isinstance(buffer, bytearray) and len(buffer) == self.placement.tile_elements * 8:
                self.buffers.append(buffer)
            self.room.notify_all()

    def _flush(self) -> None:
        """Has the disk take what is written while there is more to compute, so that the end waits less."""
        flushed = 0
        while not self.stopped.wait(timeout=FLUSH_SECONDS):
            if self.bytes_done >= flushed + FLUSH_BYTES:
                flushed = self.bytes_done
                self.staging.sync()


def torch_device(device: Device) -> torch.device:
    """What torch calls a device of the placement."""
    return torch.device(CPU if device == CPU else f"cuda:{device}")


class _Worker:
    """Takes pieces of one device until there are none."""

    def __init__(self, engine: _Engine, device: Device) -> None:
        self.engine = engine
        self.device = device
        self.scratch = engine.scratch()
        self.compared: set[str] = set()  # methods whose first piece the host computed too
        self.measured: Measured = {}

    def run(self) -> None:
        while (taken := self.engine.take(self.device)) is not None:
            if isinstance(taken, int):
                with memory(f"tensor {quote(self.engine.plan.jobs[taken].key)}"):
                    found = self.engine.measuring.measure(taken, self.scratch)
                self.engine.measured(taken, found)
                continue
            piece, data = taken
            job = self.engine.plan.jobs[piece.job]
            self.measured = self.engine.measuring.of(piece.job)
            moved = self._compute(job, piece.start, piece.count, data)
            offset = piece.start * DTYPES[job.spec.dtype].bits // 8
            written = self.engine.staging.write(job.file, data, job.offset + offset)
            self.engine.finish(piece, data, moved, written)

    def _compute(self, job: Job, start: int, count: int, data: memoryview) -> Moved | None:
        try:
            with memory(f"tensor {quote(job.key)}", f"{len(data)} bytes and their operands"):
                if self.device == CPU or not self._gives_the_same(job, start, count, data):
                    return self.scratch.run(job, start, count, data, torch.device(CPU), self.measured)
                return self.scratch.run(job, start, count, data, torch_device(self.device), self.measured)
        except torch.OutOfMemoryError:
            pass  # its traceback holds what the GPU computed so far: to be let go before the next try
        return self._with_less(job, start, count, data)

    def _gives_the_same(self, job: Job, start: int, count: int, data: memoryview) -> bool:
        """Whether a GPU gives the host's bytes: compared at the first piece of each method it runs.

        Settings never change a byte, and no two makes of GPU need to round alike. One that does not
        is not used any more.
        """
        methods = {step.method.label for step in job.steps}
        if self.device in self.engine.unlike:
            return False
        if methods <= self.compared:
            return True
        self.scratch.run(job, start, count, data, torch.device(CPU), self.measured)
        expected = bytes(data)
        self.scratch.run(job, start, count, data, torch_device(self.device), self.measured)
        self.compared |= methods
        if bytes(data) == expected:
            return True
        self.engine.unlike.add(self.device)
        self._fell_back(f"GPU {self.device}: other bytes than the host's, computed on the host")
        return False

    def _with_less(self, job: Job, start: int, count: int, data: memoryview) -> Moved | None:
        """A piece the GPU has no memory for: in halves, and on the host if that does not help."""
        torch.cuda.empty_cache()
        if job.scope == "element" and not job.arranged and count > MIN_CHUNK_ELEMENTS:
            self._fell_back(f"GPU {self.device}: out of memory, chunk halved")
            half, item = count // 2, len(data) // count
            left = self._compute(job, start, half, data[: half * item])
            right = self._compute(job, start + half, count - half, data[half * item :])
            if left is None or right is None:
                return None
            return Moved(left.difference + right.difference, left.original + right.original)
        if job.determinism != "exact":
            raise OutOfMemoryError(
                f"tensor {quote(job.key)}: GPU {self.device} has no memory for it, and the method may "
                "give other bytes on the host",
                hint="placement=cpu",
            )
        self._fell_back(f"GPU {self.device}: out of memory, computed on the host")
        return self.scratch.run(job, start, count, data, torch.device(CPU), self.measured)

    def _fell_back(self, what: str) -> None:
        with self.engine.room:
            self.engine.outcome.fallbacks[what] += 1
        log.info(what)

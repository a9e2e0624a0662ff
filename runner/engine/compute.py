"""One piece of one tensor: read, cast, apply, check, cast. The only room where tensors are touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.architectures.ties import Shape
from runner.engine.bake import Bakery
from runner.engine.evaluation import CPU, Evaluation, Measured, torch_dtype
from runner.engine.watch import NARROW, Watch
from runner.errors import IncompatibleError, KeyPath, NumericError, escape, quote
from runner.methods.factors import Factors
from runner.methods.tiles import Tile
from runner.planning.plan import Job, Load, Plan
from runner.tensors import DTYPES, SUM_ELEMENTS, TensorSpec


@dataclass(slots=True)
class Moved:
    """How far a result is from the primary's tensor, as parts of sums of squares.

    Attributes:
        difference: of result − a, part by part.
        original: of a.
    """

    difference: list[float]
    original: list[float]


class Scratch:
    """The buffers one worker computes in; grown when a piece needs more, never shared.

    Args:
        plan: whose jobs will be run.
        read: fills a buffer with part of a tensor: (load, buffer, first element, number of elements).
        read_stored: fills a buffer with a stored tensor: (model, key, buffer).
        identities: of the merges that draw random numbers.
        tile_elements: of a piece that may be cut; buffers of more elements are let go after each piece.
        watch: is shown what is read and what is cast.
    """

    def __init__(
        self,
        plan: Plan,
        read: Callable[[Load, memoryview, int, int], None],
        read_stored: Callable[[int, str, memoryview], None],
        identities: Mapping[KeyPath, str],
        tile_elements: int,
        watch: Watch,
    ) -> None:
        self._plan = plan
        self._watch = watch
        self._identities = identities
        self._tile_elements = tile_elements
        self._read = read
        self._bakery = Bakery(read_stored, lambda model: plan.resolved.models[model].checkpoint.specs)
        self._inputs: list[bytearray] = []
        self._floats: list[Tensor] = []

    def run(
        self, job: Job, start: int, count: int, out: memoryview, device: torch.device, measured: Measured
    ) -> Moved | None:
        """Computes elements start … start + count of a job's tensor.

        Args:
            job: the job.
            start, count: in elements; a piece as the scope of the job allows it.
            out: receives the bytes as they are written to the file.
            device: where the arithmetic is done.
            measured: what was measured for the steps of the job.

        Returns:
            How far the result moved from the first load; None if nothing was computed.

        Raises:
            NumericError: NaN or Inf in an operand or the result, or a value the dtype cannot hold.
            IncompatibleError: integer tensors that must be equal differ.
        """
        # What stands in another order in the output is computed whole, and put in that order at the end.
        result = memoryview(bytearray(len(out))) if job.arranged else out
        try:
            if job.content is not None:
                result[:] = job.content
                return None
            if job.rank:
                return self._factor(job, start, count, result, measured)
            if job.steps:
                return self._merge(job, start, count, result, device, measured)
            self._copy(job, start, count, result)
            return None
        finally:
            self._let_go(count)
            if job.arranged:
                _arrange(job, result, out)

    def tiles(self, job: Job, step: int, measured: Measured) -> Tiles:
        """What a step of a job is given, tile by tile.

        Args:
            job: the job.
            step: number of the step.
            measured: what was measured for the steps before it.
        """
        return Tiles(self, job, step, measured)

    def walk(self, job: Job, step: int, measured: Measured) -> Iterator[Tile]:
        """One walk over the tiles of a job."""
        piece = job.piece_elements(self._tile_elements)
        for start in range(0, max(1, job.spec.elements), piece):
            count = min(piece, job.spec.elements - start)
            evaluation = self._evaluation(job, start, count, torch.device(CPU), measured)
            evaluation.compute(step)
            yield evaluation.tile(job.steps[step])
            self._let_go(count)

    @contextmanager
    def excused(self, jobs: Iterable[Job]) -> Iterator[None]:
        """Of an error in a method says that a tensor is not finite, if one is: no method need survive that.

        Args:
            jobs: whose tensors it looked at.
        """
        try:
            yield
        except Exception:
            for job in jobs:
                self._check_operands(job)
            raise

    def _check_operands(self, job: Job) -> None:
        """Raises: NumericError if one holds NaN or Inf, whether the recipe allows it or not."""
        for load in job.loads:
            self._refuse(load, allowed=job.nonfinite)

    def _refuse(self, load: Load, *, allowed: bool = False) -> None:
        """Raises: NumericError if a tensor holds NaN or Inf; reads all of it, into the first input buffer."""
        count, first = self._not_finite_in(load)
        if not count:
            return
        label = self._plan.resolved.models[load.model].checkpoint.label
        raise NumericError(
            f"{escape(label)}: tensor {quote(load.key)}: NaN or Inf, first at element {first}, "
            f"{count} in all{', which this method cannot look past' if allowed else ''}",
            tag="NONFINITE",
            hint="repair the tensor, or choose a method that looks at each element alone"
            if allowed
            else f"nonfinite: [{quote(load.key)}] in the recipe lets it pass",
        )

    def _not_finite_in(self, load: Load) -> tuple[int, int]:
        """How many elements of a whole tensor are NaN or Inf, and the first of them."""
        elements, count, first = self._plan.spec(load).elements, 0, -1
        for start in range(0, elements, self._tile_elements):
            bad = _not_finite(self._load(0, load, start, min(self._tile_elements, elements - start)))
            if first < 0 and bad.any():
                first = start + int(bad.nonzero()[0])
            count += int(bad.sum())
        return count, first

    def _let_go(self, count: int) -> None:
        if count > self._tile_elements:  # a whole tensor: the next is another size, and not ours alone
            self._inputs.clear()
            self._floats.clear()

    def _evaluation(
        self, job: Job, start: int, count: int, device: torch.device, measured: Measured
    ) -> Evaluation:
        operands = [
            self._padded(job, at, load) if self._is_padded(job, at) else self._load(at, load, start, count)
            for at, load in enumerate(job.loads)
        ]
        # Rounding to 16 bits restores the common value of 16-bit operands by itself.
        wide = max(DTYPES[spec.dtype].bits for spec in (job.spec, *map(self._plan.spec, job.loads))) > 16

        def change(at: int, base: Tensor) -> Tensor:
            load = job.loads[at]
            changes = self._plan.resolved.models[load.model].changes[load.key]
            return self._bakery.change(load.model, changes, job.spec.shape, start, base)

        def pair(at: int) -> tuple[Tensor, Tensor]:
            load = job.loads[at]
            changes = self._plan.resolved.models[load.model].changes[load.key]
            return self._bakery.pair(load.model, changes, job.spec.shape)

        return Evaluation(
            job, start, count, device, measured, operands, wide, self._float, self._identities, change, pair
        )

    def _factor(self, job: Job, start: int, count: int, out: memoryview, measured: Measured) -> Moved:
        """Writes the factors of a tensor; how far they are from what they stand for."""
        evaluation = self._evaluation(job, start, count, torch.device(CPU), measured)
        for operand in evaluation.operands:  # what is not finite has no singular values
            if not torch.isfinite(operand).all():
                self._check(job, operand, evaluation.operands)
        with self.excused((job,)):
            evaluation.compute(len(job.steps))
        found = evaluation.values[-1]
        assert isinstance(found, Factors)  # the job has a rank
        target = torch.frombuffer(out, dtype=torch_dtype(job.spec), count=job.written_elements)
        product = found.write(target, job.rank, job.alpha)
        if not torch.isfinite(target).all():
            self._check(job, torch.cat([found.up.reshape(-1), found.down.reshape(-1)]), [])
        return Moved(squares((found.change - product).reshape(-1)), squares(found.change.reshape(-1)))

    def _merge(
        self, job: Job, start: int, count: int, out: memoryview, device: torch.device, measured: Measured
    ) -> Moved:
        evaluation = self._evaluation(job, start, count, device, measured)
        with self.excused((job,)):
            evaluation.compute(len(job.steps))
        operands, result, original = evaluation.operands, evaluation.values[-1], evaluation.operand(0)
        assert isinstance(result, Tensor)  # the job has no rank
        if not (job.nonfinite or all(step.method.spreads for step in job.steps)):
            self._screen(job, evaluation)
        target = torch.frombuffer(out, dtype=torch_dtype(job.spec), count=count)
        target.copy_(result.reshape(-1))
        if job.spec.dtype in NARROW:
            self._watch.cast(job.key, result, target)
        moved = self._moved(target, original, len(operands))
        # What is not finite in the result is not in the sums either; fp8 would hide it.
        if job.spec.is_fp8 or not (math.isfinite(sum(moved.difference)) or job.nonfinite):
            self._check(job, result, operands)
        return moved

    def _screen(self, job: Job, evaluation: Evaluation) -> None:
        """Raises: NumericError if an operand holds NaN or Inf that the methods may have looked past."""
        for at, load in enumerate(job.loads):
            tensor = evaluation.operands[at]
            if self._plan.resolved.models[load.model].adapters or not tensor.numel():
                continue  # what adapters change spreads; nothing is there to look at
            if not tensor.is_floating_point() or _is_finite(evaluation.operand(at)):
                continue
            if _not_finite(tensor).any():  # a sum can also be too large
                self._refuse(load)

    def _copy(self, job: Job, start: int, count: int, out: memoryview) -> None:
        load = job.loads[0]
        stored = self._plan.spec(load)
        same = stored.dtype == job.spec.dtype
        if same:
            self._read(load, out, start, count)
            self._watch.read(load, out)
            source = torch.empty(0)
        else:
            source = self._load(0, load, start, count)
        for other in job.equal:
            self._check_equal(job, load, other, start, count)
        if not count:
            return
        target = torch.frombuffer(out, dtype=torch_dtype(job.spec), count=count)
        if not same:
            target.copy_(source)
        if not same and job.spec.dtype in NARROW and source.is_floating_point():
            self._watch.cast(job.key, source, target)
        if not same and job.spec.is_fp8:  # the cast hides what it cannot hold
            self._check(job, source, [source])
        if job.nonfinite or not stored.is_float:
            return
        wide = self._float(0, count, torch.float64 if job.spec.dtype == "F64" else torch.float32)
        if not math.isfinite(torch.linalg.vector_norm(wide.copy_(target))):
            self._check(job, target if same else source, [target if same else source])

    def _check_equal(self, job: Job, first: Load, other: Load, start: int, count: int) -> None:
        a, b = self._load(0, first, start, count), self._load(1, other, start, count)
        if not torch.equal(a, b):
            at = start + int((a != b).nonzero()[0])
            raise IncompatibleError(
                f"tensor {quote(job.key)}: integers are not merged, and the models differ at element {at}",
                tag="INTEGER",
                hint="integers: keep takes the first model's",
            )

    def _load(self, at: int, load: Load, start: int, count: int) -> Tensor:
        """Part of a stored tensor in its own dtype, in input buffer number `at`."""
        spec = self._plan.spec(load)
        if self._plan.resolved.models[load.model].adapters:
            return torch.empty(0)  # computed when the tensor it changes is there
        size = DTYPES[spec.dtype].bits // 8
        while len(self._inputs) <= at:
            self._inputs.append(bytearray())
        if len(self._inputs[at]) < count * size:
            self._inputs[at] = bytearray(count * size)
        if not count:
            return torch.empty(0, dtype=torch_dtype(spec))
        view = memoryview(self._inputs[at])[: count * size]
        self._read(load, view, start, count)
        self._watch.read(load, view)
        return torch.frombuffer(view, dtype=torch_dtype(spec), count=count)

    def _is_padded(self, job: Job, at: int) -> bool:
        """Whether a load may lack input channels; the change of an adapter is of the whole tensor's shape."""
        return job.padded and at > 0 and not self._plan.resolved.models[job.loads[at].model].adapters

    def _padded(self, job: Job, at: int, load: Load) -> Tensor:
        """A stored tensor, with the input channels it lacks from the first load."""
        own = self._plan.spec(load)
        tensor = self._load(at, load, 0, own.elements).reshape(own.shape)
        first = self._load(0, job.loads[0], 0, job.spec.elements).reshape(job.spec.shape)
        whole = first.to(torch.promote_types(first.dtype, tensor.dtype), copy=True)
        whole[:, : own.shape[1]] = tensor
        return whole.reshape(-1)

    def _float(self, at: int, count: int, dtype: torch.dtype) -> Tensor:
        """Float scratch number `at`."""
        while len(self._floats) <= at:
            self._floats.append(torch.empty(0))
        if self._floats[at].numel() < count or self._floats[at].dtype != dtype:
            self._floats[at] = torch.empty(count, dtype=dtype)
        return self._floats[at][:count]

    def _check(self, job: Job, result: Tensor, operands: Sequence[Tensor]) -> None:
        """Raises: NumericError if a value is not finite, or not after the cast; says which."""
        if not job.spec.is_float or not result.numel():
            return
        sizes = result.to(torch.float64).abs()
        if job.nonfinite:  # only what the dtype has: of fp8 one has Inf, all have NaN
            sizes = sizes[torch.isfinite(sizes) if job.spec.dtype == "F8_E5M2" else ~torch.isnan(sizes)]
        peak = float(sizes.max()) if sizes.numel() else 0.0
        if peak <= DTYPES[job.spec.dtype].largest:
            return
        for load, tensor in zip(job.loads, operands, strict=False):
            if not job.nonfinite and _not_finite(tensor).any():
                self._refuse(load)
        if not math.isfinite(peak) and not job.nonfinite:
            self._check_operands(job)  # what was measured is of other parts of the tensor too
        what = f"reaches {peak:.6g}" if math.isfinite(peak) else "is not finite"
        limit = f"{job.spec.dtype} holds at most {DTYPES[job.spec.dtype].largest:g}"
        raise NumericError(
            f"tensor {quote(job.key)}: the result {what}, {limit}",
            tag="OVERFLOW",
            hint="output.dtype: float32, or bfloat16, holds it",
        )

    def _moved(self, target: Tensor, original: Tensor, at: int) -> Moved:
        """How far the result, as written, is from the first load."""
        if not target.is_floating_point():
            return Moved([0.0], [0.0])
        original = original.reshape(-1).to("cpu")
        difference = self._float(at, target.numel(), original.dtype).copy_(target).sub_(original)
        return Moved(squares(difference), squares(original))


@dataclass
class Tiles:
    """The tiles of a step, to be walked over any number of times."""

    scratch: Scratch
    job: Job
    step: int
    measured: Measured

    def __iter__(self) -> Iterator[Tile]:
        return self.scratch.walk(self.job, self.step, self.measured)


def _is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN or Inf in a tensor; False also if there may be none: look closer then."""
    return math.isfinite(float(tensor.sum()))


def _not_finite(values: Tensor) -> Tensor:
    return ~torch.isfinite(values.reshape(-1).to(torch.float64))


def transposed(matrix: memoryview, shape: Shape, size: int) -> memoryview:
    """The bytes of a matrix, transposed.

    Args:
        matrix: row by row.
        shape: rows and columns.
        size: bytes of an element.
    """
    elements = torch.frombuffer(matrix, dtype=torch.uint8).view(*shape, size)
    turned: Any = elements.transpose(0, 1).contiguous().reshape(-1).numpy()
    return memoryview(turned)


def dequantise(
    codes: memoryview, spec: TensorSpec, start: int, scales: memoryview, scale: TensorSpec, out: memoryview
) -> None:
    """Multiplies part of a tensor in fp8 by its scale, in float32: exact products, rounded once.

    Args:
        codes: some elements as they are stored.
        spec: of the whole tensor.
        start: the first of the elements.
        scales: the one number, or those of the rows the elements are in.
        scale: dtype of the numbers, and whether they are one or one a row.
        out: receives float32.
    """
    values = torch.frombuffer(out, dtype=torch.float32)
    values.copy_(torch.frombuffer(codes, dtype=torch_dtype(spec)))
    factors = torch.frombuffer(scales, dtype=torch_dtype(scale)).to(torch.float32)
    if len(factors) > 1:
        row = spec.elements // spec.shape[0]
        counts = torch.full((len(factors),), row)
        counts[0] -= start % row
        counts[-1] -= -(start + len(codes)) % row
        factors = factors.repeat_interleave(counts)
    values.mul_(factors)


def _arrange(job: Job, result: memoryview, out: memoryview) -> None:
    """Puts a result in the order of the output."""
    size = DTYPES[job.spec.dtype].bits // 8
    at = 0
    for piece in job.arranged:
        count = piece.elements * size
        part = result[piece.offset * size : piece.offset * size + count]
        out[at : at + count] = transposed(part, piece.source, size) if piece.transposed else part
        at += count


def squares(values: Tensor) -> list[float]:
    """The sum of squares of each piece of SUM_ELEMENTS."""
    count = values.numel()
    whole = count - count % SUM_ELEMENTS
    norms: list[float] = []
    if whole:
        pieces = values[:whole].view(-1, SUM_ELEMENTS)
        norms += torch.linalg.vector_norm(pieces, dim=1).tolist()
    if whole < count:
        norms.append(float(torch.linalg.vector_norm(values[whole:])))
    return [norm * norm for norm in norms]

"""One piece of one tensor: read, cast, apply, check, cast. The only room where tensors are touched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runner.errors import IncompatibleError, KeyPath, NumericError, escape, quote
from runner.methods.random import Random
from runner.plan import Job, Load, Plan
from runner.tensors import DTYPES, SUM_ELEMENTS, TensorSpec


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """The dtype of torch for a tensor of a file."""
    name = DTYPES[spec.dtype].torch
    if name is None:
        raise IncompatibleError(f"torch has no dtype for {spec.dtype}", tag="DTYPE")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


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
        read: fills a buffer with part of a stored tensor: (load, buffer, offset in its data).
        identities: of the merges that draw random numbers.
        kept_elements: buffers of more are let go after each piece.
    """

    def __init__(
        self,
        plan: Plan,
        read: Callable[[Load, memoryview, int], None],
        identities: Mapping[KeyPath, str],
        kept_elements: int,
    ) -> None:
        self._plan = plan
        self._identities = identities
        self._kept_elements = kept_elements
        self._read = read
        self._inputs: list[bytearray] = []
        self._floats: list[Tensor] = []

    def run(self, job: Job, start: int, count: int, out: memoryview, device: torch.device) -> Moved | None:
        """Computes elements start … start + count of a job's tensor.

        Args:
            job: the job; start and count are its whole tensor unless it is element-wise.
            start, count: in elements.
            out: receives the bytes as they are written to the file.
            device: where the arithmetic is done.

        Returns:
            How far the result moved from the first load; None if nothing was computed.

        Raises:
            NumericError: NaN or Inf in an operand or the result, or a value the dtype cannot hold.
            IncompatibleError: integer tensors that must be equal differ.
        """
        try:
            if job.steps:
                return self._merge(job, start, count, out, device)
            self._copy(job, start, count, out)
            return None
        finally:
            if count > self._kept_elements:  # a whole tensor: the next is another size, and not ours alone
                self._inputs.clear()
                self._floats.clear()

    def _merge(self, job: Job, start: int, count: int, out: memoryview, device: torch.device) -> Moved:
        operands = [self._load(at, load, start, count) for at, load in enumerate(job.loads)]
        result, original = self._apply(job, operands, start, count, device)
        target = torch.frombuffer(out, dtype=torch_dtype(job.spec), count=count)
        target.copy_(result.reshape(-1))
        moved = self._moved(target, original, len(operands))
        # What is not finite in the result is not in the sums either; 8-bit types would hide it.
        if (
            not (math.isfinite(sum(moved.difference)) and DTYPES[job.spec.dtype].bits > 8)
            and not job.nonfinite
        ):
            self._check(job, result, operands, start)
        return moved

    def _copy(self, job: Job, start: int, count: int, out: memoryview) -> None:
        load = job.loads[0]
        stored = self._plan.spec(load)
        same = stored.dtype == job.spec.dtype
        if same:
            self._read(load, out, start * DTYPES[stored.dtype].bits // 8)
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
        if job.nonfinite or not stored.is_float:
            return
        if not same and DTYPES[job.spec.dtype].bits <= 8:  # the cast hides what it cannot hold
            self._check(job, source, [source], start)
        wide = self._float(0, count, torch.float64 if job.spec.dtype == "F64" else torch.float32)
        if not math.isfinite(torch.linalg.vector_norm(wide.copy_(target))):
            self._check(job, target if same else source, [target if same else source], start)

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
        size = DTYPES[spec.dtype].bits // 8
        while len(self._inputs) <= at:
            self._inputs.append(bytearray())
        if len(self._inputs[at]) < count * size:
            self._inputs[at] = bytearray(count * size)
        if not count:
            return torch.empty(0, dtype=torch_dtype(spec))
        view = memoryview(self._inputs[at])[: count * size]
        self._read(load, view, start * size)
        return torch.frombuffer(view, dtype=torch_dtype(spec), count=count)

    def _float(self, at: int, count: int, dtype: torch.dtype) -> Tensor:
        """Float scratch number `at`."""
        while len(self._floats) <= at:
            self._floats.append(torch.empty(0))
        if self._floats[at].numel() < count or self._floats[at].dtype != dtype:
            self._floats[at] = torch.empty(count, dtype=dtype)
        return self._floats[at][:count]

    def _apply(
        self, job: Job, operands: Sequence[Tensor], start: int, count: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The result of the last step, and the first load: both in the compute dtype."""
        compute = getattr(torch, job.compute)
        shape = (count,) if job.elementwise else job.spec.shape
        values: list[Tensor] = []
        cast: dict[int, Tensor] = {}
        # Rounding to 16 bits restores the common value of 16-bit operands by itself.
        wide = max(DTYPES[spec.dtype].bits for spec in (job.spec, *map(self._plan.spec, job.loads))) > 16

        def operand(at: int) -> Tensor:
            """A load or the value of a step, in the compute dtype."""
            if at >= len(operands):
                return values[at - len(operands)].to(compute)
            if at not in cast:
                tensor = operands[at]
                if device.type != "cpu":
                    tensor = tensor.to(device).to(compute)
                elif tensor.dtype != compute:
                    tensor = self._float(at, count, compute).copy_(tensor)
                cast[at] = tensor.reshape(shape)
            return cast[at]

        def stored(at: int, as_loaded: torch.dtype | None) -> Tensor:
            """For compat: a as the tool loaded it, the others as they are in the file."""
            if at >= len(operands):
                return values[at - len(operands)]
            tensor = operands[at]
            dtype = as_loaded if as_loaded and tensor.is_floating_point() else tensor.dtype
            return tensor.to(device, dtype).reshape(shape)

        for step in job.steps:
            if step.method.stored:
                # Only the last step's result is saved; before it the tool had all in float32.
                loaded = torch_dtype(job.spec) if step is job.steps[-1] else torch.float32
                arguments = [stored(at, loaded if n == 0 else None) for n, at in enumerate(step.arguments)]
            else:
                arguments = [operand(at) for at in step.arguments]
            if step.method.deltas:
                arguments[1:] = [model - arguments[0] for model in arguments[1:]]
            keywords: dict[str, Any] = dict(step.parameters)
            if step.draw is not None:
                identity = self._identities[step.draw.path]
                keywords["random"] = Random(step.draw.seed, identity, step.draw.roles, job.key, start)
            value = step.method.function(*arguments, **keywords)
            if wide and step.idempotent:
                value = _restore_common(value, arguments)
            values.append(value)
        return values[-1], operand(0)

    def _check(self, job: Job, result: Tensor, operands: Sequence[Tensor], start: int) -> None:
        """Raises: NumericError if a value is not finite, or not after the cast; says which."""
        if not job.spec.is_float or not result.numel():
            return
        peak = float(result.to(torch.float64).abs().max())
        if peak <= DTYPES[job.spec.dtype].largest:
            return
        for load, tensor in zip(job.loads, operands, strict=False):
            bad = ~torch.isfinite(tensor.reshape(-1).to(torch.float64))
            if bad.any():
                first = start + int(bad.nonzero()[0])
                label = self._plan.resolved.models[load.model].checkpoint.label
                raise NumericError(
                    f"{escape(label)}: tensor {quote(load.key)}: NaN or Inf, first at element {first}",
                    tag="NONFINITE",
                    hint=f"nonfinite: [{quote(load.key)}] in the recipe lets it pass",
                )
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
        return Moved(_squares(difference), _squares(original))


def _restore_common(result: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """The result, with the operands' common value where they are all equal."""
    first, *others = operands
    differ = first != others[0]
    for other in others[1:]:
        differ |= first != other
    return torch.where(differ, result, first)


def _squares(values: Tensor) -> list[float]:
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

"""The steps of a job on one piece: operands cast and combined, methods called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from runner.errors import IncompatibleError, KeyPath
from runner.methods.factors import Factors
from runner.methods.random import Random
from runner.methods.tiles import Part, Tile
from runner.planning.plan import Job, Step
from runner.tensors import DTYPES, TensorSpec

CPU = "cpu"
Measured = Mapping[int, Any]  # by number of the step, what its method measured


def torch_dtype(spec: TensorSpec) -> torch.dtype:
    """The dtype of torch for a tensor of a file."""
    name = DTYPES[spec.dtype].torch
    if name is None:
        raise IncompatibleError(f"torch has no dtype for {spec.dtype}", tag="DTYPE")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@dataclass
class Evaluation:
    """The steps of a job on one piece.

    Attributes:
        job, start, count: the piece.
        device: where the arithmetic is done.
        measured: what was measured for the steps of the job.
        operands: the loads as they were read, flat.
        wide: whether operands that are equal must be restored after a sum of their shares.
        scratch: float memory: (number, count, dtype).
        identities: of the merges that draw random numbers.
        change: what adapters change of a tensor: (number of the load, the tensor).
        pair: the same as two factors: (number of the load).
        values: the results of the steps so far; Factors of a method that gives them, which is the last.
    """

    job: Job
    start: int
    count: int
    device: torch.device
    measured: Measured
    operands: Sequence[Tensor]
    wide: bool
    scratch: Callable[[int, int, torch.dtype], Tensor]
    identities: Mapping[KeyPath, str]
    change: Callable[[int, Tensor], Tensor]
    pair: Callable[[int], tuple[Tensor, Tensor]]
    values: list[Tensor | Factors] = field(default_factory=list)
    _cast: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._compute: torch.dtype = getattr(torch, self.job.compute)
        shape, scope = self.job.spec.shape, self.job.scope
        self._shape = {"element": (self.count,), "tensor": shape, "row": (-1, *shape[1:])}[scope]

    def compute(self, steps: int) -> None:
        """Runs the steps before that number."""
        for number, step in enumerate(self.job.steps[:steps]):
            tile = self.tile(step)
            keywords: dict[str, Any] = dict(step.parameters)
            if tile.base is not None:
                keywords[str(step.method.optional)] = tile.base
            if tile.random is not None:
                keywords["random"] = tile.random
            if step.method.placed:
                keywords["part"] = tile.part
            if step.over:
                keywords["measured"] = self.measured[number]
            value = step.method.function(*tile.operands, **keywords)
            if self.wide and step.idempotent:
                value = _restore_common(value, tile.operands)
            self.values.append(value)

    def tile(self, step: Step) -> Tile:
        """What a step is given."""
        arguments: list[Any]
        if step.method.reads == "pipeline":
            # Only the last step's result is saved; before it the tool had all in float32.
            loaded = torch_dtype(self.job.spec) if step is self.job.steps[-1] else torch.float32
            arguments = [self._as_stored(at, None if n else loaded) for n, at in enumerate(step.arguments)]
        elif step.method.reads == "file":
            arguments = [self._as_stored(at, None) for at in step.arguments]
        elif step.method.adapters and step.method.result == "factors":
            arguments = [self.job.spec.shape, *map(self.pair, step.arguments)]
        elif step.method.adapters:
            first = self.operand(step.arguments[0])
            arguments = [first, *(self.change(at, first) for at in step.arguments[1:])]
        else:
            arguments = [self.operand(at) for at in step.arguments]
        base = arguments.pop() if step.with_optional else None
        if step.method.deltas:
            arguments[1:] = [model - arguments[0] for model in arguments[1:]]
        job, draw = self.job, step.draw
        streams = None
        if draw is not None:
            streams = Random(draw.seed, self.identities[step.path], draw.roles, job.key, self.start)
        part = Part(job.key, job.place.component, job.spec.shape, self.start)
        return Tile(tuple(arguments), base, part, streams)

    def operand(self, at: int) -> Tensor:
        """A load or the value of a step, in the compute dtype."""
        if at >= len(self.operands):
            return self._value(at).to(self._compute)
        if at not in self._cast:
            tensor = self.operands[at]
            if self.device.type != CPU:
                tensor = tensor.to(self.device).to(self._compute)
            elif tensor.dtype != self._compute:
                tensor = self.scratch(at, self.count, self._compute).copy_(tensor)
            self._cast[at] = tensor.reshape(self._shape)
        return self._cast[at]

    def _value(self, at: int) -> Tensor:
        """The value of a step that another takes."""
        value = self.values[at - len(self.operands)]
        assert not isinstance(value, Factors)  # they are the result
        return value

    def _as_stored(self, at: int, as_loaded: torch.dtype | None) -> Tensor:
        """For compat: a as the tool loaded it, the others as they are in the file."""
        if at >= len(self.operands):
            return self._value(at)
        tensor = self.operands[at]
        dtype = as_loaded if as_loaded and tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.device, dtype).reshape(self._shape)


def _restore_common(result: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """The result, with the operands' common value where they are all equal."""
    first, *others = operands
    differ = first != others[0]
    for other in others[1:]:
        differ |= first != other
    return torch.where(differ, result, first)

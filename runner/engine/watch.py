"""What is watched for while tensors go by: inputs of zeros alone, and numbers that the cast makes zeros."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from runner.errors import counted, escape
from runner.planning.plan import Load, Plan

LOST_SHARE = 0.001  # of a tensor's non-zeros that the cast may make zeros without a word
NAMES_SHOWN = 5
# Whose smallest numbers weights can be below. Those of bfloat16 are as small as float32's.
NARROW = ("F16", "F8_E4M3", "F8_E5M2")
_HEAD = 64  # bytes; a tensor that is not all zeros hardly begins with so many
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of the size of a float, in bytes


class Watch:
    """Counts of all workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: set[Load] = set()
        self._other: set[Load] = set()  # tensors with something else than zeros
        self._lost: dict[str, tuple[int, int]] = {}  # key → non-zeros lost, non-zeros

    def read(self, load: Load, data: memoryview) -> None:
        """Looks at part of a tensor as it was read."""
        if load in self._other:
            return
        import numpy as np

        self._read.add(load)
        if any(data[:_HEAD]) or np.frombuffer(data, np.uint8).any():
            self._other.add(load)

    def cast(self, key: str, result: Tensor, target: Tensor) -> None:
        """Counts what is zero in part of a tensor of the output, and was not before the cast."""
        lost, count = _zeros(target), target.numel()
        if lost:
            before = _zeros(result.reshape(-1).to("cpu"))
            lost, count = lost - before, count - before
        with self._lock:
            all_lost, all_count = self._lost.get(key, (0, 0))
            self._lost[key] = all_lost + lost, all_count + count

    def warnings(self, plan: Plan) -> list[str]:
        """What is unusual, a line for each kind."""
        lines = []
        for number, model in enumerate(plan.resolved.models):
            zeros = sorted(
                load.key
                for load in self._read - self._other
                if load.model == number and not model.adapters and _could_be_weights(plan, load)
            )
            if zeros:
                where = escape(model.checkpoint.label)
                what = f"{counted(len(zeros), 'tensor')} of zeros alone (a download that was not finished?)"
                lines.append(f"{where}: {what}: {_listed(zeros)}")
        shares = {key: lost / count for key, (lost, count) in self._lost.items() if lost > LOST_SHARE * count}
        if shares:
            lost = sum(self._lost[key][0] for key in shares)
            names = [f"{key} ({shares[key]:.1%})" for key in sorted(shares, key=lambda key: -shares[key])]
            lines.append(
                f"{counted(lost, 'number')} too small for the dtype of the output became 0, in "
                f"{counted(len(shares), 'tensor')}: {_listed(names)}"
            )
        return lines


def _zeros(values: Tensor) -> int:
    """How many are zero, of either sign."""
    import numpy as np

    bits = values.contiguous().view(INTEGERS[values.element_size()]).numpy()
    signless = bits.dtype.type(np.iinfo(bits.dtype).max)
    return bits.size - int(np.count_nonzero(bits & signless))


def _could_be_weights(plan: Plan, load: Load) -> bool:
    spec = plan.spec(load)
    return spec.is_float and len(spec.shape) > 1 and spec.elements > 0


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(map(escape, names[:NAMES_SHOWN]))}{more}"

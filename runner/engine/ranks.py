"""The ranks of a LoRA that follow from its tensors: measured before the output is laid out.

Every tensor is read and decomposed, and nothing kept of it but a number. With the numbers the plan is made
again, and from then on it is like any other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType

from runner.engine.compute import Scratch
from runner.engine.measure import Measuring, measured_step
from runner.engine.reading import Inputs
from runner.engine.watch import Watch
from runner.engine.workers import memory, workers
from runner.errors import KeyPath, quote
from runner.place import CPU, Placement, working_bytes
from runner.planning.plan import Plan

Identities = Mapping[KeyPath, str]


def measure_ranks(
    plan: Plan,
    placement: Placement,
    advance: Callable[[int], None],
    identities: Identities = MappingProxyType({}),
) -> dict[str, int]:
    """The ranks that the plan leaves open, by the tensor's key.

    Args:
        plan: with the most each can be.
        placement: threads and memory of the host.
        advance: called with the number of bytes read, from the calling thread.
        identities: of the merges that draw random numbers.

    Raises:
        RunnerError: the first thing that went wrong.
    """
    undecided = [number for number, job in enumerate(plan.jobs) if job.bound]
    largest = max((working_bytes(plan, plan.jobs[number]) for number in undecided), default=1)
    threads = max(1, min(placement.threads, placement.memory[CPU] // largest))
    with ExitStack() as opened:
        left = threading.Event()
        inputs = Inputs(plan, left.is_set)
        opened.callback(inputs.close)
        pool = opened.enter_context(workers(threads))
        opened.callback(left.set)  # before the pool is joined: a survey has far to go
        measuring = Measuring(plan)

        def scratch() -> Scratch:
            return Scratch(plan, inputs.read, inputs.read_raw, identities, placement.tile_elements, Watch())

        def survey() -> None:
            with memory("what is measured over the model"):
                measuring.survey(scratch())

        def measure(number: int) -> int:
            with memory(f"tensor {quote(plan.jobs[number].key)}"):
                return _rank(plan, number, measuring, scratch())

        pool.submit(survey).result()
        found = {}
        for number, rank in zip(undecided, pool.map(measure, undecided), strict=True):
            found[plan.jobs[number].key] = rank
            advance(plan.bytes_of(plan.jobs[number]))
        inputs.check_unchanged()
    return found


def _rank(plan: Plan, number: int, measuring: Measuring, scratch: Scratch) -> int:
    """The rank of a job's factors, once what the steps before the last one need is measured."""
    job = plan.jobs[number]
    last = len(job.steps) - 1
    return int(measured_step(job, last, scratch, measuring.before(number, last, scratch)))

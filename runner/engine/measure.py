"""What methods measure before they compute: of each tensor on its own, or of the whole model at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.engine.compute import Scratch
from runner.errors import KeyPath
from runner.methods.tiles import Tile
from runner.planning.plan import Job, Plan, Step, Value

Group = tuple[KeyPath, str, tuple[tuple[str, Value], ...]]  # steps that share what is measured of a model


class Measuring:
    """What is measured, by job and number of the step. The engine guards it, except for `measure` itself.

    Attributes:
        notes: what methods found unusual, and the keys where they did.
        surveyed: whether all that is measured over the whole model is there.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._found: dict[int, dict[int, Any]] = {}
        self._groups: dict[Group, list[tuple[int, int]]] = {}
        self._waiting: deque[int] = deque()
        for index, job in enumerate(plan.jobs):
            over = [step.over for step in job.steps]
            if any(over) and job.spec.elements:
                self._found[index] = {}
            if "tensor" in over and job.spec.elements:
                self._waiting.append(index)
            for number, step in enumerate(job.steps):
                if over[number] == "model" and job.spec.elements:
                    self._groups.setdefault(_group(step), []).append((index, number))
                elif over[number] == "rank":  # measured already, or the output had no layout
                    self._found[index][number] = job.rank
        self._unmeasured = set(self._waiting)
        self._ahead: set[int] = set()
        self.surveyed = not self._groups
        self.notes: dict[str, list[str]] = {}

    def of(self, job: int) -> Mapping[int, Any]:
        """What is measured of a job, by number of the step."""
        return self._found.get(job, {})

    def is_done(self, job: int) -> bool:
        """Whether a job can be computed."""
        return job not in self._unmeasured

    def next(self, earliest: int, ahead: int) -> int | None:
        """A job to be measured: the earliest unfinished one, or one of those after it.

        Args:
            earliest: the job that all wait for.
            ahead: how many may be measured before they are needed.
        """
        if self._waiting and (self._waiting[0] == earliest or len(self._ahead) < ahead):
            return self._waiting[0]
        return None

    def begin(self, job: int) -> None:
        """Notes that the job that is next is being measured."""
        assert self._waiting[0] == job
        self._ahead.add(self._waiting.popleft())

    def measure(self, job: int, scratch: Scratch) -> dict[int, Any]:
        """Measures a job."""
        found = dict(self._found[job])
        for number, step in enumerate(self._plan.jobs[job].steps):
            if step.over == "tensor" and number not in found:
                found[number] = measured_step(self._plan.jobs[job], number, scratch, found)
        return found

    def done(self, job: int, found: dict[int, Any]) -> None:
        """Takes what was measured of a job."""
        self._found[job] = found
        self._unmeasured.discard(job)
        for one in found.values():
            if note := getattr(one, "note", ""):
                self.notes.setdefault(note, []).append(self._plan.jobs[job].key)

    def forget(self, job: int) -> None:
        """Lets go of what was measured of a job that is computed."""
        self._found.pop(job, None)
        self._ahead.discard(job)

    def survey(self, scratch: Scratch) -> None:
        """Measures all that is measured over the whole model."""
        for group in self._groups:
            self._survey(group, scratch)
        self.surveyed = True

    def _survey(self, group: Group, scratch: Scratch) -> None:
        members = self._groups[group]
        if members[0][1] in self._found[members[0][0]]:
            return
        step = self._plan.jobs[members[0][0]].steps[members[0][1]]
        with scratch.excused(self._plan.jobs[job] for job, _ in members):
            measured = _measured(step, _Model(self, members, scratch))
        for job, number in members:
            self._found[job][number] = measured

    def before(self, job: int, number: int, scratch: Scratch) -> Mapping[int, Any]:
        """What is measured of the steps of a job before one; measured now if it is not there."""
        found = self._found[job]
        for earlier, step in enumerate(self._plan.jobs[job].steps[:number]):
            if step.over == "model":
                self._survey(_group(step), scratch)
            elif step.over and earlier not in found:
                found[earlier] = measured_step(self._plan.jobs[job], earlier, scratch, found)
        return found

    def walk(self, members: list[tuple[int, int]], scratch: Scratch) -> Iterator[Tile]:
        """The tiles of some steps, in the order of the plan."""
        for job, number in members:
            yield from scratch.walk(self._plan.jobs[job], number, self.before(job, number, scratch))


@dataclass(frozen=True)
class _Model:
    """The tiles of a step in all jobs, to be walked over any number of times."""

    measuring: Measuring
    members: list[tuple[int, int]]
    scratch: Scratch

    def __iter__(self) -> Iterator[Tile]:
        return self.measuring.walk(self.members, self.scratch)


def _group(step: Step) -> Group:
    parameters = step.method.measured_by(dict(step.parameters))
    return step.survey, step.method.label, tuple(sorted(parameters.items()))


def measured_step(job: Job, number: int, scratch: Scratch, found: Mapping[int, Any]) -> Any:
    """What is measured of a tensor for a step of its job.

    Args:
        job: of the tensor.
        number: of the step.
        scratch: what the worker computes in.
        found: what was measured for the steps before it.
    """
    with scratch.excused((job,)):
        return _measured(job.steps[number], scratch.tiles(job, number, found))


def _measured(step: Step, tiles: Any) -> Any:
    assert step.method.measure is not None  # it says what it measures over
    return step.method.measure(tiles, **step.method.measured_by(dict(step.parameters)))

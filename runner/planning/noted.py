"""What is noted on the way to a plan: what does not fit, what a policy decided, what the user should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from runner.errors import IncompatibleError, counted, escape, quote
from runner.models.quantised import FOR_FP8
from runner.planning.plan import BUFFER, Job
from runner.resolve.resolved import BoundMerge, Resolved

Reasons = dict[str, dict[str, None]]  # each with its keys, in the order they were noted


@dataclass
class Noted:
    """Reasons with their keys.

    Attributes:
        resolved: the recipe that is planned.
        dropped: what is not in the output.
        deviations: what a policy decided.
        unfit: what no policy allows.
        example: of what is unfit, what was found where; by reason.
        widened: keys stored in fp8 that are written in a wider dtype.
        lines: what else there is to say.
    """

    resolved: Resolved
    dropped: Reasons = field(default_factory=dict)
    deviations: Reasons = field(default_factory=dict)
    unfit: Reasons = field(default_factory=dict)
    example: dict[str, str] = field(default_factory=dict)
    widened: dict[str, None] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def drop(self, reason: str, *keys: str) -> None:
        """Notes what is not in the output."""
        self.dropped.setdefault(reason, {}).update(dict.fromkeys(keys))

    def deviate(self, reason: str, *keys: str) -> None:
        """Notes what a policy decided."""
        self.deviations.setdefault(reason, {}).update(dict.fromkeys(keys))

    def misfit(self, reason: str, *keys: str) -> None:
        """Notes what no policy allows."""
        self.unfit.setdefault(reason, {}).update(dict.fromkeys(keys))

    def add(self, other: Noted) -> None:
        """Takes over what was noted apart from this."""
        for reason, keys in other.dropped.items():
            self.drop(reason, *keys)
        for reason, keys in other.deviations.items():
            self.deviate(reason, *keys)
        for reason, keys in other.unfit.items():
            self.misfit(reason, *keys)
        self.lines += other.lines
        self.example.update(other.example)
        self.widened.update(other.widened)

    def raise_if_unfit(self, given: Collection[str] = ()) -> None:
        """Raises: IncompatibleError that lists everything that does not fit.

        Args:
            given: what of it concerns the sources of components.
        """
        if not self.unfit:
            return
        lines = [
            f"{what} ({self._listed(keys)}{self.example.get(what, '')})" for what, keys in self.unfit.items()
        ]
        models = [model for model in self.resolved.models if not model.adapters]
        if len({model.title for model in models}) > 1:
            kinds = (f"{escape(model.checkpoint.label)} is {model.title}" for model in models)
            lines.insert(0, f"models of different kinds: {', '.join(kinds)}")
        hint = "force: true keeps the first model's tensors there and lists them"
        if self.unfit.keys() <= set(given):
            hint = "a component is taken whole: give a source that has it as the models of the merge have it"
        raise IncompatibleError("\n".join(lines), tag="KEYS", hint=hint)

    def warnings(self, jobs: Iterable[Job]) -> Iterator[str]:
        """What the user should know before the merge runs."""
        models, method = self.resolved.models, self.resolved.merge.method
        yield from self.resolved.warnings
        yield from (text for model in models for text in model.checkpoint.warnings)
        yield from self.lines
        for reason, keys in (*self.dropped.items(), *self.deviations.items()):
            yield f"{reason} ({self._listed(keys)})"
        if self.widened:
            what = f"stored in fp8, written as {FOR_FP8}: output.dtype can say float16 or float8_e4m3fn"
            yield f"{what} ({self._listed(self.widened)})"
        if method.compat:
            yield f"compat {method.compat}: {method.differs}"
        yield from self._without_effect(list(jobs))

    def _without_effect(self, jobs: list[Job]) -> Iterator[str]:
        """Which models, of several, have no part in the result; or that it is one of them."""
        models = self.resolved.models
        sources = {job.loads[0].model for job in jobs if job.fate != BUFFER}
        if not any(job.steps for job in jobs) and len(sources) == 1 < len(models):
            label = models[sources.pop()].checkpoint.label
            yield f"the result is {quote(label)} itself: with these parameters nothing is merged"
            return
        # The first model gives its names and header even where nothing of it is read.
        used = {load.model for job in jobs for load in job.loads} | {self.resolved.merge.primary()}
        for number, model in enumerate(models):
            if number not in used:
                label = quote(model.checkpoint.label)
                yield f"{label} has no effect: with these parameters nothing of it is in the result"

    def _listed(self, found: Iterable[str]) -> str:
        """Whole components by name, else the count and the first keys."""
        keys, places = sorted(found), self.resolved.places
        components = Counter(places[key].component for key in keys if key in places)
        whole = Counter(place.component for place in places.values())
        if components and all(count == whole.get(component) for component, count in components.items()):
            names = ", ".join(sorted(components))
            return f"{counted(len(keys), 'tensor')}, all of {names}"
        first = ", ".join(escape(key) for key in keys[:3])
        return f"{counted(len(keys), 'tensor')}: {first}{', ...' if len(keys) > 3 else ''}"

    def name_of(self, merge: BoundMerge, role: str) -> str:
        """How a message calls an operand: by its file, or by its place in the recipe."""
        model = merge.models[role]
        if isinstance(model, int):
            return escape(self.resolved.models[model].checkpoint.label)
        return escape(".".join(map(str, (*merge.path, "models", role))))

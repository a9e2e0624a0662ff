"""job=compare: what changed from one run to another, from what was recorded of both, and in their models."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.checkpoint import RECORD
from runner.config import Settings
from runner.disk.files import read_small
from runner.errors import CannotReplayError, InputError, clip, escape
from runner.imports import own
from runner.imports.recipe_text import tree_text
from runner.inspection.apart import distance_lines
from runner.inspection.comparison import compare, comparison_lines
from runner.models.model import recognised
from runner.proof.places import Places, opened, recorded_at
from runner.proof.recorded import Recorded, tensors_of
from runner.proof.replay import environment_changes
from runner.provenance.record import MAX_RECORD_BYTES
from runner.recipe.structure import Source
from runner.tables import table

MAX_DIFF_LINES = 200
_HOW = ("jobs", "memory_bytes", "threads", "tile_elements")


@dataclass(frozen=True)
class Run:
    """One of the two.

    Attributes:
        places: of it.
        said: what is recorded of it.
        run: what its run.json tells of the run itself; empty if there is none.
    """

    places: Places
    said: Recorded
    run: Mapping[str, Any]


def run_of(places: Places) -> Run:
    """What is recorded of a run.

    Raises:
        InputError: nothing is, or it cannot be read.
    """
    texts = list(recorded_at(places))
    if not texts:
        raise InputError(f"{escape(str(places.asked))}: nothing says how it was merged", tag="RECORD")
    record = next((one.content for one in texts if one.kind == RECORD), {})
    run = record.get("run")
    return Run(places, texts[0], run if isinstance(run, Mapping) else {})


def recipe_changes(first: Run, second: Run) -> list[str]:
    """The recipes as YAML, as a unified diff; nothing if they are equal."""
    a, b = _yaml(first.said), _yaml(second.said)
    diff = list(difflib.unified_diff(a, b, "a", "b", lineterm="", n=2))
    rest = len(diff) - MAX_DIFF_LINES
    return [*map(clip, diff[:MAX_DIFF_LINES]), *([f"... and {rest} more lines"] if rest > 0 else [])]


def _yaml(said: Recorded) -> list[str]:
    try:
        return tree_text(own.read(said.recipe, said.label).tree).splitlines()
    except InputError as error:
        raise CannotReplayError(error.message) from error


def input_changes(first: Run, second: Run) -> list[str]:
    """The models by where they stand in the recipe, where they are not the same."""
    sides = [
        {role: f"{one.name}  {one.sha256[:12]}" for one in run.said.inputs for role in one.roles}
        for run in (first, second)
    ]
    digests = [run.said.by_role for run in (first, second)]
    return [
        f"{escape(role)}: {escape(sides[0].get(role, '–'))} → {escape(sides[1].get(role, '–'))}"
        for role in dict.fromkeys([*sides[0], *sides[1]])
        if digests[0].get(role) != digests[1].get(role)
    ]


def environment(first: Run, second: Run) -> list[str]:
    """Versions and machines, where they differ."""
    return environment_changes(first.run, second.run) if first.run and second.run else []


def setting_changes(first: Run, second: Run) -> list[str]:
    """How the two were run: devices, memory, threads, tiles, where they differ. None decides a byte."""
    found = []
    sides = [side if isinstance(side := run.run.get("placement"), Mapping) else {} for run in (first, second)]
    for name in _HOW:
        before, after = (side.get(name) for side in sides)
        if before != after:
            found.append(f"{name.replace('_', ' ')}: {_plain(before)} → {_plain(after)}")
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(key))} {escape(str(one))}" for key, one in value.items()) or "–"
    return "–" if value is None else escape(str(value))


def tensor_changes(first: Run, second: Run) -> tuple[int, int, str | None] | None:
    """How many of how many tensors differ, and the first, by the sidecars; None if one is missing."""
    sides = []
    for run in (first, second):
        path = run.places.sidecar
        if path is None:
            return None
        sides.append(tensors_of(read_small(path, path.name, MAX_RECORD_BYTES), path.name)[0])
    keys = list(dict.fromkeys([*sides[0], *sides[1]]))
    wrong = [key for key in keys if sides[0].get(key) != sides[1].get(key)]
    return len(wrong), len(keys), wrong[0] if wrong else None


def result_changes(first: Run, second: Run, settings: Settings) -> list[tuple[str, list[str]]]:
    """How far the models are apart, by component and block; nothing if one is not there."""
    paths = [run.places.model for run in (first, second)]
    models = [recognised((Source(str(path)),), opened(path)) for path in paths if path is not None]
    if len(models) < 2:
        return []
    found = compare(*models)
    sections = comparison_lines(found, all_keys=settings.job.keys == "all")[1:]
    return [*sections, *distance_lines(found, settings)]


def sections(first: Run, second: Run, settings: Settings) -> list[tuple[str, list[str]]]:
    """Everything that changed, as sections of a report; those without a change are left out."""
    found = [
        ("recipe", [f"  {line}" for line in recipe_changes(first, second)]),
        ("inputs", [f"  {line}" for line in input_changes(first, second)]),
        ("versions and machine", [clip(f"  {line}") for line in environment(first, second)]),
        ("settings", [f"  {line}" for line in setting_changes(first, second)]),
    ]
    tensors = tensor_changes(first, second)
    if tensors is not None:
        differ, there_are, key = tensors
        text = f"{differ} of {there_are} differ, first {escape(key)}" if key else f"all {there_are} are equal"
        found.append(("tensors, by their digests", [f"  {text}"]))
    if tensors is None or tensors[0]:
        found += result_changes(first, second, settings)
    return [(head, lines) for head, lines in found if lines]


def head(first: Run, second: Run) -> list[str]:
    """What is compared, as a table."""
    rows = [["", "what", "recipe", "output"]]
    for name, run in (("a", first), ("b", second)):
        output = (
            run.said.content.get("deterministic", {}).get("output", {}) if run.said.kind == RECORD else {}
        )
        digest = output.get("sha256") or run.said.files.get("")
        cells = [run.said.recipe_digest[:12], digest[:12] if isinstance(digest, str) else "–"]
        rows.append([name, escape(str(run.places.asked)), *cells])
    return table(rows)

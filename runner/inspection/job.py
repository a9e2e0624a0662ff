"""job=inspect: what a file or folder is, and where it differs from another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.config import Settings
from runner.errors import UsageError, escape
from runner.inspection.apart import distance_lines
from runner.inspection.comparison import compare, comparison_lines
from runner.inspection.hashes import computed_hashes, known_hashes, whole_digest
from runner.inspection.metadata import metadata_lines
from runner.inspection.model import facts, hash_lines, model_sections
from runner.models.model import Model
from runner.progress import progress, say
from runner.recipe.structure import Source
from runner.resolve.sources import open_model
from runner.tables import table

Sections = list[tuple[str, list[str]]]


def inspect(settings: Settings) -> dict[str, Any]:
    """Prints the report; returns what a table of many runs shows.

    Raises:
        InputError: a model is missing or malformed.
        UsageError: distances to nothing.
    """
    job = settings.job
    assert job.source is not None  # the caller has seen to it
    if job.distances and job.other is None:
        hint = "job.other=MODEL is the second one; distances are relative to source"
        raise UsageError("job.distances: from what?", hint=hint)
    model = _open(job.source, settings)
    if job.other is not None:
        return _compare(model, _open(job.other, settings), settings)
    checkpoint = model.checkpoint
    if job.hashes:
        with progress(checkpoint.nbytes, "hashes", settings.progress) as advance:
            hashes = computed_hashes(checkpoint, settings.digest_memory, settings.threads or 1, advance)
    else:
        hashes = known_hashes(checkpoint, settings.digest_memory)
    known = facts(model)
    sections = model_sections(model, all_keys=job.keys == "all")
    sections.append(("hashes", hash_lines(checkpoint, hashes)))
    sections += metadata_lines(checkpoint.metadata, checkpoint.label)
    say(_text([escape(checkpoint.label), *table(known)], sections))
    return {**dict(known), "sha256": whole_digest(checkpoint, hashes)}


def _open(path: Path, settings: Settings) -> Model:
    # A path on the command line starts at the current folder, as the shell completes it.
    source = Source(str(path), variant=settings.job.variant)
    return open_model(source, Path(), settings.library, settings.offline)


def _compare(first: Model, second: Model, settings: Settings) -> dict[str, Any]:
    a, b = dict(facts(first)), dict(facts(second))
    rows = [["", "a", "b"]]
    rows.append(["source", escape(first.checkpoint.label), escape(second.checkpoint.label)])
    rows += [[name, a.get(name, "–"), b.get(name, "–")] for name in dict.fromkeys([*a, *b])]
    found = compare(first, second)
    sections = comparison_lines(found, all_keys=settings.job.keys == "all")
    if settings.job.distances:
        sections += distance_lines(found, settings)
    say(_text(table(rows), sections))
    return {}


def _text(head: list[str], sections: Sections) -> str:
    lines = list(head)
    for name, content in sections:
        lines += ["", name, *content]
    return "\n".join(lines)

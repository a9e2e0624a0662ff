"""Merges that are done already: found by their records, and only if all that decides bytes is the same.

A name or a time proves nothing. The record of the earlier run must be of the same recipe, numbers, methods,
inputs and code; its model must be where this one would be, with the header and the other files that this one
would have, and with the digests that the record says.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.checkpoint import RECORD, Layout
from runner.digests import InputDigests
from runner.disk.files import InputFile, look, read_small
from runner.errors import RunnerError, quote
from runner.planning.plan import Plan
from runner.provenance.machine import code_digests
from runner.provenance.masking import all_masked
from runner.provenance.origins import layout_with_origins
from runner.provenance.parts import inputs
from runner.provenance.record import MAX_RECORD_BYTES, SCHEMA, RunRecord
from runner.write import sidecar_path

log = logging.getLogger(__name__)
RECORDS_READ = 200  # of the newest runs; so a folder of thousands costs no more
_RUN = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}", re.ASCII)  # as conf/ names folders of runs
_JOB = re.compile(r"(\d+)_.*", re.ASCII)  # and those of the jobs of a sweep
# What a plan knows of the deterministic part of its record, without the digests of inputs.
_PLANNED = ("recipe", "recipe_sha256", "methods", "dtypes", "components", "keys", "determinism", "dropped")


@dataclass(frozen=True)
class Finished:
    """A merge that an earlier run finished.

    Attributes:
        folder: of that run.
        path: of its model.
        content: what its run.json says.
    """

    folder: Path
    path: Path
    content: Mapping[str, Any]


def finished(
    plan: Plan, record: RunRecord, folder: Path, output_dir: Path, memory: Path | None, threads: int
) -> tuple[Finished, Mapping[InputFile, str]] | None:
    """The result that a merge would have, if it is there already, and the digests of the inputs.

    Args:
        plan: of the merge.
        record: of this run, with what the plan knows.
        folder: of this run; earlier ones are beside it.
        output_dir: where the model would be.
        memory: file that remembers digests; None: all are computed.
        threads: how many files are hashed at a time.

    Raises:
        InputError: an input changed while it was hashed.
    """
    known: Mapping[InputFile, str] | None = None
    for beside, place in _places(folder, output_dir):
        path = place / plan.layout.name
        if not _is_there(path, plan.layout):
            continue
        content = _same_work(beside, plan, record)
        if content is None:
            continue
        if known is None:  # only now is it worth the time
            with InputDigests(plan.resolved.files, memory, threads) as digests:
                known = digests.wait()
        if content["deterministic"]["inputs"] != _plain(inputs(plan.resolved, known)):
            continue
        layout, _ = layout_with_origins(plan, known)
        if _is_intact(path, layout, content["deterministic"]["output"], memory, threads):
            return Finished(beside, path, content), known
        if place == beside:
            log.info("%s is no longer what its record says: merged again", quote(path))
    return None


def finished_output(
    plan: Plan, record: RunRecord, folder: Path, known: Mapping[InputFile, str]
) -> Mapping[str, Any] | None:
    """What the record of the newest finished run of a merge says of its output, wherever that is now."""
    expected = _plain(inputs(plan.resolved, known))
    for beside, _ in _places(folder, folder):
        content = _same_work(beside, plan, record)
        if content is not None and content["deterministic"]["inputs"] == expected:
            output: Mapping[str, Any] = content["deterministic"]["output"]
            return output
    return None


def _places(folder: Path, output_dir: Path) -> Iterator[tuple[Path, Path]]:
    """The folders of runs: this one's, then those beside it, the newest first; with where each has its model.

    A folder whose name somebody chose is alone: what is asked for there is no other run's.
    """
    own = output_dir.name == folder.name and output_dir != folder  # as jobs of a sweep have below output_dir
    yield folder, output_dir
    if _RUN.fullmatch(folder.name):
        names = sorted((name for name in _names(folder.parent) if _RUN.fullmatch(name)), reverse=True)
    elif _JOB.fullmatch(folder.name) and (folder.parent / "multirun.yaml").is_file():
        jobs = {name: int(found[1]) for name in _names(folder.parent) if (found := _JOB.fullmatch(name))}
        names = sorted(jobs, key=lambda name: jobs[name], reverse=True)
    else:
        return
    for name in [name for name in names if name != folder.name][:RECORDS_READ]:
        beside = folder.parent / name
        if output_dir == folder:
            yield beside, beside
        else:
            yield beside, output_dir.parent / name if own else output_dir


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names alone
    except OSError:
        return []


def _is_there(path: Path, layout: Layout) -> bool:
    """Whether a model of this kind and size stands there under its own name."""
    if path.is_symlink() or path.is_dir() != layout.folder:
        return False
    try:
        return all((path / file.name).lstat().st_size == file.nbytes for file in layout.files)
    except OSError:
        return False


def _same_work(folder: Path, plan: Plan, record: RunRecord) -> Mapping[str, Any] | None:
    """The record in a folder, if it is of a finished merge that did the same, its inputs aside."""
    try:
        text = read_small(folder / RECORD, RECORD, MAX_RECORD_BYTES)
        ours = record.deterministic
        if ours["recipe_sha256"].encode() not in text:  # most are told apart without being parsed
            return None
        content = json.loads(text)
        theirs, run = content["deterministic"], content["run"]
        same = (
            content["schema"] == SCHEMA
            and run["error"] is None
            and {"inputs", "output"} <= theirs.keys()
            and all(theirs[name] == _plain(ours[name]) for name in _PLANNED)
            and theirs["deviations"].items() >= _plain(ours["deviations"]).items()
            and run["code"]["runner_sha256"] == code_digests()["runner_sha256"]
            and (plan.determinism == "exact" or _same_machine(run, record.run))
        )
    except (RunnerError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # no record, or not one of ours
    return content if same else None


def _same_machine(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a result that is not of the class exact would be the same here."""
    return all(theirs[name] == _plain(all_masked(ours[name])) for name in ("machine", "versions"))


def _is_intact(
    path: Path, layout: Layout, output: Mapping[str, Any], memory: Path | None, threads: int
) -> bool:
    """Whether a model is what its record says, and all that is not tensors is what it would be now."""
    recorded: Sequence[Mapping[str, Any]] = output["files"]
    try:
        for file, known in zip(layout.files, recorded, strict=True):
            with (path / file.name).open("rb") as stream:
                if stream.read(len(file.header)) != file.stamped(known["content_sha256"]):
                    return False
        for name, text in layout.texts.items() if layout.folder else ():
            if (path / name).read_bytes() != text:
                return False
        weights = [look(path / file.name, file.name or layout.name) for file in layout.files]
        sidecar = look(sidecar_path(path), sidecar_path(path).name)
        with InputDigests([*weights, sidecar], memory, threads) as digests:
            found = digests.wait()
    except (RunnerError, OSError):
        return False
    return [found[file] for file in weights] == [known["sha256"] for known in recorded] and (
        found[sidecar] == output["tensors"]["sha256"]
    )


def _plain(value: Any) -> Any:
    """A value as it is after it was written as JSON and read again."""
    return json.loads(json.dumps(value))

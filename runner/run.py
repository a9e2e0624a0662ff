"""The straight line: parse → resolve → plan → place → execute → write → record."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runner.card import NAME as CARD
from runner.checkpoint import Layout
from runner.compose import ComposedRecipe
from runner.config import Settings
from runner.describe import describe, report
from runner.digests import InputDigests, model_digest
from runner.errors import MismatchError, OutputError, quote
from runner.files import InputFile
from runner.origins import layout_with_origins, plan_with_origins
from runner.place import Placement, place
from runner.plan import Plan
from runner.progress import progress, say
from runner.provenance import merge_identities
from runner.recipe import parse_recipe
from runner.record import RunRecord
from runner.resolve import Resolved, resolve
from runner.statement import statement_of
from runner.write import Staging, check_place, free_bytes, write_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say.

    Attributes:
        path: of the model; None if nothing was written.
        record: what run.json tells.
    """

    path: Path | None
    record: RunRecord

    def summary(self) -> dict[str, Any]:
        """The part a table of many runs shows."""
        return {
            "output": str(self.path) if self.path else None,
            "sha256": self.record.deterministic.get("output", {}).get("sha256"),
            "moved": {name: moved["relative"] for name, moved in self.record.run.get("moved", {}).items()},
        }


def run(recipe: ComposedRecipe, settings: Settings, folder: Path) -> Outcome:
    """Does what `job=` says with a recipe.

    Args:
        recipe: as composed from files and the command line.
        settings: how to run.
        folder: of the run: the record goes here, and the model unless output_dir says where.

    Raises:
        RunnerError: whatever is wrong; run.json then tells of it too.
    """
    record = RunRecord(recipe.files, recipe.overrides, folder / "run.log")
    output_dir = settings.output_dir or folder
    path = None
    try:
        with record.stage("resolve"):
            parsed = parse_recipe(recipe.name, recipe.tree, recipe.locate)
            offline = settings.hub == "offline"
            resolved = resolve(
                parsed,
                recipe.locate,
                settings.models_dir,
                settings.cache_dir,
                offline,
                settings.model_folders,
            )
            record.resolved(resolved)
        with record.stage("plan"):
            plan = plan_with_origins(resolved)
            placement = place(
                plan,
                settings.placement,
                settings.memory,
                settings.threads,
                settings.tile_elements,
                imaginary=settings.job.name == "plan",
            )
            record.planned(plan, placement)
        text = describe(plan, placement, free_bytes(output_dir), all_keys=settings.job.keys == "all")
        log.debug("%s", text)
        made = None
        if settings.job.name == "merge":
            path, made = merge(plan, placement, settings, output_dir, record)
            text = report(path, plan, record)
    except BaseException as error:
        record.failed(error)
        with suppress(OutputError):  # the error on its way says more
            write_file(folder / "run.json", record.text().encode())
        raise
    try:
        text_of_record = record.text().encode()
        write_file(folder / "run.json", text_of_record)
        if made is not None:
            write_beside(folder, plan, made, record, text_of_record)
    except OutputError as error:
        if path is not None:
            raise OutputError(
                f"{quote(path)} is in place and verified; its record is not: {error}"
            ) from error
        raise
    say(text)
    return Outcome(path, record)


@dataclass(frozen=True)
class Made:
    """What a merge is known by when it is done.

    Attributes:
        layout: of the model, as it was written.
        card: for people; part of a folder.
        inputs: digests of the weight files.
        outputs: digests of the model's weight files.
        sidecar: the digests of its tensors.
        tensors: SHA-256 of the data of each.
    """

    layout: Layout
    card: bytes
    inputs: Mapping[InputFile, str]
    outputs: Sequence[str]
    sidecar: bytes
    tensors: Mapping[str, str]


def merge(
    plan: Plan, placement: Placement, settings: Settings, output_dir: Path, record: RunRecord
) -> tuple[Path, Made]:
    """Executes a plan: the model appears under its name whole, or not at all.

    Returns:
        The path of the model, and what it is known by.
    """
    target = check_place(plan.layout, output_dir, input_identities(plan.resolved))
    with build(plan, placement, settings, target, record) as (staging, made), record.stage("publish"):
        staging.publish(made.sidecar)
    return target, made


@contextmanager
def build(
    plan: Plan,
    placement: Placement,
    settings: Settings,
    target: Path,
    record: RunRecord,
    computed: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[Staging, Made]]:
    """Executes a plan up to the moment before the model gets its name; without that nothing stays.

    Args:
        plan: what to do.
        placement: where.
        settings: how.
        target: the path the model would have.
        record: is told everything.
        computed: digests of inputs that this process has computed, by Identity.key.

    Yields:
        The model under its partial name, and what it is known by.
    """
    for warning in plan.warnings:
        record.warn(warning)
    memory = settings.cache_dir / "digests.json" if settings.digests == "remember" else None
    with (
        Staging(plan.layout, target, checked=settings.verify) as staging,
        InputDigests(plan.resolved.files, memory, placement.threads, computed=computed) as digests,
    ):
        with progress(plan.layout.nbytes, target.name, settings.progress) as advance:
            if staging.stale:
                record.warn(f"removed what a killed run had left in {quote(target.parent)}")
            check_sources(plan.resolved, digests.known)
            with record.stage("import"):
                from runner.execute import execute
            with record.stage("execute"):
                drawn = merge_identities(plan.resolved, digests.wait()) if plan.draws else {}
                outcome = execute(plan, placement, staging, advance, drawn)
            with record.stage("digest"):
                known = digests.wait()
                check_sources(plan.resolved, known)
                layout, card = layout_with_origins(plan, known)
                staging.fill(layout)
            with record.stage("sync"):
                staging.stamp(outcome.contents)
                staging.sync()
            with record.stage("verify" if settings.verify else "hash"):
                hashes = staging.read_back(outcome.written, placement.threads)
        record.read(plan.resolved, known)
        sidecar = record.written(replace(plan, layout=layout), outcome, hashes)
        if plan.keeps_primary and not any(difference for difference, _ in outcome.moved.values()):
            record.warn(f"the result equals {quote(plan.resolved.primary.checkpoint.label)}: nothing moved")
        outputs = [str(one.sha256) for one in hashes]
        yield staging, Made(layout, card, known, outputs, sidecar, outcome.tensors)


def write_beside(folder: Path, plan: Plan, made: Made, record: RunRecord, text: bytes) -> None:
    """Writes what stands beside the record: the card of a single file, and the statement.

    Raises:
        OutputError: the device refused.
    """
    if not made.layout.folder:
        write_file(folder / CARD, made.card)
    statement = statement_of(
        plan.resolved, made.layout, made.outputs, made.inputs, record, text, made.sidecar
    )
    write_file(folder / f"{made.layout.name}.intoto.json", statement)


def input_identities(resolved: Resolved) -> set[tuple[int, int]]:
    """(device, inode) of every input: the output must be none of them."""
    checkpoints = [model.checkpoint for model in resolved.models]
    files = {(f.identity.device, f.identity.inode) for c in checkpoints for f in c.files}
    roots = {(status.st_dev, status.st_ino) for status in (c.root.stat() for c in checkpoints)}
    return files | roots


def check_sources(resolved: Resolved, digests: Mapping[InputFile, str]) -> None:
    """Compares the sources whose digests are known with what the recipe says of them.

    Raises:
        MismatchError: another file than the recipe gives the digest of.
    """
    for model in resolved.models:
        if not all(file in digests for file in model.checkpoint.files):
            continue
        found = model_digest(model.checkpoint, digests)
        for source in model.sources:
            if source.sha256 not in (None, found):
                raise MismatchError(
                    f"{quote(source.name)}: sha256 {found}, the recipe says {source.sha256}. "
                    "No output was written.",
                    tag="SHA256",
                    hint="this is another file than the recipe was made for",
                )

"""The straight line: parse → resolve → plan → place → execute → write → record → sign → publish."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.build import Made, check_sources, input_identities, merge, placed
from runner.checkpoint import CARD, RECORD, STATEMENT_SUFFIX, Layout
from runner.compose import ComposedRecipe
from runner.config import Settings
from runner.describe import describe, report, report_of_earlier
from runner.digests import InputDigests, remembered
from runner.earlier import Finished, finished, finished_output
from runner.errors import KeyPath, Location, OutputError, RunnerError, quote
from runner.locking import Held, held, lock_here, locked_output, with_digests, write_lock
from runner.planning.plan import Plan
from runner.progress import progress, say
from runner.provenance.origins import plan_with_origins
from runner.provenance.record import RunRecord
from runner.provenance.statement import statement_of
from runner.publish.finished import finished_model
from runner.publish.publication import announce, publish
from runner.publish.target import Model, kind_of
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import Recipe
from runner.resolve.resolve import resolve
from runner.resolve.resolved import Resolved
from runner.signing import key_digest, sign, signature_path, signing_key
from runner.write import free_bytes, write_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say.

    Attributes:
        path: of the model; None if nothing was written.
        record: what run.json tells.
        earlier: whether an earlier run made the model; this one then leaves no record.
    """

    path: Path | None
    record: RunRecord
    earlier: bool = False

    def summary(self) -> dict[str, Any]:
        """The part a table of many runs shows."""
        return {
            "output": str(self.path) if self.path else None,
            "sha256": self.record.deterministic.get("output", {}).get("sha256"),
            "moved": {name: moved["relative"] for name, moved in self.record.run.get("moved", {}).items()},
            **({"earlier": True} if self.earlier else {}),
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
    path = made = done = None
    try:
        with record.stage("resolve"):
            parsed = parse_recipe(recipe.name, recipe.tree, recipe.locate)
            lock = held(recipe, settings.locked)
            resolved = resolved_by(with_digests(parsed, lock), recipe.locate, settings)
            record.resolved(resolved)
        with record.stage("plan"):
            plan = plan_with_origins(resolved)
            placement = placed(plan, settings)
            record.planned(plan, placement)
            announced = _announced(plan, settings, output_dir)
            signed = _signed(plan, settings)
        free = free_bytes(output_dir)
        text = describe(plan, placement, free, announced, signed, all_keys=settings.job.keys == "all")
        log.debug("%s", text)
        if lock is not None and settings.job.name != "lock":
            for warning in lock.check(plan, record, remembered(plan.resolved.files, settings.digest_memory)):
                record.warn(warning)
        if settings.job.name == "merge":
            if not settings.rerun:
                done = _finished(plan, settings, folder, output_dir, record, lock)
            if done is None:
                for name in (RECORD, CARD, _statement_name(plan.layout)):
                    # Of an earlier run in this folder: they must not stand beside another model.
                    (folder / name).unlink(missing_ok=True)
                path, made = merge(plan, placement, settings, output_dir, record, lock)
                _drop_signature(path, record)
                text = report(path, plan, record)
            else:
                path, text = done.path, report_of_earlier(done.path, record)
        elif settings.job.name == "lock":
            path, text = _write_lock(recipe, plan, settings, folder, record, lock)
    except BaseException as error:
        _record_failure(record, error, folder)
        raise
    if done is None:
        try:
            text_of_record = record.text().encode()
            write_file(folder / RECORD, text_of_record)
            if made is not None:
                write_beside(folder, plan, made, record, text_of_record)
        except OutputError as error:
            if path is not None:
                raise OutputError(
                    f"{quote(path)} is in place and verified; its record is not: {error}"
                ) from error
            raise
    say(text)
    if path is not None and settings.job.name == "merge":
        home = done.folder if done else folder
        try:
            if settings.sign_key is not None:
                sign(path, settings.sign_key, home)
            if settings.publish is not None:
                publish(settings.publish, finished_model(home, path.parent), home)
        except RunnerError as error:
            if home != folder:  # the record there is the other run's
                _record_failure(record, error, folder)
            raise
    return Outcome(path, record, earlier=done is not None)


def _record_failure(record: RunRecord, error: BaseException, folder: Path) -> None:
    """Leaves the record of a run that an error ends."""
    record.failed(error)
    with suppress(OutputError):  # the error on its way says more
        write_file(folder / RECORD, record.text().encode())


def resolved_by(recipe: Recipe, locate: Callable[[KeyPath], Location], settings: Settings) -> Resolved:
    """A recipe with its models opened, from where the settings say models are.

    Args:
        recipe: what to merge.
        locate: where the value at a key path was written, for errors.
        settings: how to run.

    Raises:
        RunnerError: as of resolve.
    """
    return resolve(
        recipe,
        locate,
        settings.models_dir,
        settings.cache_dir,
        settings.offline,
        settings.model_folders,
    )


def _announced(plan: Plan, settings: Settings, output_dir: Path) -> list[str]:
    """What is said of the publication before the merge, if there will be one."""
    if settings.publish is None:
        return []
    kind = kind_of(plan.resolved.output_format, {job.place.component for job in plan.jobs})
    model = Model((output_dir / plan.layout.name), kind, {})
    return announce(settings.publish, model, input_identities(plan.resolved), settings.offline)


def _signed(plan: Plan, settings: Settings) -> list[str]:
    """What is said of the signature before the merge, if there will be one.

    Raises:
        RunnerError: as of signing_key.
    """
    if settings.sign_key is None:
        return []
    name = signature_path(Path(plan.layout.name)).name
    return [f"{name}, by the key {key_digest(signing_key(settings.sign_key))}"]


def _drop_signature(path: Path, record: RunRecord) -> None:
    """Removes the signature of what had the name of a new model before."""
    place = signature_path(path)
    with suppress(OSError):
        place.unlink()
        record.warn(f"removed {quote(place.name)}, a signature of what was there before")


def _finished(
    plan: Plan, settings: Settings, folder: Path, output_dir: Path, record: RunRecord, lock: Held | None
) -> Finished | None:
    """The model that a merge would make, if an earlier run made it; the record tells of it too.

    Raises:
        MismatchError: it is not what the recipe or its lock says.
    """
    memory, threads = settings.digest_memory, settings.workers
    with record.stage("earlier"):
        found = finished(plan, record, folder, output_dir, memory, threads)
    if found is None:
        return None
    done, known = found
    check_sources(plan.resolved, known)
    record.deterministic = dict(done.content["deterministic"])
    record.run |= {
        name: done.content["run"][name] for name in ("moved", "residual") if name in done.content["run"]
    }
    if lock is not None:
        lock.check(plan, record, known)
        for warning in lock.check_output(plan, record, known, record.deterministic["output"]):
            record.warn(warning)
    return done


def _write_lock(
    recipe: ComposedRecipe,
    plan: Plan,
    settings: Settings,
    folder: Path,
    record: RunRecord,
    lock: Held | None,
) -> tuple[Path, str]:
    """Hashes the models and writes the lock; returns its path and what to say.

    Raises:
        MismatchError: a model is not what the recipe or the lock says.
    """
    files, threads = plan.resolved.files, settings.workers
    total = sum(file.identity.size for file in files)
    with (
        record.stage("digest"),
        progress(total, "hashing", settings.progress) as advance,
        InputDigests(files, settings.digest_memory, threads, advance=advance) as digests,
    ):
        known = digests.wait()
    check_sources(plan.resolved, known)
    record.read(plan.resolved, known)
    output = locked_output(record, finished_output(plan, record, folder, known))
    return write_lock(recipe, lock, lock_here(plan, record, known, output), settings.job.update)


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
    write_file(folder / _statement_name(made.layout), statement)


def _statement_name(layout: Layout) -> str:
    return f"{layout.name}{STATEMENT_SUFFIX}"

"""The straight line: parse → resolve → plan → place → execute → write → record → sign → publish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runner.checkpoint import CARD, RECORD, STATEMENT_SUFFIX, Layout
from runner.compose import ComposedRecipe
from runner.config import Settings
from runner.describe import describe, report, report_of_earlier
from runner.digests import InputDigests, known_digest, remembered
from runner.disk.files import InputFile, look
from runner.earlier import Finished, finished, finished_output
from runner.errors import InputError, KeyPath, Location, MismatchError, OutputError, RunnerError, quote
from runner.formats.pickled import check_archive
from runner.formats.safetensors import read_header
from runner.locking import Held, held, lock_here, locked_output, with_digests, write_lock
from runner.place import Placement, place, processors
from runner.planning.plan import Plan
from runner.progress import progress, say
from runner.provenance.origins import layout_with_origins, plan_with_origins
from runner.provenance.parts import merge_identities
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
from runner.write import Staging, check_place, check_room, free_bytes, write_file

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


def placed(plan: Plan, settings: Settings) -> Placement:
    """Gives each job of a plan a device that the settings allow; job=plan alone may plan for absent GPUs.

    Raises:
        RunnerError: as of place.
    """
    return place(
        plan,
        settings.placement,
        settings.memory,
        settings.threads,
        settings.tile_elements,
        imaginary=settings.job.name == "plan",
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
    plan: Plan,
    placement: Placement,
    settings: Settings,
    output_dir: Path,
    record: RunRecord,
    lock: Held | None = None,
) -> tuple[Path, Made]:
    """Executes a plan: the model appears under its name whole, or not at all.

    Returns:
        The path of the model, and what it is known by.
    """
    target = check_place(plan.layout, output_dir, input_identities(plan.resolved))
    with (
        build(plan, placement, settings, target, record, lock) as (staging, made),
        record.stage("publish"),
    ):
        staging.publish(made.sidecar)
    return target, made


@contextmanager
def build(
    plan: Plan,
    placement: Placement,
    settings: Settings,
    target: Path,
    record: RunRecord,
    lock: Held | None = None,
    computed: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[Staging, Made]]:
    """Executes a plan up to the moment before the model gets its name; without that nothing stays.

    Args:
        plan: what to do.
        placement: where.
        settings: how.
        target: the path the model would have.
        record: is told everything.
        lock: what the recipe is held to.
        computed: digests of inputs that this process has computed, by Identity.key.

    Yields:
        The model under its partial name, and what it is known by.
    """
    with InputDigests(
        plan.resolved.files, settings.digest_memory, placement.threads, computed=computed
    ) as digests:
        if plan.is_bound:
            check_room(plan.layout, target)
            with record.stage("ranks"):
                plan = _with_ranks(plan, placement, digests, settings)
            placement = placed(plan, settings)
            record.planned(plan, placement)
        for warning in plan.warnings:
            record.warn(warning)
        with (
            Staging(plan.layout, target, checked=settings.verify) as staging,
            progress(plan.layout.nbytes, target.name, settings.progress) as advance,
        ):
            if staging.stale:
                record.warn(f"removed what a killed run had left in {quote(target.parent)}")
            check_sources(plan.resolved, digests.known)
            with record.stage("import"):
                from runner.engine.execute import execute
            with record.stage("execute"):
                drawn = merge_identities(plan.resolved, digests.wait()) if plan.draws else {}
                outcome = execute(plan, placement, staging, advance, drawn)
                for warning in outcome.warnings:
                    record.warn(warning)
            with record.stage("digest"):
                known = digests.wait()
                check_sources(plan.resolved, known)
                for file in plan.resolved.files:
                    check_archive(file)
                if lock is not None:
                    lock.check(plan, record, known)
                layout, card = layout_with_origins(plan, known)
                staging.fill(layout)
            with record.stage("sync"):
                staging.stamp(outcome.contents)
                staging.sync()
            with record.stage("verify" if settings.verify else "hash"):
                hashes = staging.read_back(outcome.written, placement.threads)
                if settings.verify:
                    _parse_again(staging)
            record.read(plan.resolved, known)
            sidecar = record.written(replace(plan, layout=layout), outcome, hashes)
            if lock is not None:
                for warning in lock.check_output(plan, record, known, record.deterministic["output"]):
                    record.warn(warning)
            if plan.keeps_primary and not any(difference for difference, _ in outcome.moved.values()):
                record.warn(
                    f"the result equals {quote(plan.resolved.primary.checkpoint.label)}: nothing moved"
                )
            outputs = [str(one.sha256) for one in hashes]
            yield staging, Made(layout, card, known, outputs, sidecar, outcome.tensors)


def _finished(
    plan: Plan, settings: Settings, folder: Path, output_dir: Path, record: RunRecord, lock: Held | None
) -> Finished | None:
    """The model that a merge would make, if an earlier run made it; the record tells of it too.

    Raises:
        MismatchError: it is not what the recipe or its lock says.
    """
    memory, threads = settings.digest_memory, settings.threads or processors()
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
    files, threads = plan.resolved.files, settings.threads or processors()
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


def _parse_again(staging: Staging) -> None:
    """Reads the headers of the output as those of any model of a stranger.

    Raises:
        MismatchError: one is not what the format allows.
    """
    for file in staging.layout.files:
        try:
            read_header(look(staging.path(file), file.name or staging.target.name))
        except InputError as error:
            raise MismatchError(f"read back: {error.message}. No output was written.") from error


def _with_ranks(plan: Plan, placement: Placement, digests: InputDigests, settings: Settings) -> Plan:
    """The plan made again, once the ranks that it leaves open are measured."""
    resolved = plan.resolved
    check_sources(resolved, digests.known)
    from runner.engine.ranks import measure_ranks

    read = sum(plan.bytes_of(job) for job in plan.jobs if job.bound)
    identities = merge_identities(resolved, digests.wait()) if plan.draws else {}
    with progress(read, "ranks", settings.progress) as advance:
        ranks = measure_ranks(plan, placement, advance, identities)
    return plan_with_origins(resolved, ranks)


def input_identities(resolved: Resolved) -> set[tuple[int, int]]:
    """(device, inode) of every input: the output must be none of them."""
    checkpoints = [model.checkpoint for model in resolved.models]
    files = {
        (file.identity.device, file.identity.inode)
        for checkpoint in checkpoints
        for file in (*checkpoint.files, *checkpoint.others.values())
    }
    roots = {(status.st_dev, status.st_ino) for status in (c.root.stat() for c in checkpoints)}
    return files | roots


def check_sources(resolved: Resolved, digests: Mapping[InputFile, str]) -> None:
    """Compares the sources whose digests are known with what the recipe says of them.

    Raises:
        MismatchError: another file than the recipe gives the digest of.
    """
    for model in resolved.models:
        found = known_digest(model.checkpoint, digests)
        if found is None:
            continue
        for source in model.sources:
            if source.sha256 not in (None, found):
                raise MismatchError(
                    f"{quote(source.name)}: sha256 {found}, the recipe says {source.sha256}. "
                    "No output was written.",
                    tag="SHA256",
                    hint="this is another file than the recipe was made for",
                )

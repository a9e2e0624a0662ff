"""From a plan to the model: what is checked, computed, written and compared before it gets its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from runner.checkpoint import Layout
from runner.config import Settings
from runner.digests import InputDigests, known_digest
from runner.disk.files import InputFile, look
from runner.errors import InputError, MismatchError, quote
from runner.formats.pickled import check_archive
from runner.formats.safetensors import read_header
from runner.locking import Held
from runner.place import Placement, place
from runner.planning.plan import Plan
from runner.progress import progress
from runner.provenance.origins import layout_with_origins, plan_with_origins
from runner.provenance.parts import merge_identities
from runner.provenance.record import RunRecord
from runner.resolve.resolved import Resolved
from runner.write import Staging, check_place, check_room


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

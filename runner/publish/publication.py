"""A model on its way to where it is used: what is said of it before a merge, and the way itself."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from runner.errors import InputError, OutputError, PublishError, RunnerError, UsageError, escape, quote
from runner.progress import say
from runner.publish import finished, folder, hub, invokeai, places
from runner.publish.target import FAILED, HUB, INVOKEAI, Model, Publication, Target


def announce(target: Target, model: Model, inputs: Collection[tuple[int, int]], offline: bool) -> list[str]:
    """What the plan says of the publication; nobody else's machine is asked.

    Args:
        target: where the model goes.
        model: as it will be.
        inputs: (device, inode) of every input file and folder: none of them is replaced.
        offline: whether the hub is not to be asked.

    Raises:
        UsageError: the target is not there, or cannot take such a model.
    """
    dry = ["dry run: nothing will be published"] if target.dry_run else []
    if target.name == HUB:
        repository = hub.checked_repository(target, offline)
        kind = "private" if target.private else "public"
        return [f"hub: {repository}, made as a {kind} repository if it is not there", *dry]
    if target.name == INVOKEAI:
        return [f"invokeai: at {invokeai.checked_url(target.url)}, which loads it from its place", *dry]
    place = places.place_of(target, model)
    how = "hard link, or copy" if target.link else "copy"
    lines = [f"{target.name}: {escape(str(place))}, {how}"]
    try:
        status = place.stat()
    except OSError:
        return [*lines, *dry]
    if (status.st_dev, status.st_ino) in inputs:
        raise UsageError(
            f"publish={target.name}: {quote(place)} is one of the inputs",
            hint="give output.name another name",
        )
    then = "replaced" if target.overwrite and place.is_file() and not model.folder else "not replaced"
    return [*lines, f"there is one of that name: if it differs, it is {then}", *dry]


def publish(target: Target, model: Model, run: Path) -> Publication:
    """Publishes a finished model, says so and notes it in the folder of its run.

    Raises:
        PublishError: it failed; the model is as it was.
    """
    started = time.monotonic()

    def publication(result: str, error: str | None = None) -> Publication:
        return Publication(target.name, place, result, time.monotonic() - started, error)

    place = {HUB: target.repository, INVOKEAI: target.url}.get(target.name) or ""
    try:
        if target.name == HUB:
            result = hub.push(model, target)
        elif target.name == INVOKEAI:
            result = invokeai.register(model, target)
        else:
            path = places.place_of(target, model)
            place = _below(target.root, path)
            result = folder.put(model, path, target)
    except RunnerError as error:
        message = f"the model is in place, publishing failed: {error.message}"
        with_hint = error.hint or ""
        try:
            finished.note(run, publication(FAILED, error.message))
        except (RunnerError, ValueError, KeyError) as unnoted:
            message += f"; and the record does not say so: {unnoted}"
        again = f"try again: runner job=publish run={run} publish={target.name} ..."
        raise PublishError(message, hint=f"{with_hint}; {again}" if with_hint else again) from error
    done = publication(result)
    say(f"{done.target} {escape(done.place)}: {done.result}")
    try:
        finished.note(run, done)
    except OutputError as error:
        raise PublishError(f"the model is published; the record does not say so: {error}") from error
    return done


def _below(root: Path | None, path: Path) -> str:
    """A place by its name inside the root of a program; the record leaves out folders above that."""
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return str(path)


def publish_run(
    run: Path | None, target: Target | None, output_dir: Path | None, offline: bool
) -> Publication:
    """Publishes the model of a finished run, once its digests are found to be what the record says.

    Raises:
        UsageError: the run or the target is not said.
        InputError: the run has no model.
        MismatchError: the model is not what the record says.
        PublishError: publishing failed.
    """
    if run is None:
        raise UsageError(
            "run=FOLDER is missing", hint="runner job=publish run=runs/NAME/TIME publish=TARGET ..."
        )
    if target is None:
        raise UsageError("publish=TARGET is missing", hint="publish=a1111 publish.root=FOLDER")
    if not run.is_dir():
        raise InputError(f"run: {quote(run)}: no such folder")
    model = finished.finished_model(run, output_dir or run)
    announce(target, model, (), offline)
    finished.verify(model)
    return publish(target, model, run)

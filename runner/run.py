"""The straight line: parse → resolve → plan → place → execute → write → record."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.compose import ComposedRecipe
from runner.config import Settings
from runner.describe import describe
from runner.digests import InputDigests, model_digest
from runner.errors import MismatchError, quote
from runner.files import InputFile
from runner.place import Placement, place
from runner.plan import Plan
from runner.planner import make_plan
from runner.progress import progress
from runner.recipe import parse_recipe
from runner.record import RunRecord, header_metadata
from runner.resolve import Resolved, resolve
from runner.write import Staging, check_place, free_bytes, write_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a finished run has to say.

    Attributes:
        path: of the model; None if nothing was written.
        record: the content of run.json.
    """

    path: Path | None
    record: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """The part a table of many runs shows."""
        output = self.record.get("deterministic", {}).get("output", {})
        return {
            "output": str(self.path) if self.path else None,
            "sha256": output.get("sha256"),
            "moved": {
                component: moved["relative"]
                for component, moved in self.record.get("run", {}).get("moved", {}).items()
            },
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
    record = RunRecord([(file.name, file.sha256) for file in recipe.files], recipe.overrides)
    path = None
    try:
        with record.stage("resolve"):
            parsed = parse_recipe(recipe.name, recipe.tree, recipe.locate)
            resolved = resolve(parsed, recipe.locate, settings.models_dir, settings.cache_dir)
            record.resolved(resolved)
        with record.stage("plan"):
            plan = make_plan(resolved, header_metadata(resolved))
            placement = place(
                plan,
                devices=settings.placement.devices,
                max_memory=settings.placement.max_memory,
                host_budget=settings.memory,
                threads=settings.threads,
                tile_elements=settings.tile_elements,
            )
            record.planned(plan, placement)
        output_dir = settings.output_dir or folder
        if settings.job.name == "plan":
            print(describe(plan, placement, free_bytes(output_dir), all_keys=settings.job.keys == "all"))
        else:
            path = _merge(plan, placement, settings, output_dir, record)
    finally:
        text = record.finish()
        with suppress(OSError):
            write_file(folder / "run.json", text.encode())
    return Outcome(path, {"deterministic": record.deterministic, "run": record.run})


def _merge(plan: Plan, placement: Placement, settings: Settings, output_dir: Path, record: RunRecord) -> Path:
    for warning in plan.warnings:
        log.warning("runner: warning[W-PLAN]: %s", warning)
    resolved = plan.resolved
    target = check_place(plan.layout, output_dir, _identities(resolved))
    sys.setswitchinterval(0.001)  # the threads that hash wait less for the one that imports torch
    digests = InputDigests(
        (file for model in resolved.models for file in model.checkpoint.files),
        settings.cache_dir / "digests.json" if settings.digests == "remember" else None,
        placement.threads,
    )
    try:
        with Staging(plan.layout, target) as staging:
            if staging.stale:
                log.warning("runner: warning[W-STALE]: removed what a killed run left of %s", target.name)
            with record.stage("import"):
                from runner.execute import execute
            with (
                record.stage("execute"),
                progress(plan.layout.nbytes, target.name, settings.progress) as advance,
            ):
                outcome = execute(plan, placement, staging, advance)
            with record.stage("sync"):
                staging.sync()
            if settings.verify:
                with record.stage("verify"):
                    staging.verify(outcome.written, placement.threads)
            with record.stage("digest"):
                known = digests.wait()
            _check_digests(resolved, known)
            record.read(resolved, known)
            record.written(plan, outcome)
            with record.stage("publish"):
                staging.publish()
    finally:
        digests.cancel()
    return target


def _identities(resolved: Resolved) -> set[tuple[int, int]]:
    """(device, inode) of every input: the output must be none of them."""
    checkpoints = [model.checkpoint for model in resolved.models]
    files = {(f.identity.device, f.identity.inode) for c in checkpoints for f in c.files}
    roots = {(status.st_dev, status.st_ino) for status in (c.root.stat() for c in checkpoints)}
    return files | roots


def _check_digests(resolved: Resolved, known: Mapping[InputFile, str]) -> None:
    """Raises: MismatchError if a source is not the one the recipe gives the digest of."""
    for model in resolved.models:
        for source in model.sources:
            found = model_digest(model.checkpoint, known)
            if source.sha256 not in (None, found):
                raise MismatchError(
                    f"{quote(source.name)}: sha256 {found}, the recipe says {source.sha256}. "
                    "No output was written.",
                    tag="SHA256",
                    hint="this is another file than the recipe was made for",
                )

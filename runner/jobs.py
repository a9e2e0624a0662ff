"""The jobs that need no recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.catalogue import details, overview, preset_details, preset_overview
from runner.config import Settings
from runner.errors import UsageError
from runner.imports.job import import_recipe
from runner.inspection.job import inspect
from runner.listing import find_digests, list_models
from runner.progress import say
from runner.proof.job import compare_job, replay_job, verify_job
from runner.publish.publication import publish_run


def run_job(settings: Settings, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Does what `job=` says; returns what a table of many runs shows.

    Args:
        settings: what is asked, and how.
        folder: of the run.
        overrides: of the command line.

    Raises:
        UsageError: something the job needs is not said.
        RunnerError: whatever else is wrong.
    """
    job = settings.job
    if job.name == "methods":
        say(details(job.method) if job.method else overview())
        return {}
    if job.name == "models":
        return list_models(settings)
    if job.name == "find":
        return find_digests(settings)
    if job.name == "presets":
        say(preset_details(job.preset) if job.preset else preset_overview())
        return {}
    if job.name == "compare":
        return compare_job(settings)
    if job.name == "publish":
        done = publish_run(job.run, settings.publish, settings.output_dir, settings.offline)
        return {"output": done.place}
    if job.name == "compose":
        from runner.ui.job import compose

        return compose(settings, overrides)
    if job.source is None:
        hint = f"python -m runner job={job.name} source=MODEL.safetensors"
        raise UsageError("source=FILE is missing", hint=hint)
    if job.name == "inspect":
        return inspect(settings)
    if job.name == "verify":
        return verify_job(settings)
    if job.name == "replay":
        return replay_job(settings, folder)
    return {"output": str(import_recipe(job.source, job.output, job.overwrite, settings.models_dir))}

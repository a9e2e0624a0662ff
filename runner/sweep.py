"""Sweeps: every job leaves a status, whatever happens to it; at the end they are gathered and told."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runner.errors import OutputError, RunnerError, UsageError, clip, counted, quote
from runner.progress import say
from runner.tables import table
from runner.write import write_file

STATUS = "status.json"
KILLED = {"ok": False, "exit_code": 1, "error": "the job left no status: it was killed", "summary": {}}


def write_status(
    folder: Path, overrides: Sequence[str], exit_code: int, error: str, summary: dict[str, Any]
) -> None:
    """Notes how a job of a sweep ended."""
    status = {
        "ok": exit_code == 0,
        "overrides": list(overrides),
        "exit_code": exit_code,
        "error": error,
        "summary": summary,
    }
    write_file(folder / STATUS, _json(status))


def write_tables(folder: Path, jobs: Sequence[dict[str, Any]]) -> None:
    """Writes sweep.json and sweep.csv: every job there is, and what came of it.

    Args:
        folder: of the sweep.
        jobs: as gather finds them in it.

    Raises:
        OutputError: the device refused.
    """
    write_file(folder / "sweep.json", _json(jobs))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(as_rows(jobs))
    write_file(folder / "sweep.csv", text.getvalue().encode())


class SweepSummary(Callback):
    """Gathers the statuses of a finished sweep: a table, sweep.json, sweep.csv and the exit code."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job.

        Raises:
            SystemExit: the folder holds a sweep already, and its jobs would count as ours; or one is to be
                continued, and it is another.
        """
        try:
            if config.get("resume") is None:
                _must_be_new(Path(config.hydra.sweep.dir))
            else:
                _take_up(config)
        except RunnerError as error:
            _tell(error.lines())
            sys.exit(error.exit_code)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra after the last job.

        Raises:
            SystemExit: with the code of the first job that failed, or of what went wrong here.
        """
        code = 0
        try:
            folder = Path(config.hydra.sweep.dir)
            jobs = gather(folder)
            failed = [job for job in jobs if not job["ok"]]
            if not jobs:
                raise UsageError("the sweep has no job: its values are empty")
            code = failed[0]["exit_code"] if failed else 0
            rows = as_rows(jobs)
            shown = [[cell if len(cell) <= 40 else f"{cell[:12]}…" for cell in row] for row in rows]
            earlier = sum(bool(job["summary"].get("earlier")) for job in jobs)
            there = f", {earlier} there already" if earlier else ""
            say("\n".join([f"sweep of {counted(len(jobs), 'job')}{there}: {folder}", *table(shown)]))
            _tell([f"runner: job {job['job']} failed: {job['error']}" for job in failed])
            write_tables(folder, jobs)
        except Exception as error:  # of a callback's errors Hydra makes a warning and exit code 0
            if not isinstance(error, RunnerError):
                error = RunnerError(f"{type(error).__name__}: {error}", hint="this is a bug in runner")
            _tell(error.lines())
            code = code or error.exit_code
        if code:
            sys.exit(code)


def _must_be_new(folder: Path) -> None:
    """Raises: UsageError if a sweep was run in a folder."""
    if any(folder.glob(f"*/{STATUS}")):
        raise UsageError(
            f"hydra.sweep.dir: {quote(str(folder))} holds an earlier sweep",
            hint="name a new folder, or continue that one with resume=FOLDER",
        )


def _take_up(config: DictConfig) -> None:
    """Makes the folder of a sweep ready to be continued: each job leaves a new status.

    Raises:
        UsageError: there is no sweep, or one of other jobs.
        OutputError: a status cannot be removed.
    """
    folder = Path(config.hydra.sweep.dir)
    if folder != Path(str(config.resume)).expanduser():
        raise UsageError("resume: its folder is that of the sweep; leave out hydra.sweep.dir")
    try:
        before = _jobs(OmegaConf.load(folder / "multirun.yaml"))
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError) as error:
        hint = "give the folder that holds multirun.yaml"
        raise UsageError(f"resume: {quote(str(folder))} holds no sweep", hint=hint) from error
    if before != _jobs(config):
        wanted = " ".join(before)
        raise UsageError(
            f"resume: {quote(str(folder))} holds a sweep of other jobs: {quote(wanted)}",
            hint="give the command of that sweep again, and resume=FOLDER",
        )
    for status in folder.glob(f"*/{STATUS}"):
        try:
            status.unlink()
        except OSError as error:
            raise OutputError(f"{quote(str(status))}: {error.strerror}") from error


def _jobs(config: Any) -> list[str]:
    """The overrides that decide which jobs a sweep has; settings do not."""
    given = [str(one) for one in OmegaConf.to_container(config.hydra.overrides.task, resolve=False) or ()]
    return [one for one in given if re.match(r"[+~]*(recipe|job)\b", one)]


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _tell(lines: Sequence[str]) -> None:
    with suppress(OSError, ValueError):  # a closed stderr changes no exit code
        for line in lines:
            print(clip(line), file=sys.stderr, flush=True)


def gather(folder: Path) -> list[dict[str, Any]]:
    """The status of every job below a sweep's folder, by number; a killed one has none of its own."""
    jobs = []
    for job in folder.iterdir():
        number = job.name.partition("_")[0]
        if not job.is_dir() or not number.isdecimal():
            continue
        try:
            ended = json.loads((job / STATUS).read_text())
        except (OSError, ValueError):  # none, or cut off
            ended = {**KILLED, "overrides": []}
        jobs.append({"job": int(number), "folder": job.name, **ended})
    return sorted(jobs, key=lambda job: int(job["job"]))


def as_rows(jobs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A table of the jobs: number, swept values, output, digest, distances; the head first."""
    values = [
        dict(override.lstrip("+~").partition("=")[::2] for override in job["overrides"]) for job in jobs
    ]
    swept = list(dict.fromkeys(name for value in values for name in value))
    swept = [name for name in swept if len({value.get(name) for value in values}) > 1] or swept
    moved = sorted({name for job in jobs for name in job["summary"].get("moved", {})})
    rows = [["job", *swept, "result", "sha256", *(f"moved {name}" for name in moved)]]
    for job, value in zip(jobs, values, strict=True):
        summary = job["summary"]
        distances = [str(summary.get("moved", {}).get(name, "")) for name in moved]
        result = Path(summary.get("output") or "").name if job["ok"] else f"failed ({job['exit_code']})"
        rows.append(
            [
                str(job["job"]),
                *(value.get(name, "") for name in swept),
                result,
                summary.get("sha256") or "",
                *distances,
            ]
        )
    return rows

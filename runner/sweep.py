"""Sweeps: every job leaves a status, whatever happens to it; at the end they are gathered and told."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from runner.describe import table
from runner.errors import clip
from runner.progress import say
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
    write_file(folder / STATUS, (json.dumps(status, indent=2, ensure_ascii=False) + "\n").encode())


class SweepSummary(Callback):
    """Gathers the statuses of a finished sweep: a table, sweep.json, sweep.csv and the exit code."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra after the last job.

        Raises:
            SystemExit: with the code of the first job that failed.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = gather(folder)
        write_file(folder / "sweep.json", (json.dumps(jobs, indent=2, ensure_ascii=False) + "\n").encode())
        rows = as_rows(jobs)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_file(folder / "sweep.csv", text.getvalue().encode())
        shown = [[cell if len(cell) <= 40 else f"{cell[:12]}…" for cell in row] for row in rows]
        say("\n".join([f"sweep of {len(jobs)} jobs: {folder}", *table(shown)]))
        failed = [job for job in jobs if not job["ok"]]
        for job in failed:
            print(clip(f"runner: job {job['job']} failed: {job['error']}"), file=sys.stderr)
        if failed:
            sys.exit(failed[0]["exit_code"])


def gather(folder: Path) -> list[dict[str, Any]]:
    """The status of every job below a sweep's folder, by number; a killed one has none of its own."""
    jobs = []
    for job in folder.iterdir():
        number = job.name.partition("_")[0]
        if not job.is_dir() or not number.isdecimal():
            continue
        status = job / STATUS
        ended = json.loads(status.read_text()) if status.is_file() else {**KILLED, "overrides": []}
        jobs.append({"job": int(number), "folder": job.name, **ended})
    return sorted(jobs, key=lambda job: int(job["job"]))


def as_rows(jobs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A table of the jobs: number, swept values, output, digest, distances; the head first."""
    values = [dict(override.lstrip("+~").split("=", 1) for override in job["overrides"]) for job in jobs]
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

"""The end of a sweep: what its jobs left is gathered, told, and decides the exit code, whatever happens."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from runner.sweep import SweepSummary, as_rows, gather, write_status
from tests.build import write_models
from tests.command import Done, interrupt, run, tries

SUMMARY = {"output": "models/x.safetensors", "sha256": "ab" * 32, "moved": {"unet": 0.25}}


def job(folder: Path, number: int, alpha: str, code: int = 0) -> Path:
    """What a job leaves behind."""
    path = folder / f"{number}_recipe.alpha={alpha}"
    path.mkdir()
    overrides = ["recipe=mix", f"recipe.alpha={alpha}"]
    write_status(path, overrides, code, "too much" if code else "", {} if code else SUMMARY)
    return path


def config(folder: Path) -> DictConfig:
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})


def ended(folder: Path) -> int:
    """The exit code a sweep ends with."""
    try:
        SweepSummary().on_multirun_end(config(folder))
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code
    return 0


def sweep_of(folder: Path, *arguments: str, **environment: str) -> Done:
    return run(folder, "-m", "job=plan", "recipe=weighted_sum", *arguments, **environment)


def test_a_good_sweep_is_told_in_a_table_and_is_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job(tmp_path, 0, "0.1")
    job(tmp_path, 1, "0.2")
    assert ended(tmp_path) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    head, *lines = output.splitlines()
    assert head == f"sweep of 2 jobs: {tmp_path}"
    assert [line.split() for line in lines] == [
        ["job", "recipe.alpha", "result", "sha256", "moved", "unet"],
        ["0", "0.1", "x.safetensors", "abababababab…", "0.25"],
        ["1", "0.2", "x.safetensors", "abababababab…", "0.25"],
    ]


def test_the_code_is_that_of_the_first_job_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, code in ((2, 4), (10, 3), (0, 0)):
        job(tmp_path, number, str(number), code)
    assert ended(tmp_path) == 4
    assert capsys.readouterr().err.splitlines() == [
        "runner: job 2 failed: too much",
        "runner: job 10 failed: too much",
    ]
    assert [row["exit_code"] for row in json.loads((tmp_path / "sweep.json").read_text())] == [0, 4, 3]


@pytest.mark.parametrize("left", [None, "", '{"ok": tr', "\ud800"])
def test_a_job_without_a_whole_status_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: str | None
) -> None:
    job(tmp_path, 0, "0.1")
    path = job(tmp_path, 1, "0.2") / "status.json"
    path.unlink()
    if left is not None:
        path.write_bytes(left.encode("utf-8", "surrogatepass"))
    assert ended(tmp_path) == 1
    assert capsys.readouterr().err == "runner: job 1 failed: the job left no status: it was killed\n"


@pytest.mark.parametrize(("code", "expected"), [(0, 7), (3, 3)])
@pytest.mark.parametrize("name", ["sweep.json", "sweep.csv"])
def test_a_summary_that_cannot_be_written_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, expected: int
) -> None:
    """Of what a callback raises Hydra makes a warning and exit code 0."""
    job(tmp_path, 0, "0.1", code)
    (tmp_path / name).mkdir()
    assert ended(tmp_path) == expected
    assert capsys.readouterr().err.splitlines()[-1].startswith("runner: error[E-WRITE]: ")


def test_what_nobody_foresaw_is_no_success_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = job(tmp_path, 0, "0.1")
    (path / "status.json").write_text('{"ok": true}')
    assert ended(tmp_path) == 1
    assert capsys.readouterr().err.startswith("runner: error[E-BUG]: KeyError")


def test_a_folder_that_holds_a_sweep_is_not_used_again(tmp_path: Path) -> None:
    """The failures of the earlier one would count."""
    first = sweep_of(tmp_path, "recipe.alpha=0.1,2.5", "hydra.sweep.dir=mine")
    assert first.returncode == 3
    before = (tmp_path / "mine" / "sweep.json").read_text()
    again = sweep_of(tmp_path, "recipe.alpha=0.2,0.3", "hydra.sweep.dir=mine")
    assert again.returncode == 2
    assert 'hydra.sweep.dir: "mine" holds an earlier sweep' in again.stderr
    assert (tmp_path / "mine" / "sweep.json").read_text() == before
    assert len(gather(tmp_path / "mine")) == 2


@pytest.mark.parametrize(
    ("overrides", "head", "cells"),
    [
        ([["a=1"], ["a=2"]], ["a"], [["1"], ["2"]]),
        ([["a=1", "b=x=y"], ["a=2", "b=x=y"]], ["a"], [["1"], ["2"]]),
        ([["+a=1"], ["++a={b: 1}"]], ["a"], [["1"], ["{b: 1}"]]),
        ([["a=1"]], ["a"], [["1"]]),
        ([["~a", "b=1"], ["~a", "b=2"]], ["b"], [["1"], ["2"]]),
        ([["a=1"], []], ["a"], [["1"], [""]]),
        ([[], []], [], [[], []]),
    ],
)
def test_the_table_shows_what_was_varied(
    overrides: list[list[str]], head: list[str], cells: list[list[str]]
) -> None:
    jobs: list[dict[str, Any]] = [
        {"job": at, "ok": True, "overrides": each, "exit_code": 0, "error": "", "summary": SUMMARY}
        for at, each in enumerate(overrides)
    ]
    first, *rows = as_rows(jobs)
    assert first == ["job", *head, "result", "sha256", "moved unet"]
    assert [row[1 : 1 + len(head)] for row in rows] == cells


def test_a_value_with_commas_and_quotes_is_one_cell(tmp_path: Path) -> None:
    job(tmp_path, 0, '{default: 0.1, "*.x": 0}')
    job(tmp_path, 1, "0.2")
    assert ended(tmp_path) == 0
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["recipe.alpha"] == '{default: 0.1, "*.x": 0}'


def one_is_done(folder: Path) -> bool:
    """Whether the first job of a sweep has ended."""
    return bool(list(folder.glob("runs/sweeps/*/0_*/status.json")))


def test_a_sweep_that_was_interrupted_is_continued_where_it_stopped(tmp_path: Path) -> None:
    """Job 5 is equal to job 0; whatever the first command finished stays as it is."""
    arguments = [
        "-m",
        "recipe=weighted_sum",
        "recipe.models.a=a.safetensors",
        "recipe.models.b=b.safetensors",
    ]
    arguments += ["recipe.alpha=0.1,0.2,0.3,0.4,0.5,0.10", "progress=off", "placement=cpu"]
    arguments += ["output_dir=models"]
    for place in tries(tmp_path):
        write_models(place, a=1, b=2)
        (place / "models").mkdir()
        ended = interrupt(place, arguments, partial(one_is_done, place), signal.SIGINT)
        if ended.code:
            break
    assert ended.code == 130

    (folder,) = (place / "runs" / "sweeps").iterdir()
    done = {path: path.stat().st_ino for path in place.glob("models/*/weighted_sum.safetensors")}
    assert 1 <= len(done) < 6 and not (folder / "sweep.json").exists()

    other = run(place, *arguments, f"resume={folder}", "recipe.compute_dtype=float64")
    assert other.returncode == 2 and "holds a sweep of other jobs" in other.stderr
    again = run(place, *arguments, f"resume={folder}", "threads=1")
    assert again.returncode == 0, again.stderr
    head = next(line for line in again.stdout.splitlines() if line.startswith("sweep of"))
    assert head == f"sweep of 6 jobs, {len(done) + (len(done) < 6)} there already: {folder}"
    assert {path: path.stat().st_ino for path in done} == done
    jobs = json.loads((folder / "sweep.json").read_text())
    assert [job["job"] for job in jobs] == [*range(6)] and all(job["ok"] for job in jobs)
    digests = [job["summary"]["sha256"] for job in jobs]
    assert len(set(digests)) == 5 and digests[5] == digests[0]
    assert jobs[5]["summary"]["output"] == jobs[0]["summary"]["output"]
    for summary in (job["summary"] for job in jobs):
        content = (place / summary["output"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == summary["sha256"] and summary["moved"]
    assert [path.name for path in (place / "runs" / "sweeps").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=nowhere"], 'resume: "nowhere" holds no sweep'),
        (["resume=broken"], 'resume: "broken" holds no sweep'),
        (["resume=broken", "hydra.sweep.dir=mine"], "leave out hydra.sweep.dir"),
    ],
)
def test_what_is_no_sweep_cannot_be_continued(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "multirun.yaml").write_text("hydra: [")
    done = sweep_of(tmp_path, "recipe.alpha=0.1,0.2", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


def test_a_single_run_is_no_sweep_that_can_be_continued(tmp_path: Path) -> None:
    done = run(tmp_path, "job=plan", "resume=x")
    assert done.returncode == 2 and "resume: continues a sweep" in done.stderr


def test_jobs_of_the_joblib_launcher_are_told_of_like_others(tmp_path: Path) -> None:
    pytest.importorskip(
        "hydra_plugins.hydra_joblib_launcher",
        reason="NOT TESTED: sweeps on several processes; hydra-joblib-launcher is not installed",
    )
    done = sweep_of(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "recipe.alpha=0.2,2.5")
    assert done.returncode == 3
    assert "sweep of 2 jobs: " in done.stdout
    assert [line[:20] for line in done.stderr.splitlines() if "failed" in line] == ["runner: job 1 failed"]
    assert "leaked" not in done.stderr

"""job=compose as a person starts it: in a terminal, without one, and without what draws the form."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.ui.job import for_runs
from runner.ui.running import command
from tests.command import python, run

WITHOUT = """
import sys
sys.modules["textual"] = None
sys.argv[1:] = ["job=compose"]
from runner.__main__ import main
main()
"""


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = python(tmp_path, WITHOUT)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "runner: error[E-USAGE]: job=compose needs textual, not installed here",
        "hint: pip install 'runner[ui]'",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("job.recipe=new", "needs a terminal"),
        ("job.recipe=/no/such.yaml", "no such recipe"),
        ("job.port=x", "job.port"),
    ],
)
def test_what_cannot_be_shown_is_said(argument: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("textual", reason="NOT TESTED: the composer; pip install 'runner[ui]'")
    done = run(tmp_path, "job=compose", argument)
    assert done.returncode == 2 and said in done.stderr


def test_in_a_terminal_the_form_comes_and_goes(tmp_path: Path) -> None:
    pytest.importorskip("textual", reason="NOT TESTED: the composer; pip install 'runner[ui]'")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("method: copy\nmodels: {a: demo:photo}\n")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "job=compose", "recipe=mine"],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        shown, end = b"", time.monotonic() + 90
        while b"demo:photo" not in shown:
            assert time.monotonic() < end, shown
            shown += os.read(ours, 1 << 16)
        os.write(ours, b"\x11")  # Ctrl+Q
        while process.poll() is None:
            assert time.monotonic() < end
            try:
                os.read(ours, 1 << 16)
            except OSError:  # the terminal is closed
                break
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
    assert [one.name for one in tmp_path.rglob("*")] == ["recipes", "mine.yaml"]


def test_what_the_command_line_said_of_runs_holds_for_those_of_the_form() -> None:
    said = [
        "job=compose",
        "job.recipe=x",
        "recipe=anime_mix",
        "threads=1",
        "placement=cpu",
        "placement.devices=[0]",
    ]
    assert for_runs([*said, "progress=off"]) == ["threads=1", "placement=cpu", "placement.devices=[0]"]


def test_a_recipe_of_any_path_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "it's = here, {x}"
    folder.mkdir()
    path = folder / "mix.yaml"
    path.write_text("method: copy\nmodels: {a: demo:photo}\n")
    *_, recipe, _, last = command(path, [])
    assert last == "progress=lines"
    done = run(tmp_path, recipe, "job=plan")
    assert done.returncode == 0, done.stderr

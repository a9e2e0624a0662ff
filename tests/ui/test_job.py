"""job=compose as a person starts it: in a terminal, without one, and without what draws the form."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from runner.errors import UsageError
from runner.ui.job import compose, for_runs
from runner.ui.running import command
from tests.command import mind_hang_ups, python, run
from tests.ui.settings import settings

CTRL_Q, F3 = b"\x11", b"\x1bOR"
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


def own_terminal() -> None:
    """Before a program is started: its input is the terminal that it belongs to, and ends with."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    mind_hang_ups()


class Terminal:
    """A form in a terminal of its own."""

    def __init__(self, folder: Path, columns: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        self._end = time.monotonic() + 90
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runner", "job=compose", "recipe=mine"],
            cwd=folder,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "30"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=own_terminal,
        )
        os.close(theirs)

    def wait(self, words: bytes) -> None:
        """Until it has shown some words."""
        shown = b""
        while words not in shown:
            assert time.monotonic() < self._end, shown
            if select.select([self._ours], [], [], 1)[0]:
                shown += os.read(self._ours, 1 << 16)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def leave(self) -> int:
        """Its exit code, once it has ended."""
        while self.process.poll() is None:
            assert time.monotonic() < self._end
            try:
                os.read(self._ours, 1 << 16)
            except OSError:  # the terminal is closed
                break
        return self.process.wait(60)

    def close(self) -> None:
        """Closes the window: what runs in it is told so."""
        os.close(self._ours)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with a recipe."""
    pytest.importorskip("textual", reason="NOT TESTED: the composer; pip install 'runner[ui]'")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("method: copy\nmodels: {a: demo:photo}\n")
    return tmp_path


def test_in_a_terminal_the_form_comes_and_goes(mine: Path) -> None:
    form = Terminal(mine)
    try:
        form.wait(b"demo:photo")
        form.press(CTRL_Q)
        assert form.leave() == 0
    finally:
        form.process.kill()
        form.close()
    assert [one.name for one in mine.rglob("*")] == ["recipes", "mine.yaml"]


def test_what_was_not_saved_when_the_window_was_closed_is_there_again(mine: Path, cache: Path) -> None:
    drafts = cache / "drafts"  # other tests have left theirs there
    before = set(drafts.glob("*"))
    first = Terminal(mine, columns=60)
    try:
        first.wait("plan ✓".encode())
        first.press(F3)
        first.wait(b"models:")
        first.press(b"# more")
        first.wait(b"not saved")
        first.close()
        assert first.process.wait(60) in (-signal.SIGHUP, 128 + signal.SIGHUP)  # wherever it is told
        assert len(set(drafts.glob("*")) - before) == 1
    finally:
        first.process.kill()
    second = Terminal(mine)
    try:
        second.wait(b"here again")
        second.press(CTRL_Q)
        second.wait(b"without saving")
        second.press(b"\r")
        assert second.leave() == 0
    finally:
        second.process.kill()
        second.close()
    assert set(drafts.glob("*")) == before


def test_the_runs_of_a_form_inherit_no_wish_for_tracebacks(
    mine: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as the command sets it for itself
    monkeypatch.chdir(mine)
    with pytest.raises(UsageError, match="needs a terminal"):
        compose(settings(cache), [])
    assert "HYDRA_FULL_ERROR" not in os.environ


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

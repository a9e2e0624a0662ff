"""How far a run is: numbers for programs, and quiet where nobody looks."""

from __future__ import annotations

import io
import re
import sys

import pytest

from runner.progress import progress


def test_for_programs_there_are_plain_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "mix", "lines") as advance:
        for _ in range(5):
            advance(2)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "" and lines[0] == "progress 2 of 10: mix" and lines[-1] == "progress 10 of 10: mix"
    assert all(re.fullmatch(r"progress \d+ of 10: mix", line) for line in lines)


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_elsewhere_short_work_is_quiet(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "mix", mode) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_not_drawn_for_each_of_many_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress(100_000, "headers", "auto", "models") as advance:
        for _ in range(20_000):
            advance(1)
    assert 1 <= terminal.getvalue().count("headers") < 2_000

"""Work shared out among processes: the same results, and nothing is left of them however it ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.library import processes
from runner.library.headers import entries_of
from runner.library.processes import AT_A_TIME, spread
from runner.tensors import TensorSpec
from tests.library.trees import found, write

THINGS = range(10 * AT_A_TIME + 3)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes from the first thing on."""
    monkeypatch.setattr(processes, "ALONE_SECONDS", 0.0)


def by_whom(thing: int) -> tuple[int, int]:
    return thing * thing, os.getpid()


@pytest.mark.parametrize(("count", "several"), [(1, False), (3, True), (100, True)])
def test_every_thing_is_worked_on_once_by_however_many(count: int, several: bool) -> None:
    results = dict(spread(THINGS, by_whom, count))
    assert {index: result for index, (result, _) in results.items()} == {n: n * n for n in THINGS}
    assert any(pid != os.getpid() for _, pid in results.values()) == several
    assert not multiprocessing.active_children()


def test_what_is_done_in_a_moment_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ALONE_SECONDS", 1000.0)
    assert {pid for _, (_, pid) in spread(THINGS, by_whom, 3)} == {os.getpid()}
    assert list(spread([], by_whom, 3)) == []


def test_models_read_by_several_processes_are_the_same(tmp_path: Path) -> None:
    for number in range(3 * AT_A_TIME):
        write(tmp_path / f"{number}.safetensors", {f"k{number % 40}": TensorSpec("F16", (number % 7,))})
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    memories = [tmp_path / name / "headers.json" for name in ("one", "several")]
    told: list[int] = []
    one = entries_of(found(tmp_path)[0], memories[0], {})
    assert entries_of(found(tmp_path)[0], memories[1], {}, told.append, processes=3) == one
    assert sum(told) == len(one)
    assert entries_of(found(tmp_path)[0], memories[1], {}, told.append, processes=3) == one


def dies_at(*things: int) -> Callable[[int], tuple[int, int]]:
    ours = os.getpid()

    def work(thing: int) -> tuple[int, int]:
        if thing in things and os.getpid() != ours:
            os.kill(os.getpid(), signal.SIGKILL)
        return by_whom(thing)

    return work


@pytest.mark.parametrize("things", [(40,), range(10_000)])
def test_what_a_process_leaves_undone_when_it_is_killed_is_done_by_this_one(
    things: tuple[int, ...], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING):
        results = dict(spread(THINGS, dies_at(*things), 3))
    assert {index: result for index, (result, _) in results.items()} == {n: n * n for n in THINGS}
    assert "a process ended before its work was done" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_where_no_process_can_begin_this_one_does_it_all() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (lowest + 4, before[1])
    )  # for two ends of one pipe, and no more
    try:
        results = dict(spread(THINGS, by_whom, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {index: result for index, (result, _) in results.items()} == {n: n * n for n in THINGS}
    assert {process for _, process in results.values()} == {os.getpid()}


def test_an_error_in_another_process_is_met_here_and_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(thing: int) -> int:
        if thing == 50:
            raise ZeroDivisionError(thing)
        return thing

    with pytest.raises(ZeroDivisionError):
        list(spread(THINGS, fails, 3))
    assert not multiprocessing.active_children()
    assert capfd.readouterr() == ("", "")


def test_who_leaves_off_early_ends_them() -> None:
    results = spread(THINGS, by_whom, 3)
    next(results)
    assert multiprocessing.active_children()
    results.close()
    assert not multiprocessing.active_children()


WAITING = """
import os, sys
from runner.interrupts import Interrupts
from runner.library import processes

def work(thing):
    if os.getpid() == ours:
        return thing
    os.write(1, b"begun\\n")
    os.read(0, 1)  # which never comes

ours, processes.ALONE_SECONDS = os.getpid(), 0.0
Interrupts()
try:
    list(processes.spread(range(1000), work, 2))
except BaseException as error:
    print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGINT, "KeyboardInterrupt\n"), (signal.SIGTERM, "Interrupted\n"), (signal.SIGKILL, "")],
)
@pytest.mark.parametrize("whom", ["group", "parent"])
def test_a_signal_ends_them_all_and_they_say_nothing(number: int, told: str, whom: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        assert run.stdout is not None and run.stderr is not None and run.stdin is not None
        assert [run.stdout.readline(), run.stdout.readline()] == ["begun\n", "begun\n"]
        if number == signal.SIGKILL and whom == "parent":
            run.kill()
            run.stdin.close()  # what they are at comes to an end: then they see that nobody waits for them
        else:
            (os.killpg if whom == "group" else os.kill)(run.pid, number)
        # Read to the end, which is when the last of them is gone.
        assert (run.stdout.read().replace("begun\n", ""), run.stderr.read()) == (told, "")

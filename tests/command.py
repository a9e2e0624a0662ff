"""Programs as processes of their own: our command as a user starts it, and a few lines of Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

RUNNER = (sys.executable, "-m", "runner")
Done = subprocess.CompletedProcess[str]


def process(folder: Path, *command: str, timeout: float = 120, **environment: str) -> Done:
    """A program that ended within so many seconds; the environment is ours, and what is named besides."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def run(folder: Path, *arguments: str, timeout: float = 120, **environment: str) -> Done:
    """Our command."""
    return process(folder, *RUNNER, *arguments, timeout=timeout, **environment)


def python(folder: Path, code: str, *arguments: str, **environment: str) -> Done:
    """A program of Python's."""
    return process(folder, sys.executable, "-c", code, *arguments, **environment)


@dataclass(frozen=True)
class Ended:
    """How a process ended, and the seconds from the first signal it was sent."""

    code: int
    output: str
    errors: str
    seconds: float


def interrupt(
    folder: Path, arguments: Sequence[str], seen: Callable[[], bool], number: int, times: int = 1
) -> Ended:
    """Our command, sent a signal as soon as something is seen of it.

    On a busy machine that is seen late: then its code is 0, and there is nothing to be learnt of it.
    """
    process = subprocess.Popen(
        [*RUNNER, *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=mind_hang_ups,
    )
    try:
        while process.poll() is None and not seen():
            time.sleep(0.005)
        started = time.monotonic()
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.01)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return Ended(process.returncode, output, errors, time.monotonic() - started)


def mind_hang_ups() -> None:
    """Before a program is started: it is told of hang-ups, even if nohup started the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def tries(folder: Path) -> Iterator[Path]:
    """Folders for a few tries of what a busy machine can come too late for."""
    for number in range(5):
        (folder / str(number)).mkdir()
        yield folder / str(number)


def bound_by_permissions() -> tuple[str, ...]:
    """What stands before a command that obeys the permissions of files, whoever runs the tests.

    Root passes over them. A process that has given up these two rights is still root, so that it may
    enter what is root's own and find the interpreter, but is held to the mode of each file.
    """
    if os.geteuid() != 0:
        return ()
    setpriv, lost = shutil.which("setpriv"), "-dac_override,-dac_read_search"
    prefix = (setpriv or "", f"--bounding-set={lost}", f"--inh-caps={lost}")
    if setpriv is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("SKIPPED: as root, and setpriv is missing or may not drop rights: permissions not tested")
    return prefix

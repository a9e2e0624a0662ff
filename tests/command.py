"""Programs as processes of their own: our command as a user starts it, and a few lines of Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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

"""Only regular files are opened, and nothing waits for what is none."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.disk.files import look, read_small
from runner.errors import InputError
from runner.formats import READERS
from tests.command import bound_by_permissions, process


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "found a pipe"),
    "socket": (a_socket, "found a socket"),
    "folder": (os.mkdir, "found a folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    "dangling link": (lambda path: path.symlink_to("nothing"), "no such file"),
    "link to itself": (lambda path: path.symlink_to(path), "a loop of symbolic links"),
    "nothing": (lambda path: None, "no such file"),
    "a long name": (lambda path: None, "file name too long"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    make, words = KINDS[kind]
    path = tmp_path / ("x" * 300 if kind == "a long name" else "x")
    make(path)
    started = time.monotonic()
    for read in (lambda: look(path, "x"), lambda: read_small(path, "x", 100)):
        with pytest.raises(InputError, match=rf"^x: .*{words}"):
            read()
    assert time.monotonic() - started < 2


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"secret")
    path.chmod(0)
    code = "from pathlib import Path; from runner.disk.files import look; look(Path('x'), 'x')"
    done = process(tmp_path, *bound_by_permissions(), sys.executable, "-c", code)
    assert done.stderr.splitlines()[-1].startswith("runner.errors.InputError: x: permission denied")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "dangling link"])
def test_a_model_is_a_regular_file_or_a_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    KINDS[kind][0](path)
    reader = next(reader for reader in READERS if reader.accepts(path))
    with pytest.raises(InputError, match=KINDS[kind][1]):
        reader.open(path, "x", None)

"""What is not saved, kept on the disk while a form is open: its process or connection may end at any time.

Each form has a file of its own there and holds its lock, which is free when the process is no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

from runner.disk.partials import is_at
from runner.errors import OutputError, quote
from runner.ui.opened import Opened
from runner.ui.store import Stored

_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Kept:
    """The copy of what one form has not saved.

    Args:
        folder: where all forms keep theirs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._lock = -1
        self._said: tuple[str, str] | None = None
        self._has_ended = False

    def keep(self, opened: Opened) -> None:
        """Keeps what would be lost of an open recipe; nothing if nothing would.

        Raises:
            OutputError: the device refused; what was kept before still is.
        """
        stored, said = opened.stored, (opened.stored.sha256, opened.draft.text)
        if self._has_ended or said == self._said:
            return
        if opened.can_be_left:
            self.drop()
            return
        try:
            self._write(self._path or self._folder / f"{_mark(stored)}.{time.time_ns()}.json", said)
        except OSError as error:
            raise OutputError(f"{quote(self._folder)}: {error.strerror}") from error
        self._said = said

    def drop(self) -> None:
        """Keeps nothing: it is saved, or not wanted."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._let_go()

    def end(self) -> None:
        """Lets the next form have what is kept: this one ends, and changes nothing any more."""
        self._let_go()
        self._has_ended = True

    def reopen(self, stored: Stored) -> Opened:
        """Opens a recipe with what a form that ended had not saved of it, as a change that can be undone."""
        self.drop()
        for path in self._folder.glob("*.part"):  # of processes that were killed while they wrote
            if (lock := _taken(path)) is not None:
                path.unlink()
                os.close(lock)
        opened = Opened(stored)
        for path in sorted(self._folder.glob(f"{_mark(stored)}.*.json"), reverse=True):  # the last one first
            if (lock := _taken(path)) is None:
                continue
            try:
                said = _read(path)
            except OSError:  # it may be readable another time
                os.close(lock)
                continue
            self._path, self._lock, self._said = path, lock, said
            if said is not None and opened.restore(*said):
                return opened
            self.drop()
        return opened

    def _let_go(self) -> None:
        if self._path is not None:
            os.close(self._lock)
        self._path, self._lock, self._said = None, -1, None

    def _write(self, path: Path, said: tuple[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        lock = os.open(partial, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(lock, "w", closefd=False) as file:
                json.dump(said, file)
            partial.replace(path)
        except BaseException:
            os.close(lock)
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        if self._path is not None:
            os.close(self._lock)
        self._path, self._lock = path, lock


def _mark(stored: Stored) -> str:
    """What the copies of one recipe have in their names."""
    return hashlib.sha256(os.fsencode(stored.path)).hexdigest()[:16]


def _taken(path: Path) -> int | None:
    """The locked file of a form that is no more; None if one has it."""
    lock = -1
    try:
        lock = os.open(path, _FLAGS)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(lock, path):
            return lock
    except OSError:
        pass
    if lock >= 0:
        os.close(lock)
    return None


def _read(path: Path) -> tuple[str, str] | None:
    """The sha256 of the file that was opened, and the text; None if it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        sha256, text = json.loads(content)
    except (ValueError, TypeError, RecursionError):
        return None
    return (sha256, text) if isinstance(sha256, str) and isinstance(text, str) else None

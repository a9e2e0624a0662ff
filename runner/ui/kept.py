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
from dataclasses import replace
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

    def keep(self, opened: Opened) -> None:
        """Keeps what would be lost of an open recipe; nothing if nothing would.

        Raises:
            OutputError: the device refused; what was kept before still is.
        """
        stored, said = opened.stored, (opened.stored.sha256, opened.draft.text)
        if opened.can_be_left:
            self.drop()
        elif said != self._said:
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
            os.close(self._lock)
        self._path, self._lock, self._said = None, -1, None

    def reopen(self, stored: Stored) -> Opened:
        """Opens a recipe with what a form that ended had not saved of it, as a change that can be undone.

        It is saved over the file that form had opened alone.
        """
        self.drop()
        for path in sorted(self._folder.glob(f"{_mark(stored)}.*.json"), reverse=True):  # the last one first
            if (lock := _taken(path)) is None:
                continue
            self._path, self._lock, self._said = path, lock, _read(path)
            if self._said is not None:
                opened = _restored(stored, *self._said)
                if not opened.can_be_left:
                    return opened
            self.drop()
        return Opened(stored)

    def _write(self, path: Path, said: tuple[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        lock = os.open(partial, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with contextlib.suppress(OSError):  # some networks' file systems know no locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.write_text(json.dumps(said))
            partial.replace(path)
        except BaseException:
            os.close(lock)
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        if self._path is not None:
            os.close(self._lock)
        self._path, self._lock = path, lock


def _restored(stored: Stored, sha256: str, text: str) -> Opened:
    opened = Opened(replace(stored, sha256=sha256))
    opened.change(lambda draft: draft.with_text(text))
    return opened


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
    """The sha256 of the file that was opened, and the text; None if it is damaged."""
    try:
        sha256, text = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return (sha256, text) if isinstance(sha256, str) and isinstance(text, str) else None

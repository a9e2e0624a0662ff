"""A disk on which one call goes wrong: stands between the program and the functions of `os`.

The program reads and writes through functions of `os` (and `fcntl.flock`), which call the system here
too, but for the one that is told to fail, and but for syncing: that is only noted, so that what was never
synced can be lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

CALLS = (
    *("open", "dup", "close", "preadv", "pread", "pwrite", "write", "fsync", "posix_fallocate", "ftruncate"),
    *("replace", "rename", "unlink", "rmdir", "mkdir", "chmod", "fstat", "lstat", "scandir", "listdir"),
)
TRANSFERS = {"preadv", "pread", "pwrite", "write"}
WRITES = {"pwrite", "write"}
CHANGES = {"pwrite", "write", "posix_fallocate", "ftruncate"}  # what a file holds
REMOVALS = {"open", "close", "fstat", "lstat", "scandir", "listdir", "unlink", "rmdir", "flock"}


class DiedError(BaseException):
    """The process is no more: from here on none of its calls has an effect."""


class Disk:
    """Counts calls and has one of them go wrong.

    Args:
        fault: "error": the call fails once; "errors": it and all later ones of its name; "short": a transfer
            moves one byte; "lost": a write that says it was done; "death": the process ends at it.
        number: of the call, from 0, among those that can go wrong so.
    """

    def __init__(self, fault: str, number: int) -> None:
        self.fault = fault
        self.number = number
        self.name: str | None = None  # of the call that went wrong
        self.count = 0
        self._lock = threading.Lock()
        self._opened: set[int] = set()
        self._unsynced: dict[tuple[int, int], int] = {}  # device and inode → a descriptor of its own
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CALLS}
        self._real["flock"] = fcntl.flock

    @contextmanager
    def in_place(self) -> Iterator[Disk]:
        """Stands between until the block ends; then all it has open is closed, as at the end of a process."""
        with mock.patch.object(fcntl, "flock", self._standing_for("flock")):
            patches = [mock.patch.object(os, name, self._standing_for(name)) for name in CALLS]
            try:
                for patch in patches:
                    patch.start()
                yield self
            finally:
                for patch in patches:
                    patch.stop()
                if self.name and self.fault == "death":
                    for descriptor in self._opened:
                        with suppress(OSError):
                            os.close(descriptor)

    def lose_unsynced(self) -> None:
        """The power fails: what was written and not synced is zeros."""
        for descriptor in self._unsynced.values():
            os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)

    def forget(self) -> None:
        """Lets go of the files that are not synced."""
        for descriptor in self._unsynced.values():
            os.close(descriptor)
        self._unsynced.clear()

    def _standing_for(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any, **named: Any) -> Any:
            wrong = self._goes_wrong(name)
            if wrong == "death":
                raise DiedError
            if wrong in ("error", "errors"):
                if name == "close":  # the descriptor is closed even so
                    real(*arguments)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if wrong == "lost":
                return len(arguments[1])
            if wrong == "short":
                return _one_byte(name, real, arguments)
            if name == "fsync":
                self._note_synced(arguments[0])
                return None
            if name == "close":  # before it is: then another thread may get its number
                self._opened.discard(arguments[0])
            result = real(*arguments, **named)
            self._note(name, arguments, result)
            return result

        return call

    def _goes_wrong(self, name: str) -> str | None:
        with self._lock:
            if self.name is not None:
                again = self.fault == "death" or (self.fault == "errors" and name == self.name)
                return self.fault if again else None
            if self.fault in ("short", "lost") and name not in (
                TRANSFERS if self.fault == "short" else WRITES
            ):
                return None
            self.count += 1
            if self.count <= self.number:
                return None
            self.name = name
            return self.fault

    def _note(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        with self._lock:
            if name in ("open", "dup"):
                self._opened.add(result)
            elif name in CHANGES:
                status = self._real["fstat"](arguments[0])
                inode = status.st_dev, status.st_ino
                if inode not in self._unsynced:
                    self._unsynced[inode] = self._real["dup"](arguments[0])

    def _note_synced(self, descriptor: int) -> None:
        with self._lock:
            status = self._real["fstat"](descriptor)
            if (kept := self._unsynced.pop((status.st_dev, status.st_ino), None)) is not None:
                self._real["close"](kept)


def _one_byte(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if name == "preadv":
        return real(arguments[0], [arguments[1][0][:1]], *arguments[2:])
    if name == "pread":
        return real(arguments[0], min(1, arguments[1]), *arguments[2:])
    return real(arguments[0], arguments[1][:1], *arguments[2:])

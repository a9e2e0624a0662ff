"""Opening and reading files that came from strangers: regular files only, by position, checked for change."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from runner.errors import InputError, OutputError, escape

RACY_SECONDS = 2.0  # a file written within this time could be written again with the same time
PIECE_BYTES = 1 << 20  # one read or write call: larger pieces are no faster, smaller ones cost calls


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file was when it was first looked at; any change of it is noticed.

    Times are never compared with the clock: only for equality.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def key(self) -> str:
        """As a text, which caches know a file by."""
        return f"{self.device}:{self.inode}:{self.size}:{self.mtime_ns}:{self.ctime_ns}"

    def settled(self, now: float) -> bool:
        """Whether the file is so old that it cannot change any more without another time.

        Args:
            now: seconds since 1970.
        """
        return now - self.mtime_ns / 1e9 > RACY_SECONDS


@dataclass(frozen=True, slots=True)
class InputFile:
    """A regular file that will be read.

    Attributes:
        path: where it is on this machine; never recorded.
        label: how messages call it: as the recipe names its source, then the file inside a folder.
        identity: what it was when it was opened first.
    """

    path: Path
    label: str
    identity: Identity

    def open(self) -> int:
        """A file descriptor for reading; the caller closes it.

        Raises:
            InputError: it cannot be opened any more, or is not the file that was looked at.
        """
        descriptor = open_regular(self.path, self.label)
        try:
            self.check_unchanged(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def check_unchanged(self, descriptor: int) -> None:
        """Raises: InputError if the open file is no longer what it was."""
        if identity(descriptor, self.label) != self.identity:
            raise changed(self.label)


def changed(label: str) -> InputError:
    """The error for an input that another program wrote to."""
    return InputError(
        f"{escape(label)}: changed while it was read. No output was written.",
        tag="CHANGED",
        hint="wait until nothing writes to it any more, then run again",
    )


def identity(descriptor: int, label: str) -> Identity:
    """The identity of an open file.

    Raises:
        OutputError: the device failed.
    """
    return identity_of(_status(descriptor, label))


def _status(descriptor: int, label: str) -> os.stat_result:
    try:
        return os.fstat(descriptor)
    except OSError as error:
        raise OutputError(f"{escape(label)}: {_reason(error)}") from error


def identity_of(status: os.stat_result) -> Identity:
    """The identity of a file whose status was asked for."""
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_regular(path: Path, label: str) -> int:
    """A file descriptor for reading a regular file, without ever blocking on a pipe or device.

    Raises:
        InputError: missing, unreadable, or not a regular file; says which.
    """
    try:
        _check_regular(path.stat().st_mode, label)  # to open a device can do something
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            hint = "raise the limit: ulimit -n"
            raise OutputError(f"{escape(label)}: too many open files", hint=hint) from error
        if error.errno in (errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT):
            raise OutputError(f"{escape(label)}: {_reason(error)}") from error
        raise InputError(f"{escape(label)}: {_reason(error)}", tag="MISSING") from error
    try:
        _check_regular(_status(descriptor, label).st_mode, label)  # it may be another one now
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(mode: int, label: str) -> None:
    if not stat.S_ISREG(mode):
        found = kind_of_file(mode)
        raise InputError(f"{escape(label)}: expected a regular file, found {found}", tag="NOT-A-FILE")


def kind_of_file(mode: int) -> str:
    """What is no regular file, by its mode: "a folder", "a pipe"."""
    return next((name for name, test in _KINDS if test(mode)), "not a file")


_KINDS = (
    ("a folder", stat.S_ISDIR),
    ("a pipe", stat.S_ISFIFO),
    ("a socket", stat.S_ISSOCK),
    ("a device", lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode)),
)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "no such file"
    if error.errno == errno.ELOOP:
        return "a loop of symbolic links"
    return (error.strerror or str(error)).lower()


def look(path: Path, label: str) -> InputFile:
    """Opens a regular file once and notes what it is.

    Raises:
        InputError: as open_regular.
    """
    descriptor = open_regular(path, label)
    try:
        return InputFile(path, label, identity(descriptor, label))
    finally:
        os.close(descriptor)


def read_into(descriptor: int, buffer: memoryview, offset: int, label: str) -> None:
    """Fills a buffer from a position of a file.

    Args:
        descriptor: open for reading.
        buffer: writable bytes; all of them are filled.
        offset: byte position in the file.
        label: names the file in an error.

    Raises:
        InputError: the file ends before the buffer is full.
        OutputError: the device failed.
    """
    done = 0
    while done < len(buffer):
        piece = buffer[done : done + PIECE_BYTES]
        try:
            count = os.preadv(descriptor, [piece], offset + done)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{escape(label)}: reading at byte {offset + done}: {reason}") from error
        if count == 0:
            raise InputError(
                f"{escape(label)}: truncated: it ends at byte {offset + done}, "
                f"{len(buffer) - done} bytes are missing",
                tag="TRUNCATED",
            )
        done += count


def read_file(file: InputFile) -> bytes:
    """The whole content of a small file that was looked at before.

    Raises:
        InputError: it is not what it was.
    """
    descriptor = file.open()
    try:
        content = bytearray(file.identity.size)
        read_into(descriptor, memoryview(content), 0, file.label)
        file.check_unchanged(descriptor)
        return bytes(content)
    finally:
        os.close(descriptor)


def read_small(path: Path, label: str, limit: int) -> bytes:
    """The whole content of a small file.

    Raises:
        InputError: as open_regular, or it is larger than limit bytes.
    """
    descriptor = open_regular(path, label)
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise InputError(f"{escape(label)}: {size} bytes, at most {limit} are read", tag="TOO-LARGE")
        content = bytearray(size)
        read_into(descriptor, memoryview(content), 0, label)
        return bytes(content)
    finally:
        os.close(descriptor)

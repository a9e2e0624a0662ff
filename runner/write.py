"""The output's way to its final name: all or nothing.

At every instant the final name is absent, unchanged, or a complete verified model. The output is
built beside its final place under the name .rnr-<8 hex>.part, locked, preallocated, written by
position, synced, read back, and renamed. A partial without a lock is what a killed run left behind;
the next run with the same output removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from runner.checkpoint import Layout, OutputFile
from runner.errors import BusyError, InputError, MismatchError, OutputError, RunnerError, UsageError, quote
from runner.files import PIECE_BYTES, open_regular, read_into

if TYPE_CHECKING:
    from torch import Tensor


LOCK_TRIES, LOCK_SECONDS = 5, 0.02
MAX_TRIES = 100  # to make a partial that other runs rename away


@dataclass(frozen=True, slots=True)
class Written:
    """A piece of a weight file, and how to recognise it when it is read back.

    Attributes:
        file: index in the layout's files.
        offset, nbytes: where it is in the file.
        checksum: of its bytes, as they were in memory.
    """

    file: int
    offset: int
    nbytes: int
    checksum: int


def checksum(data: memoryview) -> int:
    """The sum of the 64-bit words of a piece, each times an odd number of its own, modulo 2⁶⁴.

    It changes with any word that changes, and with words that change places; a twentieth of the time
    of SHA-256, which the file has beside.
    """
    import torch  # here: a plan needs this module, but no torch

    whole = len(data) // 8
    tail = int.from_bytes(data[8 * whole :], "little")
    if not whole:
        return tail
    factors = _factors(1 << (whole - 1).bit_length())[:whole]
    words = torch.frombuffer(data, dtype=torch.int64, count=whole)
    return (int((words * factors).sum()) + tail * (2 * whole + 1)) % 2**64


@functools.cache  # of powers of two: twice the memory of a piece in all
def _factors(count: int) -> Tensor:
    """The first odd numbers."""
    import torch

    return torch.arange(1, 2 * count, 2, dtype=torch.int64)


def check_place(layout: Layout, folder: Path, inputs: set[tuple[int, int]]) -> Path:
    """The final path of the output, if it may be written there.

    Args:
        layout: of the output.
        folder: where it goes; must exist.
        inputs: (device, inode) of every input file and folder.

    Raises:
        UsageError: the place is an input, a symbolic link, or a folder that is there already.
        OutputError: the folder is missing or cannot be written to.
    """
    target = folder / layout.name
    if not folder.is_dir():
        raise OutputError(
            f"output folder {quote(folder)}: no such folder", hint=f"make it: mkdir -p {folder}"
        )
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return target
    except OSError as error:
        raise _failed(target, error) from error
    if (status.st_dev, status.st_ino) in inputs:
        raise UsageError(f"output {quote(target)} is one of the inputs", hint="give output.name another name")
    if target.is_symlink():
        raise UsageError(f"output {quote(target)} is a symbolic link; it would be replaced", hint="remove it")
    if target.is_dir():
        what = "is there already" if layout.folder else "is a folder"
        hint = "remove it, or give output.name another name"
        raise UsageError(f"output {quote(target)} {what}; folders are never replaced", hint=hint)
    if layout.folder:
        raise UsageError(f"output {quote(target)} is a file; the output is a folder", hint="remove it")
    return target


def free_bytes(folder: Path) -> int:
    """Bytes that can be written to the file system of a folder.

    Raises:
        OutputError: there is no such folder.
    """
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(
            f"output folder {quote(folder)}: {reason}", hint="make it first: mkdir -p"
        ) from error


def check_room(layout: Layout, target: Path) -> None:
    """Checks that there is room for the output, where what is written has no layout yet but its largest.

    Raises:
        OutputError: there is not.
    """
    if free_bytes(target.parent) < layout.nbytes:
        raise _failed(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), layout.nbytes)


class Staging:
    """The partial output, from its creation to its publication; a context manager that cleans up.

    Args:
        layout: what will be written.
        target: the final path.
        checked: whether checksums are taken of what is written, for verify.
    """

    def __init__(self, layout: Layout, target: Path, *, checked: bool = True) -> None:
        self.layout = layout
        self.target = target
        self.checked = checked
        digits = hashlib.sha256(target.name.encode()).hexdigest()[:8]
        self.partial = target.with_name(f".rnr-{digits}.part")
        self.stale = False
        self._lock: int | None = None
        self._descriptors: list[int] = []

    def __enter__(self) -> Staging:
        """Creates, locks and preallocates the partial output, and writes its headers.

        Raises:
            BusyError: another run is writing this output.
            OutputError: no room, no permission, ...; nothing is left behind.
        """
        try:
            self._create()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not published."""
        self._discard()

    def path(self, file: OutputFile) -> Path:
        """Where a weight file is being built."""
        return self.partial / file.name if self.layout.folder else self.partial

    def write(self, file: int, data: memoryview, offset: int) -> Written:
        """Writes bytes at a position of a weight file; any thread, any order.

        Raises:
            OutputError: the device refused.
        """
        self._put(file, data, offset)
        return Written(file, offset, len(data), checksum(data) if self.checked else 0)

    def _put(self, file: int, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._descriptors[file], data[done : done + PIECE_BYTES], offset + done)
            except OSError as error:
                raise _failed(self.target, error) from error

    def sync(self) -> None:
        """Brings every file to the disk. An error here is final.

        Raises:
            OutputError: the device failed.
        """
        try:
            for descriptor in self._descriptors:
                os.fsync(descriptor)
        except OSError as error:
            raise _failed(self.target, error) from error

    def verify(self, pieces: Sequence[Written], threads: int) -> None:
        """Reads the output back and compares it with what was written.

        Args:
            pieces: what was written after the headers, with checksums taken from memory.
            threads: how many read at a time.

        Raises:
            MismatchError: a file does not hold what was written to it.
        """
        try:
            for file in self.layout.files:
                self._verify_header(file)
            stop = threading.Event()
            shares = [pieces[number::threads] for number in range(threads)]
            with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
                try:
                    for _ in pool.map(lambda share: self._verify_pieces(share, stop), shares):
                        pass
                finally:
                    stop.set()
        except InputError as error:
            raise MismatchError(f"read back: {error.message}. No output was written.") from error

    def _verify_header(self, file: OutputFile) -> None:
        descriptor = open_regular(self.path(file), file.name)
        try:
            found = bytearray(len(file.header))
            read_into(descriptor, memoryview(found), 0, file.name)
            if found != file.header or os.fstat(descriptor).st_size != file.nbytes:
                raise self._mismatch(file, "header or size")
        finally:
            os.close(descriptor)

    def _verify_pieces(self, pieces: Sequence[Written], stop: threading.Event) -> None:
        buffer = bytearray(max((piece.nbytes for piece in pieces), default=0))
        opened: dict[int, int] = {}
        try:
            for piece in pieces:
                if stop.is_set():
                    return
                file = self.layout.files[piece.file]
                if piece.file not in opened:
                    opened[piece.file] = open_regular(self.path(file), file.name)
                view = memoryview(buffer)[: piece.nbytes]
                read_into(opened[piece.file], view, piece.offset, file.name)
                if checksum(view) != piece.checksum:
                    raise self._mismatch(file, f"bytes {piece.offset} to {piece.offset + piece.nbytes}")
        finally:
            for descriptor in opened.values():
                os.close(descriptor)

    def _mismatch(self, file: OutputFile, what: str) -> MismatchError:
        return MismatchError(
            f"{quote(file.name or self.target.name)}: {what}: what was read back is not what was written. "
            "No output was written.",
            hint="the disk or the memory of this machine is failing",
        )

    def publish(self) -> None:
        """Gives the output its final name. After this it is never removed.

        Raises:
            OutputError: the name could not be given; nothing is left behind. Or the folder could
                not be synced: then the output is in place and complete.
        """
        try:
            mask = os.umask(0)
            os.umask(mask)
            for path in [self.partial, *(self.partial.rglob("*") if self.layout.folder else [])]:
                path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
                if path.is_dir():
                    _sync_folder(path)
            self.partial.replace(self.target)
        except OSError as error:
            raise _failed(self.target, error) from error
        try:
            _sync_folder(self.target.parent)
        except OSError as error:
            message = f"{quote(self.target)} is in place and verified, but its folder could not be synced"
            raise OutputError(f"{message}: {error.strerror}") from error

    def _sweep(self) -> None:
        """Removes what killed runs left in this folder of other outputs: partials without a lock."""
        for path in self.target.parent.glob(".rnr-????????.part"):
            if path == self.partial:
                continue
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                lock = os.open(path, flags)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    self.stale = True
                finally:
                    os.close(lock)

    def _create(self) -> None:
        self._sweep()
        # Between opening and locking another run may have finished and renamed the partial away.
        for _ in range(MAX_TRIES):
            if self._open_locked():
                break
        else:  # a folder where no file can be made, such as those of /proc
            raise OutputError(f"{quote(self.partial)}: cannot be made there", hint="give another output_dir")
        try:
            if self.layout.folder:
                for name, text in self.layout.texts.items():
                    path = self.partial / name
                    path.parent.mkdir(exist_ok=True)
                    with path.open("wb") as stream:
                        stream.write(text)
                        stream.flush()
                        os.fsync(stream.fileno())
            for file in self.layout.files:
                path = self.path(file)
                if self.layout.folder:
                    path.parent.mkdir(exist_ok=True)
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    descriptor = os.open(path, flags, 0o600)
                else:
                    assert self._lock is not None  # _open_locked made it
                    descriptor = os.dup(self._lock)
                self._descriptors.append(descriptor)
                _allocate(descriptor, file.nbytes)
        except OSError as error:
            raise _failed(self.target, error, self.layout.nbytes) from error
        for number, file in enumerate(self.layout.files):
            self._put(number, memoryview(file.header), 0)

    def _open_locked(self) -> bool:
        """Opens and locks the partial; False if it vanished in between and must be tried again."""
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        ours = _is_there(self.partial)
        self.stale |= ours
        try:
            if self.layout.folder:
                if not ours:
                    self.partial.mkdir(mode=0o700)
                lock = os.open(self.partial, flags | os.O_RDONLY | os.O_DIRECTORY)
            else:
                lock = os.open(self.partial, flags | os.O_RDWR | os.O_CREAT, 0o600)
        except (FileNotFoundError, FileExistsError):
            return False
        except OSError as error:
            if self.layout.folder and not ours:
                with contextlib.suppress(OSError):
                    self.partial.rmdir()
            raise _failed(self.target, error) from error
        try:
            _lock(lock)
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                hint = "wait for it, or give output.name another name"
                raise BusyError(f"another run is writing {quote(self.target)}", hint=hint) from error
            raise _failed(self.target, error) from error
        try:
            if not os.path.samestat(os.fstat(lock), os.lstat(self.partial)):
                raise FileNotFoundError
        except FileNotFoundError:
            os.close(lock)
            return False
        self._lock = lock
        if ours:  # a lock that is free: nobody is building this any more
            if self.layout.folder:
                for entry in self.partial.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            else:
                os.ftruncate(lock, 0)
        return True

    def _discard(self) -> None:
        """Removes the partial, if it is still there and ours, and lets the lock go."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._lock), os.lstat(self.partial)):
                    shutil.rmtree(self.partial) if self.layout.folder else self.partial.unlink()
            os.close(self._lock)
            self._lock = None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file whole or not at all.

    Raises:
        OutputError: the device refused; the old content is unchanged.
    """
    partial = path.with_name(f".rnr-{path.name}.part")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise _failed(path, error) from error


def _lock(descriptor: int) -> None:
    """Takes the lock of a partial. Another run that looks whether it is stale holds it for a moment."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(LOCK_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _allocate(descriptor: int, size: int) -> None:
    """Takes the room on the disk now, so that it cannot run out later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError, needed: int | None = None) -> RunnerError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and needed is not None:
        free = free_bytes(path.parent)
        reason = f"{reason}: {needed} bytes needed, {free} free"
    return OutputError(f"writing {quote(path)}: {reason}. No output was written.", tag="WRITE")

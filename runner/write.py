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
import re
import shutil
import stat
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
from runner.files import PIECE_BYTES, open_regular, read_into, read_small

if TYPE_CHECKING:
    from torch import Tensor


LOCK_TRIES, LOCK_SECONDS = 5, 0.02
MAX_TRIES = 100  # to make a partial that other runs rename away
_PARTIAL = re.compile(r"\.rnr-[0-9a-f]{8}\.part")


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
    if stat.S_ISLNK(status.st_mode):
        raise UsageError(f"output {quote(target)} is a symbolic link; it would be replaced", hint="remove it")
    if stat.S_ISDIR(status.st_mode):
        what = "is there already" if layout.folder else "is a folder"
        hint = "remove it, or give output.name another name"
        raise UsageError(f"output {quote(target)} {what}; folders are never replaced", hint=hint)
    if layout.folder:
        raise UsageError(f"output {quote(target)} is a file; the output is a folder", hint="remove it")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"output {quote(target)} is no regular file; it would be replaced", hint="remove it")
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


class Staging:
    """The partial output, from its creation to its publication; a context manager that cleans up.

    Args:
        layout: what will be written.
        target: the final path.
        checked: whether checksums are taken of what is written, for verify.

    Attributes:
        partial: where the output is being built.
        stale: whether something of a killed run was removed.
        in_use: whether threads that could not be stopped still write: then the files stay open until the
            process ends, so that nothing else gets their descriptors.
    """

    def __init__(self, layout: Layout, target: Path, *, checked: bool = True) -> None:
        self.layout = layout
        self.target = target
        self.checked = checked
        digits = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
        self.partial = target.with_name(f".rnr-{digits}.part")
        self.stale = False
        self.in_use = False
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
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise _failed(self.target, error, self.layout.nbytes) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not published."""
        try:
            self._discard()
        except BaseException:  # a signal came in the middle of it
            self._discard()
            raise

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
                done += _some(
                    os.pwrite(self._descriptors[file], data[done : done + PIECE_BYTES], offset + done)
                )
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
            for name, text in self.layout.texts.items():
                if read_small(self.partial / name, name, len(text)) != text:
                    raise self._mismatch(name, "content")
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
                raise self._mismatch(file.name, "header or size")
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
                    raise self._mismatch(file.name, f"bytes {piece.offset} to {piece.offset + piece.nbytes}")
        finally:
            for descriptor in opened.values():
                os.close(descriptor)

    def _mismatch(self, name: str, what: str) -> MismatchError:
        return MismatchError(
            f"{quote(name or self.target.name)}: {what}: what was read back is not what was written. "
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

    def _create(self) -> None:
        for path in self.target.parent.iterdir():
            if _PARTIAL.fullmatch(path.name) and path != self.partial:
                with contextlib.suppress(OSError):  # held, or not ours to remove
                    self.stale |= _clear(path)
        # Between opening and locking another run may have finished and renamed the partial away.
        for _ in range(MAX_TRIES):
            if self._open_locked():
                break
        else:  # a folder where no file can be made, such as those of /proc
            raise OutputError(f"{quote(self.partial)}: cannot be made there", hint="give another output_dir")
        if self.layout.folder:
            for name, text in self.layout.texts.items():
                path = self.partial / name
                path.parent.mkdir(exist_ok=True)
                _write_new(path, text, os.O_EXCL)
        for file in self.layout.files:
            if self.layout.folder:
                path = self.path(file)
                path.parent.mkdir(exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptors.append(os.open(path, flags, 0o600))
            else:
                assert self._lock is not None  # _open_locked made it
                self._descriptors.append(os.dup(self._lock))
            _allocate(self._descriptors[-1], file.nbytes)
        for number, file in enumerate(self.layout.files):
            self._put(number, memoryview(file.header), 0)

    def _open_locked(self) -> bool:
        """Makes and locks the partial; False if another run was quicker and it must be tried again.

        Raises:
            BusyError: another run is building this output.
        """
        try:
            self.stale |= _clear(self.partial, LOCK_TRIES)
        except BlockingIOError as error:
            hint = "wait for it, or give output.name another name"
            raise BusyError(f"another run is writing {quote(self.target)}", hint=hint) from error
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if self.layout.folder:
                self.partial.mkdir(mode=0o700)
                self._lock = os.open(self.partial, flags | os.O_RDONLY | os.O_DIRECTORY)
            else:
                self._lock = os.open(self.partial, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            _lock(self._lock, LOCK_TRIES)
            if _is_at(self._lock, self.partial):
                return True
        except (FileNotFoundError, FileExistsError, BlockingIOError):
            pass  # another run took it for one that a killed run left, or made its own
        self._close()
        return False

    def _discard(self) -> None:
        """Removes the partial, if it is still there and ours, and lets the lock go."""
        with contextlib.suppress(OSError):
            if self._lock is None:  # a signal came before it had one
                _clear(self.partial)
            elif _is_at(self._lock, self.partial):
                _remove(self.partial)
        self._close()

    def _close(self) -> None:
        descriptors = [*self._descriptors, *([] if self._lock is None else [self._lock])]
        self._descriptors.clear()
        self._lock = None
        for descriptor in [] if self.in_use else descriptors:
            with contextlib.suppress(OSError):  # what is synced is synced
                os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file whole or not at all.

    Raises:
        OutputError: the device refused; the old content is unchanged.
    """
    partial = path.with_name(f".rnr-{path.name}.part")
    try:
        _write_new(partial, content, os.O_TRUNC)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        raise
    try:
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{quote(path)} is written, but its folder could not be synced") from error


def _write_new(path: Path, content: bytes, flags: int) -> None:
    """Writes and syncs a file."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        done = 0
        while done < len(content):
            done += _some(os.write(descriptor, content[done:]))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _some(count: int) -> int:
    """How much was written, if anything was: else it would be tried for ever."""
    if not count:
        raise OSError(errno.EIO, "the device takes nothing")
    return count


def _clear(path: Path, tries: int = 1) -> bool:
    """Removes a partial that no run holds; returns whether there was one.

    Args:
        path: of the partial.
        tries: to lock it. Another run that does the same holds it for a moment.

    Raises:
        BlockingIOError: a run holds it.
        OSError: it cannot be removed.
    """
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        _lock(lock, tries)
        if not _is_at(lock, path):  # it has got its final name, or another run makes a new one
            return False
        _remove(path)
        return True
    except FileNotFoundError:
        return False
    finally:
        os.close(lock)


def _lock(descriptor: int, tries: int) -> None:
    for _ in range(tries - 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(LOCK_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one under a name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


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

"""The output's way to its final name: all or nothing.

At every instant the final name is absent, unchanged, or a complete verified model. The output is
built beside its final place under the name .rnr-<8 hex>.part, locked, preallocated, written by
position, synced, read back, and renamed. A partial without a lock is what a killed run left behind;
the next run with the same output removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from runner.checkpoint import SIDECAR, Layout, OutputFile
from runner.disk.files import PIECE_BYTES
from runner.disk.hashes import FileHashes
from runner.disk.partials import (
    LOCK_TRIES,
    allocate,
    clear,
    is_at,
    lock,
    partial_path,
    remove,
    some,
    sweep_partials,
    sync_folder,
    write_new,
)
from runner.disk.read_back import Built, Written, checksum, read_back
from runner.errors import BusyError, MismatchError, OutputError, RunnerError, UsageError, quote

MAX_TRIES = 100  # to make a partial that other runs rename away


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
        if sidecar_path(target).is_dir():
            message = f"{quote(sidecar_path(target))} is a folder; the digests of the tensors go there"
            raise UsageError(message, hint="remove it, or give output.name another name")
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


def sidecar_path(model: Path) -> Path:
    """Where the digests of a model's tensors stand: beside its file or folder."""
    return model.with_name(model.name + SIDECAR)


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
        checked: whether checksums are taken of what is written, for read_back.

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
        self.partial = partial_path(target)
        self.stale = False
        self.in_use = False
        self._contents: Sequence[str] = ()
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
        return Written(file, offset, len(data), checksum(data) if self.checked else None)

    def _put(self, file: int, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                done += some(
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

    def fill(self, layout: Layout) -> None:
        """Puts in what headers and texts say that is known at the end alone; before the headers are stamped.

        Args:
            layout: the planned one with its headers and texts as they are now: places and sizes of the
                weight files are the same.

        Raises:
            OutputError: the device refused.
        """
        planned, self.layout = self.layout, layout
        for number, (before, file) in enumerate(zip(planned.files, layout.files, strict=True)):
            assert (before.name, before.nbytes) == (file.name, file.nbytes)
            assert len(before.header) == len(file.header)
            if before.header != file.header:
                self._put(number, memoryview(file.header), 0)
        try:
            for name, text in layout.texts.items() if layout.folder else ():
                if planned.texts.get(name) != text:
                    self._write_text(name, text)
        except OSError as error:
            raise _failed(self.target, error) from error

    def stamp(self, contents: Sequence[str]) -> None:
        """Writes the digest of each weight file's data into its header, where zeros kept its place.

        Raises:
            OutputError: the device refused.
        """
        self._contents = contents
        for number, (file, digest) in enumerate(zip(self.layout.files, contents, strict=True)):
            self._put(number, memoryview(digest.encode()), file.stamp)

    def read_back(self, pieces: Sequence[Written], threads: int) -> list[FileHashes]:
        """Reads the output back, compares it with what was written if it is `checked`, and hashes it.

        Args:
            pieces: what was written after the headers.
            threads: how many work at a time.

        Raises:
            MismatchError: a file does not hold what was written to it.
        """
        files = [
            Built(self.path(file), file.name or self.target.name, file.stamped(digest), file.nbytes, digest)
            for file, digest in zip(self.layout.files, self._contents, strict=True)
        ]
        return read_back(files, pieces, threads)

    def publish(self, sidecar: bytes | None = None) -> None:
        """Gives the output its final name. After this it is never removed.

        A sidecar that another model of this name had is gone before the model is: a model may lack
        its own, but never has another's.

        Args:
            sidecar: the content of the file NAME.tensors.json beside it.

        Raises:
            OutputError: the name could not be given; nothing is left behind. Or the folder could
                not be synced, or the sidecar not be written: then the output is in place and complete.
        """
        try:
            mask = os.umask(0)
            os.umask(mask)
            for path in [self.partial, *(self.partial.rglob("*") if self.layout.folder else [])]:
                path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
                if path.is_dir():
                    sync_folder(path)
            self._rename()
        except OSError as error:
            raise _failed(self.target, error) from error
        in_place = f"{quote(self.target)} is in place and verified, but"
        try:
            sync_folder(self.target.parent)
        except OSError as error:
            raise OutputError(f"{in_place} its folder could not be synced: {error.strerror}") from error
        if sidecar is not None:
            try:
                write_file(sidecar_path(self.target), sidecar)
            except OutputError as error:
                raise OutputError(f"{in_place} the digests of its tensors are not: {error}") from error

    def _rename(self) -> None:
        """Gives the model its name. A sidecar of the one it replaces goes before, and is back if it fails."""
        sidecar = sidecar_path(self.target)
        aside, held = partial_path(sidecar), None
        with contextlib.suppress(OSError):  # locked, so that no other run takes it for what was left
            held = os.open(sidecar, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            lock(held, 1)
        try:
            with contextlib.suppress(FileNotFoundError):
                sidecar.replace(aside)
            self.partial.replace(self.target)
        finally:
            with contextlib.suppress(OSError):
                # A signal can come when the model has its name already.
                named = self._lock is None or not is_at(self._lock, self.partial)
                aside.unlink() if named else aside.replace(sidecar)
            if held is not None:
                with contextlib.suppress(OSError):
                    os.close(held)

    def _create(self) -> None:
        self.stale = sweep_partials(self.target.parent, self.partial)
        # Between opening and locking another run may have finished and renamed the partial away.
        for _ in range(MAX_TRIES):
            if self._open_locked():
                break
        else:  # a folder where no file can be made, such as those of /proc
            raise OutputError(f"{quote(self.partial)}: cannot be made there", hint="give another output_dir")
        if self.layout.folder:
            for name, text in self.layout.texts.items():
                self._write_text(name, text)
        for file in self.layout.files:
            if self.layout.folder:
                path = self.path(file)
                path.parent.mkdir(exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptors.append(os.open(path, flags, 0o600))
            else:
                assert self._lock is not None  # _open_locked made it
                self._descriptors.append(os.dup(self._lock))
            allocate(self._descriptors[-1], file.nbytes)
        for number, file in enumerate(self.layout.files):
            self._put(number, memoryview(file.header), 0)

    def _write_text(self, name: str, text: bytes) -> None:
        path = self.partial / name
        path.parent.mkdir(exist_ok=True)
        write_new(path, text, os.O_TRUNC)

    def _open_locked(self) -> bool:
        """Makes and locks the partial; False if another run was quicker and it must be tried again.

        Raises:
            BusyError: another run is building this output.
        """
        try:
            self.stale |= clear(self.partial, LOCK_TRIES)
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
            lock(self._lock, LOCK_TRIES)
            if is_at(self._lock, self.partial):
                return True
        except (FileNotFoundError, FileExistsError, BlockingIOError):
            pass  # another run took it for one that a killed run left, or made its own
        self._close()
        return False

    def _discard(self) -> None:
        """Removes the partial, if it is still there and ours, and lets the lock go."""
        with contextlib.suppress(OSError):
            if self._lock is None:  # a signal came before it had one
                clear(self.partial)
            elif is_at(self._lock, self.partial):
                remove(self.partial)
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
        write_new(partial, content, os.O_TRUNC)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise _failed(path, error) from error
        if isinstance(error, MismatchError):
            raise OutputError(error.message, hint=error.hint) from error
        raise
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{quote(path)} is written, but its folder could not be synced") from error


def _failed(path: Path, error: OSError, needed: int | None = None) -> RunnerError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and needed is not None:
        free = free_bytes(path.parent)
        reason = f"{reason}: {needed} bytes needed, {free} free"
    return OutputError(f"writing {quote(path)}: {reason}. No output was written.", tag="WRITE")

"""Partials: what is being built beside its final place, under the name .rnr-<8 hex>.part, and locked.

The lock of a process that is no more is free: so what a killed run left can be told from what another
run is building.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from pathlib import Path

from runner.errors import MismatchError, quote

LOCK_TRIES, LOCK_SECONDS = 5, 0.02
_PARTIAL = re.compile(r"\.rnr-[0-9a-f]{8}\.part")


def write_new(path: Path, content: bytes, flags: int) -> None:
    """Writes and syncs a small file, and reads it once more.

    Args:
        path: of the file.
        content: of the file.
        flags: O_EXCL if there must be none, O_TRUNC if one is written over.

    Raises:
        OSError: the device refused.
        MismatchError: it does not hold what was written to it.
    """
    flags |= os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        done = 0
        while done < len(content):
            done += some(os.write(descriptor, content[done:]))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if path.read_bytes() != content:
        raise MismatchError(
            f"{quote(path.name)}: what was read back is not what was written",
            hint="the disk or the memory of this machine is failing",
        )


def some(count: int) -> int:
    """How much was written, if anything was: else it would be tried for ever."""
    if not count:
        raise OSError(errno.EIO, "the device takes nothing")
    return count


def is_partial(path: Path) -> bool:
    """Whether a file or folder has the name of a partial."""
    return _PARTIAL.fullmatch(path.name) is not None


def partial_path(path: Path) -> Path:
    """The name under which something is built, or put aside, beside its place."""
    return path.with_name(f".rnr-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}.part")


def clear(path: Path, tries: int = 1) -> bool:
    """Removes a partial that no run holds; returns whether there was one.

    Args:
        path: of the partial.
        tries: to lock it. Another run that does the same holds it for a moment.

    Raises:
        BlockingIOError: a run holds it.
        OSError: it cannot be removed.
    """
    try:
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        lock(held, tries)
        if not is_at(held, path):  # it has got its final name, or another run makes a new one
            return False
        remove(path)
        return True
    except FileNotFoundError:
        return False
    finally:
        os.close(held)


def sweep_partials(folder: Path, spared: Path | None = None) -> bool:
    """Removes what killed runs left in a folder.

    Args:
        folder: where outputs are written.
        spared: the partial that is about to be taken over.

    Returns:
        Whether there was anything.
    """
    found = False
    for path in folder.iterdir():
        if is_partial(path) and path != spared:
            with contextlib.suppress(OSError):  # held, or not ours to remove
                found |= clear(path)
    return found


def lock(descriptor: int, tries: int) -> None:
    """Locks an open file.

    Args:
        descriptor: of the file or folder.
        tries: how often. Another run that looks whether it is stale holds it for a moment.

    Raises:
        BlockingIOError: a run holds it.
    """
    for _ in range(tries - 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(LOCK_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one under a name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def allocate(descriptor: int, size: int) -> None:
    """Takes the room on the disk now, so that it cannot run out later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

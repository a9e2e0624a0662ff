"""A model put into a folder: linked or copied, whole or not at all, and never over another one silently."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.disk.files import PIECE_BYTES, kind_of_file
from runner.disk.partials import remove, sweep_partials, sync_folder
from runner.errors import PublishError, quote
from runner.publish.target import COPIED, DRY_RUN, LINKED, THERE, Model, Target

# The file system, or a rule of the system's, wants no second name for the file.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def put(model: Model, place: Path, target: Target) -> str:
    """Puts a model at a place; returns the word for what was done.

    Raises:
        PublishError: another model is there, or the device refused; what was there is unchanged.
    """
    try:
        taken = os.path.lexists(place)
        if taken and _is_there(model, place):
            return THERE
        if taken and not (target.overwrite and place.is_file() and not (place.is_symlink() or model.folder)):
            raise _refused(model, place)
        if target.dry_run:
            return DRY_RUN
        sweep_partials(place.parent)
        with _partial(place) as partial:
            linked = _fill(model, partial, target.link)
            _name(partial, place, replace=taken)
        sync_folder(place.parent)
    except OSError as error:
        raise PublishError(f"{quote(place)}: {error.strerror or error}") from error
    return LINKED if linked else COPIED


def _refused(model: Model, place: Path) -> PublishError:
    if place.is_symlink():
        what, hint = "a symbolic link is there", "remove it"
    elif not (place.is_file() or place.is_dir()):
        what, hint = f"{kind_of_file(place.stat().st_mode)} is there", "remove it"
    elif model.folder or place.is_dir():
        what, hint = "another folder or file is there; folders are never replaced", "remove it"
    else:
        what, hint = "another model is there", "publish.overwrite=true replaces it"
    return PublishError(f"{quote(place)}: {what}", hint=f"{hint}, or give output.name another name")


def _is_there(model: Model, place: Path) -> bool:
    """Whether every file of the model is there with its content."""
    with suppress(FileNotFoundError):  # a link to nothing
        if place.samefile(model.path):
            return True
    if place.is_symlink() or place.is_dir() != model.folder:
        return False
    for name, sha256 in model.files.items():
        theirs, ours = place / name if model.folder else place, model.file(name)
        if not theirs.is_file() or theirs.stat().st_size != ours.stat().st_size:
            return False
        if not theirs.samefile(ours) and digest_of(theirs) != sha256:
            return False
    return True


def digest_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """A name beside the place to build under, as runs do: what a killed one leaves, the next removes."""
    path = place.with_name(f".rnr-{secrets.token_hex(4)}.part")
    try:
        yield path
    finally:
        with suppress(OSError):
            remove(path)


def _fill(model: Model, partial: Path, link: bool) -> bool:
    """Builds the partial; returns whether all of it is linked."""
    if not model.folder:
        return _add(model.path, partial, model.files[""], link)
    partial.mkdir()
    lock = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        linked = True
        for name, sha256 in model.files.items():
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            linked &= _add(model.file(name), file, sha256, link and linked)
        for folder in (path for path in partial.rglob("*") if path.is_dir()):
            sync_folder(folder)
        os.fsync(lock)
    finally:
        os.close(lock)
    return linked


def _add(source: Path, file: Path, sha256: str, link: bool) -> bool:
    """Links or copies one file; returns whether it is linked."""
    if link:
        try:
            os.link(source, file)
            return True
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    digest = hashlib.sha256()
    with source.open("rb") as stream, file.open("xb") as copy:
        fcntl.flock(copy, fcntl.LOCK_EX)
        while piece := stream.read(PIECE_BYTES):
            digest.update(piece)
            copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())
    if digest.hexdigest() != sha256:
        raise PublishError(f"{quote(source)}: changed since it was merged; nothing was published")
    return False


def _name(partial: Path, place: Path, *, replace: bool) -> None:
    """Gives the partial its name. Where nothing is replaced, that is so at this instant too."""
    if replace or partial.is_dir():  # a folder is only ever renamed onto nothing, or an empty one
        partial.rename(place)
        return
    try:
        os.link(partial, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        partial.rename(place)

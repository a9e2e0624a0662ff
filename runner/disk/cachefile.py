"""Files that several runs may write at once: JSON in the user's cache, and the lock of any folder.

Entries of the cache are read if they are sound, and added without losing those of other runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DIGESTS, HEADERS = "digests.json", "headers.json"  # what it has of files, by their identity


def load(path: Path | None) -> dict[str, Any]:
    """The entries of a cache file; none if it is missing or damaged, since all of it can be made anew."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def add(path: Path, entries: Mapping[str, Any], known: Callable[[Path], Mapping[str, Any]] = load) -> None:
    """Adds entries to a cache file. The file is never torn, and what another run adds meanwhile stays.

    Args:
        path: of the file; its folder is made.
        entries: to be added.
        known: reads what is kept beside them.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    with alone_in(path.parent):
        content = {**known(path), **entries}
        try:
            partial.write_text(json.dumps(content, indent=0))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lets one process at a time write in a folder, where its file system can say so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some networks' file systems know no locks: the last one wins
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

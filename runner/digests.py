"""SHA-256 of the inputs: computed beside everything else, remembered from run to run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from runner.checkpoint import Checkpoint
from runner.files import Identity, InputFile, read_into

HASH_PIECE_BYTES = 4 << 20  # large: between pieces a thread waits for the interpreter, busy importing torch
SWITCH_SECONDS = 0.001  # hashing threads then wait less for the one that imports torch
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
RACY_SECONDS = 2.0  # a file written within this time before hashing could change again unnoticed


class InputDigests:
    """The digests of files, being computed on threads of their own.

    A digest is remembered by device, inode, size and times of the file, as git's index does.

    Args:
        files: to be hashed, each once.
        memory: file that remembers digests; None: nothing is remembered and all are computed.
        threads: how many files are hashed at a time.
    """

    def __init__(self, files: Iterable[InputFile], memory: Path | None, threads: int) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        self._memory = memory
        self._remembered = _load(memory)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="digest")
        self._known: dict[InputFile, str] = {}
        self._pending: dict[InputFile, Future[tuple[str, bool]]] = {}
        for file in dict.fromkeys(files):
            if digest := self._remembered.get(_name(file.identity)):
                self._known[file] = digest
            else:
                self._pending[file] = self._pool.submit(self._digest, file)

    @property
    def known(self) -> Mapping[InputFile, str]:
        """The digests that need no waiting."""
        return self._known

    def __enter__(self) -> InputDigests:
        """Nothing to do: hashing began when it was made."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stops hashing what is not waited for any more."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def wait(self) -> Mapping[InputFile, str]:
        """All digests; waits for those that are being computed.

        Raises:
            InputError: a file changed, or ended early, while it was hashed.
        """
        fresh = {}
        for file, pending in self._pending.items():
            digest, settled = pending.result()
            self._known[file] = digest
            if settled:
                fresh[_name(file.identity)] = digest
        self._pending.clear()
        if fresh and self._memory is not None:
            # A merge must not fail because its memory cannot be kept.
            with contextlib.suppress(OSError):
                _save(self._memory, fresh)
        return self._known

    def _digest(self, file: InputFile) -> tuple[str, bool]:
        """The digest of a file, and whether its times are old enough to be trusted later."""
        settled = time.time() - file.identity.mtime_ns / 1e9 > RACY_SECONDS
        descriptor = file.open()
        try:
            digest = hash_file(descriptor, file.identity.size, file.label, self._stop)
            file.check_unchanged(descriptor)
        finally:
            os.close(descriptor)
        return digest, settled


def remembered(files: Iterable[InputFile], memory: Path | None) -> dict[InputFile, str]:
    """The digests of files that an earlier run computed; nothing is read but the memory."""
    known = _load(memory)
    return {file: known[name] for file in files if (name := _name(file.identity)) in known}


def hash_file(descriptor: int, size: int, label: str, stop: threading.Event) -> str:
    """SHA-256 of the first `size` bytes of an open file, 64 lower-case digits.

    Raises:
        InputError: it ends earlier.
    """
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(HASH_PIECE_BYTES, size)))
    for offset in range(0, size, HASH_PIECE_BYTES):
        if stop.is_set():
            break
        piece = buffer[: min(HASH_PIECE_BYTES, size - offset)]
        read_into(descriptor, piece, offset, label)
        hasher.update(piece)
    return hasher.hexdigest()


def model_digest(checkpoint: Checkpoint, digests: Mapping[InputFile, str]) -> str:
    """The digest of a model: of its file, or of the list of its weight files.

    A folder's is the SHA-256 of the lines "<sha256>  <name inside the folder>", sorted by name, as
    sha256sum prints them.
    """
    if checkpoint.files[0].path == checkpoint.root:
        return digests[checkpoint.files[0]]
    return folder_digest(
        [(digests[file], file.path.relative_to(checkpoint.root).as_posix()) for file in checkpoint.files]
    )


def folder_digest(files: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of the lines "<sha256>  <name>" of (sha256, name) pairs, sorted by name."""
    by_name = sorted(files, key=lambda file: file[1].encode())
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in by_name).encode()).hexdigest()


def _name(identity: Identity) -> str:
    return ":".join(
        map(str, (identity.device, identity.inode, identity.size, identity.mtime_ns, identity.ctime_ns))
    )


def _load(memory: Path | None) -> dict[str, str]:
    if memory is None:
        return {}
    try:
        content = json.loads(memory.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: text for name, text in content.items() if isinstance(text, str) and _SHA256.fullmatch(text)}


def _save(memory: Path, fresh: Mapping[str, str]) -> None:
    """Adds digests to the memory; of two runs at once the last one wins, and no file is ever torn."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    partial = memory.with_name(f"{memory.name}.{os.getpid()}.part")
    try:
        partial.write_text(json.dumps({**_load(memory), **fresh}, indent=0))
        partial.replace(memory)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise

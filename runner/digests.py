"""SHA-256 of the inputs: computed beside everything else, remembered from run to run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

from runner.checkpoint import Checkpoint
from runner.disk import cachefile
from runner.disk.files import InputFile, read_into
from runner.disk.hashes import auto_v1
from runner.errors import RunnerError

HASH_PIECE_BYTES = 4 << 20  # large: between pieces a thread waits for the interpreter, busy importing torch
SWITCH_SECONDS = 0.001  # hashing threads then wait less for the one that imports torch
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
SAVE_SECONDS = 10.0  # what is computed is remembered at least so often: hashing may take hours


class InputDigests:
    """The digests of files, being computed on threads of their own.

    A digest is remembered by device, inode, size and times of the file, as git's index does.

    Args:
        files: to be hashed, each once.
        memory: file that remembers digests; None: nothing is remembered and all are computed.
        threads: how many files are hashed at a time.
        trusted: whether what is remembered is taken for true; else all are computed, and remembered.
        computed: digests this process has computed itself, by Identity.key: they are not computed again.
        advance: called with the number of bytes done, by any thread.
    """

    def __init__(
        self,
        files: Iterable[InputFile],
        memory: Path | None,
        threads: int,
        *,
        trusted: bool = True,
        advance: Callable[[int], None] | None = None,
        computed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        self._memory = memory
        self._advance = advance
        remembered = {**(known_digests(memory) if trusted else {}), **computed}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="digest")
        self._known: dict[InputFile, str] = {}
        self._pending: dict[InputFile, Future[tuple[str, bool]]] = {}
        for file in dict.fromkeys(files):
            if digest := remembered.get(file.identity.key):
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
        for _, outcome in self.finished():
            if isinstance(outcome, RunnerError):
                raise outcome
        return self._known

    def finished(self) -> Iterator[tuple[InputFile, str | RunnerError]]:
        """Each file that had to be hashed, with its digest or with what was wrong, as they are ready.

        What is computed is remembered on the way, so an interruption loses little.
        """
        fresh: dict[str, str] = {}
        saved = time.monotonic()
        try:
            for file in list(self._pending):
                outcome: str | RunnerError
                try:
                    outcome, settled = self._pending[file].result()
                except RunnerError as error:
                    outcome, settled = error, False
                del self._pending[file]
                if isinstance(outcome, str):
                    self._known[file] = outcome
                if settled and isinstance(outcome, str):
                    fresh[file.identity.key] = outcome
                if fresh and time.monotonic() - saved > SAVE_SECONDS:
                    self._remember(fresh)
                    fresh, saved = {}, time.monotonic()
                yield file, outcome
        finally:
            self._remember(fresh)

    def _remember(self, fresh: Mapping[str, str]) -> None:
        if fresh and self._memory is not None:
            # A merge must not fail because its memory cannot be kept.
            with contextlib.suppress(OSError):
                cachefile.add(self._memory, fresh, known_digests)

    def _digest(self, file: InputFile) -> tuple[str, bool]:
        """The digest of a file, and whether its times are old enough to be trusted later."""
        settled = file.identity.settled(time.time())
        return digest_of(file, self._stop, self._advance), settled


def remembered(files: Iterable[InputFile], memory: Path | None) -> dict[InputFile, str]:
    """The digests of files that an earlier run computed; nothing is read but the memory."""
    known = known_digests(memory)
    return {file: known[key] for file in files if (key := file.identity.key) in known}


def digest_of(
    file: InputFile, stop: threading.Event | None = None, advance: Callable[[int], None] | None = None
) -> str:
    """SHA-256 of a file that was looked at before, 64 lower-case digits.

    Args:
        file: to be read.
        stop: set when the digest is not wanted any more: what is returned then is none.
        advance: called with the number of bytes done.

    Raises:
        InputError: it changed, or ends early.
    """
    size = file.identity.size
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(HASH_PIECE_BYTES, size)))
    descriptor = file.open()
    try:
        for offset in range(0, size, HASH_PIECE_BYTES):
            if stop is not None and stop.is_set():
                break
            piece = buffer[: min(HASH_PIECE_BYTES, size - offset)]
            read_into(descriptor, piece, offset, file.label)
            hasher.update(piece)
            if advance is not None:
                advance(len(piece))
        file.check_unchanged(descriptor)
        return hasher.hexdigest()
    finally:
        os.close(descriptor)


def model_digest(checkpoint: Checkpoint, digests: Mapping[InputFile, str]) -> str:
    """The digest of a model: of its file, or of the list of its weight files.

    A folder's is the SHA-256 of the lines "<sha256>  <name inside the folder>", sorted by name, as
    sha256sum prints them.
    """
    if checkpoint.is_file:
        return digests[checkpoint.files[0]]
    return folder_digest([(digests[file], checkpoint.inside(file)) for file in checkpoint.files])


def known_digest(checkpoint: Checkpoint, digests: Mapping[InputFile, str]) -> str | None:
    """The digest of a model; None unless those of all its files are known."""
    if all(file in digests for file in checkpoint.files):
        return model_digest(checkpoint, digests)
    return None


def legacy_hash(file: InputFile) -> str:
    """A1111's legacy hash (AutoV1) of a file.

    Raises:
        InputError: it changed, or ends early.
    """
    descriptor = file.open()
    try:
        return auto_v1(descriptor, file.identity.size, file.label)
    finally:
        os.close(descriptor)


def folder_digest(files: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of the lines "<sha256>  <name>" of (sha256, name) pairs, sorted by name."""
    by_name = sorted(files, key=lambda file: file[1].encode())
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in by_name).encode()).hexdigest()


def known_digests(memory: Path | None) -> dict[str, str]:
    """The digests that are remembered, by Identity.key; what is none is left out."""
    return {
        key: text
        for key, text in cachefile.load(memory).items()
        if isinstance(text, str) and _SHA256.fullmatch(text)
    }

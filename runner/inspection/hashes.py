"""The hashes of the files of a model: those that are known, or all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from blake3 import blake3

from runner.checkpoint import Checkpoint
from runner.digests import InputDigests, known_digest, legacy_hash, remembered
from runner.disk.files import InputFile, read_into
from runner.disk.hashes import FileHashes, blocks, feed


def known_hashes(checkpoint: Checkpoint, memory: Path | None) -> dict[InputFile, FileHashes]:
    """What is known of the files without reading them: digests of earlier runs, and 64 KiB."""
    known = remembered(checkpoint.files, memory)
    return {file: FileHashes(legacy_hash(file), known.get(file)) for file in checkpoint.files}


def computed_hashes(
    checkpoint: Checkpoint, memory: Path | None, threads: int, advance: Callable[[int], None]
) -> dict[InputFile, FileHashes]:
    """The same with everything computed; SHA-256 on threads of their own, which remember it.

    Args:
        checkpoint: whose files are read.
        memory: file that remembers digests; None: nothing is remembered.
        threads: how many files are hashed at a time.
        advance: called with the number of bytes done.

    Raises:
        InputError: a file changed, or ended early.
    """
    with InputDigests(checkpoint.files, memory, threads) as digests:
        read = {file: _read(file, advance) for file in checkpoint.files}
        sha256 = digests.wait()
        return {file: FileHashes(legacy_hash(file), sha256[file], *read[file]) for file in checkpoint.files}


def whole_digest(checkpoint: Checkpoint, hashes: Mapping[InputFile, FileHashes]) -> str | None:
    """The digest of the model, as recipes state it; None unless all of its files' are known."""
    known = {file: found.sha256 for file, found in hashes.items() if found.sha256}
    return known_digest(checkpoint, known)


def _read(file: InputFile, advance: Callable[[int], None]) -> tuple[str | None, str]:
    """SHA-256 of the data behind the header, None if the file has no such header, and BLAKE3 of all."""
    descriptor = file.open()
    try:
        start = bytearray(8)
        read_into(descriptor, memoryview(start), 0, file.label)
        begin = 8 + int.from_bytes(start, "little")
        headed = begin <= file.identity.size  # the first bytes of a pickle are no length of a header
        content, whole = hashlib.sha256(), blake3()
        if headed:
            feed(blocks(descriptor, 0, begin, file.label, advance), (whole,))
            feed(blocks(descriptor, begin, file.identity.size, file.label, advance), (content, whole))
        else:
            feed(blocks(descriptor, 0, file.identity.size, file.label, advance), (whole,))
        file.check_unchanged(descriptor)
        return (content.hexdigest() if headed else None), whole.hexdigest()
    finally:
        os.close(descriptor)

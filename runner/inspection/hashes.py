"""The hashes people know files by.

Source: AUTOMATIC1111 stable-diffusion-webui, modules/sd_models.py (model_hash) and modules/hashes.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.checkpoint import Checkpoint
from runner.digests import HASH_PIECE_BYTES, InputDigests, auto_v1, model_digest, remembered
from runner.files import InputFile, read_into


@dataclass(frozen=True, slots=True)
class Hashes:
    """Of one weight file.

    Attributes:
        sha256: of the whole file; None if unknown.
        auto_v1: the first 8 digits of SHA-256 over 64 KiB from 1 MiB on, A1111's legacy hash.
        data: SHA-256 of what stands behind the header of a safetensors file; None if not computed.
    """

    sha256: str | None
    auto_v1: str
    data: str | None = None


def known_hashes(checkpoint: Checkpoint, memory: Path | None) -> dict[InputFile, Hashes]:
    """What is known of the files without reading them: digests of earlier runs, and 64 KiB."""
    known = remembered(checkpoint.files, memory)
    return {file: Hashes(known.get(file), auto_v1(file)) for file in checkpoint.files}


def computed_hashes(
    checkpoint: Checkpoint, memory: Path | None, threads: int, advance: Callable[[int], None]
) -> dict[InputFile, Hashes]:
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
        data = {file: _data(file, advance) for file in checkpoint.files}
        sha256 = digests.wait()
        return {file: Hashes(sha256[file], auto_v1(file), data[file]) for file in checkpoint.files}


def whole_digest(checkpoint: Checkpoint, hashes: Mapping[InputFile, Hashes]) -> str | None:
    """The digest of the model, as recipes state it; None unless all of its files' are known."""
    known = {file: found.sha256 for file, found in hashes.items() if found.sha256}
    return model_digest(checkpoint, known) if len(known) == len(checkpoint.files) else None


def _data(file: InputFile, advance: Callable[[int], None]) -> str | None:
    """SHA-256 of the data behind the header; None if the file has no such header."""
    size = file.identity.size
    descriptor = file.open()
    try:
        start = bytearray(8)
        read_into(descriptor, memoryview(start), 0, file.label)
        begin = 8 + int.from_bytes(start, "little")
        if begin > size:  # the first bytes of a pickle are no length of a header
            advance(size)
            return None
        hasher = hashlib.sha256()
        buffer = memoryview(bytearray(min(HASH_PIECE_BYTES, size)))
        advance(begin)
        for at in range(begin, size, HASH_PIECE_BYTES):
            piece = buffer[: min(HASH_PIECE_BYTES, size - at)]
            read_into(descriptor, piece, at, file.label)
            hasher.update(piece)
            advance(len(piece))
        file.check_unchanged(descriptor)
        return hasher.hexdigest()
    finally:
        os.close(descriptor)

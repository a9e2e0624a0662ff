"""The output read once more: compared with what was written, and hashed as the file it now is.

The hash of a whole file is known no earlier: its header holds the hash of its data.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from runner.disk.files import open_regular, read_into
from runner.disk.hashes import BLOCK_BYTES, FileHashes, auto_v1, feed
from runner.errors import InputError, MismatchError, quote

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Written:
    """A piece of a weight file, and how to recognise it when it is read back.

    Attributes:
        file: index in the layout's files.
        offset, nbytes: where it is in the file.
        checksum: of its bytes, as they were in memory; None: it is not compared.
    """

    file: int
    offset: int
    nbytes: int
    checksum: int | None


@dataclass(frozen=True, slots=True)
class Built:
    """A weight file that is written.

    Attributes:
        path: where it is built.
        name: for messages.
        header: the bytes it begins with.
        nbytes: its size.
        content: SHA-256 of its data, as it was in memory.
    """

    path: Path
    name: str
    header: bytes
    nbytes: int
    content: str


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


def read_back(files: Sequence[Built], pieces: Sequence[Written], threads: int) -> list[FileHashes]:
    """Reads files once: compares every piece that has a checksum, and hashes each file.

    Args:
        files: of the output.
        pieces: what was written after the headers, in any order.
        threads: how many may work at a time; a file takes two, one for each of its hashes.

    Raises:
        MismatchError: a file does not hold what was written to it.
    """
    of_file: list[list[Written]] = [[] for _ in files]
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        of_file[piece.file].append(piece)
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, threads // 2), thread_name_prefix="read-back") as pool:
        try:
            return list(pool.map(lambda file, found: _read(file, found, stop), files, of_file))
        except InputError as error:
            raise MismatchError(f"read back: {error.message}. No output was written.") from error
        finally:
            stop.set()


def _read(file: Built, pieces: Sequence[Written], stop: threading.Event) -> FileHashes:
    descriptor = open_regular(file.path, file.name)
    try:
        sha256, other = hashlib.sha256(), blake3()
        feed(_blocks(file, pieces, descriptor, stop), (sha256, other))
        first = auto_v1(descriptor, file.nbytes, file.name)
        return FileHashes(first, sha256.hexdigest(), file.content, other.hexdigest())
    finally:
        os.close(descriptor)


def _blocks(
    file: Built, pieces: Sequence[Written], descriptor: int, stop: threading.Event
) -> Iterator[memoryview]:
    """The file from its first byte to its last, compared with what was written to it."""
    header = memoryview(bytearray(len(file.header)))
    if os.fstat(descriptor).st_size != file.nbytes:
        raise _mismatch(file, "size")
    read_into(descriptor, header, 0, file.name)
    if header != file.header:
        raise _mismatch(file, "header")
    yield header
    blocks = list(_together(pieces))
    largest = max((sum(piece.nbytes for piece in block) for block in blocks), default=0)
    buffers = [memoryview(bytearray(largest)) for _ in blocks[:2]]
    at = len(header)
    for number, block in enumerate(blocks):
        if stop.is_set():
            return
        view = buffers[number % 2][: sum(piece.nbytes for piece in block)]
        read_into(descriptor, view, at, file.name)
        done = 0
        for piece in block:
            found = view[done : done + piece.nbytes]
            # Words of a piece that begins between two words of the block are not read in place.
            words = memoryview(bytearray(found)) if done % 8 else found
            differs = piece.checksum is not None and piece.checksum != checksum(words)
            if piece.offset != at + done or differs:
                raise _mismatch(file, f"bytes {piece.offset} to {piece.offset + piece.nbytes}")
            done += piece.nbytes
        at += done
        yield view
    if at != file.nbytes:
        raise _mismatch(file, f"bytes {at} to {file.nbytes}")


def _together(pieces: Sequence[Written]) -> Iterator[list[Written]]:
    """Neighbouring pieces in blocks that are worth handing to a thread."""
    block: list[Written] = []
    filled = 0
    for piece in pieces:
        block.append(piece)
        filled += piece.nbytes
        if filled >= BLOCK_BYTES:
            yield block
            block, filled = [], 0
    if block:
        yield block


def _mismatch(file: Built, what: str) -> MismatchError:
    return MismatchError(
        f"{quote(file.name)}: {what}: what was read back is not what was written. No output was written.",
        hint="the disk or the memory of this machine is failing",
    )

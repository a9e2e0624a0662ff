"""The hashes people know weight files by, and several of them taken of the same bytes at once.

Source: AUTOMATIC1111 stable-diffusion-webui, modules/sd_models.py (model_hash) and modules/hashes.py;
the names are Civitai's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from runner.disk.files import read_into

BLOCK_BYTES = 4 << 20  # hashed at a time: handing a block to a thread costs little beside hashing it
_V1_OFFSET, _V1_BYTES = 0x100000, 0x10000


class Hasher(Protocol):
    """What takes bytes one after the other: of hashlib, of blake3, and our own."""

    def update(self, data: memoryview, /) -> object:
        """Takes more bytes."""


@dataclass(frozen=True, slots=True)
class FileHashes:
    """Of one weight file.

    Attributes:
        sha256, blake3: of the whole file; None if unknown.
        content: SHA-256 of what stands behind the header of a safetensors file; None if unknown.
        auto_v1: the first 8 digits of SHA-256 over 64 KiB from 1 MiB on, A1111's legacy hash.
    """

    auto_v1: str
    sha256: str | None = None
    content: str | None = None
    blake3: str | None = None

    @property
    def auto_v2(self) -> str | None:
        """The first 10 digits of the file's SHA-256."""
        return self.sha256 and self.sha256[:10]

    @property
    def auto_v3(self) -> str | None:
        """The first 12 digits of the content's SHA-256: it stays when only the header changes."""
        return self.content and self.content[:12]


def feed(blocks: Iterable[memoryview], hashers: Sequence[Hasher]) -> None:
    """Has several hashers take the same blocks, each on a thread of its own.

    The next block is made meanwhile, in other memory: a block may be overwritten only when the second
    after it is asked for. Two buffers in turn will do.
    """
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="hash")) for _ in hashers]
        before: list[Future[object]] = []
        for block in blocks:
            now = [pool.submit(hasher.update, block) for pool, hasher in zip(pools, hashers, strict=True)]
            for task in before:
                task.result()
            before = now
        for task in before:
            task.result()


def blocks(
    descriptor: int, begin: int, end: int, label: str, advance: Callable[[int], None]
) -> Iterator[memoryview]:
    """The bytes of an open file, in blocks for `feed`.

    Args:
        descriptor: of the file.
        begin, end: positions of the first byte and of the one behind the last.
        label: names the file in an error.
        advance: called with the number of bytes done.

    Raises:
        InputError: it ends earlier.
    """
    buffers = [memoryview(bytearray(max(0, min(BLOCK_BYTES, end - begin)))) for _ in range(2)]
    for number, at in enumerate(range(begin, end, BLOCK_BYTES)):
        block = buffers[number % 2][: min(BLOCK_BYTES, end - at)]
        read_into(descriptor, block, at, label)
        yield block
        advance(len(block))


def auto_v1(descriptor: int, size: int, label: str) -> str:
    """A1111's legacy hash of an open file.

    Raises:
        InputError: it ends earlier.
    """
    begin = min(_V1_OFFSET, size)
    content = bytearray(min(_V1_BYTES, size - begin))
    read_into(descriptor, memoryview(content), begin, label)
    return hashlib.sha256(content).hexdigest()[:8]

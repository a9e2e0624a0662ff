"""What the files of a model hold: every digest of it, computed now from one reading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blake3 import blake3

from runner.checkpoint import Checkpoint, OutputFile
from runner.digests import digest_of, folder_digest
from runner.disk.files import InputFile, look
from runner.disk.hashes import FileHashes, auto_v1, blocks, feed
from runner.engine.tensor_digests import TensorHasher


@dataclass(frozen=True)
class Contents:
    """A model by its bytes.

    Attributes:
        checkpoint: its headers.
        hashes: of each weight file, by its name inside a folder, "" for a single file.
        tensors: SHA-256 of the data of each tensor.
        others: SHA-256 of every other file of a folder, by its name there.
    """

    checkpoint: Checkpoint
    hashes: Mapping[str, FileHashes]
    tensors: Mapping[str, str]
    others: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Of the file; of a folder, of the list of its weight files."""
        if "" in self.hashes:
            return str(self.hashes[""].sha256)
        return folder_digest([(str(one.sha256), name) for name, one in self.hashes.items()])

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of every file."""
        return {name: str(one.sha256) for name, one in self.hashes.items()} | dict(self.others)


def contents_of(checkpoint: Checkpoint, advance: Callable[[int], None]) -> Contents:
    """Reads all files of a safetensors file or of a folder of them.

    Args:
        checkpoint: whose files are read.
        advance: called with the number of bytes done.

    Raises:
        InputError: a file changed, or ended early.
    """
    hashes: dict[str, FileHashes] = {}
    tensors: dict[str, str] = {}
    for number, file in enumerate(checkpoint.files):
        name = checkpoint.inside(file)
        hashes[name], found = _read(checkpoint, number, file, advance)
        tensors |= found
    others = {}
    if not checkpoint.is_file:
        for path in sorted(checkpoint.root.rglob("*")):
            inner = path.relative_to(checkpoint.root).as_posix()
            if inner not in hashes and not path.is_dir():
                others[inner] = digest_of(look(path, f"{checkpoint.label}/{inner}"))
    return Contents(checkpoint, hashes, tensors, others)


def _read(
    checkpoint: Checkpoint, number: int, file: InputFile, advance: Callable[[int], None]
) -> tuple[FileHashes, dict[str, str]]:
    """The hashes of one weight file, and those of the tensors in it."""
    stored = sorted(
        ((one.offset, key, one.spec) for key, one in checkpoint.tensors.items() if one.file == number),
        key=lambda one: one[:2],
    )
    size, begin = file.identity.size, min(offset for offset, _, _ in stored)
    tensors = TensorHasher(OutputFile("", b"", {key: (at, spec) for at, key, spec in stored}, size, 0))
    whole, content, other = hashlib.sha256(), hashlib.sha256(), blake3()
    descriptor = file.open()
    try:
        feed(blocks(descriptor, 0, begin, file.label, advance), (whole, other))
        feed(blocks(descriptor, begin, size, file.label, advance), (whole, other, content, tensors))
        first = auto_v1(descriptor, size, file.label)
        file.check_unchanged(descriptor)
    finally:
        os.close(descriptor)
    return FileHashes(first, whole.hexdigest(), content.hexdigest(), other.hexdigest()), tensors.digests

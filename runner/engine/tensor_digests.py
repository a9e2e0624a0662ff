"""The digests of the output's tensors: taken as its bytes go by, and written beside it.

The tensor root is one digest of all names, dtypes, shapes and values: it knows neither the header
nor the order or the number of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from runner.checkpoint import Layout, OutputFile
from runner.recipe.canonical import canonical_digest, canonical_json

SCHEMA = 1
_EMPTY = hashlib.sha256().hexdigest()


class TensorHasher:
    """SHA-256 of each tensor of a file, from the data of the file in its order.

    Args:
        file: as it is planned.

    Attributes:
        digests: by the tensor's name in the output; complete when all data was given.
    """

    def __init__(self, file: OutputFile) -> None:
        self.digests: dict[str, str] = {}
        self._left = 0
        self._waiting = iter(file.tensors.items())
        self._begin()

    def update(self, data: memoryview) -> None:
        """Takes the next bytes of the file's data, wherever they were cut."""
        at = 0
        while at < len(data) and self._left:
            part = data[at : at + self._left]
            self._hasher.update(part)
            at += len(part)
            self._left -= len(part)
            if not self._left:
                self.digests[self._key] = self._hasher.hexdigest()
                self._begin()

    def _begin(self) -> None:
        """Goes on to the next tensor that has data."""
        for key, (_, spec) in self._waiting:
            if spec.nbytes:
                self._key, self._left, self._hasher = key, spec.nbytes, hashlib.sha256()
                return
            self.digests[key] = _EMPTY


def tensor_list(layout: Layout, digests: Mapping[str, str]) -> list[list[Any]]:
    """[name, dtype, shape, digest] of each tensor of the output, sorted by the bytes of the name."""
    specs = {key: spec for file in layout.files for key, (_, spec) in file.tensors.items()}
    return [
        [key, specs[key].dtype, list(specs[key].shape), digests[key]]
        for key in sorted(specs, key=lambda key: key.encode())
    ]


def tensor_root(tensors: list[list[Any]]) -> str:
    """SHA-256 of the canonical JSON of the list of tensors."""
    return canonical_digest(tensors)


def tensors_file(layout: Layout, tensors: list[list[Any]]) -> bytes:
    """The content of NAME.tensors.json."""
    content = {
        "schema": SCHEMA,
        "model": layout.name,
        "tensor_root": tensor_root(tensors),
        "tensors": tensors,
    }
    return f"{canonical_json(content)}\n".encode()

"""Files on disk to keys and back.

A class for each kind of model on disk: a line in FORMATS if it is also written, in READERS if not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from runner.checkpoint import Checkpoint, Layout
from runner.formats.diffusers import DiffusersFolder
from runner.formats.pickled import PickledFile
from runner.formats.safetensors import LoraFile, SafetensorsFile
from runner.tensors import TensorSpec


class Reader(Protocol):
    """A kind of model on disk that is read."""

    def accepts(self, path: Path) -> bool:
        """Whether a path looks like one of these; content is checked by open."""

    def open(self, path: Path, label: str, variant: str | None) -> Checkpoint:
        """Reads the headers.

        Args:
            path: the file or folder.
            label: how messages call it.
            variant: "fp16" for the files named so in a diffusers folder; None for the plain ones.

        Raises:
            InputError: missing, malformed or hostile.
        """


class Format(Reader, Protocol):
    """A kind of model on disk that is read and written."""

    name: str
    title: str

    def layout(
        self,
        name: str,
        specs: Mapping[str, TensorSpec],
        carrier: Checkpoint | Mapping[str, bytes] | None,
        metadata: Mapping[str, str],
        max_shard_bytes: int | None,
    ) -> Layout:
        """Plans the output to the byte.

        Args:
            name: of the result, without suffix.
            specs: dtype and shape of every key that will be written.
            carrier: the model whose other files are carried on, or their content by name; None: no files.
            metadata: for the header of the (main) weight file.
            max_shard_bytes: split weights into files of at most this many bytes of data.
        """


FORMATS: dict[str, Format] = {
    "checkpoint": SafetensorsFile(),
    "diffusers": DiffusersFolder(),
    "lora": LoraFile(),
}

# In the order in which they are asked whether they accept a path.
READERS: tuple[Reader, ...] = (PickledFile(), *FORMATS.values())

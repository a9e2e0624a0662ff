"""A model on disk, as its headers describe it, and the files an output will consist of. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runner.disk.files import InputFile
from runner.tensors import TensorSpec

SIDECAR = ".tensors.json"  # after the name of a model: the digests of its tensors, beside it
STATEMENT_SUFFIX = ".intoto.json"  # likewise: what was made of what
SIGNATURE_SUFFIX = ".sig"  # likewise: a signature, beside it
RECORD = "run.json"  # of a run: what it did
CARD = "README.md"  # for people: in a folder, or beside the record of a single file


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the data of a tensor lies.

    Attributes:
        file: index into the checkpoint's files.
        offset: byte position of the data in that file.
        spec: dtype and shape as stored.
    """

    file: int
    offset: int
    spec: TensorSpec


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, known by its headers alone.

    Attributes:
        label: how the recipe names it.
        format: its name in FORMATS; also its key layout.
        root: the file or folder itself.
        files: the files that hold weights, sorted by label.
        tensors: where each key lies, in file order. In a diffusers folder a key is component/name.
        metadata: what the header says beside the tensors.
        others: files without weights that an output may carry on: name inside the folder → file.
        pipeline: the class in model_index.json, if there is one.
        title: for people, how it is stored, if not as models of its format usually are.
        warnings: what is odd about its files and no error, a line each.
    """

    label: str
    format: str
    root: Path
    files: tuple[InputFile, ...]
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, InputFile] = field(default_factory=dict)
    pipeline: str | None = None
    title: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether it is one file; if not it is a folder, a pipeline's or that of one component."""
        return self.files[0].path == self.root

    @property
    def nbytes(self) -> int:
        """Bytes of its weight files."""
        return sum(file.identity.size for file in self.files)

    def inside(self, file: InputFile) -> str:
        """The name of one of its weight files inside the folder, with slashes; "" for a single file."""
        return "" if self.is_file else file.path.relative_to(self.root).as_posix()

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Dtype and shape of each key."""
        return {key: stored.spec for key, stored in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One weight file that will be written, known to the byte before the first tensor is.

    Attributes:
        name: inside the output folder; "" if the output is this file.
        header: the bytes before the data. Where it says what is known at the end alone, such as digests,
            its length is final from the start and what stands there is not.
        tensors: key → (offset of its data in the file, dtype and shape), in file order.
        nbytes: size of the whole file.
        stamp: position in the header of the 64 digits of the data's SHA-256, zeros until it is known.
    """

    name: str
    header: bytes
    tensors: Mapping[str, tuple[int, TensorSpec]]
    nbytes: int
    stamp: int

    def stamped(self, digest: str) -> bytes:
        """The header as it is when the data's digest is known; as long as before."""
        digits = digest.encode()
        return self.header[: self.stamp] + digits + self.header[self.stamp + len(digits) :]


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything the output will be: its weight files, and its other files with their content.

    Attributes:
        name: final name of the file or folder.
        folder: whether it is a folder.
        files: the weight files, in the order in which they are written.
        texts: name inside the folder → content.
        described: index of the weight file whose header says what the model is.
    """

    name: str
    folder: bool
    files: tuple[OutputFile, ...]
    texts: Mapping[str, bytes] = field(default_factory=dict)
    described: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes it will take on the disk."""
        return sum(file.nbytes for file in self.files) + sum(map(len, self.texts.values()))

"""The safetensors file: a strict reader of headers and a canonical writer of them.

Source: the format's description in the safetensors repository (README.md) and its reference
implementation (safetensors/src/tensor.rs); the writer's bytes equal those of the reference for
the same tensors and at most one metadata entry.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from runner.checkpoint import Checkpoint, Layout, OutputFile, Stored
from runner.disk.files import InputFile, look, read_into
from runner.errors import InputError, escape, quote
from runner.formats.strict_json import parse_object
from runner.tensors import DTYPE_RANK, DTYPES, TensorSpec

MAX_HEADER_BYTES = 32 << 20  # the format allows 100 MB; 250,000 tensors fit into this
MAX_TENSORS = 250_000
MAX_DIMENSIONS = 64
MAX_KEY_BYTES = 512
MAX_BITS = 1 << 63
CONTENT_HASH = "modelspec.hash_sha256"  # SHA-256 of all bytes behind the header
_UNKNOWN = "0x" + 64 * "0"
_WHOLE = frozenset((int,))  # types of whole numbers: not bool, which is one of its own
_FIELDS = {"dtype", "shape", "data_offsets"}  # of a tensor in the header

_RENAME = "its name is wrong: call it .ckpt if that is what you expect it to be"
# What a file that is no safetensors file begins with, and what it is.
_LOOK_ALIKES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself", "run: git lfs pull"),
    (b"<!DOCTYPE", "a web page (HTML)", "download the file itself, not the page about it"),
    (b"<!doctype", "a web page (HTML)", "download the file itself, not the page about it"),
    (b"<html", "a web page (HTML)", "download the file itself, not the page about it"),
    (b"<?xml", "an XML text (the error message of a failed download?)", "download the file again"),
    (b"GGUF", "a GGUF file", None),
    (b"PK\x03\x04", "a zip archive (a pickle checkpoint?)", _RENAME),
    (b"\x80\x02", "a pickle", _RENAME),
    (b"\x80\x03", "a pickle", _RENAME),
    (b"\x80\x04", "a pickle", _RENAME),
    (b"\x80\x05", "a pickle", _RENAME),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"\x1f\x8b", "a gzip stream", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd stream", "unpack it first"),
    (b"\xfd7zXZ", "an xz stream", "unpack it first"),
    (b"BZh", "a bzip2 stream", "unpack it first"),
    (b"\x04\x22\x4d\x18", "an lz4 stream", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b'{"', "a JSON text (the error message of a failed download?)", "download the file again"),
)


class SafetensorsFile:
    """A model in one .safetensors file: an original (LDM, SGM, BFL, ...) checkpoint, or any keys."""

    name = "checkpoint"
    title = "single file"

    def accepts(self, path: Path) -> bool:
        """Whether this is a file; its content decides."""
        return not path.is_dir()

    def open(self, path: Path, label: str, variant: str | None) -> Checkpoint:
        """Reads the header.

        Raises:
            InputError: missing, not a safetensors file, or malformed.
        """
        if variant is not None:
            raise InputError(f"{escape(label)}: variant {quote(variant)} given, but this is a single file")
        file = look(path, label)
        tensors, metadata = read_header(file)
        return Checkpoint(
            label=label,
            format=self.name,
            root=path,
            files=(file,),
            tensors={key: Stored(0, offset, spec) for key, (offset, spec) in tensors.items()},
            metadata=metadata,
        )

    def layout(
        self,
        name: str,
        specs: Mapping[str, TensorSpec],
        carrier: Checkpoint | Mapping[str, bytes] | None,
        metadata: Mapping[str, str],
        max_shard_bytes: int | None,
    ) -> Layout:
        """One file, NAME.safetensors. It is never split: no tool reads a split one."""
        return Layout(f"{name}.safetensors", folder=False, files=(output_file("", specs, metadata),))


class LoraFile(SafetensorsFile):
    """A LoRA in one .safetensors file. It is written; what is read is a single file, whatever it holds."""

    name = "lora"
    title = "LoRA"

    def accepts(self, path: Path) -> bool:
        """Never: a single file accepts it."""
        return False


def read_header(file: InputFile) -> tuple[dict[str, tuple[int, TensorSpec]], dict[str, str]]:
    """Key → (byte offset in the file, spec) in file order, and the metadata.

    Raises:
        InputError: the file is not exactly what the format allows; says what is wrong.
    """
    return parse_header(file, header_text(file))


def header_text(file: InputFile) -> bytes:
    """The header of a file, as it stands there.

    Raises:
        InputError: it is no safetensors file, or ends before its header does.
    """
    label, size = file.label, file.identity.size
    descriptor = file.open()
    try:
        start = bytearray(min(size, 64))
        read_into(descriptor, memoryview(start), 0, label)
        if size < 8:
            raise _malformed(label, "empty" if size == 0 else f"truncated: {size} bytes")
        length = int.from_bytes(start[:8], "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            _refuse_look_alike(bytes(start), label)
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise _malformed(label, f"a header of {length} bytes (2 to {MAX_HEADER_BYTES} are read)")
        if 8 + length > size:
            raise _malformed(label, f"truncated: the header needs {8 + length} bytes, the file has {size}")
        header = bytearray(length)
        read_into(descriptor, memoryview(header), 8, label)
    finally:
        os.close(descriptor)
    return bytes(header)


def parse_header(file: InputFile, header: bytes) -> tuple[dict[str, tuple[int, TensorSpec]], dict[str, str]]:
    """What the text of a header says, as read_header.

    Raises:
        InputError: as read_header.
    """
    entries = parse_object(header, file.label)
    metadata = _metadata(entries.pop("__metadata__", None), file.label)
    return _tensors(entries, 8 + len(header), file.identity.size, file.label), metadata


def _refuse_look_alike(start: bytes, label: str) -> None:
    for magic, what, hint in _LOOK_ALIKES:
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(magic):
            raise InputError(
                f"{escape(label)}: expected a safetensors file, found {what}", tag="LOOK-ALIKE", hint=hint
            )


def _metadata(value: Any, label: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _malformed(label, "__metadata__ is not a mapping from strings to strings")
    return value


def _tensors(entries: dict[str, Any], start: int, size: int, label: str) -> dict[str, tuple[int, TensorSpec]]:
    """The entries checked one by one, then as a tiling of the rest of the file."""
    if not entries:
        raise _malformed(label, "no tensors")
    if len(entries) > MAX_TENSORS:
        raise _malformed(label, f"{len(entries)} tensors (at most {MAX_TENSORS} are read)")
    tensors = []
    known: dict[tuple[str, tuple[int, ...]], tuple[TensorSpec, int | None]] = {}
    for key, entry in entries.items():
        if not key.isprintable() or not 0 < len(key.encode()) <= MAX_KEY_BYTES:
            raise _malformed(label, f"tensor name {quote(key)}: empty, too long, or with control characters")
        if not isinstance(entry, dict) or entry.keys() != _FIELDS:
            raise _wrong(label, key, "expected exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise _wrong(label, key, f"unknown dtype {quote(dtype)}")
        if not _are_natural(shape) or len(shape) > MAX_DIMENSIONS:
            raise _wrong(label, key, f"shape {quote(shape)} is not a list of at most 64 sizes")
        if not _are_natural(offsets) or len(offsets) != 2:
            raise _wrong(label, key, f"data_offsets {quote(offsets)} are not two positions")
        of = dtype, tuple(shape)
        if of not in known:  # a model has few shapes
            bits = DTYPES[dtype].bits
            if math.prod(size for size in shape if size) * bits >= MAX_BITS:
                raise _wrong(label, key, f"shape {quote(shape)} is absurd")
            spec = TensorSpec(*of)
            known[of] = spec, None if spec.elements * bits % 8 else spec.nbytes
        spec, nbytes = known[of]
        begin, end = offsets
        if end - begin != nbytes:
            given = f"data_offsets give {end - begin}"
            raise _wrong(label, key, f"{spec} takes {spec.nbytes} bytes, {given}")
        tensors.append((begin, end, key, spec))
    tensors.sort(key=itemgetter(0, 1))
    at = 0
    for begin, end, key, _ in tensors:
        if begin != at:
            kind = "overlaps the one before it" if begin < at else f"leaves a hole of {begin - at} bytes"
            raise _malformed(label, f"tensor {quote(key)}: {kind}")
        at = end
    if start + at != size:
        extra = size - start - at
        raise _malformed(
            label, f"{extra} trailing bytes" if extra > 0 else f"truncated: {-extra} bytes are missing"
        )
    return {key: (start + begin, spec) for begin, _, key, spec in tensors}


def _are_natural(values: object) -> bool:
    """Whether these are a list of whole numbers from 0 on; true is none."""
    if not isinstance(values, list) or not _WHOLE.issuperset(map(type, values)):
        return False
    return not values or min(values) >= 0


def _wrong(label: str, key: str, reason: str) -> InputError:
    return _malformed(label, f"tensor {quote(key)}: {reason}")


def _malformed(label: str, reason: str) -> InputError:
    return InputError(f"{escape(label)}: {reason}", tag="MALFORMED")


def output_file(name: str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> OutputFile:
    """Plans one file to the byte.

    Args:
        name: of the file inside the output folder, "" for a single file.
        specs: what it will hold; ordered here as the reference implementation orders it.
        metadata: for the header; "format" and the hash of the data are always added, the latter as zeros.
    """
    order = canonical_order(specs)
    ends = list(itertools.accumulate(specs[key].nbytes for key in order))
    begins = [0, *ends[:-1]]
    said = {**metadata, "format": "pt", CONTENT_HASH: _UNKNOWN}
    entries: dict[str, Any] = {"__metadata__": said}
    for key, begin, end in zip(order, begins, ends, strict=True):
        spec = specs[key]
        entries[key] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
    header = _header(entries)
    tensors = {key: (len(header) + begin, specs[key]) for key, begin in zip(order, begins, strict=True)}
    return OutputFile(name, header, tensors, len(header) + (ends[-1] if ends else 0), _stamp(header))


def _header(entries: dict[str, Any], nbytes: int = 0) -> bytes:
    """The bytes before the data, at least as many as said: blanks at the end are part of the format."""
    metadata = dict(sorted(entries["__metadata__"].items()))
    text = json.dumps(
        {**entries, "__metadata__": metadata}, separators=(",", ":"), ensure_ascii=False
    ).encode()
    text += b" " * max(-len(text) % 8, nbytes - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def _stamp(header: bytes) -> int:
    """The position of the digits of the data's hash."""
    return header.index(f'"{CONTENT_HASH}":"{_UNKNOWN}"'.encode()) + len(f'"{CONTENT_HASH}":"0x')


def filled(layout: Layout, metadata: Mapping[str, str]) -> Layout:
    """The layout with what its header says of the inputs that is known at the end alone: their digests.

    Nothing moves. The plan holds a value of the same length, or a longer one, for every such entry.

    Args:
        layout: as planned.
        metadata: entries of the header that were planned, with their final values.
    """
    file = layout.files[layout.described]
    entries = json.loads(file.header[8:])
    assert metadata.keys() <= entries["__metadata__"].keys(), "an entry that was not planned"
    entries["__metadata__"] |= metadata
    header = _header(entries, len(file.header))
    assert len(header) == len(file.header), "the final header is longer than the planned one"
    files = (*layout.files[: layout.described], replace(file, header=header, stamp=_stamp(header)))
    return replace(layout, files=(*files, *layout.files[layout.described + 1 :]))


def canonical_order(specs: Mapping[str, TensorSpec]) -> list[str]:
    """Keys by dtype, highest rank first, then by the bytes of the name."""
    return sorted(specs, key=lambda key: (-DTYPE_RANK[specs[key].dtype], key.encode()))


def shards(specs: Mapping[str, TensorSpec], max_bytes: int | None) -> list[dict[str, TensorSpec]]:
    """Splits keys, in canonical order, into files of at most max_bytes of data; at least one key each."""
    files: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for key in canonical_order(specs):
        spec = specs[key]
        if max_bytes is not None and files[-1] and filled + spec.nbytes > max_bytes:
            files.append({})
            filled = 0
        files[-1][key] = spec
        filled += spec.nbytes
    return files


def shard_names(stem: str, count: int) -> Iterable[str]:
    """NAME.safetensors, or NAME-00001-of-00003.safetensors and so on."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]

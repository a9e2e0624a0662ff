"""Files of torch.save, in both of its forms, read without ever running what they say.

Tensors are found by position, as in a safetensors file. The zip form (since torch 1.6) keeps each storage
in a member of its own; the old form is five pickles, then the storages.

Source: torch's serialization (torch/serialization.py).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from runner.checkpoint import Checkpoint, Stored
from runner.disk.files import InputFile, look, open_regular, read_into
from runner.disk.hashes import blocks
from runner.errors import InputError, escape, quote
from runner.formats.pickle_stream import Stream
from runner.formats.restricted_pickle import load
from runner.formats.safetensors import MAX_KEY_BYTES, MAX_TENSORS
from runner.formats.torch_names import NAMES, Storage, Storages, StoredTensor
from runner.formats.torch_zip import Member, Read, members
from runner.tensors import TensorSpec

MAX_PICKLE_BYTES = 64 << 20
MAX_SHARING = 4  # tied weights are written once for each key; this is for files that tie without end

# Where a state dict is in what was saved, in this order; else it is the whole of it.
_WRAPPINGS = ("state_dict", "model")
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class PickledFile:
    """A model in one file of torch.save; what is merged with one is written as safetensors."""

    def accepts(self, path: Path) -> bool:
        """Whether a file begins as a zip archive, a tar archive or a pickle, and is not called otherwise."""
        if path.suffix.lower() == ".safetensors" or not path.is_file():
            return False
        try:
            return _kind(_start(path)) is not None
        except (InputError, OSError):
            return False  # whoever opens it says what is wrong

    def open(self, path: Path, label: str, variant: str | None) -> Checkpoint:
        """Reads the pickle and where the storages are.

        Raises:
            InputError: missing, malformed, or naming what no checkpoint needs.
        """
        if variant is not None:
            raise InputError(f"{escape(label)}: variant {quote(variant)} given, but this is a single file")
        file = look(path, label)
        tensors, metadata = read_saved(file)
        return Checkpoint(
            label=label,
            format="checkpoint",
            root=path,
            files=(file,),
            tensors={key: Stored(0, offset, spec) for key, (offset, spec) in tensors.items()},
            metadata=metadata,
            title="pickle, single file",
        )


def _start(path: Path) -> bytes:
    descriptor = open_regular(path, str(path))
    try:
        return os.pread(descriptor, 512, 0)
    finally:
        os.close(descriptor)


def _kind(start: bytes) -> str | None:
    """What a file is by its first bytes: "zip", "tar", "pickle", or None for all else."""
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[257:262] == b"ustar":
        return "tar"
    # The first two bytes of a pickle may begin a safetensors file: a header of 640 bytes, for example.
    if start[:1] == b"\x80" and start[1:2] <= b"\x05" and not (start[4:8] == bytes(4) and start[8:9] == b"{"):
        return "pickle"
    return None


def read_pickled(file: InputFile) -> dict[str, tuple[int, TensorSpec]]:
    """Key → (byte offset in the file, spec) in file order.

    Raises:
        InputError: as read_saved.
    """
    return read_saved(file)[0]


def read_saved(file: InputFile) -> tuple[dict[str, tuple[int, TensorSpec]], dict[str, str]]:
    """The same, and what is said beside the tensors and of use to anyone: the steps of the training.

    Raises:
        InputError: the file is not what torch.save writes for a state dict; says what is wrong.
    """
    size, label = file.identity.size, file.label
    descriptor = file.open()
    read = _reader(descriptor, label)
    try:
        kind = _kind(read(0, min(size, 512)))
        if kind == "zip":
            saved, begins = _read_zip(read, size, label)
        elif kind == "pickle":
            saved, begins = _read_old(read, size, label)
        elif kind == "tar":
            raise _malformed(label, "a tar archive (torch before 0.2), which is not read")
        else:
            raise _malformed(label, "expected a file of torch.save, found neither a zip archive nor a pickle")
    finally:
        os.close(descriptor)
    tensors = _state_dict(saved, label)
    shared = sum(tensor.spec.nbytes for tensor in tensors.values())
    if shared > MAX_SHARING * size:
        raise _malformed(label, f"its tensors would take {shared} bytes, the file has {size}")
    places = [
        (begins[tensor.storage.key] + tensor.begin if tensor.spec.nbytes else 0, key, tensor.spec)
        for key, tensor in tensors.items()
    ]
    tensors_at = {key: (at, spec) for at, key, spec in sorted(places, key=lambda place: place[:2])}
    return tensors_at, _metadata(saved)


def check_archive(file: InputFile) -> None:
    """Compares all data of a zip archive of torch.save with their checksums; other files have none.

    Raises:
        InputError: some are damaged.
    """
    size, label = file.identity.size, file.label
    descriptor = file.open()
    read = _reader(descriptor, label)
    try:
        if _kind(read(0, min(size, 512))) != "zip":
            return
        for name, member in members(read, size, label).items():
            crc = 0
            for block in blocks(
                descriptor, member.begin, member.begin + member.nbytes, label, lambda _: None
            ):
                crc = zlib.crc32(block, crc)
            if crc != member.crc:
                raise _damaged(name, label)
    finally:
        os.close(descriptor)


def _reader(descriptor: int, label: str) -> Read:
    def read(at: int, count: int) -> bytes:
        content = bytearray(count)
        read_into(descriptor, memoryview(content), at, label)
        return bytes(content)

    return read


def _damaged(name: str, label: str) -> InputError:
    return _malformed(label, f"{name} is damaged: its checksum is wrong")


def _read_zip(read: Read, size: int, label: str) -> tuple[object, Mapping[str, int]]:
    """What was saved, and where the data of each storage begin."""
    found = members(read, size, label)
    if "constants.pkl" in found or any(name.startswith("code/") for name in found):
        raise _malformed(label, "a TorchScript archive: it holds code, not only weights")
    if "data.pkl" not in found:
        raise _malformed(label, "a zip archive without data.pkl: not a file of torch.save")
    content = _content(read, found["data.pkl"], "data.pkl", label)
    if "byteorder" in found:
        order = _content(read, found["byteorder"], "byteorder", label)
        if order != b"little":
            raise _malformed(label, f"byteorder {quote(order.decode('latin-1'))}: only little is read")
    storages = Storages()
    stream = Stream(lambda at, count: content[at : at + count], len(content), label)
    saved = load(stream, NAMES, storages.persistent)
    if stream.position != len(content):
        raise _malformed(label, f"{len(content) - stream.position} bytes behind the end of data.pkl's pickle")
    begins = {}
    for storage in storages.by_key.values():
        member = found.get(f"data/{storage.key}")
        if member is None:
            raise _malformed(label, f"storage {quote(storage.key)} is not in the archive")
        _check_length(storage, member.nbytes, label)
        begins[storage.key] = member.begin
    return saved, begins


def _content(read: Read, member: Member, name: str, label: str) -> bytes:
    if member.nbytes > MAX_PICKLE_BYTES:
        raise _malformed(label, f"{name} of {member.nbytes} bytes (at most {MAX_PICKLE_BYTES} are read)")
    content = read(member.begin, member.nbytes)
    if zlib.crc32(content) != member.crc:
        raise _damaged(name, label)
    return content


def _read_old(read: Read, size: int, label: str) -> tuple[object, Mapping[str, int]]:
    """The same of the old form: magic number, protocol, system, what was saved, keys; then the data."""
    storages = Storages()
    stream = Stream(read, min(size, MAX_PICKLE_BYTES), label)
    if load(stream, {}, storages.persistent) != _MAGIC:
        raise _malformed(label, "a pickle, but not one of torch.save")
    if load(stream, {}, storages.persistent) != _PROTOCOL:
        raise _malformed(label, f"another protocol of torch.save than {_PROTOCOL}")
    system = load(stream, {}, storages.persistent)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _malformed(label, "written on a big-endian machine: only little-endian is read")
    saved = load(stream, NAMES, storages.persistent)
    keys = load(stream, {}, storages.persistent)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _malformed(label, "its list of storages is not a list of names")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.by_key):
        raise _malformed(label, "its list of storages is not that of the storages its tensors use")
    begins = {}
    at = stream.position
    for key in keys:
        storage = storages.by_key[key]
        if at + 8 + storage.nbytes > size:
            raise _malformed(label, f"truncated: storage {quote(key)} is not all there")
        elements = int.from_bytes(read(at, 8), "little")
        _check_length(storage, elements * (storage.dtype.bits if storage.dtype else 8) // 8, label)
        begins[key] = at + 8
        at += 8 + storage.nbytes
    if at != size:
        raise _malformed(label, f"{size - at} trailing bytes")
    return saved, begins


def _check_length(storage: Storage, nbytes: int, label: str) -> None:
    if nbytes != storage.nbytes:
        raise _malformed(
            label, f"storage {quote(storage.key)} should have {storage.nbytes} bytes, there are {nbytes}"
        )


def _state_dict(saved: object, label: str) -> dict[str, StoredTensor]:
    """The tensors by name: what was saved, or what is wrapped in it; all else in there is left out."""
    if not isinstance(saved, dict):
        raise _malformed(label, "expected a state dict, found something else")
    inner = (saved.get(name) for name in _WRAPPINGS)
    candidates = [_tensors(part) for part in (*inner, saved) if isinstance(part, dict)]
    tensors = next((part for part in candidates if part), None)
    if tensors is None:
        names = ", ".join(quote(name) for name in list(saved)[:5])
        raise _malformed(label, f"no state dict of tensors in it (there are: {names or 'no names'})")
    if len(tensors) > MAX_TENSORS:
        raise _malformed(label, f"{len(tensors)} tensors (at most {MAX_TENSORS} are read)")
    for key, tensor in tensors.items():
        if not 0 < len(key.encode()) <= MAX_KEY_BYTES or not key.isprintable():
            raise _malformed(label, f"tensor name {quote(key)}: empty, too long, or with control characters")
        if not tensor.is_contiguous:
            error = _malformed(
                label,
                f"tensor {quote(key)}: {tensor.spec} is stored with strides {quote(list(tensor.strides))}, "
                "only tensors in the order of their elements are read",
            )
            error.hint = "save it again with every tensor .contiguous()"
            raise error
    return tensors


def _metadata(saved: object) -> dict[str, str]:
    steps = saved.get("global_step") if isinstance(saved, dict) else None
    return {"global_step": str(steps)} if type(steps) is int and 0 <= steps < 1 << 63 else {}


def _tensors(part: dict[str, object]) -> dict[str, StoredTensor]:
    return {key: value for key, value in part.items() if isinstance(value, StoredTensor)}


def _malformed(label: str, reason: str) -> InputError:
    return InputError(f"{escape(label)}: {reason}", tag="MALFORMED")

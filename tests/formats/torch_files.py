"""Files of torch.save made by hand, so that they can say what torch.save would not."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def text(value: str) -> bytes:
    """The opcode of a text."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def zipped(data: bytes, storages: Mapping[str, bytes] | None = None, **others: bytes) -> bytes:
    """The zip form with any data.pkl."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in others.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return file.getvalue()


def old(data: bytes, storages: Mapping[str, bytes] | None = None, width: int = 4) -> bytes:
    """The old form with any pickle in the place of what was saved."""
    storages = storages or {}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, SYSTEM))
    tail = b"".join(
        (len(content) // width).to_bytes(8, "little") + content for _, content in sorted(storages.items())
    )
    return head + data + pickle.dumps(sorted(storages), 2) + tail


def tensor(
    key: str = "0",
    elements: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    kind: str = "FloatStorage",
) -> bytes:
    """The opcodes of a tensor."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    storage += plain(elements) + b"tQ"
    place = plain(offset) + plain(shape) + plain(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89}tR"


def plain(value: object) -> bytes:
    """The opcodes of a plain value, to stand within others."""
    return pickle.dumps(value, 2)[2:-1].replace(b"q\x00", b"")


def state(**tensors: bytes) -> bytes:
    """The pickle of a dict of tensors, given as opcodes."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in tensors.items()) + b"u."

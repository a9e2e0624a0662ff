"""The members of a zip archive as torch.save writes it: stored, so each is a run of bytes in the file.

Everything that zip allows and torch does not write is refused: compression, encryption, comments,
several disks, bytes between members, two accounts of one member that differ.

Source: the zip format's description (APPNOTE.TXT, sections 4.3 to 4.5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runner.errors import InputError, escape, quote

MAX_MEMBERS = 250_000
MAX_DIRECTORY_BYTES = 64 << 20

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_ENCRYPTED, _DESCRIPTOR = 0x0001, 0x0008
_FLAGS = 0x0800 | _DESCRIPTOR  # names in UTF-8; sizes repeated behind the data
_FOLDER = 0x10  # among the attributes a member has on DOS
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the archive.

    Attributes:
        begin: position of its data in the file.
        nbytes: their length.
        crc: their checksum.
    """

    begin: int
    nbytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member as the central directory describes it."""

    name: bytes
    flags: int
    crc: int
    nbytes: int
    header: int


def members(read: Read, size: int, label: str) -> Mapping[str, Member]:
    """Name below the one root folder → member.

    Args:
        read: count bytes from a position.
        size: of the file.
        label: names the file in an error.

    Raises:
        InputError: the archive is not as torch writes it.
    """

    def refuse(reason: str) -> InputError:
        return InputError(f"{escape(label)}: zip archive: {reason}", tag="ZIP")

    count, begin, end = _directory(read, size, refuse)
    entries = sorted(_entries(read(begin, end - begin), count, refuse), key=lambda entry: entry.header)
    found: dict[str, Member] = {}
    roots = set()
    at = 0
    for number, entry in enumerate(entries):
        name = _name(entry.name, refuse)
        limit = entries[number + 1].header if number + 1 < len(entries) else begin
        if entry.header != at:
            raise refuse(f"member {quote(name)} does not begin where the one before it ends")
        root, _, inner = name.partition("/")
        roots.add(root)
        if inner in found:
            raise refuse(f"two members are called {quote(name)}")
        found[inner] = _member(read, entry, name, limit, refuse)
        at = limit
    if len(roots) != 1:
        raise refuse(f"{len(roots)} folders at the top, torch writes one")
    return found


_Refuse = Callable[[str], InputError]


def _directory(read: Read, size: int, refuse: _Refuse) -> tuple[int, int, int]:
    """Number of members, and where the central directory begins and ends."""
    at = size - _END.size
    if at < 0:
        raise refuse("truncated")
    magic, disk, first_disk, here, count, length, begin, comment = _END.unpack(read(at, _END.size))
    if magic != b"PK\x05\x06" or comment:
        raise refuse("truncated, or followed by something: its directory is not at the end of the file")
    short = (disk, first_disk, here, count, length, begin)
    if at >= _LOCATOR.size + _END64.size:
        magic, locator_disk, position, disks = _LOCATOR.unpack(read(at - _LOCATOR.size, _LOCATOR.size))
        if magic == b"PK\x06\x07":
            at -= _LOCATOR.size + _END64.size
            if position != at or locator_disk or disks != 1:
                raise refuse("its 64-bit directory is not where it should be")
            magic, rest, _, _, *long = _END64.unpack(read(at, _END64.size))
            if magic != b"PK\x06\x06" or rest != _END64.size - 12:
                raise refuse("its 64-bit directory is malformed")
            limits = (_MAX16,) * 4 + (_MAX32,) * 2
            if any(a not in (b, most) for a, b, most in zip(short, long, limits, strict=True)):
                raise refuse("its two directories disagree")
            disk, first_disk, here, count, length, begin = long
    if disk or first_disk or here != count:
        raise refuse("it is spread over several files")
    if not 0 < count <= MAX_MEMBERS or length > MAX_DIRECTORY_BYTES:
        raise refuse(f"{count} members in a directory of {length} bytes")
    if begin + length != at:
        raise refuse("its directory is not where it should be")
    return count, begin, at


def _entries(directory: bytes, count: int, refuse: _Refuse) -> list[_Entry]:
    entries = []
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise refuse("its directory ends too early")
        (
            magic,
            _,
            _,
            flags,
            method,
            _,
            _,
            crc,
            packed,
            nbytes,
            name_length,
            extra_length,
            comment,
            disk,
            *rest,
        ) = _CENTRAL.unpack_from(directory, at)
        header = rest[2]
        at += _CENTRAL.size
        name = directory[at : at + name_length]
        extra = directory[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length
        if magic != b"PK\x01\x02" or at > len(directory) or comment:
            raise refuse("its directory is malformed")
        if flags & _ENCRYPTED:
            raise refuse("it is encrypted")
        if method:
            raise refuse(f"member {quote(name.decode('utf-8', 'replace'))} is compressed, torch stores them")
        if flags & ~_FLAGS:
            raise refuse(f"flags 0x{flags:04x} of zip, which torch does not set")
        nbytes, packed, header = _wide(extra, (nbytes, packed, header), refuse)
        if packed != nbytes or disk or rest[1] & _FOLDER:
            raise refuse("its directory is malformed")
        entries.append(_Entry(name, flags, crc, nbytes, header))
    if at != len(directory):
        raise refuse("something stands behind the last entry of its directory")
    return entries


def _wide(extra: bytes, values: tuple[int, ...], refuse: _Refuse) -> list[int]:
    """Values of 32 bits, those that are too large taken from the extra field for 64 bits."""
    at = 0
    wide = b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + length]
        at += 4 + length
    result = []
    for value in values:
        if value == _MAX32:
            if len(wide) < 8:
                raise refuse("a size of 64 bits is missing")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        result.append(value)
    return result


def _name(name: bytes, refuse: _Refuse) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise refuse("a member's name is not UTF-8") from None
    parts = text.split("/")
    if len(parts) < 2 or {"", ".", ".."} & set(parts) or "\\" in text or not text.isprintable():
        raise refuse(f"a member is called {quote(text)}; torch writes FOLDER/NAME")
    return text


def _member(read: Read, entry: _Entry, name: str, limit: int, refuse: _Refuse) -> Member:
    """The member, its local header compared with the directory."""
    at = entry.header
    if at + _LOCAL.size > limit:
        raise refuse(f"member {quote(name)} overlaps what follows it")
    magic, _, flags, method, _, _, crc, packed, nbytes, name_length, extra_length = _LOCAL.unpack(
        read(at, _LOCAL.size)
    )
    begin = at + _LOCAL.size + name_length + extra_length
    behind = limit - begin - entry.nbytes
    if magic != b"PK\x03\x04" or behind < 0:
        raise refuse(f"member {quote(name)} overlaps what follows it")
    local = read(at + _LOCAL.size, name_length + extra_length)
    if (local[:name_length], flags, method) != (entry.name, entry.flags, 0):
        raise refuse(f"member {quote(name)}: its header and the directory disagree")
    sizes = _wide(local[name_length:], (nbytes, packed), refuse)
    account = (crc, *sizes)
    whole = (entry.crc, entry.nbytes, entry.nbytes)
    if account != whole and not (flags & _DESCRIPTOR and account == (0, 0, 0)):
        raise refuse(f"member {quote(name)}: its header and the directory disagree")
    accounts = [b""]
    if flags & _DESCRIPTOR:
        for sizes_format in ("<I2I", "<I2Q"):
            if entry.nbytes <= _MAX32 or sizes_format == "<I2Q":
                text = struct.pack(sizes_format, *whole)
                accounts += [text, b"PK\x07\x08" + text]
    if behind > 24 or read(begin + entry.nbytes, behind) not in accounts:
        raise refuse(f"member {quote(name)}: what stands behind its data is not what it says about them")
    return Member(begin, entry.nbytes, entry.crc)

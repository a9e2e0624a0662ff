"""JSON from strangers: everything the standard library accepts and should not, refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import accumulate
from typing import Any

from runner.errors import InputError, escape, quote

MAX_DEPTH = 32
# Lists and objects take up to thirty times the bytes of their text; real ones have keys and numbers in them.
MANY, BYTES_EACH = 1 << 16, 16
MAX_DIGITS = 400  # of one number: Python refuses integers of more than 4300 with an error of its own


def parse_object(content: bytes, label: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        content: the bytes of the file, or of the header of one.
        label: names the file in an error.

    Raises:
        InputError: not strict UTF-8, not JSON, not one object, a name given twice, NaN or
            Infinity, a lone surrogate, nested too deep, made of little but brackets.
    """

    def refuse(reason: str) -> InputError:
        return InputError(f"{escape(label)}: {reason}", tag="JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            twice = Counter(name for name, _ in items).most_common(1)[0][0]
            raise refuse(f"the name {quote(twice)} stands twice in one object")
        return result

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise refuse(f"the number {quote(text)} is not finite")
        return value

    def integer(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise refuse(f"a number of {len(text)} digits")
        return int(text)

    def constant(text: str) -> Any:
        raise refuse(f"{text} is not JSON")

    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(f"not UTF-8 at byte {error.start}") from error
    brackets = _brackets(content)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise refuse(f"nested more than {MAX_DEPTH} deep")
    parts = brackets.count(b"[") + brackets.count(b"{")
    if parts > MANY + len(content) // BYTES_EACH:
        raise refuse(f"{parts} lists and objects in {len(content)} bytes")
    long = b"0" * (MAX_DIGITS + 1) in content.translate(_DIGITS)
    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_float=number,
            parse_int=integer if long else None,  # a function of Python's for each is slow
            parse_constant=constant,
        )
    except json.JSONDecodeError as error:
        raise refuse(f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise refuse(f"expected a JSON object, found {type(value).__name__}")
    # A lone surrogate cannot be written as UTF-8, so it would fail later, far from its file.
    if ("\\ud" in text or "\\uD" in text) and _has_surrogate(value):
        raise refuse("a lone surrogate in a string")
    return value


_STEPS = {b"["[0]: 1, b"{"[0]: 1, b"]"[0]: -1, b"}"[0]: -1}
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_DIGITS = bytes(b"0"[0] if byte in b"0123456789" else b" "[0] for byte in range(256))
_SLICE = 1 << 12


def _brackets(content: bytes) -> bytes:
    """The brackets outside strings, without recursion, of text that may be no JSON."""
    if b"\\" in content:  # what is escaped ends no string
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = content.translate(None, _NO_MARKS)
    found, inside = bytearray(), 0
    for begin in range(0, len(marks), _SLICE):  # each piece between quotes is an object
        pieces = marks[begin : begin + _SLICE].split(b'"')
        found += b"".join(pieces[inside::2])
        inside ^= (len(pieces) - 1) % 2
    return bytes(found)


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, dict):
        return any(_has_surrogate(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return any(map(_has_surrogate, value))
    return False

"""JSON from strangers: everything the standard library accepts and should not, refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from runner.errors import InputError, escape, quote

MAX_DEPTH = 32
MAX_DIGITS = 400  # of one number: Python refuses integers of more than 4300 with an error of its own


def parse_object(content: bytes, label: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        content: the bytes of the file, or of the header of one.
        label: names the file in an error.

    Raises:
        InputError: not strict UTF-8, not JSON, not one object, a name given twice, NaN or
            Infinity, a lone surrogate, nested too deep.
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
    if _depth(text) > MAX_DEPTH:
        raise refuse(f"nested more than {MAX_DEPTH} deep")
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


_BRACKETS = b"[]{}"
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_DIGITS = bytes(b"0"[0] if byte in b"0123456789" else b" "[0] for byte in range(256))


def _depth(text: str) -> int:
    """How deep brackets nest, without recursion, in text that may be no JSON."""
    if "\\" in text:  # what is escaped ends no string
        text = text.replace("\\\\", "").replace('\\"', "")
    outside = "".join(text.split('"')[::2])
    left = brackets = outside.encode().translate(None, _NO_BRACKETS)
    for taken in range(MAX_DEPTH + 1):  # each time all innermost pairs of a kind, so at most one level
        if not left:
            return taken
        left = left.replace(b"[]", b"") if taken % 2 == 0 else left.replace(b"{}", b"")
    deepest = depth = 0  # deeper, or no JSON: counted one by one
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, dict):
        return any(_has_surrogate(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return any(map(_has_surrogate, value))
    return False

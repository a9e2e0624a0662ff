"""JSON from strangers: everything the standard library accepts and should not, refused."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from runner.errors import InputError, escape, quote

MAX_DEPTH = 32
MAX_DIGITS = 400  # of one number: Python refuses integers of more than 4300 with an error of its own
_LONG = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")


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
    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_float=number,
            parse_int=integer if _LONG.search(text) else None,  # a function of Python's for each is slow
            parse_constant=constant,
        )
    except json.JSONDecodeError as error:
        raise refuse(f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(value, dict):
        raise refuse(f"expected a JSON object, found {type(value).__name__}")
    # A lone surrogate cannot be written as UTF-8, so it would fail later, far from its file.
    if "\\ud" in text.lower() and _has_surrogate(value):
        raise refuse("a lone surrogate in a string")
    return value


# Strings and all else but brackets. Possessive, and content with a string without end: one pass whatever the
# text is.
_NO_BRACKETS = re.compile(r'(?:"(?:[^"\\]|\\.)*+"?|[^"\[\]{}])++', re.DOTALL)
_PAIR = re.compile(r"\[\]|\{\}")


def _depth(text: str) -> int:
    """How deep brackets nest, without recursion: as many times as the innermost pairs can be taken out."""
    left = brackets = _NO_BRACKETS.sub("", text)
    for depth in range(MAX_DEPTH + 1):
        if not left:
            return depth
        left = _PAIR.sub("", left)
    deepest = depth = 0  # too deep, or no JSON: counted one by one
    for bracket in brackets:
        depth += 1 if bracket in "[{" else -1
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

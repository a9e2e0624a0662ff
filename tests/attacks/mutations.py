"""Damage to texts and bytes, and what a hostile file would say. All of it follows from a random.Random."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

SECRET_NAME, SECRET = "RUNNER_FUZZ_SECRET", "s3cr3t-of-the-fuzz"

NUMBERS = ["-0", "0", "1", "-1", "1.0", "1e0", "1E400", "01", "NaN", "Infinity", "-Infinity", "true", "null"]
NUMBERS += ['"1"', "[]", "{}", "4", "8", "9223372036854775807", "18446744073709551615"]
NUMBERS += ["18446744073709551616", "1" * 401, "1" * 5000, "2147483648", "0.5", "-0.0"]

NAMES = [
    "",
    " ",
    "x",
    "a.b",
    "..",
    "../x",
    "/etc/passwd",
    "C:\\x",
    "\\\\server\\x",
    "x\0y",
    "x\x1b[2Jy",
    "\u202ex",
]
NAMES += [
    "__metadata__",
    "x" * 512,
    "x" * 513,
    "é" * 257,
    "名前",
    "\ud800",
    "_target_",
    "hydra",
    "a/b",
    "con",
]
NAMES += [
    "unet",
    "UNet",
    "auto_map",
    "${oc.env:" + SECRET_NAME + "}",
    "__class__",
    "model.",
    "\u2028",
    "e\u0301",
]

PIECES = [
    *"{}[],:\"'\\ \n\t\r\0\x1b-#&*!|>%@`~<=$.0",
    *("\ufeff", "\ud800", "\u202e", "\u2028", "é", "🎨", "\x7f", "\x85"),
    *(*NUMBERS, *map(json.dumps, NAMES)),
    *(": ", "- ", "\n  ", "<<: ", "---\n", "!!int ", "!!python/object/apply:os.system ", "&a ", "*a ", "?"),
    *("# @package _global_\n", "_target_: os.system\n", "hydra: {run: {dir: /}}\n", "defaults: [x]\n"),
    *(
        "${.x}",
        "${recipe.alpha}",
        "${oc.env:" + SECRET_NAME + "}",
        "${${.k}:X}",
        ".inf",
        "0x1",
        "1_000",
        "1:30",
    ),
    *('"__metadata__":{"a":"b"},', '"dtype":"F32",', '"shape":[1],', '"data_offsets":[0,4],'),
]

BYTES = [
    b"\0",
    b"\xff",
    b"\x80",
    b"\x1b[2J",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xff" * 8,
    bytes(8),
    b"{}",
    b".",
]


def text(rng: Random, original: str, others: Sequence[str] = PIECES) -> str:
    """A text with a few places changed: something put in, taken out, doubled or moved."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        begin = rng.randint(0, len(original))
        end = min(len(original), begin + rng.choice((0, 0, 1, 1, 2, 8, 40)))
        put = rng.choice((rng.choice(others), rng.choice(others), "", original[begin:end] * 2))
        original = original[:begin] + put + original[end:]
    return original


def lines(rng: Random, original: str) -> str:
    """A text with lines changed, doubled, left out or exchanged."""
    parts = original.split("\n")
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        parts[at] = rng.choice((text(rng, parts[at]), parts[other], "", parts[at] + "\n" + parts[other]))
    return "\n".join(parts)


def data(rng: Random, original: bytes, others: Sequence[bytes] = BYTES) -> bytes:
    """Bytes with a few places changed, or cut."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        begin = rng.randint(0, len(original))
        end = min(len(original), begin + rng.choice((0, 1, 1, 4, 8, 64)))
        way = rng.randrange(5)
        if way == 0 and original:
            at = rng.randrange(len(original))
            original = original[:at] + bytes([original[at] ^ (1 << rng.randrange(8))]) + original[at + 1 :]
        elif way == 1:
            original = original[: rng.randint(0, len(original))]
        elif way == 2:
            original = original[:begin] + rng.choice(others) + original[end:]
        elif way == 3:
            original = original[:begin] + original[begin:end] * 2 + original[end:]
        else:
            original = original[:begin] + rng.randbytes(rng.choice((1, 2, 8))) + original[end:]
    return original


class Raw(str):
    """JSON as it will stand in the text, whether it is valid or not."""


def tree(rng: Random, value: Any) -> Any:
    """Plain data with a few parts changed; objects are lists of pairs, so that names can stand twice."""
    if isinstance(value, dict):
        value = list(map(tuple, value.items()))
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        value = list(value)
        pairs = isinstance(value[at], tuple)
        way = rng.randrange(8)
        if way == 0:
            del value[at]
        elif way == 1:
            value.insert(rng.randint(0, len(value)), value[at])
        elif way == 2 and pairs:
            value[at] = (rng.choice(NAMES), value[at][1])
        elif way == 3 and pairs:
            value.append((rng.choice(NAMES), rng.choice(value)[1]))
        elif pairs:
            value[at] = (value[at][0], tree(rng, value[at][1]))
        else:
            value[at] = tree(rng, value[at])
        return value
    if rng.random() < 0.7:
        return Raw(rng.choice(NUMBERS))
    return rng.choice(
        (rng.choice(NAMES), [], {}, [value], {"x": value}, [1] * rng.choice((2, 64, 65)), value)
    )


def plain(value: Any) -> Any:
    """Mutated data as JSON reads it; names that stand twice are one."""
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        return {name: plain(item) for name, item in value}
    if isinstance(value, list):
        return [plain(item[1] if isinstance(item, tuple) else item) for item in value]
    if isinstance(value, Raw):
        try:
            return json.loads(value)
        except ValueError:
            return str(value)
    return value


def dump(rng: Random, value: Any) -> str:
    """JSON text, with blanks here and there."""
    blank = rng.choice(("", "", "", " ", "\n\t"))
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        value = list(map(tuple, value.items()))
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) for item in value):
            inner = ("," + blank).join(f"{json.dumps(name)}:{dump(rng, item)}" for name, item in value)
            return "{" + blank + inner + "}"
        return "[" + ",".join(dump(rng, item[1] if isinstance(item, tuple) else item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=rng.random() < 0.5)


def encoded(value: str) -> bytes:
    """UTF-8, with half characters as they are."""
    return value.encode("utf-8", "surrogatepass")

"""Sizes and tables as text for a person."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def size(count: int) -> str:
    """Bytes for a person: "2.1 GB" (10⁹)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.5 else f"{value:.1f} {units[0]}"


def width_of(text: str) -> int:
    """The cells of a terminal that a text takes.

    A character takes one of them; Chinese and Japanese ones two, a combining one none.
    """
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def padded(text: str, width: int, *, right: bool = False) -> str:
    """A text with blanks after it, or before it, up to a width in cells."""
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows as aligned lines, the first row being the head.

    Args:
        rows: of equally many cells.
        right: columns that are aligned to the right.
    """
    right = set(right)
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            padded(cell, width, right=at in right)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines

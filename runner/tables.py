"""Sizes and tables as text for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len


def size(count: int) -> str:
    """Bytes for a person: "2.1 GB" (10⁹)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if units[0] == "B" or value >= 99.5 else f"{value:.1f} {units[0]}"


def padded(text: str, width: int, *, right: bool = False) -> str:
    """A text with blanks after it, or before it, up to a width in cells of a terminal.

    A character takes one of them; Chinese and Japanese ones two, a combining one none.
    """
    blanks = " " * (width - cell_len(text))
    return blanks + text if right else text + blanks


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows as aligned lines, the first row being the head.

    Args:
        rows: of equally many cells.
        right: columns that are aligned to the right.
    """
    right = set(right)
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            padded(cell, width, right=at in right)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines

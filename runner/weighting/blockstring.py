"""What people paste as block weights: a line of numbers, and the elemental entries of supermerger."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runner.errors import quote

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SEPARATOR = re.compile(r"[,;\n\t]")
_LABEL = re.compile(r"\s*([A-Za-z_][^:\t,;\n]*|\d+[A-Za-z_][^:\t,;\n]*)[:\t]")  # of a line of a presets file
_STRONG = re.compile(r"[;\n\t]|, ")  # what separates numbers that are written with a decimal comma
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*", re.ASCII)
RANDOM = frozenset({"R", "U", "X", "D", "ER", "EU", "EX"})

NEEDS_NUMBERS = (
    "letters for random numbers need their seed, which files do not record; "
    "paste the resolved numbers (weights_alpha in the file's metadata)"
)


class UnreadableError(ValueError):
    """Says what is wrong with a text, for the message of a mistake."""


def is_name(text: str) -> bool:
    """Whether a text is the name of a preset: one word that is neither a number nor a random letter."""
    text = text.strip()
    return bool(text) and not (
        _SEPARATOR.search(text) or _NUMBER.fullmatch(text) or text.upper() in RANDOM or ":" in text
    )


def read_numbers(text: str) -> tuple[float, ...]:
    """The numbers of a pasted line.

    Args:
        text: numbers between commas, semicolons, line ends or tabs; in brackets, or behind "NAME:", too.

    Raises:
        UnreadableError: with what is wrong and what to write.
    """
    text = text.strip()
    label = _LABEL.match(text)
    if label and not _NUMBER.fullmatch(label[1]) and label[1].upper() not in RANDOM:
        text = text[label.end() :].strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    fields = [field for field in _STRONG.split(text) if field.strip(" ,")]
    if len(fields) > 1 and "." not in text and all(map(_DECIMAL_COMMA.fullmatch, fields)):
        fixed = fields[0].strip().replace(",", ".")
        raise UnreadableError(f"decimal commas ({quote(fields[0].strip())}); write decimal points: {fixed}")
    parts = [part.strip() for part in _SEPARATOR.split(text.rstrip(" ,;"))]
    # A line end after a comma separates nothing more.
    if "\n" in text:
        parts = [part for part in parts if part]
    if any(part.upper() in RANDOM for part in parts):
        raise UnreadableError(NEEDS_NUMBERS)
    for at, part in enumerate(parts, start=1):
        if not _NUMBER.fullmatch(part):
            found = f"found {quote(part)}" if part else "found nothing between two separators"
            raise UnreadableError(f"expected a number in place {at}, {found}")
    return tuple(map(float, parts))


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one part of an elemental entry.

    Attributes:
        words: names of blocks, or texts that a name contains; none: everything.
        inverted: whether what has none of them is meant.
    """

    words: tuple[str, ...]
    inverted: bool = False

    @staticmethod
    def of(text: str) -> Words:
        """The words of a text; a leading NOT inverts them all."""
        words = tuple(text.split())
        return Words(words[1:], True) if words[:1] == ("NOT",) else Words(words)

    def select(self, found: bool) -> bool:
        """Whether something is meant, given whether it has any of the words."""
        return not self.words or found != self.inverted


@dataclass(frozen=True, slots=True)
class Element:
    """One elemental entry: blocks:elements:ratio.

    Attributes:
        text: the entry as written.
        blocks: names and ranges of blocks.
        elements: texts that are part of a tensor's name.
        ratio: the value there.
    """

    text: str
    blocks: Words
    elements: Words
    ratio: float


def read_elements(text: str) -> tuple[list[Element], list[str]]:
    """The elemental entries of a text, and what is wrong with others.

    Args:
        text: entries "OUT04:attn2:0.5" between commas or line ends.
    """
    elements: list[Element] = []
    mistakes: list[str] = []
    for entry in filter(None, (entry.strip() for entry in re.split(r"[,\n]", text))):
        parts = entry.split(":")
        ratio = parts[-1].strip()
        if len(parts) != 3:
            expected = "expected BLOCKS:ELEMENTS:RATIO, as in OUT04:attn2:0.5"
            mistakes.append(f"{expected}; found {quote(entry)}")
        elif ratio.upper() in RANDOM:
            mistakes.append(f"{quote(entry)}: {NEEDS_NUMBERS}")
        elif not _NUMBER.fullmatch(ratio):
            mistakes.append(f"{quote(entry)}: expected a number as ratio, found {quote(ratio)}")
        else:
            elements.append(Element(entry, Words.of(parts[0]), Words.of(parts[1]), float(ratio)))
    return elements, mistakes

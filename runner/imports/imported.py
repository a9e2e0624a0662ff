"""What every importer gives back: a recipe as plain data, and what became of each part of the original."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runner.errors import InputError, quote
from runner.recipe.structure import SHA256

MAX_MERGES = 200  # in one recipe; a record can name its ancestors again and again
MAX_NESTED = 10  # merges inside one another; each takes two levels of a recipe's thirty-two
MAX_NAME = 240  # characters of a file's name
MAX_NOTES = 200

Kind = Literal["exact", "approximate", "refused"]
Tree = dict[str, Any]
Present = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Note:
    """What became of one part of the original.

    Attributes:
        kind: "exact": it means the same here; "approximate": nearly, `text` says why;
            "refused": it is not in the recipe.
        part: of the original: a field, a line, a file.
        text: what it became, or why not. Texts of strangers in it are quoted.
    """

    kind: Kind
    part: str
    text: str


@dataclass(frozen=True)
class Imported:
    """A recipe another tool recorded, in our words.

    Attributes:
        dialect: the tool, as people call it.
        tree: the recipe as plain data.
        notes: what became of each part.
    """

    dialect: str
    tree: Tree
    notes: tuple[Note, ...]


@dataclass
class Notes:
    """Collects notes; the same one twice is one."""

    found: list[Note] = field(default_factory=list)

    def exact(self, part: str, text: str) -> None:
        """Notes what means the same here."""
        self._add(Note("exact", part, text))

    def approximate(self, part: str, text: str) -> None:
        """Notes what is only nearly the same, and why."""
        self._add(Note("approximate", part, text))

    def refused(self, part: str, text: str) -> None:
        """Notes what is not in the recipe, and why."""
        self._add(Note("refused", part, text))

    def _add(self, note: Note) -> None:
        if note not in self.found and len(self.found) < MAX_NOTES:
            self.found.append(note)

    def cannot(self, label: str, reason: str) -> InputError:
        """The error for a record of which no merge could be made."""
        refused = "; ".join(f"{note.part}: {note.text}" for note in self.found if note.kind == "refused")
        return InputError(f"{label}: {reason}{f' ({refused})' if refused else ''}", tag="IMPORT")


def source(name: object, sha256: object = None) -> Tree:
    """A model as a recipe names it, from what another tool wrote of it.

    A name comes from a stranger: only the part below the tool's folder of models is kept, nothing
    that leaves that folder, and nothing that a recipe would read as something else than a file.
    """
    tree: Tree = {"source": file_name(name)}
    if isinstance(sha256, str) and SHA256.fullmatch(sha256.lower()):
        tree["sha256"] = sha256.lower()
    return tree


def file_name(name: object) -> str:
    """A path of another tool as a relative path that stays where it starts."""
    parts = [part for part in re.split(r"[\\/]+", printable(str(name).strip())) if part != "."]
    absolute = not parts or parts[0] == "" or parts[0].startswith("~") or parts[0].endswith(":")
    if absolute or ".." in parts:
        parts = parts[-1:]
    path = "/".join(parts)[-MAX_NAME:].strip("/ ")
    if path in ("", "..", "~"):
        return "unnamed.safetensors"
    # "demo:" and "hf:" are no folders, and "~" is a home only at the start.
    return f"./{path}" if ":" in path or path.startswith("~") else path


def printable(text: str) -> str:
    """A text without what a recipe may not hold: control characters, and ${, which would refer."""
    plain = "".join("_" if unicodedata.category(char)[0] == "C" else char for char in text)
    return re.sub("[\u2028\u2029]", "_", plain).replace("${", "$_{")


def number(value: object) -> float | None:
    """A finite number, from a number or from its text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and not re.fullmatch(
        r"\s*[-+]?[\d.]{1,40}(?:[eE][-+]?\d{1,3})?\s*", value, re.ASCII
    ):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) <= sys.float_info.max else None


def numbers(value: object) -> list[float] | None:
    """Finite numbers, from a list or from a text with commas; None if any is none."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not 0 < len(parts) <= 200:
        return None
    found = [number(part) for part in parts]
    return None if None in found else [one for one in found if one is not None]


def plain(value: float) -> str:
    """A number as a person would write it, which reads back as the same number."""
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def written(value: float) -> float | int:
    """A number for a recipe: 1 rather than 1.0."""
    return int(value) if value == int(value) and abs(value) < 1e15 else value


def true(value: object) -> bool:
    """Whether another tool said yes: true, or its text."""
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def merges(tree: Mapping[str, Any]) -> int:
    """How many merges a recipe holds."""
    models = tree.get("models")
    if not isinstance(models, Mapping):
        return 0
    return 1 + sum(merges(model) for model in models.values() if isinstance(model, Mapping))


def title(value: object) -> str | None:
    """A title of another tool as the name of an output; None if nothing is left of it."""
    text = value.strip() if isinstance(value, str) else ""
    name = re.sub(r"[^A-Za-z0-9.+_-]+", "-", text.removesuffix(".safetensors")).lstrip(".")[:100].strip("-")
    return name or None


def choices(value: object, known: Mapping[str, Any], part: str, notes: Notes) -> Any:
    """What a word of another tool stands for here; None, and noted, if it is unknown."""
    text = str(value).strip().lower()
    if text in known:
        return known[text]
    notes.refused(part, f"unknown: {quote(value)}")
    return None

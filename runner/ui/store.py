"""Recipes as files: found by name, opened, and saved without overwriting what somebody else wrote."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from runner.compose import is_file, is_recipe, recipe_folders, recipe_path
from runner.disk.cachefile import alone_in
from runner.disk.files import read_small
from runner.errors import BusyError, InputError, OutputError, UsageError, escape, quote
from runner.recipe.guard import MAX_BYTES
from runner.write import write_file

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", re.ASCII)
_NEW = "new_mix"


@dataclass(frozen=True, slots=True)
class Stored:
    """A recipe as it lies on the disk.

    Attributes:
        name: of the recipe.
        path: of its file.
        text: its content; what is no UTF-8 in it is kept as it is.
        sha256: of the content; "" if there is no file yet.
    """

    name: str
    path: Path
    text: str
    sha256: str


def own_folder() -> Path:
    """Where recipes are saved: the first folder of RUNNER_RECIPES, or ./recipes."""
    *own, _ = recipe_folders()
    return own[0] if own else Path("recipes").absolute()


def names() -> list[str]:
    """The recipes in that folder, by name."""
    return sorted(path.stem for path in own_folder().glob("*.yaml") if is_recipe(path) and path.is_file())


def shown(path: Path) -> str:
    """A path as a person sees it: from the current folder on, if it is in there."""
    here = Path.cwd()
    return escape(str(path.relative_to(here) if path.is_relative_to(here) else path))


def free_name() -> str:
    """A name that no recipe has yet."""
    taken, number = set(names()), 2
    if _NEW not in taken:
        return _NEW
    while f"{_NEW}_{number}" in taken:
        number += 1
    return f"{_NEW}_{number}"


def opened(name: str) -> Stored | None:
    """A recipe by name or absolute path; None if there is none.

    Raises:
        InputError: it cannot be read.
    """
    for folder in (own_folder(), *recipe_folders()):
        path = recipe_path(folder, name)
        if is_file(path):
            return read(path)
    return None


def read(path: Path) -> Stored:
    """The recipe in a file.

    Raises:
        InputError: it cannot be read, or is too large for a recipe.
    """
    content = read_small(path, str(path), MAX_BYTES)
    return Stored(path.stem, path, content.decode("utf-8", "surrogateescape"), _digest(content))


def path_of(name: str) -> Path:
    """The file of a recipe in the folder of one's own.

    Raises:
        UsageError: it is no name.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{quote(name)}: a name has letters, digits, _ and - (not first)")
    return own_folder() / f"{name}.yaml"


def save(path: Path, text: str, known: str) -> Stored:
    """Writes a recipe if its file is what it was when it was opened.

    Args:
        path: of the file.
        text: its new content.
        known: the sha256 it had; "" if there was none.

    Raises:
        BusyError: somebody else wrote it meanwhile.
        OutputError: the device refused.
    """
    content = text.encode("utf-8", "surrogateescape")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(path.parent):
            found = _on_disk(path)
            if found != known:
                what = "was changed by somebody else" if found and known else "is there already"
                what = what if found else "was removed by somebody else"
                raise BusyError(f"{path.name} {what}; nothing was written", hint="save it under another name")
            write_file(path, content)
    except OSError as error:
        raise OutputError(f"{quote(path.parent)}: {error.strerror}") from error
    return Stored(path.stem, path, text, _digest(content))


def _on_disk(path: Path) -> str:
    try:
        return read(path).sha256
    except InputError:
        return "unreadable" if os.path.lexists(path) else ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Recipes as files: found by name, opened, and saved without overwriting what somebody else wrote."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from runner.compose import DATA_ROOT, is_file, is_recipe, recipe_folders, recipe_path
from runner.disk.cachefile import alone_in
from runner.disk.files import read_small
from runner.errors import BusyError, InputError, OutputError, UsageError, escape, quote
from runner.recipe.guard import MAX_BYTES
from runner.ui.draft import EMPTY
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


def names() -> list[tuple[str, str]]:
    """The recipes there are by name, one's own first, and what is to be known of the others."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys((own_folder(), *recipe_folders())):
        note = "" if folder == own_folder() else f"from {shown(folder)}; saved among your own"
        if folder == DATA_ROOT / "recipes":
            note = "comes with runner; saved among your own"
        for path in sorted(folder.glob("*.yaml")):
            if is_recipe(path) and is_file(path):
                found.setdefault(path.stem, note)
    return list(found.items())


def shown(path: Path) -> str:
    """A path as a person sees it: from the current folder on, if it is in there."""
    here = Path.cwd()
    return escape(str(path.relative_to(here) if path.is_relative_to(here) else path))


def fresh(name: str = "") -> Stored:
    """A recipe that has no file yet; if it has no name, under one that no recipe has."""
    taken, number, free = {name for name, _ in names()}, 2, _NEW
    while free in taken:
        free, number = f"{_NEW}_{number}", number + 1
    return Stored(name or free, own_folder() / f"{name or free}.yaml", EMPTY, "")


def name_for(stored: Stored, output: object) -> str:
    """The name to save a recipe under: its own, or its output's if it is new and nobody gave it one."""
    is_named = stored.sha256 or not re.fullmatch(rf"{_NEW}(_\d+)?", stored.name)
    return output if not is_named and isinstance(output, str) and NAME.fullmatch(output) else stored.name


def opened(name: str, confined: bool = False) -> Stored | None:
    """A recipe by name or absolute path; None if there is none.

    One that is not in the folder of one's own is where others begin: it is saved there under its name,
    unless its path was given.

    Args:
        name: or path.
        confined: whether recipes are saved in the folder of one's own only.

    Raises:
        InputError: it cannot be read.
    """
    own = own_folder()
    for folder in (own, *recipe_folders()):
        path = recipe_path(folder, name)
        if is_file(path):
            found = read(path)
            is_own = path.is_relative_to(own) or (Path(name).is_absolute() and not confined)
            return found if is_own else replace(found, path=own / f"{found.name}.yaml", sha256="")
    return None


def read(path: Path) -> Stored:
    """The recipe in a file.

    Raises:
        InputError: it cannot be read, or is too large for a recipe.
    """
    content = read_small(path, str(path), MAX_BYTES)
    return Stored(path.stem, path, content.decode("utf-8", "surrogateescape"), _digest(content))


def path_of(name: str) -> Path:
    """The file of a recipe in the folder of one's own, by its name or that of the file.

    Raises:
        UsageError: it is no name.
    """
    name = name.removesuffix(".yaml")
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

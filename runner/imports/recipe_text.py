"""A recipe as YAML that passes the guard: what was imported from where stands above it as a comment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import InputError, Location, RecipeError, clip
from runner.imports.imported import Imported, Note
from runner.methods import METHODS, find_method
from runner.recipe.guard import read_text
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import RECIPE_KEYS

# A word, a path, demo:NAME: what YAML can not take for anything but a text.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[./:@+-]+[A-Za-z0-9_]+)*", re.ASCII)
_NOT_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


def recipe_text(imported: Imported, label: str) -> str:
    """The recipe file.

    Args:
        imported: the recipe and its notes.
        label: of the file it was imported from.

    Raises:
        InputError: what was recorded is no recipe.
    """
    notes = [*imported.notes, *unknown_names(imported.tree)]
    head = [f"# Imported from {json.dumps(label, ensure_ascii=False)} ({imported.dialect})."]
    head += [f"# {note.kind}: {note.part}: {note.text}" for note in notes]
    text = "\n".join([*map(clip, head), "", *yaml_lines(imported.tree, 0)]) + "\n"
    file = read_text(text.encode("utf-8", "surrogatepass"), label, "imported")
    if file.problems:
        raise InputError(f"{label}: {file.problems[0]}", tag="IMPORT")
    try:
        parse_recipe("imported", file.tree, lambda path: Location(label))
    except RecipeError as error:
        raise InputError(error.message, tag="IMPORT") from error
    return text


def tree_text(tree: Mapping[str, Any]) -> str:
    """A recipe as YAML, without a comment and unchecked."""
    return "\n".join(yaml_lines(tree, 0)) + "\n"


def unknown_names(tree: Mapping[str, Any]) -> Iterator[Note]:
    """Notes for methods and parameters that this version does not have."""
    name, compat = str(tree.get("method")), tree.get("compat")
    method = find_method(name, compat)
    if method is None:
        there = any(known == name for known, _ in METHODS)
        what = f'{name} with "compat: {compat}" (without it: rounded as we do)' if there else name
        yield Note("refused", "method", f"{what} is not in this version of runner")
    else:
        for key in tree:
            if key not in RECIPE_KEYS and key not in method.parameters:
                yield Note("refused", key, f"{name} has no such parameter in this version of runner")
    for model in tree["models"].values():
        if isinstance(model, Mapping) and "source" not in model:
            yield from unknown_names(model)


def yaml_lines(tree: Mapping[str, Any], depth: int) -> Iterator[str]:
    """The lines of a mapping, each two blanks deeper than `depth` says; short mappings on one line."""
    indent = "  " * depth
    for key, value in tree.items():
        if isinstance(value, Mapping) and value and not _short(value):
            yield f"{indent}{yaml_text(str(key))}:"
            yield from yaml_lines(value, depth + 1)
        else:
            yield f"{indent}{yaml_text(str(key))}: {yaml_value(value)}"


def _short(tree: Mapping[str, Any]) -> bool:
    """Whether a mapping is a source or a few numbers, and stands on one line."""
    return not any(isinstance(value, (Mapping, list)) for value in tree.values()) and "mbw" not in tree


def yaml_value(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{yaml_text(str(key))}: {yaml_value(one)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    return yaml_text(value) if isinstance(value, str) else json.dumps(value)


def yaml_text(text: str) -> str:
    """A text, in quotation marks unless it is a plain word."""
    if _WORD.fullmatch(text) and text.lower() not in _NOT_WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)

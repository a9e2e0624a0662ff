"""The fields of a recipe that are words, texts or numbers: what each may say and what it means.

Which there are, and what they mean, is taken from the recipe's own structure: runner/recipe/structure.py.
What a parameter of a method means is taken from the method.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from runner.errors import KeyPath, is_unprintable
from runner.formats import FORMATS
from runner.imports.recipe_text import yaml_value
from runner.methods import METHODS, Method, find_method
from runner.recipe.parse import FORCE
from runner.recipe.structure import (
    FLAGS,
    OUTPUT_KEYS,
    POLICY_KEYS,
    RESULT_KEYS,
    WORDS,
    Merge,
    Output,
    Policies,
    Recipe,
)
from runner.tensors import OUTPUT_DTYPES
from runner.ui.draft import is_same

Choices = tuple[tuple[str, str | bool], ...]
Kind = Literal["text", "whole number", "list"]
_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Field:
    """A field.

    Attributes:
        path: of its value, from the merge or the recipe on.
        meaning: what it says, for a person.
        choices: what it may say, and how that is shown; empty: anything of its kind.
        kind: of a value that is typed.
        unsaid: what holds if the recipe says nothing.
    """

    path: KeyPath
    meaning: str = ""
    choices: Choices = ()
    kind: Kind = "text"
    unsaid: str = ""

    @property
    def name(self) -> str:
        """What the recipe calls it."""
        return str(self.path[-1])

    def read(self, typed: str) -> str | int | list[str] | None:
        """The value somebody typed; what is not of its kind stays a text, which is then told as a mistake."""
        text = typed.strip()
        if not text:
            return None
        if self.kind == "list":
            return text.replace(",", " ").split()
        return (
            int(text) if self.kind == "whole number" and re.fullmatch(r"\d{1,20}", text, re.ASCII) else text
        )

    def can_be_typed(self, value: object) -> bool:
        """Whether a line can show a value and change it without losing anything of it."""
        text = shown(value)
        return not any(map(is_unprintable, text)) and is_same(self.read(text), value)


def shown(value: object) -> str:
    """A value as it is typed; a mapping as a recipe has it on a line."""
    if isinstance(value, (bool, Mapping)):
        return yaml_value(value)
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def merge_fields(method: Method | None, is_inner: bool) -> Iterator[Field]:
    """What a merge may say beside its method, models and parameters.

    Args:
        method: of the merge; None: unknown.
        is_inner: whether it is a model of another merge, whose seed and policies hold for it too.
    """
    tools = sorted(tool for name, tool in METHODS if method and name == method.name and tool)
    if tools:
        yield replace(_field(Merge, ("compat",)), choices=_words(tools))
    around = "as in the merge around it" if is_inner else ""
    yield _field(Merge, ("seed",), kind="whole number", unsaid=around or "0")
    for key in POLICY_KEYS:
        if key == "nonfinite":
            yield _field(Policies, (key,), kind="list")
        else:
            yield _field(Policies, (key,), unsaid=around or _choices(key)[0][0])


def result_fields() -> Iterator[Field]:
    """What a recipe may say of its result beside the output's name, format and dtype, and components."""
    for key in RESULT_KEYS:
        if key not in ("components", "output"):
            unsaid = WORDS[key][0] if key == "compute_dtype" else ""
            yield _field(Recipe, (key,), unsaid=unsaid)
    for key in OUTPUT_KEYS:
        if key not in ("name", "format", "dtype"):
            yield _field(Output, ("output", key))


def parameter_meaning(method: Method, name: str) -> str:
    """What a parameter means, by the method's docstring: "as in slerp" is what slerp says; "": not said."""
    said = _meanings(method.function, "Args").get(name, "").removesuffix(".")
    elsewhere = re.fullmatch(r"as in (\w+)", said)
    other = find_method(elsewhere[1], None) if elsewhere else None
    return parameter_meaning(other, name) if other else said


NAME = Field(("output", "name"), unsaid="the name of the recipe")
FORMAT = Field(
    ("output", "format"),
    choices=tuple((found.title, name) for name, found in FORMATS.items()),
    unsaid="as the first model",
)
DTYPE = Field(
    ("output", "dtype"), choices=tuple((name, name) for name in OUTPUT_DTYPES), unsaid="as the first model"
)


def _choices(key: str) -> Choices:
    """What a key may say, if that is one of a few words."""
    if key in FLAGS:
        return ("false", False), ("true", True)
    return _words(WORDS.get(key, ()))


def _words(words: Sequence[str]) -> Choices:
    return tuple((word, word) for word in words)


def _field(of: type, path: KeyPath, kind: Kind = "text", unsaid: str = "") -> Field:
    """A field that a class has as an attribute; its docstring says what it means and what None is."""
    key = str(path[-1])
    said = _meanings(of, "Attributes").get("max_shard_bytes" if key == "max_shard_size" else key)
    if key == "force":
        said = "short for " + ", ".join(f"{name}: {word}" for name, word in FORCE.items())
    meaning, _, none = (said or "").removesuffix(".").partition("; None: ")
    return Field(path, meaning, _choices(key), kind, unsaid or none)


@functools.cache
def _meanings(of: Callable[..., object], section: str) -> dict[str, str]:
    """What a docstring says of the names in one of its sections: "Attributes" or "Args"."""
    found = {}
    listed = (inspect.getdoc(of) or "").partition(f"{section}:\n")[2].partition("\n\n")[0]
    for names, meaning in _ENTRY.findall(listed):
        found.update(dict.fromkeys(names.split(", "), " ".join(meaning.split())))
    return found

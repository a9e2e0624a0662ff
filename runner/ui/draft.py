"""A recipe that is being written: its text, and the changes a form can make to it.

A draft is a text and nothing else; each change gives another draft. What is right and what is wrong
with it is said by the program that runs recipes: runner/ui/check.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.errors import KeyPath, RecipeError, escape, quote
from runner.methods import Method, find_method
from runner.recipe.guard import RecipeFile, read_text
from runner.recipe.structure import IDENTIFIER, RECIPE_KEYS
from runner.ui.splice import renamed, with_value, without

EMPTY = "method: weighted_sum\nmodels: {}\n"


@dataclass(frozen=True)
class Draft:
    """A recipe being written.

    Attributes:
        name: of the recipe.
        text: its YAML, as it will be saved.
    """

    name: str
    text: str = EMPTY

    @functools.cached_property
    def file(self) -> RecipeFile:
        """The text as the guard reads it; its tree is empty if there are problems."""
        return read_text(self.text.encode("utf-8", "surrogatepass"), f"{self.name}.yaml", self.name)

    @property
    def is_readable(self) -> bool:
        """Whether a form can show and change it; else only the text can be edited."""
        return not self.file.problems

    def merge(self, at: KeyPath) -> Mapping[str, Any]:
        """The merge at a key path; empty if there is none."""
        found = self.value(at)
        return found if isinstance(found, Mapping) else {}

    def value(self, path: KeyPath) -> Any:
        """What stands at a key path; None if nothing does."""
        here: Any = self.file.tree
        for key in path:
            here = here.get(key) if isinstance(here, Mapping) else None
        return here

    def method(self, at: KeyPath) -> Method | None:
        """The method of the merge at a key path; None if it is unknown."""
        merge = self.merge(at)
        compat = merge.get("compat")
        return find_method(str(merge.get("method")), compat if isinstance(compat, str) else None)

    def merges(self) -> list[KeyPath]:
        """Where its merges stand, the outermost first, each before those inside it."""
        return list(_merges(self.file.tree, ()))

    def roles(self, at: KeyPath) -> list[str]:
        """The roles of a merge: those its method asks for, then the others that are there."""
        method, models = self.method(at), self.merge((*at, "models"))
        asked = [*method.roles, *([method.optional] if method.optional else [])] if method else []
        return list(dict.fromkeys([*asked, *map(str, models)]))

    def with_text(self, text: str) -> Draft:
        """The draft with another text, whatever that says."""
        return replace(self, text=text)

    def with_value(self, path: KeyPath, value: Any) -> Draft:
        """The draft with a value at a key path.

        Raises:
            RecipeError: the text is not readable, or a recipe cannot say that.
        """
        return self.with_text(with_value(self.text, path, value))

    def without(self, path: KeyPath) -> Draft:
        """The draft without what stands at a key path.

        Raises:
            RecipeError: the text is not readable, or this cannot be taken out of it.
        """
        return self.with_text(without(self.text, path))

    def with_said(self, path: KeyPath, value: Any) -> Draft:
        """The draft with a value at a key path; with None without it, and the mapping it leaves empty."""
        if value is not None:
            return self if is_same(self.value(path), value) else self.with_value(path, value)
        draft = self.without(path)
        is_left = len(path) < 2 or draft.value(path[:-1]) != {}
        return draft if is_left else draft.without(path[:-1])

    def with_method(self, at: KeyPath, name: str) -> Draft:
        """The draft with another method in a merge: models keep their places, foreign parameters go."""
        method = find_method(name, None)
        if method is None:
            raise RecipeError(f"{quote(name)}: there is no such method")
        draft = self.with_value((*at, "method"), name).without((*at, "compat"))
        for key in self.merge(at):
            if key not in (*RECIPE_KEYS, *method.parameters):
                draft = draft.without((*at, key))
        known = (*method.roles, method.optional)
        spare = [role for role in draft.merge((*at, "models")) if role not in known]
        for role in method.roles:
            if role not in draft.merge((*at, "models")) and spare:
                path = (*at, "models", spare.pop(0))
                draft = draft.with_text(renamed(draft.text, path, role))
        return draft

    def with_model(self, at: KeyPath, role: str, source: str | Mapping[str, Any]) -> Draft:
        """The draft with a model in a role of a merge."""
        if said := no_role(role):
            raise RecipeError(said)
        return self.with_value((*at, "models", role), source)

    def with_merge(self, at: KeyPath, role: str, name: str = "add_difference") -> Draft:
        """The draft with a merge in a role; the model that was there is its first."""
        before, method = self.value((*at, "models", role)), find_method(name, None)
        inner = (*at, "models", role)
        draft = self.with_model(at, role, {"method": name, "models": {}})
        if before is None or method is None:
            return draft
        return draft.with_model(inner, method.roles[0] if method.roles else "a", before)

    def with_part(self, path: KeyPath, part: str, value: Any) -> Draft:
        """The draft with a value for one part of a parameter, or of the output's dtype.

        Args:
            path: of the parameter.
            part: whose number it is: a component's, a model's, or "default" for the others.
            value: a number or what else a recipe says of a component; None takes it back.
        """
        before = self.value(path)
        if not isinstance(before, Mapping):
            if part == "default":
                return self.with_said(path, value)
            if value is None:
                return self
            default = {} if before is None else {"default": before}
            return self.with_value(path, {**default, part: value})
        if value is not None:
            return self.with_value((*path, part), value)
        draft = self.without((*path, part))
        left = draft.value(path)
        if isinstance(left, Mapping) and set(left) == {"default"}:
            return draft.with_value(path, left["default"])
        return draft if left else draft.with_said(path, None)

    def with_curve(
        self, path: KeyPath, component: str, blocks: Sequence[str], values: Sequence[float], default: float
    ) -> Draft:
        """The draft with a number for each block of a component; runs of equal numbers are one range.

        Args:
            path: of the parameter.
            component: that has the blocks.
            blocks: their names in order of depth.
            values: their numbers.
            default: of everything else, unless the recipe says something of it already.
        """
        curve = dict(_ranges(blocks, values))
        before = self.value(path)
        if not isinstance(before, Mapping) or "mbw" in before:
            start = before if isinstance(before, (int, float)) else default
            return self.with_value(path, {"default": start, component: curve})
        kept = {
            name: value for name, value in before.items() if name not in (*blocks, "dialect", "elemental")
        }
        draft = self if kept == before else self.with_value(path, kept)
        if "default" not in kept:
            draft = draft.with_value((*path, "default"), default)
        return draft.with_value((*path, component), curve)

    def with_pasted(self, path: KeyPath, text: str, base: float | None) -> Draft:
        """The draft with block weights as people paste them: a line of numbers, or the name of a preset."""
        said: dict[str, Any] = {"mbw": text.strip()}
        return self.with_value(path, said if base is None else {**said, "base": base})


def is_same(one: Any, other: Any) -> bool:
    """Equal, and of one type: true is not 1."""
    return type(one) is type(other) and one == other


def no_role(name: str) -> str:
    """Why this is not the name of a role; "" if it is."""
    return "" if IDENTIFIER.fullmatch(name) else f"{quote(name)}: a role is a word such as a, b, base"


def _merges(tree: Mapping[str, Any], at: KeyPath) -> Iterator[KeyPath]:
    yield at
    models = tree.get("models")
    for role, model in models.items() if isinstance(models, Mapping) else ():
        if isinstance(model, Mapping) and "source" not in model:
            yield from _merges(model, (*at, "models", role))


def _ranges(blocks: Sequence[str], values: Sequence[float]) -> Iterator[tuple[str, float]]:
    start = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or values[at] != values[start]:
            name = blocks[start] if at - start == 1 else f"{blocks[start]}-{blocks[at - 1]}"
            yield name, values[start]
            start = at


def described(value: Any) -> str:
    """What a role holds, in a few words."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return (
            escape(str(value["source"]))
            if "source" in value
            else f"merge: {escape(str(value.get('method')))}"
        )
    return escape(str(value))

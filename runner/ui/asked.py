"""The lists and pages the form opens: what can be chosen at the place somebody is at."""

from __future__ import annotations

from collections.abc import Sequence

from runner.catalogue import details, standard
from runner.errors import KeyPath
from runner.ui import store
from runner.ui.check import Checked
from runner.ui.choices import Choice, demo_choices, primary_facts, why_no_vae, why_not
from runner.ui.draft import Draft
from runner.ui.numbers import Numbers, Place
from runner.ui.picker import Picker, Row

MERGE = "(another merge, computed in its place)"
NEW = "(a new recipe)"
MERGED = "(merged like the rest)"


def method_picker() -> Picker:
    """Asks for a method."""
    return Picker("method", [Row(method.name, method.summary) for method in standard()], details)


def recipe_picker() -> Picker:
    """Asks for a recipe, or a new one."""
    return Picker("open", [Row(NEW), *map(Row, store.names())])


def model_rows(draft: Draft, at: KeyPath, role: str, models: Sequence[Choice]) -> list[Row]:
    """The models for a role, and what speaks against them there.

    Args:
        draft: the recipe.
        at: the key path of the merge.
        role: in it.
        models: that were found.
    """
    choices, method = [*models, *demo_choices()], draft.method(at)
    known = {choice.source: choice.facts for choice in choices if choice.facts}
    is_first = draft.roles(at)[:1] == [role]
    primary = None if is_first else primary_facts(draft, at, known)
    rows = [Row(one.source, one.title, why_not(one.facts, method, role, primary)) for one in choices]
    return [*rows, Row(MERGE)]


def vae_rows(draft: Draft, models: Sequence[Choice]) -> list[Row]:
    """The models the VAE of the result can be taken from, and what speaks against them."""
    choices = [*models, *demo_choices()]
    primary = primary_facts(draft, (), {one.source: one.facts for one in choices if one.facts})
    return [Row(MERGED), *(Row(one.source, one.title, why_no_vae(one.facts, primary)) for one in choices)]


def numbers_page(draft: Draft, at: KeyPath, name: str, checked: Checked) -> Numbers | None:
    """Edits a parameter by place; None if the method of the merge has none of that name."""
    method = draft.method(at)
    if method is None or name not in method.parameters:
        return None
    parameter, path = method.parameters[name], (*at, name)
    if parameter.per_model:
        roles = [role for role in draft.roles(at) if role not in (*method.roles, method.optional)]
        return Numbers(draft, path, parameter, Place(tuple(roles) or method.roles))
    component, blocks, values = checked.curves.get(path, ("", (), ()))
    return Numbers(draft, path, parameter, Place(checked.components, component, blocks, values))


def free_role(draft: Draft, at: KeyPath) -> str:
    """A name for one more model of a merge."""
    taken, number = draft.roles(at), 1
    while f"m{number}" in taken:
        number += 1
    return f"m{number}"

"""What the form asks for on a page of its own, and what becomes of the answer at the place somebody is at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from textual.screen import ModalScreen

from runner.catalogue import details, standard
from runner.errors import KeyPath
from runner.ui import store
from runner.ui.check import Checked
from runner.ui.choices import Choice, demo_choices, primary_facts, why_no_component, why_no_name, why_not
from runner.ui.draft import Draft
from runner.ui.numbers import Numbers, Place
from runner.ui.picker import Picker, Row

MERGE = "(another merge, computed in its place)"
NEW = "(a new recipe)"
MERGED = "(merged like the rest)"
NOTHING = "(no model)"


@dataclass(frozen=True)
class Page:
    """A question.

    Attributes:
        screen: that asks.
        change: the draft by the answer.
        rows: of a list of models, what it holds when more are known; None: it is no such list.
    """

    screen: ModalScreen[Any]
    change: Callable[[Draft, Any], Draft]
    rows: Callable[[Sequence[Choice]], list[Row]] | None = None


def page_for(
    what: str, name: str, draft: Draft, at: KeyPath, checked: Checked, models: Sequence[Choice]
) -> Page | None:
    """The page that asks for what somebody wants to change; None if there is nothing to be asked.

    Args:
        what: "method", "numbers", "component" or "model".
        name: of the parameter, the component or the role.
        draft: the recipe.
        at: the key path of the merge.
        checked: what is known of the draft.
        models: that were found.
    """
    if what == "method":
        picker = Picker("method", [Row(method.name, method.summary) for method in standard()], details)
        return Page(picker, lambda draft, method: draft.with_method(at, method))
    if what == "numbers":
        numbers = _numbers_page(draft, at, name, checked)
        return None if numbers is None else Page(numbers, lambda _, changed: changed)
    if what == "component":
        path = ("components", name)
        return _of_models(
            f"{name} of the result",
            partial(_component_rows, draft, name),
            models,
            lambda draft, source: draft.with_said(path, None if source == MERGED else source),
        )
    role = (*at, "models", name)

    def with_answer(draft: Draft, source: str) -> Draft:
        if source == NOTHING:
            return draft.without(role)
        return draft.with_merge(at, name) if source == MERGE else draft.with_model(at, name, source)

    rows = partial(_model_rows, draft, at, name)
    return _of_models(f"model for {name}", rows, models, with_answer)


def recipe_picker() -> Picker:
    """Asks for a recipe, or a new one."""
    return Picker("open", [Row(NEW), *(Row(name, note) for name, note in store.names())])


def _of_models(
    title: str,
    rows: Callable[[Sequence[Choice]], list[Row]],
    models: Sequence[Choice],
    change: Callable[[Draft, str], Draft],
) -> Page:
    return Page(Picker(title, rows(models), free="as written"), change, rows)


def _model_rows(draft: Draft, at: KeyPath, role: str, models: Sequence[Choice]) -> list[Row]:
    """The models for a role, and what speaks against them there."""
    choices, method = [*models, *demo_choices()], draft.method(at)
    known = {choice.source: choice.facts for choice in choices if choice.facts}
    is_first = draft.roles(at)[:1] == [role]
    primary = None if is_first else primary_facts(draft, at, known)
    reasons = [why_no_name(one.source) or why_not(one.facts, method, role, primary) for one in choices]
    rows = [Row(one.source, one.title, why) for one, why in zip(choices, reasons, strict=True)]
    is_held = draft.value((*at, "models", role)) is not None
    return [*rows, Row(MERGE), *([Row(NOTHING)] if is_held else [])]


def _component_rows(draft: Draft, component: str, models: Sequence[Choice]) -> list[Row]:
    """The models a component of the result can be taken from, and what speaks against them."""
    choices = [*models, *demo_choices()]
    primary = primary_facts(draft, (), {one.source: one.facts for one in choices if one.facts})
    reasons = [why_no_name(one.source) or why_no_component(one.facts, component, primary) for one in choices]
    return [
        Row(MERGED),
        *(Row(one.source, one.title, why) for one, why in zip(choices, reasons, strict=True)),
    ]


def _numbers_page(draft: Draft, at: KeyPath, name: str, checked: Checked) -> Numbers | None:
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

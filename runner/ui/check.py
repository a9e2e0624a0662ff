"""What the program has to say of a draft: its mistakes with their lines, or its plan. No tensor is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from runner.build import placed
from runner.compose import ComposedRecipe, recipe_in
from runner.config import Job, Settings
from runner.describe import describe
from runner.errors import InputError, KeyPath, RunnerError, quote
from runner.provenance.origins import plan_with_origins
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import NAMED, Recipe
from runner.resolve.resolved import BoundMerge, Resolved
from runner.run import resolved_by
from runner.ui.draft import Draft
from runner.write import free_bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake.

    Attributes:
        text: what is wrong, for a person.
        line: of the draft's text, from 1; None if it is of no line.
    """

    text: str
    line: int | None = None


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        text: of the draft this is about.
        problems: every mistake; empty if the recipe can be run.
        hint: what to do about them.
        plan: what job=plan prints; "" if there are problems.
        curves: merge and parameter → component, blocks in order of depth and the number of each.
        components: of the first model.
    """

    text: str
    problems: tuple[Problem, ...] = ()
    hint: str = ""
    plan: str = ""
    curves: Mapping[KeyPath, tuple[str, tuple[str, ...], tuple[float, ...]]] = field(default_factory=dict)
    components: tuple[str, ...] = ()

    def after(self, earlier: Checked) -> Checked:
        """With what was known of the models, if mistakes hide them now."""
        if not self.problems or self.curves or self.components:
            return self
        return replace(self, curves=earlier.curves, components=earlier.components)


def check(draft: Draft, settings: Settings, *, confined: bool = False) -> Checked:
    """Takes a draft as far as job=plan goes.

    Args:
        draft: the recipe.
        settings: where its models are; nothing is downloaded.
        confined: whether models outside the folders of the settings are refused unread.
    """
    label = draft.file.label
    settings = replace(settings, job=Job("plan"), hub="offline")
    try:
        composed = recipe_in(draft.file)
        parsed = parse_recipe(composed.name, composed.tree, composed.locate)
        if confined:
            refuse_outside(parsed, composed, settings)
        resolved = resolved_by(parsed, composed.locate, settings)
    except RunnerError as error:
        return Checked(draft.text, _problems(error, label), error.hint or "")
    curves, components = _curves(resolved), _components(resolved)
    try:
        plan = plan_with_origins(resolved)
        placement = placed(plan, settings)
        free = free_bytes(settings.output_dir or Path())
    except RunnerError as error:
        problems = _problems(error, label)
        return Checked(draft.text, problems, error.hint or "", curves=curves, components=components)
    return Checked(draft.text, plan=describe(plan, placement, free), curves=curves, components=components)


def _problems(error: RunnerError, label: str) -> tuple[Problem, ...]:
    """The mistakes an error tells, with the lines they stand in if they are the draft's."""
    pattern = re.compile(rf"{re.escape(label)}:(\d+)(?::\d+)?: (.*)", re.DOTALL)
    found = []
    for message in error.message.split("\n"):
        match = pattern.fullmatch(message)
        found.append(Problem(match[2], int(match[1])) if match else Problem(message))
    return tuple(found)


def refuse_outside(recipe: Recipe, composed: ComposedRecipe, settings: Settings) -> None:
    """Raises: InputError for a model that is not in the folders of the settings."""
    roots = settings.library.roots
    allowed = [settings.models_dir, *(folder for root in roots for folder in (root.path, *root.folders))]
    sources = [*recipe.sources(), *([recipe.output.config] if recipe.output.config else [])]
    for source in sources:
        if source.name.startswith(NAMED):
            continue
        path = settings.models_dir / Path(source.name).expanduser()
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - a link in these folders is the owner's
        inside = any(absolute.is_relative_to(os.path.abspath(folder)) for folder in allowed)  # noqa: PTH100
        if ".." in Path(source.name).parts or not inside:
            where = composed.locate(source.path)
            raise InputError(
                f"{where}: {quote(source.name)}: not in the folders of models",
                hint="in a browser only models_dir, model_folders and the hub's cache are read",
            )


def _components(resolved: Resolved) -> tuple[str, ...]:
    places = resolved.places
    return tuple(sorted({places[key].component for key in resolved.primary.view.tensors}))


def _curves(
    resolved: Resolved,
) -> dict[KeyPath, tuple[str, tuple[str, ...], tuple[float, ...]]]:
    """The numbers of every parameter by block; of a block with several the first."""
    architecture = resolved.primary.architecture
    if architecture is None:
        return {}
    first: dict[str, str] = {}
    for key, where in resolved.places.items():
        for block in where.blocks[-1:] if where.component == architecture.main else ():
            first.setdefault(block, key)
    blocks = tuple(block for block in architecture.depth if block in first)
    found: dict[KeyPath, tuple[str, tuple[str, ...], tuple[float, ...]]] = {}

    def walk(merge: BoundMerge) -> None:
        for name, weighting in merge.weightings.items():
            if not isinstance(weighting, tuple):
                values = (weighting.at(first[block], resolved.places[first[block]]) for block in blocks)
                found[(*merge.path, name)] = (architecture.main, blocks, tuple(values))
        for model in merge.models.values():
            if isinstance(model, BoundMerge):
                walk(model)

    walk(resolved.merge)
    return found

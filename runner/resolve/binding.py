"""Methods found by their names, and what a recipe says of their parameters read at every place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.architectures import Place, place
from runner.architectures.layouts import single_file_name
from runner.errors import KeyPath, Problems, nearest, quote
from runner.methods import METHODS, Method, Parameter, find_method
from runner.models.model import Model
from runner.recipe.structure import RECIPE_KEYS, Merge, Source
from runner.resolve.resolved import BoundMerge
from runner.weighting.parameter import Weighting, parse_weighting
from runner.weighting.rules import Names


def check_names(merge: Merge, problems: Problems) -> bool:
    """Notes unknown methods, roles and parameters; whether all methods and roles are known."""
    good = True
    for model in merge.models.values():
        if isinstance(model, Merge):
            good &= check_names(model, problems)
    method = find_method(merge.method, merge.compat)
    if method is None:
        problems.add(*_unknown_method(merge))
        return False
    takes = f"{method.name} takes {_takes(method)}"
    for role in method.roles:
        if role not in merge.models:
            problems.add((*merge.path, "models", role), f"missing: {takes}")
            good = False
    others = [role for role in merge.models if role not in (*method.roles, method.optional)]
    if method.variadic is None:
        for role in others:
            problems.add((*merge.path, "models", role), f"no such model: {takes}")
    for role in others if method.variadic is not None and method.roles else ():
        if hint := nearest(role, method.roles):
            problems.warn((*merge.path, "models", role), f"one more model{hint}")
    if method.variadic is not None and len(others) < method.variadic:
        problems.add((*merge.path, "models"), f"too few: {takes}")
        good = False
    for name, value in merge.parameters.items():
        if name not in method.parameters:
            known = (*method.parameters, *RECIPE_KEYS)
            own = ", ".join(method.parameters) or "none"
            hint = nearest(name, known) or f" (its parameters: {own})"
            problems.add(
                (*merge.path, name), f"unknown parameter of {method.name}{hint} (found {quote(value)})"
            )
    return good


def _takes(method: Method) -> str:
    """The models a method takes, for a message."""
    text = ", ".join(method.roles)
    if method.variadic is not None:
        more = f"{method.variadic} or more models under names of your own"
        text = f"{text} and {more}" if text else more
    return f"{text}, and {method.optional} if you like" if method.optional else text


def _operands(merge: Merge, method: Method) -> list[str]:
    """The roles of a merge in the order of the method's operands; one it may leave out comes last."""
    optional = [role for role in merge.models if role == method.optional]
    others = [role for role in merge.models if role not in method.roles and role != method.optional]
    return [*method.roles, *others, *optional]


def _unknown_method(merge: Merge) -> tuple[KeyPath, str]:
    tools = sorted({tool for _, tool in METHODS if tool})
    if merge.compat is not None and merge.compat not in tools:
        hint = nearest(merge.compat, tools) or f" (there are: {', '.join(tools)})"
        return (*merge.path, "compat"), f"unknown tool {quote(merge.compat)}{hint}"
    names = sorted(name for name, tool in METHODS if tool == merge.compat)
    where = f" with compat: {merge.compat}" if merge.compat else ""
    hint = nearest(merge.method, names) or f" (there are: {', '.join(names)})"
    return (*merge.path, "method"), f"unknown method {quote(merge.method)}{where}{hint}"


def primary_source(merge: Merge) -> Source:
    """The source that decides the keys of a merge whose methods and roles are known."""
    method = find_method(merge.method, merge.compat)
    assert method is not None  # checked by check_names
    first = merge.models[_operands(merge, method)[0]]
    return first if isinstance(first, Source) else primary_source(first)


def names_of(primary: Model, models: tuple[Model, ...]) -> Names:
    """What a recipe can name: tensors of known architectures by their names in either layout."""
    places, architecture = _places(primary, models), primary.architecture
    if architecture is None:
        single = primary.checkpoint.format == "checkpoint"
        return Names(places, None) if single else Names(places, None, single_file_name=lambda key: None)
    stored_so = {
        key for model in models if model.checkpoint.format == "checkpoint" for key in model.view.left
    }

    def in_a_single_file(key: str) -> str | None:
        return key if key in stored_so else single_file_name(architecture, key)

    return Names(places, architecture, in_a_single_file, lambda key: [in_a_single_file(key) or key])


def _places(primary: Model, models: tuple[Model, ...]) -> dict[str, Place]:
    """Where each tensor of any of the models stands."""
    architecture = primary.architecture
    found: dict[str, Place] = {}
    for model in models:
        layout = model.checkpoint.format
        for key in model.view.tensors:
            if key not in found:
                named = "diffusers" if architecture and key not in model.view.left else layout
                found[key] = place(architecture, named, key)
    return found


def bind(
    merge: Merge, index_of: Mapping[KeyPath, int], names: Names, problems: Problems
) -> BoundMerge | None:
    """A merge with its parameters read; None if its method, or one below, is unknown."""
    models: dict[str, int | BoundMerge] = {}
    method = find_method(merge.method, merge.compat)
    operands = _operands(merge, method) if method else list(merge.models)
    for role in operands:
        model = merge.models.get(role)
        if isinstance(model, Source):
            models[role] = index_of[model.path]
        elif model is not None and (bound := bind(model, index_of, names, problems)):
            models[role] = bound
    if method is None:
        return None
    binder = _Binder(merge, names, problems)
    weightings: dict[str, Weighting | tuple[Weighting, ...]] = {}
    choices: dict[str, str | bool] = {}
    for name, parameter in method.parameters.items():
        value = merge.parameters.get(name)
        if parameter.choices:
            choices[name] = binder.choice(parameter, value)
        elif parameter.per_model:
            several = [role for role in operands if role not in method.roles and role != method.optional]
            weightings[name] = binder.per_model(parameter, value, several or method.roles)
        else:
            weightings[name] = binder.weighting(parameter, value, (*merge.path, name))
    return BoundMerge(method, models, weightings, choices, merge.policies, merge.seed, merge.path)


class _Binder:
    """Reads the parameters of one merge."""

    def __init__(self, merge: Merge, names: Names, problems: Problems) -> None:
        self.merge = merge
        self.names = names
        self.problems = problems

    def weighting(self, parameter: Parameter, value: Any, path: KeyPath) -> Weighting:
        """The number at every place of the model; notes rules that select nothing."""
        extrapolate = self.merge.policies.extrapolate
        before = len(self.problems)
        weighting = parse_weighting(parameter, value, path, extrapolate, self.names, self.problems)
        readable = len(self.problems) == before
        for at, reason in weighting.unused:
            self.problems.add(at, reason)
        if weighting.open is not None and readable:
            hint = "add default: NUMBER for the rest"
            if isinstance(value, list):
                hint = "a list is for the blocks; write {COMPONENT: LIST, default: NUMBER}"
            self.problems.add(path, f"says nothing of {quote(weighting.open)} and others; {hint}")
        return weighting

    def per_model(self, parameter: Parameter, value: Any, roles: Sequence[str]) -> tuple[Weighting, ...]:
        """A number for each model: one for all, or a mapping by role."""
        path = (*self.merge.path, parameter.name)
        if isinstance(value, list):
            by_role = "a list runs over blocks; for a number for each model write {MODEL: NUMBER, ...}"
            self.problems.add(path, f"{by_role}; found {quote(value)}")
            value = None
        if not (isinstance(value, Mapping) and set(value) & set(roles)):
            return (self.weighting(parameter, value, path),) * len(roles)
        for name in value:
            if name not in roles:
                hint = nearest(str(name), roles) or f" (there are: {', '.join(roles)})"
                self.problems.add((*path, name), f"no such model{hint}")
        return tuple(self.weighting(parameter, value.get(role), (*path, role)) for role in roles)

    def choice(self, parameter: Parameter, value: Any) -> str | bool:
        """One of a few words, or true or false."""
        value = parameter.default if value is None else value
        word = str(value) if type(value) is int else value  # axis: 0
        if not any(word is known or word == known for known in parameter.choices) or (
            isinstance(value, bool) != isinstance(parameter.choices[0], bool)
        ):
            words = [str(known).lower() if isinstance(known, bool) else known for known in parameter.choices]
            hint = nearest(str(value), words)
            path = (*self.merge.path, parameter.name)
            self.problems.add(path, f"expected one of {', '.join(words)}; found {quote(value)}{hint}")
            return parameter.choices[0]
        return bool(value) if isinstance(value, bool) else str(word)

"""What instructions of sd-mecha give, and how the arguments of one are read.

Differences are no models here, so the method that adds one to a model is found by its pattern.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from runner.imports.imported import Notes, Tree, written


class RefusedError(Exception):
    """An instruction that cannot be translated; says why."""


@dataclass(frozen=True)
class Model:
    """A model: a file or a merge.

    Attributes:
        tree: as the recipe has it.
        size: merges in it.
        depth: merges inside one another.
    """

    tree: Tree
    size: int = 0
    depth: int = 0


@dataclass(frozen=True)
class Difference:
    """A sum of models with factors that add up to 0, such as b − c."""

    terms: tuple[tuple[float, Model], ...]


@dataclass(frozen=True)
class Merged:
    """What a method makes of differences from one base, to be added to it.

    Attributes:
        method: of ours.
        base: the model all are differences from.
        models: the others.
        parameters: of the method.
        scale: the parameter that takes the strength with which it is added; "" if it must be 1.
    """

    method: str
    base: Model
    models: tuple[Model, ...]
    parameters: Tree
    scale: str = ""


@dataclass(frozen=True)
class Mask:
    """A strength for each element, which only add_difference of the same models takes."""

    method: str
    models: tuple[Model, ...]
    alpha: Any


Value: TypeAlias = "Model | Difference | Merged | Mask | Mapping[str, Any] | str | float | bool | None"
NO_DIFFERENCES = "of differences is not offered here"


class Arguments:
    """The arguments of one merge instruction."""

    def __init__(
        self, name: str, arguments: Sequence[Value], named: Mapping[str, Value], part: str, notes: Notes
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.named = named
        self.part = part
        self.notes = notes

    def operands(self) -> list[Value]:
        """The arguments that are models or differences, by position."""
        kinds = (Model, Difference, Merged)
        return [one for one in self.arguments if isinstance(one, kinds)]

    def models(self, count: int | None = None) -> list[Model]:
        """The arguments that are models; as many as the method takes."""
        found = [one for one in self.operands() if isinstance(one, Model)]
        if len(found) != len(self.operands()):
            raise RefusedError(f"{self.name} {NO_DIFFERENCES}")
        if not found or (count is not None and len(found) != count):
            raise RefusedError(f"{self.name}: expected {count or 'some'} models, found {len(found)}")
        return found

    def differences(self) -> tuple[Model, tuple[Model, ...]]:
        """The arguments as differences of models from one base: the base, and the models."""
        base: Model | None = None
        models = []
        for one in self.operands():
            terms = one.terms if isinstance(one, Difference) else ()
            if len(terms) != 2 or terms[0][0] != 1 or terms[1][0] != -1 or base not in (None, terms[1][1]):
                raise RefusedError(
                    f"{self.name}: only of differences from one base, such as b − base, c − base"
                )
            base = terms[1][1]
            models.append(terms[0][1])
        if base is None:
            raise RefusedError(f"{self.name}: no models")
        return base, tuple(models)

    def parameter(self, name: str, default: float, at: int | None = None) -> Any:
        """A parameter, by name or by position after the models: a number, or block weights."""
        value: Any = self.named.get(name, default)
        after = [one for one in self.arguments if not isinstance(one, (Model, Difference, Merged))]
        if name not in self.named and at is not None and at < len(after):
            value = after[at]
        if isinstance(value, Mapping) and set(value) == {"key"}:
            value = value["key"]
        if isinstance(value, Mapping) and "mbw" in value:
            return dict(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RefusedError(f"{self.name}: {name}: expected a number or block weights")
        return written(value)

    def scalar(self, name: str, default: float, at: int | None = None) -> float:
        """A parameter that must be one number."""
        value = self.parameter(name, default, at)
        if not isinstance(value, (int, float)):
            raise RefusedError(f"{self.name}: {name}: expected one number, found block weights")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A parameter that is true or false."""
        return self.named.get(name, default) is True

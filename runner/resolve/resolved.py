"""A recipe with everything it names: data only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from runner.architectures import Place
from runner.checkpoint import Checkpoint
from runner.disk.files import InputFile
from runner.errors import KeyPath
from runner.methods import Method
from runner.models.model import Model
from runner.recipe.structure import Policies, Recipe
from runner.weighting.parameter import Weighting


@dataclass(frozen=True)
class BoundMerge:
    """A merge of the recipe with its names resolved.

    Attributes:
        method: the method.
        models: by role in the order of the method's operands; a source is its index in Resolved.models.
        weightings: the numeric parameters of the method; of one per model, one for each of `*models`.
        choices: its other parameters.
        policies, seed, path: of the recipe's merge.
    """

    method: Method
    models: Mapping[str, int | BoundMerge]
    weightings: Mapping[str, Weighting | tuple[Weighting, ...]]
    choices: Mapping[str, str | bool]
    policies: Policies
    seed: int
    path: KeyPath

    def primary(self) -> int:
        """The source that decides the keys: the first role, and of a merge there its first role."""
        first = next(iter(self.models.values()))
        return first if isinstance(first, int) else first.primary()

    def merges(self) -> Iterator[BoundMerge]:
        """This merge and those below it."""
        yield self
        for model in self.models.values():
            if isinstance(model, BoundMerge):
                yield from model.merges()


@dataclass(frozen=True)
class Resolved:
    """A recipe and everything it names.

    Attributes:
        recipe: as parsed.
        models: its sources, each once: those of the merge first.
        merge: the recipe's merge, its names resolved.
        output_format: in FORMATS.
        carrier: the model whose other files the output has; None if it has none, or built-in ones.
        places: where each key of any model stands.
        warnings: what is unusual in the recipe, a line each.
        components: that are taken whole from a source of their own, component → index in models.
    """

    recipe: Recipe
    models: tuple[Model, ...]
    merge: BoundMerge
    output_format: str
    carrier: Checkpoint | None
    places: Mapping[str, Place]
    warnings: tuple[str, ...] = ()
    components: Mapping[str, int] = field(default_factory=dict)

    @property
    def primary(self) -> Model:
        """The model whose keys, shapes and other files the output has."""
        return self.models[self.merge.primary()]

    @property
    def files(self) -> list[InputFile]:
        """The weight files of all models."""
        return [file for model in self.models for file in model.checkpoint.files]

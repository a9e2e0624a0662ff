"""The recipe: what to merge, from which models, into what. Data only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runner.errors import KeyPath

NAMED = ("demo:", "hf:")  # what sources begin with that are no paths
COMPUTE_DTYPES = ("float32", "float64")
PREDICTION_TYPES = ("epsilon", "v_prediction")
MAX_TEXT_BYTES = 4096  # of a text in the header of a model
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

# What is said of the result, at the top of a recipe alone.
RESULT_KEYS = (
    "components",
    "output",
    "compute_dtype",
    "prediction_type",
    "zero_terminal_snr",
    "description",
    "author",
    "license",
)
POLICY_KEYS = ("force", "missing", "extra", "shapes", "integers", "ema", "nonfinite", "extrapolate")
MERGE_KEYS = ("method", "models", "compat", "seed", *POLICY_KEYS)
OUTPUT_KEYS = ("name", "format", "dtype", "max_shard_size", "config", "hide_names")
SOURCE_KEYS = ("source", "sha256", "variant")

# Everything a recipe may say beside the parameters of its method.
RECIPE_KEYS = (*MERGE_KEYS, *RESULT_KEYS)

POLICY_WORDS: Mapping[str, tuple[str, ...]] = {
    "missing": ("error", "keep"),
    "extra": ("error", "drop", "keep"),
    "shapes": ("error", "keep", "channels"),
    "integers": ("error", "keep"),
    "ema": ("drop", "keep", "use"),
}
# What those keys take that take one of a few words.
WORDS: Mapping[str, tuple[str, ...]] = {
    **POLICY_WORDS,
    "compute_dtype": COMPUTE_DTYPES,
    "prediction_type": PREDICTION_TYPES,
}
FLAGS = ("force", "extrapolate", "zero_terminal_snr", "hide_names")  # true or false


@dataclass(frozen=True, slots=True)
class Source:
    """A model that is there already.

    Attributes:
        name: as the recipe writes it: a path, demo:NAME, or hf:ORG/NAME.
        sha256: the digest it must have, 64 lower-case digits; None: any.
        variant: which weight files of a diffusers folder, "fp16"; None: the plain ones.
        path: where in the recipe it stands.
        alias: what stands for its name in the result; "": the name itself.
        locked: the digest by which it is found if its path leads nowhere and the recipe gives none.
    """

    name: str
    sha256: str | None = None
    variant: str | None = None
    path: KeyPath = field(default=(), compare=False)
    alias: str = ""
    locked: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Policies:
    """What is allowed that is otherwise an error. Each allowed case is counted in the record.

    Attributes:
        missing: a key of the first model that another one lacks: "error", or "keep" the first model's.
        extra: a key the first model lacks: "error", "drop", or "keep" it.
        shapes: another shape than the first model's: "error", or "keep" the first model's. "channels"
            merges the first input channels of an inpainting model and the like with a plain model, and is
            an error for all other shapes.
        integers: integer tensors that differ: "error", or "keep" the first model's.
        ema: running means of the weights: "drop" them with a warning, "keep" and merge them like the
            others, or "use" them in place of the weights.
        nonfinite: globs of keys that may hold NaN or Inf.
        extrapolate: whether a parameter may leave its usual range.
    """

    missing: str = "error"
    extra: str = "error"
    shapes: str = "error"
    integers: str = "error"
    ema: str = "drop"
    nonfinite: tuple[str, ...] = ()
    extrapolate: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """A method applied to models, each a source or a merge itself.

    Attributes:
        method: name of the method.
        models: by role, in recipe order.
        parameters: of the method, as the recipe gives them; checked by resolve.
        compat: the tool whose results are reproduced.
        seed: for methods that draw random numbers.
        policies: what is allowed in this merge.
        path: where in the recipe it stands.
    """

    method: str
    models: Mapping[str, Source | Merge]
    parameters: Mapping[str, Any]
    compat: str | None = None
    seed: int = 0
    policies: Policies = Policies()
    path: KeyPath = field(default=(), compare=False)

    def sources(self) -> Iterator[Source]:
        """Every source below, in recipe order; one that stands twice comes twice."""
        for model in self.models.values():
            if isinstance(model, Source):
                yield model
            else:
                yield from model.sources()

    def with_sources(self, change: Callable[[Source], Source]) -> Merge:
        """The same merge of other models: each source is replaced by what a function makes of it."""
        models = {
            role: change(model) if isinstance(model, Source) else model.with_sources(change)
            for role, model in self.models.items()
        }
        return replace(self, models=models)


@dataclass(frozen=True, slots=True)
class Output:
    """What the result is called and how it is stored.

    Attributes:
        name: of the file or folder, without suffix.
        format: "diffusers", "checkpoint" or "lora"; None: the first model's, or what the method makes.
        dtype: by component, "default" for the others; empty: each tensor as in the first model.
        max_shard_bytes: weight files of a diffusers folder are split at this size.
        config: the pipeline a diffusers folder's other files come from; None: the first model, or another
            one of the recipe that is a folder, or built-in ones.
        hide_names: whether the result says of its inputs what they are, but not how their files are called.
    """

    name: str
    format: str | None = None
    dtype: Mapping[str, str] = field(default_factory=dict)
    max_shard_bytes: int | None = None
    config: Source | None = None
    hide_names: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """One merge and what becomes of it.

    Attributes:
        name: of the recipe.
        merge: the merge.
        output: what the result is called and how it is stored.
        compute_dtype: what the arithmetic is done in.
        description, author, license: for the header of the result.
        components: that the result takes whole from a source of their own, component → source.
        prediction_type: what the result predicts, "epsilon" or "v_prediction"; None: what its models do.
        zero_terminal_snr: whether its noise schedule ends in pure noise; None: as its models say.
    """

    name: str
    merge: Merge
    output: Output
    compute_dtype: str = "float32"
    description: str = ""
    author: str = ""
    license: str = ""
    components: Mapping[str, Source] = field(default_factory=dict)
    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None

    def sources(self) -> Iterator[Source]:
        """Every source: those of the merge, then those of components."""
        yield from self.merge.sources()
        yield from self.components.values()

    def with_sources(self, change: Callable[[Source], Source]) -> Recipe:
        """The same with the sources of sources() replaced by what a function makes of them."""
        components = {name: change(source) for name, source in self.components.items()}
        return replace(self, merge=self.merge.with_sources(change), components=components)


def roles_at(path: KeyPath) -> str:
    """The roles that lead to a place of a recipe: "b.a", "components.vae"; "" to the recipe itself."""
    return ".".join(map(str, path if path[:1] == ("components",) else path[1::2]))

"""The recipe: what to merge, from which models, into what. Structure and its errors; no files, no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runner.errors import KeyPath, Location, Problems, nearest, quote
from runner.tensors import OUTPUT_DTYPES

NAMED = ("demo:", "hf:")  # what sources begin with that are no paths
COMPUTE_DTYPES = ("float32", "float64")
PREDICTION_TYPES = ("epsilon", "v_prediction")
MAX_SEED = 2**64 - 1
MAX_TEXT_BYTES = 4096  # of a text in the header of a model
MAX_SIZE = 2**63  # bytes; no file system holds more
NAME = re.compile(r"[A-Za-z0-9+_-][A-Za-z0-9.+_-]{0,199}", re.ASCII)
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?", re.ASCII)

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
_POLICY_KEYS = ("force", "missing", "extra", "shapes", "integers", "ema", "nonfinite", "extrapolate")
_MERGE_KEYS = ("method", "models", "compat", "seed", *_POLICY_KEYS)
_OUTPUT_KEYS = ("name", "format", "dtype", "max_shard_size", "config", "hide_names")
_SOURCE_KEYS = ("source", "sha256", "variant")

# Everything a recipe may say beside the parameters of its method.
RECIPE_KEYS = (*_MERGE_KEYS, *RESULT_KEYS)


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
        missing: a key of the primary that another model lacks: "error", or "keep" the primary's.
        extra: a key the primary lacks: "error", "drop", or "keep" it.
        shapes: another shape than the primary's: "error", or "keep" the primary's. "channels" merges the
            first input channels of an inpainting model and the like with a plain model, and is an error
            for all other shapes.
        integers: integer tensors that differ: "error", or "keep" the primary's.
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


FORCE = {"missing": "keep", "extra": "drop", "shapes": "keep", "integers": "keep"}
_POLICY_WORDS = {
    "missing": ("error", "keep"),
    "extra": ("error", "drop", "keep"),
    "shapes": ("error", "keep", "channels"),
    "integers": ("error", "keep"),
    "ema": ("drop", "keep", "use"),
}


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
        format: "diffusers" or "checkpoint"; None: the primary's.
        dtype: by component, "default" for the others; empty: each tensor as in the primary.
        max_shard_bytes: weight files of a diffusers folder are split at this size.
        config: the pipeline a diffusers folder's other files come from; None: the primary, or another
            model of the recipe that is a folder, or built-in ones.
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


def parse_recipe(name: str, tree: Mapping[str, Any], locate: Callable[[KeyPath], Location]) -> Recipe:
    """Reads a recipe from plain data.

    Args:
        name: of the recipe; the output's name if it does not give one.
        tree: its content after composition, overrides and interpolation.
        locate: where the value at a key path was written, for errors.

    Raises:
        RecipeError: with every mistake of its structure. Whether methods, parameters and models
            exist is resolve's business.
    """
    return _Parser(Problems(locate)).recipe(name, tree)


def parse_size(value: object) -> int | None:
    """Bytes of 2000000000, "2GB" (10⁹) or "2GiB" (2³⁰); None if it is no size above 0."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 < value < MAX_SIZE else None
    match = SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    number, unit = match.groups()
    base = 1024 if unit and unit.endswith("i") else 1000
    size = float(number) * (base ** ("KMGT".index(unit[0].upper()) + 1) if unit else 1)
    return int(size) if 1 <= size < MAX_SIZE else None


class _Parser:
    """Walks the tree and notes every mistake; a part that is wrong becomes a harmless default."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.compute_dtype = "float32"
        self.aliases: dict[str, str] | None = None  # by name, if names are hidden
        self.prediction_type: str | None = None
        self.zero_terminal_snr: bool | None = None

    def recipe(self, name: str, tree: Mapping[str, Any]) -> Recipe:
        self.compute_dtype = self.word(tree, "compute_dtype", (), COMPUTE_DTYPES) or "float32"
        self.prediction_type = self.word(tree, "prediction_type", (), PREDICTION_TYPES)
        if tree.get("zero_terminal_snr") is not None:
            self.zero_terminal_snr = self.flag(tree, "zero_terminal_snr", ())
        output = tree.get("output")
        if isinstance(output, Mapping) and self.flag(output, "hide_names", ("output",)):
            self.aliases = {}
        merge = self.merge(tree, (), Policies(), seed=0)
        components = self.components(tree.get("components"))
        stored = self.output(tree.get("output", {}), name)
        texts = {key: self.text(tree, key, ()) for key in ("description", "author", "license")}
        for key, text in texts.items():
            if len(text.encode()) > MAX_TEXT_BYTES:
                self.problems.add(
                    (key,), f"{len(text.encode())} bytes; a header holds at most {MAX_TEXT_BYTES}"
                )
        self.problems.raise_if_any()
        return Recipe(
            name,
            merge,
            stored,
            self.compute_dtype,
            **texts,
            components=components,
            prediction_type=self.prediction_type,
            zero_terminal_snr=self.zero_terminal_snr,
        )

    def merge(self, tree: Mapping[str, Any], path: KeyPath, policies: Policies, seed: int) -> Merge:
        if path and tree.get("compute_dtype", self.compute_dtype) != self.compute_dtype:
            self.problems.add(
                (*path, "compute_dtype"), "is said at the top of the recipe, for all its merges"
            )
        for key in ("prediction_type", "zero_terminal_snr"):
            if path and tree.get(key) not in (None, getattr(self, key)):
                self.problems.add((*path, key), "is said at the top of the recipe, of its result")
        if path and tree.get("components"):
            self.problems.add((*path, "components"), "are given at the top of the recipe, for its result")
        method = tree.get("method")
        if not isinstance(method, str):
            self.problems.add((*path, "method"), f"expected the name of a method{_found(tree, 'method')}")
            method = ""
        policies = self.policies(tree, path, policies)
        if "seed" in tree:
            seed = tree["seed"]
            if type(seed) is not int or not 0 <= seed <= MAX_SEED:
                self.problems.add(
                    (*path, "seed"), f"expected an integer from 0 to 2^64-1, found {quote(seed)}"
                )
                seed = 0
        return Merge(
            method=method,
            models=self.models(tree, path, policies, seed),
            parameters={key: value for key, value in tree.items() if key not in RECIPE_KEYS},
            compat=self.text(tree, "compat", path) or None,
            seed=seed,
            policies=policies,
            path=path,
        )

    def models(
        self, tree: Mapping[str, Any], path: KeyPath, policies: Policies, seed: int
    ) -> dict[str, Source | Merge]:
        models = tree.get("models")
        path = (*path, "models")
        if not isinstance(models, Mapping) or not models:
            self.problems.add(path, f"expected models by role: {{a: ..., b: ...}}{_found(tree, 'models')}")
            return {}
        result: dict[str, Source | Merge] = {}
        for role, model in models.items():
            at = (*path, role)
            if not isinstance(role, str) or not IDENTIFIER.fullmatch(role):
                self.problems.add(at, f"a role is a word such as a, b, base; found {quote(role)}")
            elif isinstance(model, str):
                result[role] = self.source({"source": model}, at)
            elif isinstance(model, Mapping) and "source" in model:
                result[role] = self.source(model, at)
            elif isinstance(model, Mapping):
                result[role] = self.merge(model, at, policies, seed)
            else:
                expected = "a path, demo:NAME, hf:ORG/NAME, {source: ..., sha256: ...}, or a merge"
                self.problems.add(at, f"expected {expected}; found {quote(model)}")
        return result

    def components(self, tree: object) -> dict[str, Source]:
        if tree is None:
            return {}
        if not isinstance(tree, Mapping):
            self.problems.add(("components",), f"expected sources: {{vae: SOURCE, ...}}; found {quote(tree)}")
            return {}
        result: dict[str, Source] = {}
        # By name: their order must not decide bytes, since canonical recipes do not keep it.
        for component, source in sorted(tree.items(), key=lambda item: str(item[0])):
            at = ("components", component)
            if isinstance(source, str):
                result[component] = self.source({"source": source}, at)
            elif isinstance(source, Mapping) and "source" in source:
                result[component] = self.source(source, at)
            elif source is not None:  # a recipe above may name one: null takes it back
                expected = "a path, demo:NAME or {source: ..., sha256: ...}"
                self.problems.add(at, f"expected {expected}; found {quote(source)}")
        return result

    def source(self, tree: Mapping[str, Any], path: KeyPath) -> Source:
        self.known(tree, _SOURCE_KEYS, path, "key of a source")
        name = tree["source"]
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            self.problems.add(
                (*path, "source"), f"expected a path, demo:NAME or hf:ORG/NAME, found {quote(name)}"
            )
            name = "?"
        sha256 = self.text(tree, "sha256", path).lower() or None
        if sha256 and not SHA256.fullmatch(sha256):
            self.problems.add((*path, "sha256"), f"expected 64 hexadecimal digits, found {quote(sha256)}")
        alias = ""
        if self.aliases is not None:
            alias = self.aliases.setdefault(name, f"input-{len(self.aliases) + 1}")
        return Source(name, sha256, self.text(tree, "variant", path) or None, path, alias)

    def policies(self, tree: Mapping[str, Any], path: KeyPath, inherited: Policies) -> Policies:
        said: dict[str, Any] = {}
        if self.flag(tree, "force", path):
            said.update(FORCE)
        for key, words in _POLICY_WORDS.items():
            if word := self.word(tree, key, path, words):
                said[key] = word
        if "extrapolate" in tree:
            said["extrapolate"] = self.flag(tree, "extrapolate", path)
        globs = tree.get("nonfinite", [])
        if isinstance(globs, list) and all(isinstance(glob, str) and 0 < len(glob) <= 256 for glob in globs):
            said["nonfinite"] = (*inherited.nonfinite, *globs)
        else:
            self.problems.add((*path, "nonfinite"), f"expected a list of key patterns, found {quote(globs)}")
        return replace(inherited, **said)

    def output(self, tree: object, name: str) -> Output:
        if not isinstance(tree, Mapping):
            self.problems.add(("output",), f"expected {{name: ..., dtype: ...}}, found {quote(tree)}")
            return Output(name)
        self.known(tree, _OUTPUT_KEYS, ("output",), "key of output")
        given = self.text(tree, "name", ("output",)) or name
        if not NAME.fullmatch(given):
            letters = "letters, digits and . + - _ (not . first, at most 200)"
            self.problems.add(("output", "name"), f"expected {letters}, found {quote(given)}")
        size = tree.get("max_shard_size")
        max_shard_bytes = parse_size(size) if size is not None else None
        if size is not None and max_shard_bytes is None:
            self.problems.add(
                ("output", "max_shard_size"), f'expected a size such as "5GB", found {quote(size)}'
            )
        return Output(
            name=given,
            format=self.text(tree, "format", ("output",)) or None,
            dtype=self.dtypes(tree.get("dtype")),
            max_shard_bytes=max_shard_bytes,
            config=self.config(tree.get("config")),
            hide_names=self.aliases is not None,
        )

    def config(self, value: object) -> Source | None:
        path = ("output", "config")
        if value is None:
            return None
        if isinstance(value, str):
            return self.source({"source": value}, path)
        if isinstance(value, Mapping) and "source" in value:
            if "sha256" in value:
                reason = "its weights are not read, so there is nothing to compare; leave it out"
                self.problems.add((*path, "sha256"), reason)
            return self.source(value, path)
        self.problems.add(path, f"expected the folder of a pipeline, found {quote(value)}")
        return None

    def dtypes(self, value: object) -> dict[str, str]:
        if value is None:
            return {}
        by_component = value if isinstance(value, Mapping) else {"default": value}
        for component, dtype in by_component.items():
            path = ("output", "dtype", component) if isinstance(value, Mapping) else ("output", "dtype")
            if dtype not in OUTPUT_DTYPES:
                suggestion = nearest(str(dtype), OUTPUT_DTYPES)
                expected = ", ".join(OUTPUT_DTYPES)
                self.problems.add(path, f"expected one of {expected}; found {quote(dtype)}{suggestion}")
        return {str(component): str(dtype) for component, dtype in by_component.items()}

    def known(self, tree: Mapping[str, Any], keys: tuple[str, ...], path: KeyPath, what: str) -> None:
        for key in tree:
            if key not in keys:
                suggestion = nearest(str(key), keys) or f" (known: {', '.join(keys)})"
                self.problems.add((*path, key), f"unknown {what}{suggestion}{_found(tree, key)}")

    def word(self, tree: Mapping[str, Any], key: str, path: KeyPath, words: tuple[str, ...]) -> str | None:
        value = tree.get(key)
        if value is None:
            return None
        if value not in words:
            expected = " or ".join(words)
            suggestion = nearest(str(value), words)
            self.problems.add((*path, key), f"expected {expected}; found {quote(value)}{suggestion}")
            return None
        return str(value)

    def text(self, tree: Mapping[str, Any], key: str, path: KeyPath) -> str:
        value = tree.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.problems.add((*path, key), f"expected a text, found {quote(value)}")
            return ""
        return value

    def flag(self, tree: Mapping[str, Any], key: str, path: KeyPath) -> bool:
        value = tree.get(key, False)
        if not isinstance(value, bool):
            self.problems.add((*path, key), f"expected true or false, found {quote(value)}")
            return False
        return value


def _found(tree: Mapping[str, Any], key: str) -> str:
    return f" (found {quote(tree[key])})" if key in tree else ""

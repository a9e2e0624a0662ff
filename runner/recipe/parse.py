"""Recipes from plain data: every mistake of their structure, told at once. No files, no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from runner.errors import KeyPath, Location, Problems, nearest, quote
from runner.recipe.structure import (
    IDENTIFIER,
    MAX_TEXT_BYTES,
    OUTPUT_KEYS,
    POLICY_WORDS,
    RECIPE_KEYS,
    SHA256,
    SOURCE_KEYS,
    WORDS,
    Merge,
    Output,
    Policies,
    Recipe,
    Source,
)
from runner.tensors import OUTPUT_DTYPES

MAX_SEED = 2**64 - 1
MAX_SIZE = 2**63  # bytes; no file system holds more
NAME = re.compile(r"[A-Za-z0-9+_-][A-Za-z0-9.+_-]{0,199}", re.ASCII)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?", re.ASCII)
FORCE = {"missing": "keep", "extra": "drop", "shapes": "keep", "integers": "keep"}


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
        self.compute_dtype = self.word(tree, "compute_dtype", ()) or "float32"
        self.prediction_type = self.word(tree, "prediction_type", ())
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
        self.known(tree, SOURCE_KEYS, path, "key of a source")
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
        for key in POLICY_WORDS:
            if word := self.word(tree, key, path):
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
        self.known(tree, OUTPUT_KEYS, ("output",), "key of output")
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
            if not isinstance(dtype, str) or dtype not in OUTPUT_DTYPES:
                suggestion = nearest(str(dtype), OUTPUT_DTYPES)
                expected = ", ".join(OUTPUT_DTYPES)
                self.problems.add(path, f"expected one of {expected}; found {quote(dtype)}{suggestion}")
        return {str(component): str(dtype) for component, dtype in by_component.items()}

    def known(self, tree: Mapping[str, Any], keys: tuple[str, ...], path: KeyPath, what: str) -> None:
        for key in tree:
            if key not in keys:
                suggestion = nearest(str(key), keys) or f" (known: {', '.join(keys)})"
                self.problems.add((*path, key), f"unknown {what}{suggestion}{_found(tree, key)}")

    def word(self, tree: Mapping[str, Any], key: str, path: KeyPath) -> str | None:
        value, words = tree.get(key), WORDS[key]
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

"""Recipes and other values as text that is equal for equal ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

from runner.recipe.structure import NAMED, Merge, Policies, Recipe, Source


def canonical_json(value: Any) -> str:
    """JSON that is equal for equal values: sorted, compact, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def readable_json(value: Any) -> str:
    """JSON as people read it, on many lines, in the order that the value has; UTF-8, no NaN."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_recipe(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the bytes, with names of files but no folders."""
    output = {
        "name": recipe.output.name,
        "format": recipe.output.format,
        "dtype": dict(recipe.output.dtype),
        "max_shard_bytes": recipe.output.max_shard_bytes,
        "config": canonical_source(recipe.output.config) if recipe.output.config else None,
        "hide_names": recipe.output.hide_names,
    }
    components = {name: canonical_source(source) for name, source in recipe.components.items()}
    texts = {"description": recipe.description, "author": recipe.author, "license": recipe.license}
    predicted = {
        "prediction_type": recipe.prediction_type,
        "zero_terminal_snr": recipe.zero_terminal_snr,
    }
    return {
        **_canonical_merge(recipe.merge),
        **({"components": components} if components else {}),
        "compute_dtype": recipe.compute_dtype,
        **{name: value for name, value in predicted.items() if value is not None},
        "output": {name: value for name, value in output.items() if value},
        **{name: text for name, text in texts.items() if text},
    }


def _canonical_merge(merge: Merge) -> dict[str, Any]:
    defaults = asdict(Policies())
    policies = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(merge.policies).items()
        if value != defaults[name]
    }
    # Lists, since the order of models and of selectors can decide bytes, and JSON objects have none.
    models = [
        {"role": role, **(canonical_source(model) if isinstance(model, Source) else _canonical_merge(model))}
        for role, model in merge.models.items()
    ]
    parameters = {name: _ordered(value) for name, value in merge.parameters.items()}
    result: dict[str, Any] = {"method": merge.method, "models": models, **policies, **parameters}
    if merge.compat:
        result["compat"] = merge.compat
    if merge.seed:
        result["seed"] = merge.seed
    return result


def _ordered(value: Any) -> Any:
    """A parameter's value with mappings as lists of pairs and numbers as floats."""
    if isinstance(value, Mapping):
        return [[str(name), _ordered(part)] for name, part in value.items()]
    if isinstance(value, list):
        return [_ordered(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def canonical_source(source: Source) -> dict[str, str]:
    """How a source is named wherever it lies: by its file or folder alone, and its variant."""
    named = source.name.startswith(NAMED)
    name = source.alias or (source.name if named else PurePath(source.name).name)
    result = {"source": name}
    if source.variant:
        result["variant"] = source.variant
    return result


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of the canonical recipe."""
    return canonical_digest(canonical_recipe(recipe))

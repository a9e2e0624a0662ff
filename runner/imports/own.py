"""runner.recipe: the canonical recipe in the header of a model that we merged, back as a recipe.

It names files without their folders and has no digests of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.errors import quote
from runner.imports.imported import Imported, Notes, Tree

TITLE = "runner"
MAX_DEPTH = 12


def read(record: Mapping[str, Any], label: str) -> Imported:
    """A canonical recipe as a recipe.

    Raises:
        InputError: it is no recipe.
    """
    notes = Notes()
    tree = _merge(record, notes, 0)
    if tree is None:
        raise notes.cannot(label, "runner.recipe is no recipe")
    output = tree.get("output")
    if isinstance(output, Mapping) and "max_shard_bytes" in output:
        size = output["max_shard_bytes"]
        tree["output"] = {
            **{key: one for key, one in output.items() if key != "max_shard_bytes"},
            "max_shard_size": size,
        }
    notes.exact("runner.recipe", "the recipe this model was merged by")
    notes.approximate("models", "known by name alone; runner.inputs or run.json has their digests")
    return Imported(TITLE, tree, tuple(notes.found))


def _merge(record: Mapping[str, Any], notes: Notes, depth: int) -> Tree | None:
    models: Tree = {}
    listed = record.get("models")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str) or depth > MAX_DEPTH:
            notes.refused("models", f"{quote(one)}: expected a role and a source or a merge")
            return None
        rest = {key: value for key, value in one.items() if key != "role"}
        model = rest if "source" in rest else _merge(rest, notes, depth + 1)
        if model is None:
            return None
        models[one["role"]] = model
    tree: Tree = {"method": record.get("method"), "models": models}
    return {**tree, **{key: _mapping(value) for key, value in record.items() if key not in tree}}


def _mapping(value: Any) -> Any:
    """A value with lists of pairs as mappings, which is how canonical recipes keep their order."""
    if isinstance(value, list) and value and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value
    ):  # fmt: skip
        return {pair[0]: _mapping(pair[1]) for pair in value}
    return value

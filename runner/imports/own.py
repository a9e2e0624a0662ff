"""runner.recipe: the canonical recipe in the header of a model that we merged, back as a recipe.

It names files without their folders; runner.inputs, beside it, has their digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from runner.errors import quote
from runner.imports.history import History
from runner.imports.imported import Imported, Notes, Tree
from runner.recipe import SHA256
from runner.stated import Record, mapping

TITLE = "runner"
MAX_DEPTH = 12
_OF_A_WHOLE_RECIPE = ("components", "output", "compute_dtype", "description", "author", "license")


def read(
    record: Mapping[str, Any], label: str, digests: Mapping[str, Any] = MappingProxyType({})
) -> Imported:
    """A canonical recipe as a recipe.

    Args:
        record: the canonical recipe.
        label: names the file in an error.
        digests: of its models, as far as they are known: "b.a" → SHA-256.

    Raises:
        InputError: it is no recipe.
    """
    notes = Notes()
    tree = merge(record, digests, notes)
    if tree is None:
        raise notes.cannot(label, "runner.recipe is no recipe")
    notes.exact("runner.recipe", "the recipe this model was merged by")
    if not digests:
        notes.approximate("models", "known by name alone; run.json has their digests")
    return Imported(TITLE, tree, tuple(notes.found))


def merge(record: Mapping[str, Any], digests: Mapping[str, Any], notes: Notes) -> Tree | None:
    """The recipe as plain data; None, and noted, if it is none."""
    tree = _merge(record, digests, "", notes, 0)
    if tree is None:
        return None
    output = tree.get("output")
    if isinstance(output, Mapping) and "max_shard_bytes" in output:
        size = output["max_shard_bytes"]
        tree["output"] = {
            **{key: one for key, one in output.items() if key != "max_shard_bytes"},
            "max_shard_size": size,
        }
    components = tree.get("components")
    if isinstance(components, Mapping):
        tree["components"] = {
            name: _known(one, f"components.{name}", digests) for name, one in components.items()
        }
    return tree


def recorded(record: Record, history: History) -> Tree | None:
    """The merge in an sd_merge_recipe of ours, which other tools carry on; None, and noted, if none."""
    steps, digests = mapping(record.get("steps")), mapping(record.get("models"))
    if steps is None:
        history.notes.refused("steps", "the recipe is not recorded")
        return None
    tree = merge(steps, digests or {}, history.notes)
    if tree is not None and history.nested:
        if tree.get("components"):
            history.notes.refused("components", "taken from other sources; only a whole recipe can say so")
        return {key: one for key, one in tree.items() if key not in _OF_A_WHOLE_RECIPE}
    return tree


def _merge(
    record: Mapping[str, Any], digests: Mapping[str, Any], at: str, notes: Notes, depth: int
) -> Tree | None:
    models: Tree = {}
    listed = record.get("models")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str) or depth > MAX_DEPTH:
            notes.refused("models", f"{quote(one)}: expected a role and a source or a merge")
            return None
        rest = {key: value for key, value in one.items() if key != "role"}
        path = f"{at}.{one['role']}" if at else one["role"]
        source = "source" in rest
        model = _known(rest, path, digests) if source else _merge(rest, digests, path, notes, depth + 1)
        if model is None:
            return None
        models[one["role"]] = model
    tree: Tree = {"method": record.get("method"), "models": models}
    return {**tree, **{key: _mapping(value) for key, value in record.items() if key not in tree}}


def _known(source: Any, path: str, digests: Mapping[str, Any]) -> Any:
    """A source with its digest, if that is known."""
    digest = digests.get(path)
    known = isinstance(source, Mapping) and isinstance(digest, str) and SHA256.fullmatch(digest)
    return {**source, "sha256": digest} if known else source


def _mapping(value: Any) -> Any:
    """A value with lists of pairs as mappings, which is how canonical recipes keep their order."""
    if isinstance(value, list) and value and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in value
    ):  # fmt: skip
        return {pair[0]: _mapping(pair[1]) for pair in value}
    return value

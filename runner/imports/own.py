"""runner.recipe: the canonical recipe in the header of a model that we merged, back as a recipe.

It names files without their folders; runner.inputs, beside it, has their digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from runner.errors import quote
from runner.imports.history import History
from runner.imports.imported import Imported, Notes, Tree, written
from runner.recipe.structure import RESULT_KEYS, SHA256, Policies
from runner.stated import Record, mapping

TITLE = "runner"
MAX_DEPTH = 12
# What merges inside another inherit from it, and what holds if nobody says: canonical recipes leave that out.
_INHERITED: Mapping[str, Any] = {**asdict(Policies()), "nonfinite": [], "seed": 0}


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
    tree = _merge(record, digests, "", notes, 0, _INHERITED)
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
        return {key: one for key, one in tree.items() if key not in RESULT_KEYS}
    return tree


def _merge(
    record: Mapping[str, Any],
    digests: Mapping[str, Any],
    at: str,
    notes: Notes,
    depth: int,
    above: Mapping[str, Any],
) -> Tree | None:
    """A merge and those in it.

    Args:
        record: the canonical merge.
        digests: of models, by the roles that lead to them.
        at: the roles that lead here.
        notes: where it is noted what is no recipe.
        depth: of merges in merges.
        above: what the merge around it says of what is inherited.
    """
    says = {name: record.get(name, default) for name, default in _INHERITED.items()}
    models: Tree = {}
    listed = record.get("models")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str) or depth > MAX_DEPTH:
            notes.refused("models", f"{quote(one)}: expected a role and a source or a merge")
            return None
        rest = {key: value for key, value in one.items() if key != "role"}
        path = f"{at}.{one['role']}" if at else one["role"]
        source = "source" in rest
        model = _known(rest, path, digests) if source else _merge(rest, digests, path, notes, depth + 1, says)
        if model is None:
            return None
        models[one["role"]] = model
    tree: Tree = {"method": record.get("method"), "models": models}
    tree |= {key: _mapping(value) for key, value in record.items() if key not in tree}
    tree |= {name: value for name, value in says.items() if name not in tree and value != above[name]}
    return _with_own_patterns(tree, above["nonfinite"])


def _with_own_patterns(tree: Tree, inherited: Any) -> Tree:
    """A merge that names only the keys it lets be NaN itself: a recipe adds those of the merge around it."""
    said = tree.get("nonfinite")
    if not isinstance(said, list) or not isinstance(inherited, list) or not inherited:
        return tree
    if said[: len(inherited)] != inherited:
        return tree
    own = said[len(inherited) :]
    return {key: value for key, value in tree.items() if key != "nonfinite"} | (
        {"nonfinite": own} if own else {}
    )


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
    if isinstance(value, list):
        return [_mapping(one) for one in value]
    # All numbers are floats there, and "0.0" is no choice of a parameter that takes 0 or a word.
    if isinstance(value, float) and value.is_integer() and repr(value) != "-0.0":
        return written(value)
    return value

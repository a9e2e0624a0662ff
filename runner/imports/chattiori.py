"""Chattiori-Model-Merger: sd_merge_recipe of the type "merge-models-chattiori".

Its numbers are recorded as text for people, so what is read from them is approximate.
Source: Faildes Chattiori-Model-Merger, merge.py.
"""

from __future__ import annotations

import re
from typing import Any

from runner.errors import quote
from runner.imports.blocks import block_weights, elemental
from runner.imports.history import History
from runner.imports.imported import Notes, Tree, choices, number, numbers, title, true, written
from runner.stated import Record

TITLE = "Chattiori-Model-Merger"
POLICIES = {"missing": "keep", "extra": "keep", "integers": "keep"}
# merge_method: method, number of models, whether it takes beta
_METHODS = {
    "weighted sum": ("weighted_sum", 2, False),
    "add difference": ("add_difference", 3, False),
    "smooth add difference": ("smooth_add", 3, False),
    "train difference": ("train_difference", 3, False),
    "training difference": ("train_difference", 3, False),
    "multiply difference": ("multiply_difference", 3, True),
    "similarity add difference": ("similarity_add_difference", 3, True),
    "triple sum": ("triple_sum", 3, True),
    "sum twice": ("sum_twice", 3, True),
    "tensor sum": ("tensor_sum", 2, True),
    "geometric": ("geometric_sum", 2, False),
    "geometric sum": ("geometric_sum", 2, False),
    "no interpolation": ("copy", 1, False),
}
_COSINES = {"cosine_0": "cosine_a", "cosine_1": "cosine_b"}
_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
# 0.1,[[0.2,...],['OUT03:attn:0.5']], perhaps after preset:[...],
_BLOCKS = re.compile(
    r"(?:preset:\[.*?\],)?\s*(?P<base>[-+\d.eE]+),\[\[(?P<values>[^\]]*)\],(?P<deep>.*)\]", re.DOTALL
)
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


def merge(record: Record, history: History) -> Tree | None:
    """The merge a record describes; None, and noted, if it describes none."""
    notes = history.notes
    known = choices(record.get("merge_method"), _METHODS, "merge_method", notes)
    if known is None:
        return None
    method, count, two = known
    calculations = [word for word in str(record.get("calculation") or "").split(",") if word]
    for word in calculations:
        if word in _COSINES and method == "weighted_sum":
            method = _COSINES[word]
        else:
            notes.refused("calculation", f"{quote(word)} is not offered here")
    models = history.roles(record, count)
    if models is None:
        return None
    tree: Tree = {"method": method, "models": models}
    if method in _COSINES.values():
        tree["range"] = "global"
    if count > 1:
        tree |= POLICIES
        for name in ("alpha", "beta")[: 2 if two else 1]:
            value = _weights(record.get(f"{name}_info"), f"{name}_info", notes)
            if value is None:
                return None
            tree[name] = value
    notes.exact("merge_method", f"{quote(record.get('merge_method'))} is {method}")
    if count > 1:
        notes.approximate("arithmetic", "in float32 and rounded once; there in the dtype of the files")
    _options(record, tree, notes)
    return tree


def _weights(info: object, part: str, notes: Notes) -> Any:
    """The numbers in a text for people; None, and noted, if there are none."""
    text = str(info).strip()[:20_000]
    if (value := number(text)) is not None:
        notes.exact(part, f"{value:g}")
        return written(value)
    match = _BLOCKS.fullmatch(text)
    base, values = (number(match["base"]), numbers(match["values"])) if match else (None, None)
    if match is None or base is None or values is None:
        notes.refused(part, f"no numbers can be read from {quote(info)}")
        return None
    weights = block_weights(values, base, "chattiori", part, notes)
    if weights is not None:
        notes.approximate(part, "block weights are recorded with three digits")
        if text := elemental([one or two for one, two in _QUOTED.findall(match["deep"])], False, notes):
            weights["elemental"] = text
    return weights


def _options(record: Record, tree: Tree, notes: Notes) -> None:
    """What the record says beside the merge itself."""
    output: Tree = {}
    if name := title(record.get("output_name")):
        output["name"] = name
    precision = "fp16" if true(record.get("save_as_half")) else record.get("fp")
    if isinstance(precision, str) and precision in _DTYPES:
        output["dtype"] = _DTYPES[precision]
    elif precision:
        notes.refused("fp", f"{quote(precision)} is no dtype that is written here")
    if output:
        tree["output"] = output
    vae = record.get("bake_in_vae")
    if vae:
        notes.refused("bake_in_vae", f"the VAE {quote(vae)} was put in; known by its name alone")
    if true(record.get("pruned")):
        notes.approximate(
            "pruned", "keys that are not needed were removed; here they stay, except EMA copies"
        )
    for extra in ("rebasin", "clipxor", "swap_components_alpha_text"):
        if record.get(extra):
            notes.refused(extra, "is not offered here")

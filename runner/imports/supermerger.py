"""sd-webui-supermerger: its record in a header, and the rows of its mergehistory.csv.

Both are the settings of the same panel. A row says more (γ, the seed, Adjust), a record has digests.
Source: hako-mikan sd-webui-supermerger, scripts/mergers/mergers.py.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from runner.errors import quote
from runner.imports.blocks import WITH_BASE, block_weights, elemental
from runner.imports.history import History
from runner.imports.imported import Imported, Notes, Tree, number, numbers, source, title, true, written
from runner.stated import Record

TITLE = "supermerger"
# It passes over keys the second model has not, and adds those the first one has not.
POLICIES = {"missing": "keep", "extra": "keep", "integers": "keep"}
_MODES = {"weight": "weighted_sum", "add": "add_difference", "triple": "triple_sum", "sum twice": "sum_twice"}
# calcmode: method, number of models, and what differs from it there
_CALCULATIONS: Mapping[str, tuple[str, int, str]] = {
    "cosinea": ("cosine_a", 2, ""),
    "cosineb": ("cosine_b", 2, ""),
    "traindifference": ("train_difference", 3, ""),
    "smoothadd": ("smooth_add", 3, ""),
    "smoothadd mt": ("smooth_add", 3, ""),
    "extract": ("extract", 3, "the similarity of a convolution is taken over each kernel row there"),
    "tensor": ("tensor_sum", 2, ""),
    "tensor2": ("tensor_sum", 2, "a dimension of up to 100 is cut by the other one's bounds there"),
    "self": ("copy", 1, ""),
}
_MODELS = {"weighted_sum": 2, "add_difference": 3, "triple_sum": 3, "sum_twice": 3}
_NEEDS_BETA = ("triple_sum", "sum_twice", "tensor_sum", "extract")
# Where alpha 0 (and beta 0) leave the first model as it is, a part can be left out.
_LEAVES_OUT = ("weighted_sum", "add_difference", "triple_sum", "sum_twice", "train_difference", "smooth_add",
               "tensor_sum")  # fmt: skip
_SLIDER_GAMMA = 0.3
_FIELDS = 23  # of a row of the history; its header names 16
_SHA_ROW = re.compile(r"\s*\[[0-9a-fA-F]{8,64}\]\s*$", re.ASCII)
_XL = {19, 20}  # values without BASE


def merge(record: Record, history: History) -> Tree | None:
    """The merge a record describes; None, and noted, if it describes none."""
    found = _method(record, history.notes)
    if found is None:
        return None
    method, count = found
    models = {}
    for role in "abc"[:count]:
        digest = record.get(f"model_{role}")
        # Without a third model it takes the first one.
        if role == "c" and not digest:
            digest = record.get("model_a")
            history.notes.exact("model_c", "none given, so the first model")
        model = history.model(digest, f"model_{role}")
        if model is None:
            return None
        models[role] = model
    tree = _merge(record, method, models, history.notes)
    if tree is not None and not history.nested:
        history.notes.approximate("not recorded", "precision of the file, VAE, Adjust values")
    return tree


def _method(record: Record, notes: Notes) -> tuple[str, int] | None:
    """The method, and how many models it takes."""
    mode, calculation = (str(record.get(name) or "").strip() for name in ("mode", "calcmode"))
    word = calculation.lower()
    if word in ("", "normal"):
        method = next((ours for theirs, ours in _MODES.items() if mode.lower().startswith(theirs)), None)
        if method is None:
            notes.refused("mode", f"unknown: {quote(mode)}")
            return None
        notes.exact("mode", f"{quote(mode)} is {method}")
        return method, _MODELS[method]
    if word not in _CALCULATIONS:
        notes.refused("calcmode", f"{quote(calculation)} is not offered here")
        return None
    method, count, why = _CALCULATIONS[word]
    if why:
        notes.approximate("calcmode", f"{quote(calculation)} is {method}; {why}")
    else:
        notes.exact("calcmode", f"{quote(calculation)} is {method}")
    return method, count


def _merge(record: Record, method: str, models: Tree, notes: Notes) -> Tree | None:
    """The recipe, from the models and the numbers."""
    tree: Tree = {"method": method, "models": models}
    if method in _MODELS:
        tree["compat"] = "supermerger"
    if method in ("cosine_a", "cosine_b"):
        tree["range"] = "global"
    if str(record.get("calcmode")).strip().lower() == "tensor2":
        tree["axis"] = "auto"
    tree |= POLICIES
    alpha = _weights(record, "alpha", notes)
    if alpha is None:
        return None
    entries, count = _entries(record), len(numbers(record.get("weights_alpha")) or ())
    if entries:
        text = elemental(entries, count in _XL, notes)
        if text and not true(record.get("mbw")):
            notes.approximate(
                "elemental_merge", "for SDXL other blocks were meant there by the names from IN09 on"
            )
        if text:
            alpha = {**(alpha if isinstance(alpha, dict) else {"default": alpha}), "elemental": text}
            if "dialect" not in alpha:
                alpha["dialect"] = "supermerger"
    if method == "copy":
        return _scaled(tree, alpha, notes)
    tree["alpha"] = alpha
    if method in _NEEDS_BETA:
        beta = _weights(record, "beta", notes)
        if beta is None:
            return None
        tree["beta"] = beta
    if method == "extract":
        gamma = number(record.get("gamma"))
        if gamma is None:
            gamma = _SLIDER_GAMMA
            notes.approximate("gamma", "not recorded; 0.3, where its slider starts. Set what was used")
        tree["gamma"] = written(gamma)
    return _left_out(record, tree, notes)


def _weights(record: Record, name: str, notes: Notes) -> Any:
    """Alpha or beta: a number, or one for each block; None, and noted, if it is neither."""
    base = number(record.get(f"base_{name}"))
    if not true(record.get("mbw")):
        if base is None:
            notes.refused(f"base_{name}", f"expected a number, found {quote(record.get(f'base_{name}'))}")
            return None
        return written(base)
    values = numbers(record.get(f"weights_{name}"))
    if values is None:
        notes.refused(f"weights_{name}", "expected a number for each block")
        return None
    return block_weights(values, base, "supermerger", f"weights_{name}", notes)


def _entries(record: Record) -> list[str]:
    recorded = record.get("elemental_merge")
    if isinstance(recorded, str):
        recorded = re.split(r"[,\n]", recorded)
    return [str(one).strip() for one in recorded if str(one).strip()] if isinstance(recorded, list) else []


def _scaled(tree: Tree, alpha: Any, notes: Notes) -> Tree | None:
    """The calculation "self": the first model times a number, without some layers."""
    if not isinstance(alpha, (int, float)):
        notes.refused("calcmode", '"self" with block weights')
        return None
    left = {"default": alpha, "*to_out*": 1, "*proj_out*": 1, "*norm*": 1}
    return {**tree, "scale": 1 if alpha == 0 else left}


def _left_out(record: Record, tree: Tree, notes: Notes) -> Tree:
    """The recipe with what Include and Exclude leave out of the merge."""
    for word in ("Include", "Exclude"):
        listed = record.get(word)
        items = re.split(r"[,\s]+", listed) if isinstance(listed, str) else listed
        items = [str(one).strip() for one in items if str(one).strip()] if isinstance(items, list) else []
        items = [item for item in items if item.lower() not in ("print", "adjust")]
        if not items:
            continue
        if tree["method"] not in _LEAVES_OUT or (word == "Include" and isinstance(tree["alpha"], dict)):
            notes.refused(word, f"{quote(', '.join(items))}: here all keys are merged")
            continue
        if any(not re.fullmatch(r"[\w.]{1,100}", item, re.ASCII) for item in items):
            notes.refused(word, f"{quote(', '.join(items))}: not texts of letters, digits, _ and .")
            continue
        for name in ("alpha", "beta"):
            if name not in tree or (name == "beta" and tree["method"] not in ("triple_sum", "sum_twice")):
                continue
            value = tree[name]
            inside, outside = (value, 0) if word == "Include" else (0, value)
            start = outside if isinstance(outside, dict) else {"default": outside}
            tree[name] = {**start, **{_selector(item): inside for item in items}}
        notes.exact(word, quote(", ".join(items)))
    return tree


def _selector(item: str) -> str:
    """A block, the VAE, or any key with the text in it."""
    if re.fullmatch(r"(IN|OUT|M)\d\d|BASE", item):
        return item
    return "vae" if item == "VAE" else f"*{item}*"


def _record(row: list[str]) -> dict[str, Any]:
    """A row as the record of the same settings."""
    record: dict[str, Any] = {
        "mode": row[10],
        "mbw": row[11],
        "elemental_merge": row[15],
        "calcmode": row[16],
    }
    for name, weights, base in (("alpha", row[3], row[8]), ("beta", row[4], row[9])):
        record[f"weights_{name}"] = weights
        # In a row BASE is the first of the weights.
        record[f"base_{name}"] = None if weights.count(",") + 1 in WITH_BASE and true(row[11]) else base
    return {**record, "gamma": row[19], row[20].strip() or "Off": f"{row[21]},{row[22]}"}


def is_history(text: str) -> bool:
    """Whether a text is rows of mergehistory.csv."""
    try:
        return any(_is_row(row) for row in csv.reader(io.StringIO(text)))
    except csv.Error:
        return False


def _is_row(row: list[str]) -> bool:
    return len(row) == _FIELDS and row[10].strip().lower().startswith(tuple(_MODES))


def read_history(text: str, label: str) -> Imported:
    """The last row of a mergehistory.csv as a recipe.

    Raises:
        InputError: no row describes a merge that can be translated.
    """
    notes = Notes()
    rows = [row for row in csv.reader(io.StringIO(text)) if _is_row(row)]
    row = rows[-1]
    if len(rows) > 1:
        notes.approximate(
            "rows", f"the last of {len(rows)}, number {quote(row[0])}; give one row for another"
        )
    record = _record(row)
    found = _method(record, notes)
    tree = None
    if found is not None:
        method, count = found
        # Without a third model it takes the first one.
        named = [row[5], row[6], row[7].strip() or row[5]]
        models = {
            role: source(_SHA_ROW.sub("", name) or name)
            for role, name in zip("abc", named[:count], strict=False)
        }
        tree = _merge(record, method, models, notes)
    if tree is None:
        raise notes.cannot(label, "no merge could be read from its row")
    notes.approximate("models", "known by name alone; the files are not compared with what was merged then")
    if row[18].strip() not in ("", "0,0,0,0,0,0,0,0"):
        notes.refused("Adjust", quote(row[18]))
    notes.approximate("not recorded", f"VAE and precision, beside the save settings {quote(row[13])}")
    if name := title(row[12] or row[2]):
        tree["output"] = {"name": name}
    return Imported("supermerger history", tree, tuple(notes.found))

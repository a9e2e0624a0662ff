"""A1111's checkpoint merger: sd_merge_recipe of the type "webui".

Source: AUTOMATIC1111 stable-diffusion-webui, modules/extras.py.
"""

from __future__ import annotations

from runner.errors import quote
from runner.imports.history import History
from runner.imports.imported import Tree, choices, number, title, true, written
from runner.stated import Record

TITLE = "A1111 checkpoint merger"
# It passes over keys that the second model has not, and drops those the first one has not.
POLICIES = {"missing": "keep", "extra": "drop", "integers": "keep"}
_METHODS = {
    "weighted sum": ("weighted_sum", 2),
    "add difference": ("add_difference", 3),
    "no interpolation": ("copy", 1),
}


def merge(record: Record, history: History) -> Tree | None:
    """The merge a record describes; None, and noted, if it describes none."""
    notes = history.notes
    known = choices(record.get("interp_method"), _METHODS, "interp_method", notes)
    if known is None:
        return None
    method, count = known
    models = history.roles(record, count)
    if models is None:
        return None
    tree: Tree = {"method": method, "models": models}
    if count > 1:
        alpha = number(record.get("multiplier"))
        if alpha is None:
            notes.refused("multiplier", f"expected a number, found {quote(record.get('multiplier'))}")
            return None
        # Its own arithmetic, rounded in the stored dtype, so that the bytes can be the same.
        tree |= {"compat": "a1111", "alpha": written(alpha), **POLICIES}
    notes.exact("interp_method", f"{quote(record.get('interp_method'))} is {method}")
    _options(record, history, tree, count)
    return tree


def _options(record: Record, history: History, tree: Tree, count: int) -> None:
    """What the record says beside the merge itself."""
    notes = history.notes
    output: Tree = {}
    if name := title(record.get("custom_name")):
        output["name"] = name
    if true(record.get("save_as_half")):
        output["dtype"] = "float16"
        if count > 1 or history.nested:
            notes.approximate(
                "save_as_half", "float16 for every tensor; there only for float32 ones that were merged"
            )
        else:
            notes.exact("save_as_half", "output.dtype float16")
    if output:
        tree["output"] = output
    vae = record.get("bake_in_vae")
    if isinstance(vae, str) and vae.strip() not in ("", "None"):
        notes.refused("bake_in_vae", f"the VAE {quote(vae)} was put in; known by its name alone")
    discarded = record.get("discard_weights")
    if isinstance(discarded, str) and discarded.strip():
        notes.refused("discard_weights", f"keys that match {quote(discarded)} were removed; here they stay")
    for flag in ("is_inpainting", "is_instruct_pix2pix"):
        if true(record.get(flag)):
            notes.approximate(flag, "a model with more input channels; the extra ones stay the first model's")
    if record.get("config_source") not in (None, 0):
        notes.exact("config_source", "says where a .yaml beside the file came from; not needed here")

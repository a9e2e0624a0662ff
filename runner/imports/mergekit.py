"""mergekit: the YAML of a merge.

Source: arcee-ai mergekit 0.1.5, config.py and merge_methods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.errors import quote
from runner.imports.imported import Imported, Notes, Tree, number, printable, title, written

TITLE = "mergekit"
MAX_MODELS = 100
MAX_RULES = 200
_DTYPES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float32", "float64": "float64"}
_TASK_VECTORS = (
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
)
_NORMALIZED = ("ties", "della")  # by default
_IGNORED = ("int8_mask", "embed_slerp", "rescale_norm")
_WITHOUT_TENSORS = ("tokenizer", "tokenizer_source", "chat_template", "name")


@dataclass(frozen=True)
class _Input:
    """A model of the configuration with its own parameters."""

    name: str
    parameters: Mapping[str, Any]


def is_configuration(text: str) -> bool:
    """Whether a text looks like a configuration of mergekit."""
    return re.search(r"^merge_method[ \t]*:", text, re.MULTILINE) is not None


def read(tree: Mapping[str, Any], label: str) -> Imported:
    """A configuration as a recipe.

    Raises:
        InputError: no merge could be made of it.
    """
    notes = Notes()
    found = _Reader(tree, notes).recipe()
    if found is None:
        raise notes.cannot(label, "no merge could be read")
    return Imported(TITLE, found, tuple(notes.found))


class _Reader:
    """Translates one configuration."""

    def __init__(self, tree: Mapping[str, Any], notes: Notes) -> None:
        self.tree = tree
        self.notes = notes
        self.parameters: dict[str, Any] = dict(_mapping(tree.get("parameters")))
        self.used: set[str] = set()

    def recipe(self) -> Tree | None:
        inputs = self.inputs()
        if inputs is None:
            return None
        method = str(self.tree.get("merge_method"))
        base = _name(self.tree.get("base_model"))
        found = self.method(method, inputs, base)
        if found is None:
            return None
        self.rest(found, inputs)
        return found

    def inputs(self) -> list[_Input] | None:
        listed = self.tree.get("models")
        if self.tree.get("modules"):
            self.notes.refused("modules", "merges of single modules are not offered here")
            return None
        if slices := self.tree.get("slices"):
            if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], Mapping):
                self.notes.refused("slices", "models put together from layers are not offered here")
                return None
            self.notes.approximate("slices", "one slice, taken as all layers of its models")
            listed = slices[0].get("sources")
            self.parameters |= _mapping(slices[0].get("parameters"))
        inputs = []
        for one in listed if isinstance(listed, list) else []:
            name = _name(one.get("model")) if isinstance(one, Mapping) else None
            if name is None or "+" in name:
                self.notes.refused("models", f"{quote(one)}: expected a model without an adapter")
                return None
            inputs.append(_Input(name, _mapping(one.get("parameters"))))
        if not 0 < len(inputs) <= MAX_MODELS:
            self.notes.refused("models", f"expected 1 to {MAX_MODELS} models, found {len(inputs)}")
            return None
        return inputs

    def method(self, method: str, inputs: list[_Input], base: str | None) -> Tree | None:
        others = [one for one in inputs if one.name != base]
        if method in _TASK_VECTORS or method in ("sce", "model_stock", "arcee_fusion"):
            if base is None or not others:
                self.notes.refused("base_model", f"{method} needs one, and other models")
                return None
            return self.task_vectors(method, base, others)
        if method in ("slerp", "nearswap"):
            # With both models listed the base is the first, else the listed one is the other.
            if base is None or len(others) != 1:
                self.notes.refused("models", f"{method} takes base_model and one other")
                return None
            models = {"a": _source(base), "b": _source(others[0].name)}
            self.notes.exact("merge_method", method)
            if method == "slerp":
                self.notes.approximate("slerp", "there tensors with a cosine above .9995 are summed linearly")
            parameter = "alpha" if method == "slerp" else "t"
            return {"method": method, "models": models, parameter: self.number("t", {}, 0.5)}
        if method == "passthrough":
            if len(inputs) != 1:
                self.notes.refused("models", "passthrough takes one")
                return None
            self.notes.exact("merge_method", "passthrough is copy")
            scale = self.number("scale", inputs[0].parameters, 1.0)
            return {"method": "copy", "models": {"a": _source(inputs[0].name)}, "scale": scale}
        if method in ("linear", "nuslerp", "multislerp", "karcher"):
            return self.without_base(method, inputs, base)
        self.notes.refused("merge_method", f"{quote(method)} is not offered here")
        return None

    def without_base(self, method: str, inputs: list[_Input], base: str | None) -> Tree | None:
        models = inputs if method in ("linear", "karcher") or base is None else [
            one for one in inputs if one.name != base
        ]  # fmt: skip
        roles = dict(zip(_roles([one.name for one in models]), models, strict=True))
        if method == "nuslerp":
            if len(models) != 2:
                self.notes.refused("models", f"nuslerp takes two, found {len(models)}")
                return None
            roles = dict(zip("ab", models, strict=True))
        self.notes.exact("merge_method", method)
        tree: Tree = {"method": method, "models": {role: _source(one.name) for role, one in roles.items()}}
        if base is not None and method in ("nuslerp", "multislerp"):
            tree["models"] = {"base": _source(base), **tree["models"]}
        if method == "karcher":
            tree["max_iter"], tree["tol"] = self.number("max_iter", {}, 10), self.number("tol", {}, 1e-5)
            return tree
        tree["weight"] = {role: self.number("weight", one.parameters, 1.0) for role, one in roles.items()}
        if method == "linear":
            tree["normalize"] = self.flag("normalize", True)
        elif method == "multislerp" and not self.flag("normalize_weights", True):
            self.notes.refused("normalize_weights", "here weights are always normalised")
        elif method == "nuslerp":
            flat, rows = self.flag("nuslerp_flatten", True), self.flag("nuslerp_row_wise", False)
            tree["per"] = "tensor" if flat else "column" if rows else "row"
        return tree

    def task_vectors(self, method: str, base: str, others: list[_Input]) -> Tree:
        roles = dict(zip(_roles([one.name for one in others]), others, strict=True))
        models = {role: _source(one.name) for role, one in roles.items()}
        tree: Tree = {"method": method, "models": {"base": _source(base), **models}}
        self.notes.exact("merge_method", method)
        if method == "sce":
            tree["select_topk"] = self.number("select_topk", {}, 1.0)
        elif method == "model_stock":
            tree["per"] = "row" if self.flag("filter_wise", False) else "tensor"
        elif method != "arcee_fusion":
            for name in self.per_model(method):
                default = {"weight": 1.0, "density": 1.0, "gamma": 0.01, "epsilon": 0.15}[name]
                tree[name] = {role: self.number(name, one.parameters, default) for role, one in roles.items()}
            tree["normalize"] = self.flag("normalize", method in _NORMALIZED)
            tree["scale"] = self.number("lambda", {}, 1.0)
            if tree["normalize"] and any(
                isinstance(w, (int, float)) and w < 0 for w in tree["weight"].values()
            ):
                self.notes.approximate("normalize", "divided by the sum of |weight| here, of weight there")
            self.rescale(method, tree)
        return tree

    def per_model(self, method: str) -> Sequence[str]:
        if method == "task_arithmetic":
            return ("weight",)
        names = ["weight", "density"]
        names += ["gamma"] if method.startswith("breadcrumbs") else []
        return [*names, "epsilon"] if method.startswith("della") else names

    def rescale(self, method: str, tree: Tree) -> None:
        """How the kept part of a difference is scaled up: there so that the sum of magnitudes stays."""
        drawn = method.startswith(("dare", "della"))
        stated = self.flag("rescale", drawn)
        if drawn:
            self.notes.approximate("random numbers", "other masks; there they change from run to run")
            tree["rescale"] = "l1" if stated else "none"
        elif stated and method != "task_arithmetic":
            self.notes.refused("rescale", f"{method} does not rescale here")

    # Parameters

    def setting(self, name: str, own: Mapping[str, Any]) -> Any:
        self.used.add(name)
        return own[name] if name in own else self.parameters.get(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self.setting(name, {})
        return default if value is None else bool(value)

    def number(self, name: str, own: Mapping[str, Any], default: float) -> Any:
        """A number, or one for each pattern of keys."""
        value = self.setting(name, own)
        if value is None:
            return written(default)
        conditions = (
            value if isinstance(value, list) and any(isinstance(one, Mapping) for one in value) else None
        )
        if isinstance(value, Mapping):
            conditions = [value]
        if conditions is None:
            return self.scalar(name, value, default)
        rules: Tree = {}
        for one in conditions[:MAX_RULES]:
            one = one if isinstance(one, Mapping) else {"value": one}
            pattern = one.get("filter")
            found = self.scalar(name, one.get("value"), default)
            if pattern in (None, "*"):
                rules["default"] = found
                break  # those after it are never reached
            text = str(pattern)
            if not re.fullmatch(r"[\w.\-]{1,100}", text, re.ASCII):
                self.notes.refused(name, f"filter {quote(text)}: not a text of letters, digits, _ . -")
                continue
            rules.setdefault(f"*{text}*", found)
            self.notes.exact(name, f"filter {quote(text)} is the pattern *{text}*")
        rules.setdefault("default", written(default))
        return rules if len(rules) > 1 else rules["default"]

    def scalar(self, name: str, value: Any, default: float) -> float | int:
        if isinstance(value, list):
            values = [one for one in map(number, value) if one is not None]
            mean = sum(values) / len(values) if values and len(values) == len(value) else default
            if len(set(values)) != 1 or len(values) != len(value):
                self.notes.refused(
                    name, f"{quote(value)} changes from layer to layer; {mean:g}, its mean, stands for it"
                )
            return written(mean)
        found = number(value)
        if found is None:
            self.notes.refused(name, f"expected a number, found {quote(value)}; {default:g} stands for it")
            return written(default)
        return written(found)

    def rest(self, tree: Tree, inputs: list[_Input]) -> None:
        """Notes what is left of the configuration, and takes the dtype."""
        dtype = self.tree.get("out_dtype") or self.tree.get("dtype")
        if isinstance(dtype, str) and dtype in _DTYPES:
            tree["output"] = {"dtype": _DTYPES[dtype]}
            self.notes.exact("dtype", f"output.dtype {dtype}")
        elif dtype is not None:
            self.notes.refused("dtype", f"{quote(dtype)} is not written here")
        if self.tree.get("dtype") in ("float16", "bfloat16"):
            self.notes.approximate("arithmetic", "in float32 and rounded once; there in dtype")
        if name := title(self.tree.get("name")):
            tree.setdefault("output", {})["name"] = name
        for part in _WITHOUT_TENSORS[:3]:
            if self.tree.get(part):
                self.notes.refused(
                    part, "tokenizers and templates are not merged here; those of the first model stay"
                )
        names = {*self.parameters, *(name for one in inputs for name in one.parameters)}
        for unused in sorted(str(name) for name in names - self.used):
            if unused not in _IGNORED:
                self.notes.refused(unused, "is no parameter of this method")
        known = {
            "models",
            "slices",
            "modules",
            "merge_method",
            "base_model",
            "dtype",
            "out_dtype",
            "parameters",
        }
        for key in self.tree:
            if key not in known and key not in _WITHOUT_TENSORS:
                self.notes.refused(str(key), "is not translated")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _name(value: object) -> str | None:
    """A model as the configuration names it: a text, or a mapping that holds one."""
    if isinstance(value, Mapping):
        if value.get("lora"):
            return None
        value = value.get("model")
        value = value.get("path") if isinstance(value, Mapping) else value
    return value.strip() if isinstance(value, str) and value.strip() and len(value) <= 1000 else None


def _source(name: str) -> Tree:
    # The user's own paths stay as they are.
    return {"source": printable(name)}


def _roles(names: Sequence[str]) -> list[str]:
    """A word for each model, made of its name."""
    roles: list[str] = []
    for at, name in enumerate(names, start=1):
        stem = re.sub(r"\.(safetensors|ckpt|bin|pt)$", "", name.rstrip("/").rpartition("/")[2])
        word = re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_").lower()[:40]
        word = word if re.match(r"[a-z]", word) and word not in ("base", "default") else f"model_{at}"
        roles.append(word if word not in roles else f"{word}_{at}")
    return roles

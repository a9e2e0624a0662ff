"""sd-mecha: the text of a recipe, in a file or in the header of a merged model.

Each line after the first is an instruction and has the next number from 0; the last is the result.
An instruction becomes a value at once: a model or merge, a difference of models, numbers, a text.
Differences are no models here, so the method that adds one to a model is found by its pattern.
Source: sd-mecha 1.1.8, serialization.py and extensions/builtin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from runner.errors import quote
from runner.imports.blocks import SD1, SDXL
from runner.imports.imported import (
    MAX_MERGES,
    MAX_NESTED,
    Imported,
    Notes,
    Tree,
    file_name,
    number,
    plain,
    source,
    written,
)

TITLE = "sd-mecha"
MAX_LINES = 5_000
_VERSION = re.compile(r"version [\d.]{1,20}\s*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w{0,100}", re.ASCII)
_TOKEN = re.compile(
    r'(?:(?P<name>[A-Za-z_]\w*)=)?(?:"(?P<text>(?:[^"\\]|\\.)*)"|(?P<word>[^\s"=]+))(?=\s|$)', re.ASCII
)


class _RefusedError(Exception):
    """An instruction that cannot be translated; says why."""


@dataclass(frozen=True)
class _Model:
    """A model: a file or a merge.

    Attributes:
        tree: as the recipe has it.
        size: merges in it.
        depth: merges inside one another.
    """

    tree: Tree
    size: int = 0
    depth: int = 0


@dataclass(frozen=True)
class _Difference:
    """A sum of models with factors that add up to 0, such as b − c."""

    terms: tuple[tuple[float, _Model], ...]


@dataclass(frozen=True)
class _Merged:
    """What a method makes of differences from one base, to be added to it.

    Attributes:
        method: of ours.
        base: the model all are differences from.
        models: the others.
        parameters: of the method.
        scale: the parameter that takes the strength with which it is added; "" if it must be 1.
    """

    method: str
    base: _Model
    models: tuple[_Model, ...]
    parameters: Tree
    scale: str = ""


@dataclass(frozen=True)
class _Mask:
    """A strength for each element, which only add_difference of the same models takes."""

    method: str
    models: tuple[_Model, ...]
    alpha: Any


Value: TypeAlias = "_Model | _Difference | _Merged | _Mask | Mapping[str, Any] | str | float | bool | None"
_NO_DELTA = "of differences is not offered here"


def is_recipe(text: str) -> bool:
    """Whether a text is a recipe of sd-mecha."""
    first, _, rest = text.lstrip("\ufeff").partition("\n")
    return bool(_VERSION.fullmatch(first)) and bool(re.match(r"\s*(#|model|dict|literal|merge)", rest))


def read(text: str, label: str) -> Imported:
    """A recipe's text as a recipe of ours.

    Raises:
        InputError: no merge could be made of its last instruction.
    """
    notes = Notes()
    values: list[Value] = []
    lines = text.lstrip("\ufeff").splitlines()
    if len(lines) > MAX_LINES:
        raise notes.cannot(label, f"{len(lines)} lines; at most {MAX_LINES} are read")
    reason = "no instructions"
    for at, line in enumerate(lines[1:], start=2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue  # an empty line is an error there
        try:
            values.append(_instruction(line.strip(), values, f"line {at}", notes))
            reason = ""
        except _RefusedError as error:
            reason = f"line {at}: {error}"
            notes.refused(f"line {at}", str(error))
            # No such file exists, so that what is built on it cannot run by mistake.
            values.append(_Model(source(f"result-of-line-{at}.safetensors")))
    result = values[-1] if values else None
    if reason or not isinstance(result, _Model) or not result.size:
        raise notes.cannot(
            label, "no merge could be read" if reason else "its last line is no merge of models"
        )
    notes.approximate("models", "known by path alone; the files are not compared with what was merged then")
    notes.approximate("arithmetic", "rounded otherwise in the last bits (lerp, addcmul)")
    return Imported(TITLE, result.tree, tuple(notes.found))


def _instruction(line: str, values: Sequence[Value], part: str, notes: Notes) -> Value:
    command, _, rest = line.partition(" ")
    arguments, named = _arguments(rest.strip(), values)
    if command == "dict":
        return named
    if command == "literal" and arguments:
        return arguments[0]
    if command == "model" and arguments and isinstance(arguments[0], str):
        config = str(named.get("model_config"))
        if named.get("merge_space") not in ("weight", None) or "lora" in config or "lycoris" in config:
            raise _RefusedError(f"{quote(arguments[0])} is an adapter; bake it into a model first")
        if file_name(arguments[0]) != arguments[0]:
            notes.approximate(part, f"{quote(arguments[0])} is looked up as {quote(file_name(arguments[0]))}")
        return _Model(source(arguments[0]))
    if command == "merge" and arguments and isinstance(arguments[0], str):
        return _Node(arguments[0], arguments[1:], named, part, notes).value()
    raise _RefusedError(f"expected dict, literal, model or merge, found {quote(line)}")


def _arguments(text: str, values: Sequence[Value]) -> tuple[list[Value], dict[str, Value]]:
    """What stands after a command: values, and values by name. A = inside quotation marks is text."""
    arguments: list[Value] = []
    named: dict[str, Value] = {}
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise _RefusedError(f"cannot read {quote(text[at:])}")
        if token["text"] is not None:
            value: Value = re.sub(r"\\(.)", r"\1", token["text"])
        else:
            value = _word(token["word"], values)
        if token["name"]:
            named[token["name"]] = value
        else:
            arguments.append(value)
        at = token.end() + len(text[token.end() :]) - len(text[token.end() :].lstrip())
    return arguments, named


def _word(word: str, values: Sequence[Value]) -> Value:
    constants: dict[str, Value] = {"null": None, "true": True, "false": False}
    if word in constants:
        return constants[word]
    if word.startswith("&"):
        if re.fullmatch(r"&\d{1,6}", word, re.ASCII) and int(word[1:]) < len(values):
            return values[int(word[1:])]
        raise _RefusedError(f"{quote(word)} is no earlier line")
    value = number(word)
    if value is None:
        raise _RefusedError(f"{quote(word)} is no value")
    return value


class _Node:
    """One merge instruction."""

    def __init__(
        self, name: str, arguments: Sequence[Value], named: Mapping[str, Value], part: str, notes: Notes
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.named = named
        self.part = part
        self.notes = notes

    def value(self) -> Value:
        """What the instruction gives."""
        handlers: dict[str, Callable[[], Value]] = {
            "subtract": self.subtract,
            "scale": self.scale,
            "add_difference": self.add_difference,
            "weighted_sum": self.weighted_sum,
            "n_average": self.n_average,
            "slerp": lambda: self.pair("slerp", alpha=0.5, fixed={"magnitude": "lerp"}),
            "add_cosine_a": lambda: self.pair("cosine_a", alpha=1.0, fixed={"range": "none"}),
            "add_cosine_b": lambda: self.pair("cosine_b", alpha=1.0, fixed={"range": "none"}),
            "geometric_sum": lambda: self.pair("geometric_sum", alpha=0.5),
            "crossover": lambda: self.pair("crossover", alpha=0.5, tilt=0.0),
            "tensor_sum": self.slices,
            "top_k_tensor_sum": lambda: self.pair("top_k_tensor_sum", width=1.0, offset=0.0),
            "rotate": self.rotate,
            "clamp": self.clamp,
            "geometric_median": self.geometric_median,
            "ties_sum": self.ties_sum,
            "ties_sum_extended": self.ties_sum_extended,
            "ties_sum_with_dropout": self.ties_sum_with_dropout,
            "model_stock": self.model_stock,
            "truncate_rank": self.truncate_rank,
            "perpendicular_component": self.perpendicular_component,
            "train_difference_mask": lambda: self.mask("train_difference"),
            "add_opposite_mask": lambda: self.mask("add_opposite"),
            "add_strict_opposite_mask": lambda: self.mask("add_strict_opposite"),
            "fallback": self.fallback,
            "cast": self.cast,
            "convert_singleton": self.convert_singleton,
            "convert_sd1_blocks_to_ldm": lambda: self.blocks(SD1),
            "convert_sdxl_blocks_to_sgm": lambda: self.blocks((*SDXL, "VAE")),
        }
        if self.name not in handlers:
            raise _RefusedError(f"{quote(self.name)} is not offered here")
        return handlers[self.name]()

    # Arguments

    def operands(self) -> list[Value]:
        """The arguments that are models or differences, by position."""
        kinds = (_Model, _Difference, _Merged)
        return [one for one in self.arguments if isinstance(one, kinds)]

    def models(self, count: int | None = None) -> list[_Model]:
        """The arguments that are models; as many as the method takes."""
        found = [one for one in self.operands() if isinstance(one, _Model)]
        if len(found) != len(self.operands()):
            raise _RefusedError(f"{self.name} {_NO_DELTA}")
        if not found or (count is not None and len(found) != count):
            raise _RefusedError(f"{self.name}: expected {count or 'some'} models, found {len(found)}")
        return found

    def differences(self) -> tuple[_Model, tuple[_Model, ...]]:
        """The arguments as differences of models from one base: the base, and the models."""
        base: _Model | None = None
        models = []
        for one in self.operands():
            terms = one.terms if isinstance(one, _Difference) else ()
            if len(terms) != 2 or terms[0][0] != 1 or terms[1][0] != -1 or base not in (None, terms[1][1]):
                raise _RefusedError(
                    f"{self.name}: only of differences from one base, such as b − base, c − base"
                )
            base = terms[1][1]
            models.append(terms[0][1])
        if base is None:
            raise _RefusedError(f"{self.name}: no models")
        return base, tuple(models)

    def parameter(self, name: str, default: float, at: int | None = None) -> Any:
        """A parameter, by name or by position after the models: a number, or block weights."""
        value: Any = self.named.get(name, default)
        after = [one for one in self.arguments if not isinstance(one, (_Model, _Difference, _Merged))]
        if name not in self.named and at is not None and at < len(after):
            value = after[at]
        if isinstance(value, Mapping) and set(value) == {"key"}:
            value = value["key"]
        if isinstance(value, Mapping) and "mbw" in value:
            return dict(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _RefusedError(f"{self.name}: {name}: expected a number or block weights")
        return written(value)

    def scalar(self, name: str, default: float, at: int | None = None) -> float:
        """A parameter that must be one number."""
        value = self.parameter(name, default, at)
        if not isinstance(value, (int, float)):
            raise _RefusedError(f"{self.name}: {name}: expected one number, found block weights")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A parameter that is true or false."""
        return self.named.get(name, default) is True

    # Results

    def merge(
        self, method: str, models: Sequence[_Model] | Mapping[str, _Model], **parameters: Any
    ) -> _Model:
        """A merge of ours."""
        by_role = models if isinstance(models, Mapping) else dict(zip("abc", models, strict=False))
        size = 1 + sum(model.size for model in by_role.values())
        depth = 1 + max(model.depth for model in by_role.values())
        if size > MAX_MERGES or depth > MAX_NESTED:
            raise _RefusedError(f"more than {MAX_MERGES} merges, or {MAX_NESTED} inside one another")
        trees = {role: model.tree for role, model in by_role.items()}
        self.notes.exact(self.part, f"{quote(self.name)} is {method}")
        return _Model({"method": method, "models": trees, **parameters}, size, depth)

    def pair(self, method: str, fixed: Tree | None = None, **defaults: float) -> _Model:
        """A method of two models whose parameters have the same names."""
        parameters = {
            name: self.parameter(name, default, at) for at, (name, default) in enumerate(defaults.items())
        }
        return self.merge(method, self.models(2), **parameters, **(fixed or {}))

    # Methods

    def subtract(self) -> _Difference:
        a, b = self.models(2)
        return _Difference(((1, a), (-1, b)))

    def scale(self) -> _Difference:
        alpha = self.scalar("alpha", 1.0, 0)
        return self.combined([(alpha, self.operands()[0] if self.operands() else None)])

    def combined(self, parts: Sequence[tuple[float, Value]]) -> _Difference:
        """A sum of differences with factors."""
        terms: list[tuple[float, _Model]] = []
        for factor, part in parts:
            if not isinstance(part, _Difference):
                raise _RefusedError(f"{self.name} {_NO_DELTA}")
            for share, model in part.terms:
                known = next((at for at, (_, other) in enumerate(terms) if other == model), None)
                if known is None:
                    terms.append((factor * share, model))
                else:
                    terms[known] = (terms[known][0] + factor * share, model)
        if len(terms) > MAX_MERGES:
            raise _RefusedError(f"more than {MAX_MERGES} models")
        return _Difference(tuple((share, model) for share, model in terms if share != 0))

    def weighted_sum(self) -> Value:
        if any(isinstance(one, _Difference) for one in self.operands()):
            alpha = self.scalar("alpha", 0.5, 0)
            a, b = [*self.operands(), None, None][:2]
            return self.combined([(1 - alpha, a), (alpha, b)])
        return self.pair("weighted_sum", alpha=0.5)

    def n_average(self) -> Value:
        operands = self.operands()
        if any(isinstance(one, _Difference) for one in operands):
            return self.combined([(1 / len(operands), one) for one in operands])
        models = self.models()
        return self.merge("linear", {f"model_{at}": model for at, model in enumerate(models, start=1)})

    def add_difference(self) -> Value:
        operands = self.operands()
        if len(operands) != 2:
            raise _RefusedError(f"add_difference: expected a model and a difference, found {len(operands)}")
        a, delta = operands
        alpha = self.named.get("alpha", next((one for one in self.arguments if isinstance(one, _Mask)), None))
        if isinstance(alpha, _Mask):
            return self.masked(a, delta, alpha)
        alpha = self.parameter("alpha", 1.0, 0)
        if not isinstance(a, _Model):
            if isinstance(alpha, dict):
                raise _RefusedError(f"add_difference with block weights {_NO_DELTA}")
            return self.combined([(1, a), (alpha, delta)])
        if isinstance(delta, _Merged):
            return self.added(a, delta, alpha)
        if not isinstance(delta, _Difference):
            raise _RefusedError("add_difference: the second is no difference")
        positive = [(share, model) for share, model in delta.terms if share > 0]
        negative = [(share, model) for share, model in delta.terms if share < 0]
        if len(positive) == 1 and len(negative) == 1:
            factor = positive[0][0]
            if factor != 1 and isinstance(alpha, dict):
                raise _RefusedError("add_difference: block weights of a scaled difference")
            strength = alpha if factor == 1 else written(alpha * factor)
            return self.merge("add_difference", [a, positive[0][1], negative[0][1]], alpha=strength)
        if len(negative) == 1 and negative[0][1] == a:
            models = {f"model_{at}": model for at, (_, model) in enumerate(positive, start=1)}
            weights = {role: written(share) for role, (share, _) in zip(models, positive, strict=True)}
            return self.merge("task_arithmetic", {"base": a, **models}, weight=weights, scale=alpha)
        if isinstance(alpha, dict) or not delta.terms:
            raise _RefusedError("add_difference: of differences from several bases, with block weights")
        terms = [(1.0, a), *((alpha * share, model) for share, model in delta.terms)]
        models = {f"model_{at}": model for at, (_, model) in enumerate(terms, start=1)}
        weights = {role: written(share) for role, (share, _) in zip(models, terms, strict=True)}
        return self.merge("linear", models, weight=weights, normalize=False)

    def masked(self, a: Value, delta: Value, mask: _Mask) -> _Model:
        """add_difference whose strength is a mask of the same three models."""
        x, b, c = mask.models
        if a != x or delta != _Difference(((1, b), (-1, c))):
            raise _RefusedError("a mask of other models than those added")
        return self.merge(mask.method, [x, b, c], alpha=mask.alpha)

    def added(self, a: _Model, delta: _Merged, alpha: Any) -> _Model:
        """What a method made of differences, added to their base."""
        if a != (delta.models[0] if delta.method == "add_perpendicular" else delta.base):
            raise _RefusedError(
                f"add_difference: {delta.method} of differences from another model than it is added to"
            )
        if delta.method == "tensor_sum":
            models = dict(zip("ab", delta.models, strict=True))
        elif delta.method == "add_perpendicular":
            models = dict(zip("abc", (*delta.models, delta.base), strict=True))
        else:
            models = {f"model_{at}": model for at, model in enumerate(delta.models, start=1)}
            if delta.method != "geometric_median":
                models = {"base": delta.base, **models}
        if delta.scale:
            return self.merge(delta.method, models, **delta.parameters, **{delta.scale: alpha})
        if alpha != 1:
            raise _RefusedError(f"add_difference: {delta.method} is added as a whole, not by {quote(alpha)}")
        return self.merge(delta.method, models, **delta.parameters)

    def slices(self) -> Value:
        parameters = {"alpha": self.parameter("width", 0.5, 0), "beta": self.parameter("offset", 0.0, 1)}
        self.notes.approximate(self.part, "tensor_sum: bounds of rows are truncated, there rounded")
        if all(isinstance(one, _Model) for one in self.operands()):
            return self.merge("tensor_sum", self.models(2), **parameters)
        base, models = self.differences()
        if len(models) != 2:
            raise _RefusedError("tensor_sum: expected two differences")
        return _Merged("tensor_sum", base, models, parameters)

    def rotate(self) -> _Model:
        self.notes.approximate(
            self.part, "rotate: there only the kernel positions of a convolution are rotated"
        )
        return self.pair("rotate", alignment=1.0, alpha=0.0, centralization=1.0)

    def clamp(self) -> _Model:
        models = self.models()
        roles = {"a": models[0], **{f"bound_{at}": model for at, model in enumerate(models[1:], start=1)}}
        return self.merge("clamp", roles, stiffness=self.scalar("stiffness", 0.0))

    def geometric_median(self) -> Value:
        self.notes.approximate(self.part, "geometric_median: stops at another precision")
        if all(isinstance(one, _Model) for one in self.operands()):
            models = {f"model_{at}": model for at, model in enumerate(self.models(), start=1)}
            return self.merge("geometric_median", models)
        return _Merged("geometric_median", *self.differences(), {})

    def _ties(self, method: str, k: float, parameters: Tree) -> _Merged:
        vote = "mass" if self.flag("vote_sgn") else "count"
        if k < 1:
            self.notes.approximate(self.part, f"{method}: there one element more of each difference is kept")
        if vote == "count":
            self.notes.approximate(self.part, f"{method}: a tied vote is positive here, nothing there")
        return _Merged(method, *self.differences(), {"vote": vote, **parameters}, scale="scale")

    def ties_sum(self) -> _Merged:
        k = self.scalar("k", 1.0)
        return self._ties("ties", k, {"density": written(max(k, 1e-6))})

    def _check_extended(self) -> None:
        if self.flag("apply_median"):
            raise _RefusedError(f"{self.name} with apply_median is not offered here")
        if not self.flag("apply_stock"):
            raise _RefusedError(
                f"{self.name} without apply_stock takes each row times Model Stock's factor; not offered here"
            )

    def ties_sum_extended(self) -> _Merged:
        self._check_extended()
        k = self.scalar("k", 0.2)
        return self._ties("ties", k, {"density": written(max(k, 1e-6))})

    def ties_sum_with_dropout(self) -> _Merged:
        self._check_extended()
        if self.scalar("k", 0.2) < 1:
            raise _RefusedError("ties_sum_with_dropout with k below 1 also trims; not offered here")
        # probability is the share that is dropped.
        parameters: Tree = {"density": written(round(1 - self.scalar("probability", 0.9), 12))}
        width = self.scalar("della_eps", 0.0)
        if width:
            parameters["epsilon"] = written(width / 2)
        if not self.flag("rescale", default=True):
            parameters["rescale"] = "none"
        self.notes.approximate(self.part, "other random masks; there tensors of one shape have the same one")
        return self._ties("della" if width else "dare_ties", 1.0, {**parameters, "normalize": True})

    def model_stock(self) -> _Merged:
        base, models = self.differences()
        self.notes.approximate(
            self.part, "model_stock: rows of a convolution are its filters, there kernel rows"
        )
        return _Merged("model_stock", base, models, {"per": "row", "cosine_of": "adjacent"})

    def truncate_rank(self) -> _Merged:
        base, models = self.differences()
        self.notes.approximate(self.part, "truncate_rank: exact here, from random projections there")
        return _Merged("truncate_rank", base, models, {"rank": self.scalar("rank", 8, 0)})

    def perpendicular_component(self) -> _Merged:
        base, models = self.differences()
        if len(models) != 2:
            raise _RefusedError("perpendicular_component: expected two differences")
        return _Merged("add_perpendicular", base, models, {}, scale="alpha")

    def mask(self, method: str) -> _Mask:
        return _Mask(method, tuple(self.models(3)), self.parameter("alpha", 1.0, 0))

    def fallback(self) -> Value:
        """Keys that the first lacks, from the second: the policy of a merge that begins with it."""
        a, default = [*self.arguments, *self.named.values(), None, None][:2]
        if isinstance(a, Mapping) and "mbw" in a and isinstance(default, (Mapping, float)):
            return a
        if not isinstance(a, _Model) or not isinstance(default, _Model):
            raise _RefusedError("fallback of something else than models")
        if a == default:
            return a
        if default.tree not in _primaries(a):
            raise _RefusedError("fallback to another model than the first of the merge")
        self.notes.exact(self.part, 'missing keys stay the first model\'s: "missing: keep"')
        return _Model({**a.tree, "missing": "keep"}, a.size, a.depth)

    def cast(self) -> Value:
        (value,) = self.operands() or (None,)
        if isinstance(value, _Model):
            self.notes.approximate(
                self.part, "cast: computed in float32 here; output.dtype says how it is stored"
            )
        return value

    def convert_singleton(self) -> Value:
        value = self.arguments[0] if self.arguments else None
        if isinstance(value, Mapping) and set(value) == {"key"}:
            return value["key"]  # type: ignore[no-any-return]
        return value

    def blocks(self, order: Sequence[str]) -> Mapping[str, Any]:
        value = self.arguments[0] if self.arguments else None
        found = {name: number(one) for name, one in value.items()} if isinstance(value, Mapping) else {}
        missing = [name for name in order if found.get(name) is None]
        if missing:
            raise _RefusedError(f"block weights without {', '.join(missing[:5])}")
        numbers = [one for name in order if (one := found[name]) is not None]
        self.notes.exact(self.part, f"{len(numbers)} block weights, dialect sd-mecha")
        return {"mbw": ",".join(map(plain, numbers)), "dialect": "sd-mecha"}


def _primaries(model: _Model) -> list[Tree]:
    """The first model of a merge, the first of that, and so on."""
    found = []
    tree: Any = model.tree
    while isinstance(tree, Mapping) and isinstance(tree.get("models"), Mapping):
        tree = next(iter(tree["models"].values()))
        found.append(tree)
    return found

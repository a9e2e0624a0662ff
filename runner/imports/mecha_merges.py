"""One merge instruction of sd-mecha: the method it is here, alone or together with what adds its result.

Source: sd-mecha 1.1.8, extensions/builtin/merge_methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.errors import quote
from runner.imports.blocks import SD1, SDXL
from runner.imports.imported import MAX_MERGES, MAX_NESTED, Tree, number, plain, written
from runner.imports.mecha_values import (
    NO_DIFFERENCES,
    Arguments,
    Difference,
    Mask,
    Merged,
    Model,
    RefusedError,
    Value,
)

MAX_TERMS = 32  # models in one sum of differences


class Merging(Arguments):
    """One merge instruction."""

    def value(self) -> Value:
        """What the instruction gives."""
        handlers: dict[str, Callable[[], Value]] = {
            "subtract": self._subtract,
            "scale": self._scale,
            "add_difference": self._add_difference,
            "weighted_sum": self._weighted_sum,
            "n_average": self._n_average,
            "slerp": lambda: self._pair("slerp", alpha=0.5, fixed={"magnitude": "lerp"}),
            "add_cosine_a": lambda: self._pair("cosine_a", alpha=1.0, fixed={"range": "none"}),
            "add_cosine_b": lambda: self._pair("cosine_b", alpha=1.0, fixed={"range": "none"}),
            "geometric_sum": lambda: self._pair("geometric_sum", alpha=0.5),
            "crossover": lambda: self._pair("crossover", alpha=0.5, tilt=0.0),
            "tensor_sum": self._slices,
            "top_k_tensor_sum": lambda: self._pair("top_k_tensor_sum", width=1.0, offset=0.0),
            "rotate": self._rotate,
            "clamp": self._clamp,
            "geometric_median": self._geometric_median,
            "ties_sum": self._ties_sum,
            "ties_sum_extended": self._ties_sum_extended,
            "ties_sum_with_dropout": self._ties_sum_with_dropout,
            "model_stock": self._model_stock,
            "truncate_rank": self._truncate_rank,
            "perpendicular_component": self._perpendicular_component,
            "train_difference_mask": lambda: self._mask("train_difference"),
            "add_opposite_mask": lambda: self._mask("add_opposite"),
            "add_strict_opposite_mask": lambda: self._mask("add_strict_opposite"),
            "fallback": self._fallback,
            "cast": self._cast,
            "convert_singleton": self._convert_singleton,
            "convert_sd1_blocks_to_ldm": lambda: self._blocks(SD1),
            "convert_sdxl_blocks_to_sgm": lambda: self._blocks((*SDXL, "VAE")),
        }
        if self.name not in handlers:
            raise RefusedError(f"{quote(self.name)} is not offered here")
        return handlers[self.name]()

    # Results

    def _merge(self, method: str, models: Sequence[Model] | Mapping[str, Model], **parameters: Any) -> Model:
        """A merge of ours."""
        by_role = models if isinstance(models, Mapping) else dict(zip("abc", models, strict=False))
        size = 1 + sum(model.size for model in by_role.values())
        depth = 1 + max(model.depth for model in by_role.values())
        if size > MAX_MERGES or depth > MAX_NESTED:
            raise RefusedError(f"more than {MAX_MERGES} merges, or {MAX_NESTED} inside one another")
        trees = {role: model.tree for role, model in by_role.items()}
        self.notes.exact(self.part, f"{quote(self.name)} is {method}")
        return Model({"method": method, "models": trees, **parameters}, size, depth)

    def _pair(self, method: str, fixed: Tree | None = None, **defaults: float) -> Model:
        """A method of two models whose parameters have the same names."""
        parameters = {
            name: self.parameter(name, default, at) for at, (name, default) in enumerate(defaults.items())
        }
        return self._merge(method, self.models(2), **parameters, **(fixed or {}))

    # Methods

    def _subtract(self) -> Difference:
        a, b = self.models(2)
        return Difference(((1, a), (-1, b)))

    def _scale(self) -> Difference:
        alpha = self.scalar("alpha", 1.0, 0)
        return self._combined([(alpha, self.operands()[0] if self.operands() else None)])

    def _combined(self, parts: Sequence[tuple[float, Value]]) -> Difference:
        """A sum of differences with factors."""
        terms: list[tuple[float, Model]] = []
        for factor, part in parts:
            if not isinstance(part, Difference):
                raise RefusedError(f"{self.name} {NO_DIFFERENCES}")
            for share, model in part.terms:
                known = next((at for at, (_, other) in enumerate(terms) if other == model), None)
                if known is None:
                    terms.append((factor * share, model))
                else:
                    terms[known] = (terms[known][0] + factor * share, model)
            if len(terms) > MAX_TERMS:
                raise RefusedError(f"differences of more than {MAX_TERMS} models")
        return Difference(tuple((share, model) for share, model in terms if share != 0))

    def _weighted_sum(self) -> Value:
        if any(isinstance(one, Difference) for one in self.operands()):
            alpha = self.scalar("alpha", 0.5, 0)
            a, b = [*self.operands(), None, None][:2]
            return self._combined([(1 - alpha, a), (alpha, b)])
        return self._pair("weighted_sum", alpha=0.5)

    def _n_average(self) -> Value:
        operands = self.operands()
        if any(isinstance(one, Difference) for one in operands):
            return self._combined([(1 / len(operands), one) for one in operands])
        models = self.models()
        return self._merge("linear", {f"model_{at}": model for at, model in enumerate(models, start=1)})

    def _add_difference(self) -> Value:
        operands = self.operands()
        if len(operands) != 2:
            raise RefusedError(f"add_difference: expected a model and a difference, found {len(operands)}")
        a, delta = operands
        alpha = self.named.get("alpha", next((one for one in self.arguments if isinstance(one, Mask)), None))
        if isinstance(alpha, Mask):
            return self._masked(a, delta, alpha)
        alpha = self.parameter("alpha", 1.0, 0)
        if not isinstance(a, Model):
            if isinstance(alpha, dict):
                raise RefusedError(f"add_difference with block weights {NO_DIFFERENCES}")
            return self._combined([(1, a), (alpha, delta)])
        if isinstance(delta, Merged):
            return self._added(a, delta, alpha)
        if not isinstance(delta, Difference):
            raise RefusedError("add_difference: the second is no difference")
        positive = [(share, model) for share, model in delta.terms if share > 0]
        negative = [(share, model) for share, model in delta.terms if share < 0]
        if len(positive) == 1 and len(negative) == 1:
            factor = positive[0][0]
            if factor != 1 and isinstance(alpha, dict):
                raise RefusedError("add_difference: block weights of a scaled difference")
            strength = alpha if factor == 1 else written(alpha * factor)
            return self._merge("add_difference", [a, positive[0][1], negative[0][1]], alpha=strength)
        if len(negative) == 1 and negative[0][1] == a:
            models = {f"model_{at}": model for at, (_, model) in enumerate(positive, start=1)}
            weights = {role: written(share) for role, (share, _) in zip(models, positive, strict=True)}
            return self._merge("task_arithmetic", {"base": a, **models}, weight=weights, scale=alpha)
        if isinstance(alpha, dict) or not delta.terms:
            raise RefusedError("add_difference: of differences from several bases, with block weights")
        terms = [(1.0, a), *((alpha * share, model) for share, model in delta.terms)]
        models = {f"model_{at}": model for at, (_, model) in enumerate(terms, start=1)}
        weights = {role: written(share) for role, (share, _) in zip(models, terms, strict=True)}
        return self._merge("linear", models, weight=weights, normalize=False)

    def _masked(self, a: Value, delta: Value, mask: Mask) -> Model:
        """add_difference whose strength is a mask of the same three models."""
        x, b, c = mask.models
        if a != x or delta != Difference(((1, b), (-1, c))):
            raise RefusedError("a mask of other models than those added")
        return self._merge(mask.method, [x, b, c], alpha=mask.alpha)

    def _added(self, a: Model, delta: Merged, alpha: Any) -> Model:
        """What a method made of differences, added to their base."""
        if a != (delta.models[0] if delta.method == "add_perpendicular" else delta.base):
            raise RefusedError(
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
            return self._merge(delta.method, models, **delta.parameters, **{delta.scale: alpha})
        if alpha != 1:
            raise RefusedError(f"add_difference: {delta.method} is added as a whole, not by {quote(alpha)}")
        return self._merge(delta.method, models, **delta.parameters)

    def _slices(self) -> Value:
        parameters = {"alpha": self.parameter("width", 0.5, 0), "beta": self.parameter("offset", 0.0, 1)}
        self.notes.approximate(self.part, "tensor_sum: bounds of rows are truncated, there rounded")
        if all(isinstance(one, Model) for one in self.operands()):
            return self._merge("tensor_sum", self.models(2), **parameters)
        base, models = self.differences()
        if len(models) != 2:
            raise RefusedError("tensor_sum: expected two differences")
        return Merged("tensor_sum", base, models, parameters)

    def _rotate(self) -> Model:
        self.notes.approximate(
            self.part, "rotate: there only the kernel positions of a convolution are rotated"
        )
        return self._pair("rotate", alignment=1.0, alpha=0.0, centralization=1.0)

    def _clamp(self) -> Model:
        models = self.models()
        roles = {"a": models[0], **{f"bound_{at}": model for at, model in enumerate(models[1:], start=1)}}
        return self._merge("clamp", roles, stiffness=self.scalar("stiffness", 0.0))

    def _geometric_median(self) -> Value:
        self.notes.approximate(self.part, "geometric_median: stops at another precision")
        if all(isinstance(one, Model) for one in self.operands()):
            models = {f"model_{at}": model for at, model in enumerate(self.models(), start=1)}
            return self._merge("geometric_median", models)
        return Merged("geometric_median", *self.differences(), {})

    def _ties(self, method: str, k: float, parameters: Tree) -> Merged:
        vote = "mass" if self.flag("vote_sgn") else "count"
        if k < 1:
            self.notes.approximate(self.part, f"{method}: there one element more of each difference is kept")
        if vote == "count":
            self.notes.approximate(self.part, f"{method}: a tied vote is positive here, nothing there")
        return Merged(method, *self.differences(), {"vote": vote, **parameters}, scale="scale")

    def _ties_sum(self) -> Merged:
        k = self.scalar("k", 1.0)
        return self._ties("ties", k, {"density": written(max(k, 1e-6))})

    def _check_extended(self) -> None:
        if self.flag("apply_median"):
            raise RefusedError(f"{self.name} with apply_median is not offered here")
        if not self.flag("apply_stock"):
            raise RefusedError(
                f"{self.name} without apply_stock takes each row times Model Stock's factor; not offered here"
            )

    def _ties_sum_extended(self) -> Merged:
        self._check_extended()
        k = self.scalar("k", 0.2)
        return self._ties("ties", k, {"density": written(max(k, 1e-6))})

    def _ties_sum_with_dropout(self) -> Merged:
        self._check_extended()
        if self.scalar("k", 0.2) < 1:
            raise RefusedError("ties_sum_with_dropout with k below 1 also trims; not offered here")
        # probability is the share that is dropped.
        parameters: Tree = {"density": written(round(1 - self.scalar("probability", 0.9), 12))}
        width = self.scalar("della_eps", 0.0)
        if width:
            parameters["epsilon"] = written(width / 2)
        if not self.flag("rescale", default=True):
            parameters["rescale"] = "none"
        self.notes.approximate(self.part, "other random masks; there tensors of one shape have the same one")
        return self._ties("della" if width else "dare_ties", 1.0, {**parameters, "normalize": True})

    def _model_stock(self) -> Merged:
        base, models = self.differences()
        self.notes.approximate(
            self.part, "model_stock: rows of a convolution are its filters, there kernel rows"
        )
        return Merged("model_stock", base, models, {"per": "row", "cosine": "adjacent"})

    def _truncate_rank(self) -> Merged:
        base, models = self.differences()
        self.notes.approximate(self.part, "truncate_rank: exact here, from random projections there")
        return Merged("truncate_rank", base, models, {"rank": self.scalar("rank", 8, 0)})

    def _perpendicular_component(self) -> Merged:
        base, models = self.differences()
        if len(models) != 2:
            raise RefusedError("perpendicular_component: expected two differences")
        return Merged("add_perpendicular", base, models, {}, scale="alpha")

    def _mask(self, method: str) -> Mask:
        return Mask(method, tuple(self.models(3)), self.parameter("alpha", 1.0, 0))

    def _fallback(self) -> Value:
        """Keys that the first lacks, from the second: the policy of a merge that begins with it."""
        a, default = [*self.arguments, *self.named.values(), None, None][:2]
        if isinstance(a, Mapping) and "mbw" in a and isinstance(default, (Mapping, float)):
            return a
        if not isinstance(a, Model) or not isinstance(default, Model):
            raise RefusedError("fallback of something else than models")
        if a == default:
            return a
        if default.tree not in _primaries(a):
            raise RefusedError("fallback to another model than the first of the merge")
        self.notes.exact(self.part, 'missing keys stay the first model\'s: "missing: keep"')
        return Model({**a.tree, "missing": "keep"}, a.size, a.depth)

    def _cast(self) -> Value:
        (value,) = self.operands() or (None,)
        if isinstance(value, Model):
            self.notes.approximate(
                self.part, "cast: computed in float32 here; output.dtype says how it is stored"
            )
        return value

    def _convert_singleton(self) -> Value:
        value = self.arguments[0] if self.arguments else None
        if isinstance(value, Mapping) and set(value) == {"key"}:
            return value["key"]  # type: ignore[no-any-return]
        return value

    def _blocks(self, order: Sequence[str]) -> Mapping[str, Any]:
        value = self.arguments[0] if self.arguments else None
        found = {name: number(one) for name, one in value.items()} if isinstance(value, Mapping) else {}
        missing = [name for name in order if found.get(name) is None]
        if missing:
            raise RefusedError(f"block weights without {', '.join(missing[:5])}")
        numbers = [one for name in order if (one := found[name]) is not None]
        self.notes.exact(self.part, f"{len(numbers)} block weights, dialect sd-mecha")
        return {"mbw": ",".join(map(plain, numbers)), "dialect": "sd-mecha"}


def _primaries(model: Model) -> list[Tree]:
    """The first model of a merge, the first of that, and so on."""
    found = []
    tree: Any = model.tree
    while isinstance(tree, Mapping) and isinstance(tree.get("models"), Mapping):
        tree = next(iter(tree["models"].values()))
        found.append(tree)
    return found

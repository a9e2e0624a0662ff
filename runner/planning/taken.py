"""The components that a result takes whole from sources of their own: a job for each tensor, a copy."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from runner.errors import escape
from runner.models.model import Model, is_known
from runner.models.quantised import FOR_FP8
from runner.models.view import INCIDENTAL
from runner.planning.noted import Noted
from runner.planning.plan import COPIED, Job, Load
from runner.resolve.resolved import Resolved
from runner.tensors import DTYPES, OUTPUT_DTYPES, TensorSpec


def taken(resolved: Resolved, nonfinite: Iterable[str], noted: Noted) -> list[Job]:
    """A copy for each tensor of the components that a recipe takes from sources of their own.

    A source has to have every tensor that the primary has of the component, in the same shape; what only
    the layout of the primary's file has need not be there.

    Args:
        resolved: the recipe.
        nonfinite: patterns of keys that may hold NaN or Inf.
        noted: is told what is not taken and what does not fit.
    """
    jobs = []
    for component, model in resolved.components.items():
        for key, spec in _fitting(noted, resolved, component, model).items():
            jobs.append(
                Job(
                    key=key,
                    place=resolved.places[key],
                    fate=COPIED,
                    spec=_output_spec(noted, resolved, component, key, spec),
                    loads=(Load(model, key),),
                    nonfinite=any(fnmatchcase(key, glob) for glob in nonfinite),
                )
            )
    return jobs


def _fitting(noted: Noted, resolved: Resolved, component: str, model: int) -> dict[str, TensorSpec]:
    """The tensors of a component that are taken; notes those that do not fit."""
    primary, source = resolved.primary, resolved.models[model]
    ours, theirs = escape(primary.checkpoint.label), escape(source.checkpoint.label)
    where = f"components.{component}: {theirs}"
    wanted = _of(component, primary, resolved)
    there = _of(component, source, resolved)
    fitting = {}
    for key, spec in there.items():
        reason = _misfit(spec, wanted.get(key, spec), ours)
        if key not in wanted and not is_known(primary.architecture, key) and (primary.architecture or wanted):
            noted.drop(f"{where}: of no use to {primary.title}", key)
        elif reason is not None:
            what, example = reason
            noted.misfit(f"{where}: {what}", key)
            noted.example.setdefault(f"{where}: {what}", example)
        else:
            fitting[key] = spec
    for key in wanted:
        left = primary.view.left.get(key)
        if key in there:
            continue
        if key.startswith("model_ema.") or (left is not None and left.kind in INCIDENTAL):
            noted.drop(f"{where}: has none of these, which nothing needs", key)
        else:
            noted.misfit(f"{where}: tensors that {ours} has are missing", key)
    return fitting


def _of(component: str, model: Model, resolved: Resolved) -> dict[str, TensorSpec]:
    """The tensors a model has of a component."""
    places = resolved.places
    return {
        key: spec
        for key, spec in model.view.specs.items()
        if key in places and places[key].component == component
    }


def _misfit(spec: TensorSpec, wanted: TensorSpec, ours: str) -> tuple[str, str] | None:
    """What is wrong with a tensor, and how it is wrong."""
    if DTYPES[spec.dtype].bits < 8:
        return "quantised tensors are not read", ""
    if spec.shape != wanted.shape:
        example = f"; the first is {list(spec.shape)}, there {list(wanted.shape)}"
        return f"other shapes than in {ours}", example
    if spec.is_float != wanted.is_float:
        return f"other kinds of dtype than in {ours}", f"; the first is {spec.dtype}, there {wanted.dtype}"
    return None


def _output_spec(noted: Noted, resolved: Resolved, component: str, key: str, spec: TensorSpec) -> TensorSpec:
    """As the source has it, unless the recipe says a dtype; scales of fp8 are not written."""
    dtypes = resolved.recipe.output.dtype
    word = dtypes.get(component) or dtypes.get("default")
    if word is None and resolved.models[resolved.components[component]].view.is_scaled(key):
        word = FOR_FP8
        noted.widened[key] = None
    return TensorSpec(OUTPUT_DTYPES[word], spec.shape) if word and spec.is_float else spec

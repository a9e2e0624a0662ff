"""The job of each key: what is computed, from which tensors, and how it is stored."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from runner.errors import escape
from runner.models.quantised import FOR_FP8
from runner.planning.expression import Expression, Firsts, flatten
from runner.planning.keys import Keys
from runner.planning.noted import Noted
from runner.planning.plan import BUFFER, MERGED, Job, Load, Step
from runner.resolve.resolved import Resolved
from runner.tensors import OUTPUT_DTYPES, TensorSpec


class Jobs:
    """Makes the jobs of a recipe.

    Attributes:
        resolved: the recipe.
        noted: what does not fit and what a policy decided, as far as jobs were made.
        keys: of its models and merges.
        nonfinite: globs of keys that may hold NaN or Inf.
    """

    def __init__(self, resolved: Resolved) -> None:
        self.resolved = resolved
        self.noted = Noted(resolved)
        self.keys = Keys(resolved, self.noted)
        self.nonfinite = frozenset(
            pattern for merge in resolved.merge.merges() for pattern in merge.policies.nonfinite
        )
        self._firsts = Firsts()
        for model in resolved.models:
            for key, why in model.view.quantised.beside.items():
                self.noted.drop(why, key)

    def job(self, key: str) -> Job:
        """The job of one key of the output."""
        expression = Expression(key, self.keys, self.noted, self._firsts)
        assert expression.root is not None  # key is one of the merge's
        loads, steps = flatten(expression.root)
        self._refuse_fp8(key, loads, steps)
        weights = [load for load in loads if not self.resolved.models[load.model].adapters]
        doubles = all(self.keys.spec(load.model, load.key).dtype == "F64" for load in weights)
        return Job(
            key=key,
            place=self.resolved.places[key],
            fate=MERGED if steps else expression.fate,
            spec=self._output_spec(key, loads[0], expression.fate),
            loads=loads,
            steps=steps,
            equal=tuple(dict.fromkeys(load for load in expression.equal if load != loads[0])),
            compute="float64" if doubles else self.resolved.recipe.compute_dtype,
            nonfinite=any(
                fnmatchcase(name, glob)
                for name in {key, self.keys.in_a_single_file(loads[0].model, key)}
                for glob in self.nonfinite
            ),
            padded=expression.padded,
            lengths=self._lengths(loads),
        )

    def _lengths(self, loads: Iterable[Load]) -> Literal["rows", "inputs"] | None:
        """Of what adapters must know the lengths; who has all rows has those of each, too."""
        models = self.resolved.models
        changes = (change for load in loads for change in models[load.model].changes.get(load.key, ()))
        needed = {change.adapter.lengths for change in changes}
        return "inputs" if "inputs" in needed else "rows" if "rows" in needed else None

    def _refuse_fp8(self, key: str, loads: tuple[Load, ...], steps: tuple[Step, ...]) -> None:
        """Notes a tensor in fp8 that a tool whose bytes are reproduced computed with in its own dtype."""
        if tools := {step.method.compat for step in steps if step.method.reads != "compute"}:
            for load in loads:
                model = self.resolved.models[load.model]
                if model.view.is_fp8(load.key):
                    label = escape(model.checkpoint.label)
                    self.noted.misfit(f"{label}: compat {tools.pop()} does not cover tensors in fp8", key)
                    return

    def _output_spec(self, key: str, first: Load, fate: str) -> TensorSpec:
        dtypes, model = self.resolved.recipe.output.dtype, self.resolved.merge.primary()
        if not self.keys.has(model, key):  # an extra key that the recipe keeps
            model = first.model
        primary = self.keys.spec(model, key)
        if not primary.is_float or fate == BUFFER:  # never merged, never cast
            return primary
        word = dtypes.get(self.resolved.places[key].component) or dtypes.get("default")
        if word is None and self.resolved.merge.method.reads == "pipeline":
            word = "float32"  # what the pipeline was loaded and saved in
        if word is None and self.resolved.output_format == "lora":
            word = "float16"
        if word is None and self.resolved.models[model].view.is_fp8(key):
            word = FOR_FP8
            self.noted.widened[key] = None
        return TensorSpec(OUTPUT_DTYPES[word] if word else primary.dtype, primary.shape)

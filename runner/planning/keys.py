"""Which tensors the models and merges of a recipe have, and the numbers of a merge at each."""

from __future__ import annotations

import re
from dataclasses import replace

from runner.architectures.layouts import single_file_name
from runner.architectures.left import MARKERS
from runner.errors import RecipeError, quote
from runner.models.view import INCIDENTAL
from runner.planning.noted import Noted
from runner.planning.plan import Value
from runner.recipe.structure import Policies
from runner.resolve.resolved import BoundMerge, Resolved
from runner.tensors import TensorSpec

# Schedules and marker tensors of single files: facts about the primary, not weights.
NEVER_MERGED = re.compile(
    rf"(model_ema\.(decay|num_updates)|betas|logvar|scale_factor|{MARKERS}|edm_vpred\..+|global_step"
    r"|(sqrt_|log_)?(recip_|recipm1_|one_minus_)?alphas_cumprod(_prev)?|posterior_\w+)"
)


class Keys:
    """The keys of every node of a recipe, decided once for each; what is left out is noted."""

    def __init__(self, resolved: Resolved, noted: Noted) -> None:
        self.resolved = resolved
        self._noted = noted
        self._tensors = [model.view.tensors for model in resolved.models]
        self._of: dict[int, dict[str, None]] = {}
        self._unlike: dict[int, frozenset[str]] = {}
        self._checked: set[tuple[int, tuple[Value, ...]]] = set()

    def of(self, node: int | BoundMerge) -> dict[str, None]:
        """The keys a model or merge has, in the order of its primary."""
        if id(node) not in self._of:
            self._of[id(node)] = self._of_source(node) if isinstance(node, int) else self._of_merge(node)
        return self._of[id(node)]

    def has(self, node: int | BoundMerge, key: str) -> bool:
        """Whether the primary source of a model or merge has a key."""
        return key in self._tensors[node if isinstance(node, int) else node.primary()]

    def spec(self, node: int | BoundMerge, key: str) -> TensorSpec:
        """Dtype and shape of what the primary source of a model or merge has at a key of its own."""
        return self._tensors[node if isinstance(node, int) else node.primary()][key].spec

    def _of_source(self, model: int) -> dict[str, None]:
        places, taken_from_others = self.resolved.places, self.resolved.components
        keys = {key: None for key in self._tensors[model] if places[key].component not in taken_from_others}
        if self.resolved.merge.policies.ema == "keep":
            return keys
        copies = [key for key in keys if key.startswith("model_ema.")]
        if copies and model == self.resolved.merge.primary():
            self._noted.drop("left out: running means of the weights (EMA)", *copies)
        return {key: None for key in keys if not key.startswith("model_ema.")}

    def _of_merge(self, merge: BoundMerge) -> dict[str, None]:
        """The primary's keys; and where the recipe keeps them, those only another model has."""
        primary, *others = merge.models
        keys = dict(self.of(merge.models[primary]))
        if merge.method.adapters:
            return keys
        for role in others:
            extra = [
                key
                for key in self.of(merge.models[role])
                if key not in keys
                and not NEVER_MERGED.fullmatch(key)
                and not self._is_ignored(merge, role, key)
                and not self.is_incidental(merge, role, key)
            ]
            if not extra:
                continue
            ours, theirs = self._noted.name_of(merge, primary), self._noted.name_of(merge, role)
            where, allowed = f"{theirs}: keys that {ours} lacks", policies(merge).extra
            if allowed == "error":
                self._noted.misfit(where, *extra)
            elif allowed == "drop":
                self._noted.drop(where, *extra)
            else:
                self._noted.deviate(f"{where}, kept", *extra)
                keys.update(dict.fromkeys(extra))
        return keys

    def _is_ignored(self, merge: BoundMerge, role: str, key: str) -> bool:
        """Whether the parameters at a key say that this model has no part in it."""
        if not self.is_merged(merge, key):
            return True
        used = merge.method.result_is(**self.parameters(merge, key))
        return (used is not None and list(merge.models)[used] != role) or self.is_left(merge, key)

    def is_merged(self, merge: BoundMerge, key: str) -> bool:
        """Whether the filter of a tool lets a key through; tools know the names of single files alone."""
        merges = merge.method.merges
        return merges is None or merges(self.in_a_single_file(merge.primary(), key))

    def in_a_single_file(self, model: int, key: str) -> str:
        """What a model that is a single file calls a tensor, or would call it if it were one."""
        of = self.resolved.models[model]
        if of.checkpoint.format == "checkpoint" and key in of.view.tensors:
            return of.view.tensors[key].pieces[0].key
        return (of.architecture and single_file_name(of.architecture, key)) or key

    def is_left(self, merge: BoundMerge, key: str) -> bool:
        """Whether a compat merge leaves the component of a key as it is in a.

        diffusers' merger did so, with a printed line, where the keys of b differ from those of a.
        """
        if merge.method.reads != "pipeline":
            return False
        if id(merge) not in self._unlike:
            a, b = (set(self.of(merge.models[role])) for role in list(merge.models)[:2])
            self._unlike[id(merge)] = frozenset(self.resolved.places[key].component for key in a ^ b)
        return self.resolved.places[key].component in self._unlike[id(merge)]

    def is_incidental(self, merge: BoundMerge, role: str, key: str) -> bool:
        """Whether a key belongs to the layout of one of two models in different layouts, not to the model."""
        models = self.resolved.models
        pair = [merge.models[one] for one in (next(iter(merge.models)), role)]
        ours, theirs = (models[one if isinstance(one, int) else one.primary()] for one in pair)
        left = ours.view.left.get(key) or theirs.view.left.get(key)
        other = ours.checkpoint.format != theirs.checkpoint.format
        return other and left is not None and left.kind in INCIDENTAL

    def parameters(self, merge: BoundMerge, key: str) -> dict[str, Value]:
        """The parameters of a merge at a key.

        Raises:
            RecipeError: the method does not take them together.
        """
        place = self.resolved.places[key]
        numbers: dict[str, Value] = {}
        for name, weighting in merge.weightings.items():
            if isinstance(weighting, tuple):
                numbers[name] = tuple(one.at(key, place) for one in weighting)
            else:
                numbers[name] = weighting.at(key, place)
        parameters = {**numbers, **merge.choices}
        together = id(merge), tuple(parameters.values())
        if together not in self._checked:
            if wrong := merge.method.check(**parameters):
                where = ".".join(map(str, (*merge.path, merge.method.name)))
                raise RecipeError(f"{where}: {wrong} (for tensor {quote(key)})")
            self._checked.add(together)
        return parameters


def policies(merge: BoundMerge) -> Policies:
    """What is allowed in a merge: what the recipe says, and what a tool did that only knew keys of both."""
    if merge.method.merges is None:
        return merge.policies
    return replace(merge.policies, missing="keep", extra="drop")

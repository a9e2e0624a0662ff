"""From a resolved recipe to its plan, from headers alone: equal recipes and inputs give equal plans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from runner.architectures import Architecture
from runner.architectures.layouts import single_file_name
from runner.architectures.left import MARKERS
from runner.architectures.ties import Made
from runner.checkpoint import Checkpoint, Layout
from runner.errors import IncompatibleError, KeyPath, RecipeError, counted, escape, quote
from runner.formats import FORMATS
from runner.lora.algebra import Kind
from runner.methods import Method
from runner.methods.factors import sides
from runner.models.quantised import FOR_FP8
from runner.models.view import INCIDENTAL, whole
from runner.planning.arrange import arrange
from runner.planning.builtin import built_in, lacking
from runner.planning.factors import Module, dialect_for, module_name, network_metadata
from runner.planning.marking import marks, predicting, with_header, with_scheduler
from runner.planning.plan import BUFFER, COPIED, KEPT, MERGED, Draw, Job, Load, Plan, Step, Value
from runner.planning.prediction import Prediction, agreed, disagreeing, said_by
from runner.planning.taken import taken
from runner.recipe.structure import Policies
from runner.resolve.resolved import BoundMerge, Resolved
from runner.tensors import OUTPUT_DTYPES, TensorSpec
from runner.weighting.parameter import Weighting

# Schedules and marker tensors of single files: facts about the primary, not weights.
_NEVER_MERGED = re.compile(
    rf"(model_ema\.(decay|num_updates)|betas|logvar|scale_factor|{MARKERS}|edm_vpred\..+|global_step"
    r"|(sqrt_|log_)?(recip_|recipm1_|one_minus_)?alphas_cumprod(_prev)?|posterior_\w+)"
)


def make_plan(
    resolved: Resolved, metadata: Mapping[str, str], ranks: Mapping[str, int] | None = None
) -> Plan:
    """Plans a resolved recipe.

    Args:
        resolved: the recipe with its models opened.
        metadata: what the header of the output says beside the tensors.
        ranks: by key, where they were measured. Without them what depends on them has its upper bound.

    Raises:
        IncompatibleError: keys or shapes do not fit and the recipe has no policy for them.
    """
    planner = _Planner(resolved, ranks or {})
    if resolved.merge.method.result == "factors":
        return _lora_plan(planner, metadata)
    given = taken(resolved, planner.nonfinite)
    jobs = {job.key: job for job in (*map(planner.job, planner.keys(resolved.merge)), *given.jobs)}
    arrangement = arrange(resolved, {job.key: job.spec for job in jobs.values()})
    for found in (arrangement, given):
        planner.dropped.update(found.dropped)
        planner.unfit.update(found.unfit)
    planner.example.update(given.example)
    planner.widened.update(given.widened)
    planner.raise_if_unfit(given.unfit)
    result = planner.predict(jobs.values())
    said = marks(resolved, result)
    for key in said.removed:
        arrangement.made.pop(key, None)
        planner.dropped.setdefault(f"left out: the result predicts {result}", {})[key] = None
    for job in said.added:
        jobs[job.key], arrangement.made[job.key] = job, whole(job.key, job.spec)
    output = resolved.recipe.output
    specs = {key: made.spec for key, made in arrangement.made.items()}
    carrier: Checkpoint | dict[str, bytes] | None = resolved.carrier
    if carrier is None and resolved.output_format == "diffusers":
        carrier = built_in(resolved, specs, result)
        planner.notes.append(lacking(resolved, specs))
    layout = FORMATS[resolved.output_format].layout(
        output.name,
        specs,
        carrier,
        with_header(metadata, resolved, result),
        output.max_shard_bytes,
    )
    if layout.folder:
        layout = with_scheduler(layout, resolved, result)
    placed = tuple(
        job
        for number, file in enumerate(layout.files)
        for key, (offset, _) in file.tensors.items()
        for job in _placed(jobs, key, arrangement.made[key], number, offset)
    )
    return planner.plan(placed, layout)


def _lora_plan(planner: _Planner, metadata: Mapping[str, str]) -> Plan:
    """The plan of a merge whose result is a LoRA: a job for each module, which writes all its tensors.

    Raises:
        IncompatibleError: what has no place in a LoRA, and the recipe does not drop it.
    """
    resolved = planner.resolved
    architecture = resolved.primary.architecture
    if architecture is None:
        label = escape(resolved.primary.checkpoint.label)
        raise IncompatibleError(
            f"{label} is of an unknown architecture: the names of a LoRA's modules follow from it", tag="LORA"
        )
    modules: dict[str, tuple[Module, Job]] = {}
    for key in planner.keys(resolved.merge):
        if found := planner.module(architecture, key):
            modules[found[0].name] = found
    planner.raise_if_unfit(())
    if not modules:
        raise IncompatibleError("nothing to write: no module of the LoRA has a rank above 0", tag="LORA")
    result = planner.predict(job for _, job in modules.values())
    said = network_metadata(architecture, (module for module, _ in modules.values()))
    said = {**with_header(metadata, resolved, result), **said}
    specs = {key: spec for module, _ in modules.values() for key, spec in module.specs.items()}
    output = resolved.recipe.output
    layout = FORMATS["lora"].layout(output.name, specs, None, said, None)
    first = {next(iter(module.specs)): (module, job) for module, job in modules.values()}
    jobs = tuple(
        replace(first[key][1], offset=offset, stored=first[key][0].name)
        for key, (offset, _) in layout.files[0].tensors.items()
        if key in first
    )
    return planner.plan(jobs, layout)


def _placed(jobs: Mapping[str, Job], key: str, made: Made, file: int, offset: int) -> Iterable[Job]:
    """The jobs whose results are a tensor of the output, each at its place."""
    parts = list(dict.fromkeys(piece.key for piece in made.pieces))
    if len(parts) == 1 and (len(made.pieces) > 1 or made.transposed):
        yield replace(jobs[parts[0]], file=file, offset=offset, stored=key, arranged=made.pieces)
        return
    for part in parts:
        yield replace(jobs[part], file=file, offset=offset, stored=key)
        offset += jobs[part].spec.nbytes


@dataclass(frozen=True, slots=True)
class _Value:
    """A load, or a step with its operands: one node of the expression of a key."""

    load: Load | None
    method: Method | None = None
    operands: tuple[_Value, ...] = ()
    parameters: tuple[tuple[str, Value], ...] = ()
    path: KeyPath = ()
    draw: Draw | None = None
    with_optional: bool = False
    survey: KeyPath = ()


class _Planner:
    """Builds the expression of each key, noting what does not fit and what a policy decided."""

    def __init__(self, resolved: Resolved, ranks: Mapping[str, int]) -> None:
        self.resolved = resolved
        self._ranks = ranks
        self.specs = [model.view.specs for model in resolved.models]
        self.dropped: dict[str, dict[str, None]] = {}
        self.widened: dict[str, None] = {}
        self.notes: list[str] = []
        self.deviations: dict[str, dict[str, None]] = {}
        self.unfit: dict[str, dict[str, None]] = {}
        self.example: dict[str, str] = {}
        self._keys: dict[int, dict[str, None]] = {}
        self._unlike: dict[int, frozenset[str]] = {}
        self._checked: set[tuple[int, tuple[Value, ...]]] = set()
        self.nonfinite = frozenset(
            pattern for merge in resolved.merge.merges() for pattern in merge.policies.nonfinite
        )
        self._first: dict[Structure, KeyPath] = {}
        self._paths: dict[int, KeyPath] = {}
        self._surveys: dict[int, KeyPath] = {}
        self._padded: set[str] = set()
        self._prediction: Prediction | None = None
        self._disagreeing: list[str] = []
        self._fate = COPIED
        self._equal: list[Load] = []
        for model in resolved.models:
            for key, why in model.view.quantised.beside.items():
                self.dropped.setdefault(why, {})[key] = None

    def keys(self, node: int | BoundMerge) -> dict[str, None]:
        """The keys a model or merge has, in the order of its primary; decided once for each."""
        if id(node) not in self._keys:
            self._keys[id(node)] = (
                self._source_keys(node) if isinstance(node, int) else self._merge_keys(node)
            )
        return self._keys[id(node)]

    def _source_keys(self, model: int) -> dict[str, None]:
        places, taken_from_others = self.resolved.places, self.resolved.components
        keys = {key: None for key in self.specs[model] if places[key].component not in taken_from_others}
        if self.resolved.merge.policies.ema == "keep":
            return keys
        copies = [key for key in keys if key.startswith("model_ema.")]
        if copies and model == self.resolved.merge.primary():
            self.dropped["left out: running means of the weights (EMA)"] = dict.fromkeys(copies)
        return {key: None for key in keys if not key.startswith("model_ema.")}

    def _merge_keys(self, merge: BoundMerge) -> dict[str, None]:
        """The primary's keys; and where the recipe keeps them, those only another model has."""
        primary, *others = merge.models
        keys = dict(self.keys(merge.models[primary]))
        if merge.method.adapters:
            return keys
        for role in others:
            extra = [
                key
                for key in self.keys(merge.models[role])
                if key not in keys
                and not _NEVER_MERGED.fullmatch(key)
                and not self._ignored(merge, role, key)
                and not self._is_incidental(key, merge, role)
            ]
            if not extra:
                continue
            where = f"{self._name(merge, role)}: keys that {self._name(merge, primary)} lacks"
            policies = _policies(merge)
            if policies.extra == "error":
                self.unfit[where] = dict.fromkeys(extra)
            elif policies.extra == "drop":
                self.dropped[where] = dict.fromkeys(extra)
            else:
                self.deviations[f"{where}, kept"] = dict.fromkeys(extra)
                keys.update(dict.fromkeys(extra))
        return keys

    def _ignored(self, merge: BoundMerge, role: str, key: str) -> bool:
        """Whether the parameters at a key say that this model has no part in it."""
        if not self._is_merged(merge, key):
            return True
        used = merge.method.result_is(**self._parameters(merge, key))
        return (used is not None and list(merge.models)[used] != role) or self._is_left(merge, key)

    def _is_merged(self, merge: BoundMerge, key: str) -> bool:
        """Whether the filter of a tool lets a key through; tools know the names of single files alone."""
        merges = merge.method.merges
        return merges is None or merges(self._in_a_single_file(merge.primary(), key))

    def _in_a_single_file(self, model: int, key: str) -> str:
        """What a model that is a single file calls a tensor, or would call it if it were one."""
        of = self.resolved.models[model]
        if of.checkpoint.format == "checkpoint" and key in of.view.tensors:
            return of.view.tensors[key].pieces[0].key
        return (of.architecture and single_file_name(of.architecture, key)) or key

    def _parameters(self, merge: BoundMerge, key: str) -> dict[str, Value]:
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

    def _is_left(self, merge: BoundMerge, key: str) -> bool:
        """Whether a compat merge leaves the component of a key as it is in a.

        diffusers' merger did so, with a printed line, where the keys of b differ from those of a.
        """
        if merge.method.reads != "pipeline":
            return False
        if id(merge) not in self._unlike:
            a, b = (set(self.keys(merge.models[role])) for role in list(merge.models)[:2])
            self._unlike[id(merge)] = frozenset(self.resolved.places[key].component for key in a ^ b)
        return self.resolved.places[key].component in self._unlike[id(merge)]

    def job(self, key: str) -> Job:
        """The job of one key of the output."""
        self._fate, self._equal = COPIED, []
        merge = self.resolved.merge
        value = self._value(merge, key)
        assert value is not None  # key is one of keys(merge)
        loads, steps = _flatten(value)
        specs = [self.specs[load.model][load.key] for load in loads]
        self._refuse_fp8(key, loads, steps)
        models = self.resolved.models
        doubles = all(
            spec.dtype == "F64"
            for load, spec in zip(loads, specs, strict=True)
            if not models[load.model].adapters
        )
        return Job(
            key=key,
            place=self.resolved.places[key],
            fate=MERGED if steps else self._fate,
            spec=self._output_spec(key, loads[0]),
            loads=loads,
            steps=steps,
            equal=tuple(dict.fromkeys(load for load in self._equal if load != loads[0])),
            compute="float64" if doubles else self.resolved.recipe.compute_dtype,
            nonfinite=any(
                fnmatchcase(name, glob)
                for name in {key, self._in_a_single_file(loads[0].model, key)}
                for glob in self.nonfinite
            ),
            padded=key in self._padded,
            lengths=self._lengths(loads),
        )

    def plan(self, jobs: tuple[Job, ...], layout: Layout) -> Plan:
        """The plan, with what was noted on the way."""
        return Plan(
            self.resolved,
            jobs,
            layout,
            {reason: tuple(sorted(keys)) for reason, keys in self.dropped.items()},
            {reason: tuple(sorted(keys)) for reason, keys in self.deviations.items()},
            tuple(self.warnings(jobs)),
            self._prediction,
        )

    def predict(self, jobs: Iterable[Job]) -> Prediction | None:
        """What the result predicts; notes which models say otherwise.

        Raises:
            IncompatibleError: they predict different things, and the recipe does not say which it is.
        """
        recipe, said = self.resolved.recipe, said_by(predicting(self.resolved, jobs))
        self._prediction = agreed(said, recipe.prediction_type, recipe.zero_terminal_snr)
        if self._prediction is not None:
            self._disagreeing += disagreeing(said, self._prediction)
        return self._prediction

    def module(self, architecture: Architecture, key: str) -> tuple[Module, Job] | None:
        """The module of a LoRA that changes a tensor, and its job; None if there is none."""
        merge = self.resolved.merge
        spec = self.specs[merge.primary()].get(key)
        name = module_name(architecture, key, spec) if spec else None
        if merge.method.adapters and not self._fits_factors(merge, key, name):
            return None
        if spec is None or name is None:
            self.dropped.setdefault("not part of a LoRA", {})[key] = None
            return None
        job = self.job(key)
        if not job.steps:
            self.dropped.setdefault("left out of the LoRA", {})[key] = None
            return None
        step = job.steps[-1]
        assert step.method.rank is not None  # its result is factors
        of = [self._rank(job.loads[at]) for at in step.arguments] if merge.method.adapters else []
        most = step.method.rank(spec.shape, of, **dict(step.parameters))
        rank = self._ranks.get(key, most)
        if rank == 0:
            self.dropped.setdefault("no change there" if most else "rank 0", {})[key] = None
            return None
        bound = step.over == "rank" and key not in self._ranks
        module = Module(name, dialect_for(architecture), spec.shape, rank, job.spec.dtype)
        return module, replace(job, rank=rank, bound=bound, alpha=module.alpha)

    def _fits_factors(self, merge: BoundMerge, key: str, name: str | None) -> bool:
        """Whether any of the adapters changes a tensor; notes those that have no factors there."""
        strengths = self._parameters(merge, key)["strength"]
        joined = not int(float(str(self._parameters(merge, key)["rank"])))
        assert isinstance(strengths, tuple)
        found = False
        for (role, node), strength in zip(list(merge.models.items())[1:], strengths, strict=True):
            assert isinstance(node, int)  # merges are no adapters
            changes = self.resolved.models[node].changes.get(key, ())
            if not changes or strength == 0:
                continue
            label = self._name(merge, role)
            if any(change.adapter.magnitude for change in changes):
                what = f"{label}: DoRA's lengths follow from the weights, which are no part of a LoRA"
            elif name is None:
                what = f"{label}: changes of what is no linear layer or convolution"
                if _policies(merge).extra == "drop":
                    self.dropped.setdefault(f"{what}, left out", {})[key] = None
                    continue
            elif joined and any(change.adapter.kind is not Kind.LORA for change in changes):
                kinds = ", ".join(sorted({change.adapter.kind for change in changes}))
                what = f"{label}: {kinds} cannot be joined exactly; say rank"
            else:
                found = True
                continue
            self.unfit.setdefault(what, {})[key] = None
        return found

    def _rank(self, load: Load) -> int:
        """The rank of what adapters change of a tensor, as the engine makes factors of it."""
        columns = sides(self.specs[load.model][load.key].shape)[1]
        return sum(
            change.adapter.rank or columns if change.adapter.kind is Kind.LORA else columns
            for change in self.resolved.models[load.model].changes[load.key]
        )

    def _lengths(self, loads: Iterable[Load]) -> Literal["rows", "inputs"] | None:
        """Of what adapters must know the lengths; who has all rows has those of each, too."""
        models = self.resolved.models
        changes = (change for load in loads for change in models[load.model].changes.get(load.key, ()))
        needed = {change.adapter.lengths for change in changes}
        return "inputs" if "inputs" in needed else "rows" if "rows" in needed else None

    def _value(self, node: int | BoundMerge, key: str) -> _Value | None:
        """What a model or merge has at a key; None if it has nothing there."""
        if key not in self.keys(node):
            return None
        if isinstance(node, int):
            return _Value(Load(node, key))
        primary_role, *others = node.models
        first = node.models[primary_role]
        spec = self._stored_spec(first, key)
        if spec is None:  # an extra key that the recipe keeps
            return next((v for role in others if (v := self._value(node.models[role], key))), None)
        if spec.elements == 0 or _NEVER_MERGED.fullmatch(key):
            value = self._value(first, key)
            self._fate = BUFFER
            return value
        if not self._is_merged(node, key):
            return self._value(first, key)
        if self._is_left(node, key):
            return self._keep(first, f"component differs in {self._name(node, others[0])}", key)
        parameters = self._parameters(node, key)
        if node.method.adapters:
            return self._baked(node, key, parameters)
        used = node.method.result_is(**parameters)
        if used == 0:
            return self._value(first, key)
        operands: list[_Value] = []
        for role in others if used is None else [list(node.models)[used]]:
            operand = self._value(node.models[role], key)
            if reason := self._misfit(node, role, key, spec, operand):
                kind, policy, what = reason
                if policy == "error":
                    self.unfit.setdefault(what, {})[key] = None
                    return self._value(first, key)
                return self._keep(first, f"{kind} in {self._name(node, role)}", key)
            assert operand is not None  # a missing one is a misfit
            operands.append(operand)
        if used is not None:
            return operands[0]
        primary = self._value(first, key)
        assert primary is not None  # it has a spec
        operands.insert(0, primary)
        if not spec.is_float and node.method.reads != "pipeline":
            return self._integer(node, operands)
        return _Value(
            None,
            node.method,
            tuple(operands),
            tuple(sorted(parameters.items())),
            self._path(node),
            Draw(node.seed, tuple(node.models)) if node.method.draws else None,
            node.method.optional in node.models,
            self._survey(node) if node.method.over is not None else (),
        )

    def _baked(self, node: BoundMerge, key: str, parameters: dict[str, Value]) -> _Value | None:
        """The primary's tensor with what the adapters change of it."""
        first, *others = node.models
        primary = self._value(node.models[first], key)
        strengths = parameters["strength"]
        assert primary is not None and isinstance(strengths, tuple)
        used = [
            (load, strength)
            for role, strength in zip(others, strengths, strict=True)
            if strength != 0 and (load := self._value(node.models[role], key)) is not None
        ]
        if not used:
            return primary
        loads = tuple(load for load, _ in used)
        # Where the result is factors, of the primary only the headers count.
        operands = loads if node.method.result == "factors" else (primary, *loads)
        numbers = {**parameters, "strength": tuple(one for _, one in used)}
        return _Value(None, node.method, operands, tuple(sorted(numbers.items())), self._path(node))

    def _is_incidental(self, key: str, merge: BoundMerge, role: str) -> bool:
        """Whether a key belongs to the layout of one of two models in different layouts, not to the model."""
        models = self.resolved.models
        pair = [merge.models[one] for one in (next(iter(merge.models)), role)]
        ours, theirs = (models[one if isinstance(one, int) else one.primary()] for one in pair)
        left = ours.view.left.get(key) or theirs.view.left.get(key)
        other = ours.checkpoint.format != theirs.checkpoint.format
        return other and left is not None and left.kind in INCIDENTAL

    def _misfit(
        self, merge: BoundMerge, role: str, key: str, spec: TensorSpec, operand: _Value | None
    ) -> tuple[str, str, str] | None:
        """What is wrong with an operand, the policy for it, and how an error says it."""
        name, primary = self._name(merge, role), self._name(merge, next(iter(merge.models)))
        if operand is None and self._is_incidental(key, merge, role):
            return "no counterpart", "keep", ""
        if operand is None:
            return "missing", _policies(merge).missing, f"{name}: keys of {primary} are missing"
        theirs = self._spec(operand)
        if theirs.shape != spec.shape and self._has_more_channels(merge, key, spec, operand):
            there_are = f"{theirs.shape[1]} input channels where {primary} has {spec.shape[1]}"
            if merge.policies.shapes == "channels":
                only = f"{name}: {there_are}: only those are merged"
                self.deviations.setdefault(only, {})[key] = None
                self._padded.add(key)
                return None
            what = f"{name}: {there_are}; shapes: channels merges those and keeps the others"
            return "fewer channels", merge.policies.shapes, what
        if theirs.shape != spec.shape:
            what = f"{name}: other shapes than in {primary}"
            self.example.setdefault(what, f"; the first is {list(theirs.shape)}, there {list(spec.shape)}")
            policy = "keep" if merge.policies.shapes == "keep" else "error"
            return "another shape", policy, what
        if theirs.is_float != spec.is_float or (not spec.is_float and theirs.dtype != spec.dtype):
            what = f"{name}: other kinds of dtype than in {primary}"
            self.example.setdefault(what, f"; the first is {theirs.dtype}, there {spec.dtype}")
            policy = "keep" if merge.policies.shapes == "keep" else "error"
            return "another kind of dtype", policy, what
        return None

    def _has_more_channels(self, merge: BoundMerge, key: str, spec: TensorSpec, operand: _Value) -> bool:
        """Whether the primary is made for more than an operand that is plain, and this is where it enters."""
        architecture = self.resolved.models[merge.primary()].architecture
        theirs = self._spec(operand)
        if architecture is None or key != f"{architecture.main}/{architecture.first['diffusers']}":
            return False
        if operand.load is None or len(spec.shape) < 2 or spec.shape[1] not in architecture.variants:
            return False
        fewer = theirs.shape[1:2] < spec.shape[1:2]
        return fewer and (theirs.shape[0], *theirs.shape[2:]) == (spec.shape[0], *spec.shape[2:])

    def _integer(self, merge: BoundMerge, operands: list[_Value]) -> _Value:
        """Integers are copied; unless the recipe says otherwise, only if all models agree on them."""
        self._fate = BUFFER
        if merge.policies.integers == "error":
            self._equal += [operand.load for operand in operands[1:] if operand.load is not None]
        return operands[0]

    def _path(self, merge: BoundMerge) -> KeyPath:
        """Where in the recipe a merge stands first: equal ones are one, and draw the same numbers."""
        if id(merge) not in self._paths:
            self._paths[id(merge)] = self._first.setdefault(_structure(merge), merge.path)
        return self._paths[id(merge)]

    def _survey(self, merge: BoundMerge) -> KeyPath:
        """Where in the recipe a merge stands first that has this one's values in every tensor."""
        if id(merge) not in self._surveys:
            self._surveys[id(merge)] = self._first.setdefault(_structure(merge, whole=True), merge.path)
        return self._surveys[id(merge)]

    def _keep(self, first: int | BoundMerge, reason: str, key: str) -> _Value | None:
        """What the primary has at a key, because a policy says so."""
        value = self._value(first, key)
        self._fate = KEPT
        self.deviations.setdefault(f"{reason}: kept", {})[key] = None
        return value

    def _stored_spec(self, node: int | BoundMerge, key: str) -> TensorSpec | None:
        """Dtype and shape of what the primary source of a model or merge has at a key."""
        return self.specs[node if isinstance(node, int) else node.primary()].get(key)

    def _spec(self, value: _Value) -> TensorSpec:
        """Shape of a value and dtype of the load that decides it."""
        while value.load is None:
            value = value.operands[0]
        return self.specs[value.load.model][value.load.key]

    def _refuse_fp8(self, key: str, loads: tuple[Load, ...], steps: tuple[Step, ...]) -> None:
        """Notes a tensor in fp8 that a tool whose bytes are reproduced computed with in its own dtype."""
        if tools := {step.method.compat for step in steps if step.method.reads != "compute"}:
            for load in loads:
                model = self.resolved.models[load.model]
                if model.view.is_fp8(load.key):
                    label = escape(model.checkpoint.label)
                    what = f"{label}: compat {tools.pop()} does not cover tensors in fp8"
                    self.unfit.setdefault(what, {})[key] = None
                    return

    def _output_spec(self, key: str, first: Load) -> TensorSpec:
        dtypes = self.resolved.recipe.output.dtype
        model = self.resolved.merge.primary()
        if key not in self.specs[model]:  # an extra key that the recipe keeps
            model = first.model
        primary = self.specs[model][key]
        if not primary.is_float or self._fate == BUFFER:  # never merged, never cast
            return primary
        word = dtypes.get(self.resolved.places[key].component) or dtypes.get("default")
        if word is None and self.resolved.merge.method.reads == "pipeline":
            word = "float32"  # what the pipeline was loaded and saved in
        if word is None and self.resolved.output_format == "lora":
            word = "float16"
        if word is None and self.resolved.models[model].view.is_fp8(key):
            word = FOR_FP8
            self.widened[key] = None
        return TensorSpec(OUTPUT_DTYPES[word] if word else primary.dtype, primary.shape)

    def _name(self, merge: BoundMerge, role: str) -> str:
        """How a message calls an operand: by its file, or by its place in the recipe."""
        model = merge.models[role]
        if isinstance(model, int):
            return escape(self.resolved.models[model].checkpoint.label)
        return escape(".".join(map(str, (*merge.path, "models", role))))

    def raise_if_unfit(self, given: Collection[str]) -> None:
        """Raises: IncompatibleError that lists everything that does not fit.

        Args:
            given: what of it concerns the sources of components.
        """
        if not self.unfit:
            return
        lines = [
            f"{what} ({_listed(keys, self.resolved)}{self.example.get(what, '')})"
            for what, keys in self.unfit.items()
        ]
        models = [model for model in self.resolved.models if not model.adapters]
        if len({model.title for model in models}) > 1:
            kinds = (f"{escape(model.checkpoint.label)} is {model.title}" for model in models)
            lines.insert(0, f"models of different kinds: {', '.join(kinds)}")
        hint = "force: true keeps the first model's tensors there and lists them"
        if self.unfit.keys() <= set(given):
            hint = "a component is taken whole: give a source that has it as the models of the merge have it"
        raise IncompatibleError("\n".join(lines), tag="KEYS", hint=hint)

    def warnings(self, jobs: tuple[Job, ...]) -> Iterable[str]:
        """What the user should know before the merge runs."""
        yield from self.resolved.warnings
        yield from (text for model in self.resolved.models for text in model.checkpoint.warnings)
        yield from self.notes
        yield from self._disagreeing
        for reason, keys in (*self.dropped.items(), *self.deviations.items()):
            yield f"{reason} ({_listed(keys, self.resolved)})"
        if self.widened:
            what = f"stored in fp8, written as {FOR_FP8}: output.dtype can say float16 or float8_e4m3fn"
            yield f"{what} ({_listed(self.widened, self.resolved)})"
        if compat := self.resolved.merge.method.compat:
            yield f"compat {compat}: {self.resolved.merge.method.differs}"
        models = self.resolved.models
        sources = {job.loads[0].model for job in jobs if job.fate != BUFFER}
        if not any(job.steps for job in jobs) and len(sources) == 1 < len(models):
            label = models[sources.pop()].checkpoint.label
            yield f"the result is {quote(label)} itself: with these parameters nothing is merged"
            return
        # The first model gives its names and header even where nothing of it is read.
        used = {load.model for job in jobs for load in job.loads} | {self.resolved.merge.primary()}
        for number, model in enumerate(models):
            if number not in used:
                label = quote(model.checkpoint.label)
                yield f"{label} has no effect: with these parameters nothing of it is in the result"


def _policies(merge: BoundMerge) -> Policies:
    """What is allowed in a merge: what the recipe says, and what a tool did that only knew keys of both."""
    if merge.method.merges is None:
        return merge.policies
    return replace(merge.policies, missing="keep", extra="drop")


Structure = tuple[Any, ...]


def _structure(merge: BoundMerge, *, whole: bool = False) -> Structure:
    """What equal merges have in common wherever they stand: method, seed and models by role.

    Args:
        merge: of the recipe.
        whole: with all that decides its values beside: the parameters at every key, and the policies.
    """
    models = (
        (role, model if isinstance(model, int) else _structure(model, whole=whole))
        for role, model in merge.models.items()
    )
    found = (merge.method.label, merge.seed if merge.method.draws else 0, tuple(models))
    if not whole:
        return found
    numbers = ((name, [one] if isinstance(one, Weighting) else one) for name, one in merge.weightings.items())
    values = tuple(
        (name, *((one.default, *sorted(one.values.items())) for one in several)) for name, several in numbers
    )
    policies = replace(merge.policies, nonfinite=(), extrapolate=False)
    return (*found, values, tuple(merge.choices.items()), policies)


def _flatten(value: _Value) -> tuple[tuple[Load, ...], tuple[Step, ...]]:
    """The expression as a list to walk: loads, then steps; equal parts stand in it once."""
    loads: dict[Load, int] = {}
    order: dict[_Value, int] = {}

    def visit(node: _Value) -> None:
        if node.load is not None:
            loads.setdefault(node.load, len(loads))
            return
        for operand in node.operands:
            visit(operand)
        order.setdefault(node, len(order))

    visit(value)

    def slot(node: _Value) -> int:
        return loads[node.load] if node.load is not None else len(loads) + order[node]

    steps = []
    for node in order:
        assert node.method is not None  # it is no load
        steps.append(
            Step(
                node.method,
                tuple(map(slot, node.operands)),
                node.parameters,
                node.path,
                node.draw,
                node.with_optional,
                node.survey,
            )
        )
    return tuple(loads), tuple(steps)


def _listed(found: Iterable[str], resolved: Resolved) -> str:
    """Whole components by name, else the count and the first keys."""
    keys = sorted(found)
    components = Counter(resolved.places[key].component for key in keys if key in resolved.places)
    whole = Counter(place.component for place in resolved.places.values())
    if components and all(count == whole.get(component) for component, count in components.items()):
        names = ", ".join(sorted(components))
        return f"{counted(len(keys), 'tensor')}, all of {names}"
    first = ", ".join(escape(key) for key in keys[:3])
    return f"{counted(len(keys), 'tensor')}: {first}{', ...' if len(keys) > 3 else ''}"

"""What is computed of one key: the merges of a recipe as an expression, and as a list to walk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from runner.errors import KeyPath
from runner.planning.keys import NEVER_MERGED, Keys, policies
from runner.planning.noted import Noted
from runner.planning.plan import BUFFER, COPIED, KEPT, Draw, Load, Step, Value
from runner.resolve.resolved import BoundMerge
from runner.tensors import TensorSpec
from runner.weighting.parameter import Weighting


@dataclass(frozen=True, slots=True)
class Node:
    """A load, or a step with its operands in the place of its arguments."""

    load: Load | None = None
    step: Step | None = None
    operands: tuple[Node, ...] = ()

    @property
    def first(self) -> Load:
        """The load that decides shape and dtype."""
        return self.load or self.operands[0].first


class Firsts:
    """Where in the recipe a merge stands first: equal ones are one."""

    def __init__(self) -> None:
        self._of: dict[Structure, KeyPath] = {}
        self._paths: dict[tuple[int, bool], KeyPath] = {}

    def path(self, merge: BoundMerge, *, whole: bool = False) -> KeyPath:
        """The path of the first merge that is made as this one, and so draws the same numbers.

        Args:
            merge: of the recipe.
            whole: of the first that has this one's values in every tensor.
        """
        if (id(merge), whole) not in self._paths:
            structure = _structure(merge, whole=whole)
            self._paths[id(merge), whole] = self._of.setdefault(structure, merge.path)
        return self._paths[id(merge), whole]


class Expression:
    """The expression of one key; notes what does not fit and what a policy decided.

    Attributes:
        fate: of the key: COPIED if nothing else was found out.
        equal: loads that must have the value of the first.
        padded: whether only the first input channels are merged.
        root: the expression; None if the merge has nothing at the key.
    """

    def __init__(self, key: str, keys: Keys, noted: Noted, firsts: Firsts) -> None:
        self._key, self._keys, self._noted, self._firsts = key, keys, noted, firsts
        self.fate = COPIED
        self.equal: list[Load] = []
        self.padded = False
        self.root = self._value(keys.resolved.merge)

    def _value(self, node: int | BoundMerge) -> Node | None:
        """What a model or merge has at the key; None if it has nothing there."""
        key = self._key
        if key not in self._keys.of(node):
            return None
        if isinstance(node, int):
            return Node(Load(node, key))
        primary_role, *others = node.models
        first = node.models[primary_role]
        if not self._keys.has(first, key):  # an extra key that the recipe keeps
            return next((value for role in others if (value := self._value(node.models[role]))), None)
        spec = self._keys.spec(first, key)
        if spec.elements == 0 or NEVER_MERGED.fullmatch(key):
            value = self._value(first)
            self.fate = BUFFER
            return value
        if not self._keys.is_merged(node, key):
            return self._value(first)
        if self._keys.is_left(node, key):
            return self._keep(first, f"component differs in {self._noted.name_of(node, others[0])}")
        parameters = self._keys.parameters(node, key)
        if node.method.adapters:
            return self._baked(node, parameters)
        used = node.method.result_is(**parameters)
        if used == 0:
            return self._value(first)
        operands: list[Node] = []
        for role in others if used is None else [list(node.models)[used]]:
            operand = self._value(node.models[role])
            if reason := self._misfit(node, role, spec, operand):
                kind, policy, what = reason
                if policy == "error":
                    self._noted.misfit(what, key)
                    return self._value(first)
                return self._keep(first, f"{kind} in {self._noted.name_of(node, role)}")
            assert operand is not None  # a missing one is a misfit
            operands.append(operand)
        if used is not None:
            return operands[0]
        primary = self._value(first)
        assert primary is not None  # it has a spec
        operands.insert(0, primary)
        if not spec.is_float and node.method.reads != "pipeline":
            return self._integer(node, operands)
        step = Step(
            node.method,
            (),
            tuple(sorted(parameters.items())),
            self._firsts.path(node),
            Draw(node.seed, tuple(node.models)) if node.method.draws else None,
            node.method.optional in node.models,
            self._firsts.path(node, whole=True) if node.method.over is not None else (),
        )
        return Node(step=step, operands=tuple(operands))

    def _baked(self, node: BoundMerge, parameters: dict[str, Value]) -> Node | None:
        """The primary's tensor with what the adapters change of it."""
        first, *others = node.models
        primary = self._value(node.models[first])
        strengths = parameters["strength"]
        assert primary is not None and isinstance(strengths, tuple)
        used = [
            (load, strength)
            for role, strength in zip(others, strengths, strict=True)
            if strength != 0 and (load := self._value(node.models[role])) is not None
        ]
        if not used:
            return primary
        loads = tuple(load for load, _ in used)
        # Where the result is factors, of the primary only the headers count.
        operands = loads if node.method.result == "factors" else (primary, *loads)
        numbers = {**parameters, "strength": tuple(one for _, one in used)}
        step = Step(node.method, (), tuple(sorted(numbers.items())), self._firsts.path(node))
        return Node(step=step, operands=operands)

    def _misfit(
        self, merge: BoundMerge, role: str, spec: TensorSpec, operand: Node | None
    ) -> tuple[str, str, str] | None:
        """What is wrong with an operand, the policy for it, and how an error says it."""
        name, primary = (self._noted.name_of(merge, one) for one in (role, next(iter(merge.models))))
        if operand is None and self._keys.is_incidental(merge, role, self._key):
            return "no counterpart", "keep", ""
        if operand is None:
            return "missing", policies(merge).missing, f"{name}: keys of {primary} are missing"
        theirs = self._spec(operand)
        kept = "keep" if merge.policies.shapes == "keep" else "error"
        if theirs.shape != spec.shape and self._has_more_channels(merge, spec, operand):
            there_are = f"{theirs.shape[1]} input channels where {primary} has {spec.shape[1]}"
            if merge.policies.shapes == "channels":
                self._noted.deviate(f"{name}: {there_are}: only those are merged", self._key)
                self.padded = True
                return None
            what = f"{name}: {there_are}; shapes: channels merges those and keeps the others"
            return "fewer channels", merge.policies.shapes, what
        if theirs.shape != spec.shape:
            what = f"{name}: other shapes than in {primary}"
            found = f"; the first is {list(theirs.shape)}, there {list(spec.shape)}"
            self._noted.example.setdefault(what, found)
            return "another shape", kept, what
        if theirs.is_float != spec.is_float or (not spec.is_float and theirs.dtype != spec.dtype):
            what = f"{name}: other kinds of dtype than in {primary}"
            self._noted.example.setdefault(what, f"; the first is {theirs.dtype}, there {spec.dtype}")
            return "another kind of dtype", kept, what
        return None

    def _has_more_channels(self, merge: BoundMerge, spec: TensorSpec, operand: Node) -> bool:
        """Whether the primary is made for more than an operand that is plain, and this is where it enters."""
        architecture = self._keys.resolved.models[merge.primary()].architecture
        theirs = self._spec(operand)
        if architecture is None or self._key != f"{architecture.main}/{architecture.first['diffusers']}":
            return False
        if operand.load is None or len(spec.shape) < 2 or spec.shape[1] not in architecture.variants:
            return False
        fewer = theirs.shape[1:2] < spec.shape[1:2]
        return fewer and (theirs.shape[0], *theirs.shape[2:]) == (spec.shape[0], *spec.shape[2:])

    def _integer(self, merge: BoundMerge, operands: list[Node]) -> Node:
        """Integers are copied; unless the recipe says otherwise, only if all models agree on them."""
        self.fate = BUFFER
        if merge.policies.integers == "error":
            self.equal += [operand.load for operand in operands[1:] if operand.load is not None]
        return operands[0]

    def _keep(self, first: int | BoundMerge, reason: str) -> Node | None:
        """What the primary has at the key, because a policy says so."""
        value = self._value(first)
        self.fate = KEPT
        self._noted.deviate(f"{reason}: kept", self._key)
        return value

    def _spec(self, value: Node) -> TensorSpec:
        return self._keys.spec(value.first.model, value.first.key)


Structure = tuple[Any, ...]


def _structure(merge: BoundMerge, *, whole: bool) -> Structure:
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
    allowed = replace(merge.policies, nonfinite=(), extrapolate=False)
    return (*found, values, tuple(merge.choices.items()), allowed)


def flatten(root: Node) -> tuple[tuple[Load, ...], tuple[Step, ...]]:
    """The expression as a list to walk: loads, then steps; equal parts stand in it once."""
    loads: dict[Load, int] = {}
    order: dict[Node, int] = {}

    def visit(node: Node) -> None:
        if node.load is not None:
            loads.setdefault(node.load, len(loads))
            return
        for operand in node.operands:
            visit(operand)
        order.setdefault(node, len(order))

    visit(root)

    def slot(node: Node) -> int:
        return loads[node.load] if node.load is not None else len(loads) + order[node]

    steps = ((node.step, tuple(map(slot, node.operands))) for node in order)
    return tuple(loads), tuple(replace(step, arguments=slots) for step, slots in steps if step is not None)

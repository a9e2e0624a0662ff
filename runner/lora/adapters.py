"""An adapter's file, read by its header and held to the base it changes, before anything is computed.

Every key of the file ends in one of four places: in an adapter, or among those that mean no module of the
architecture, mean one the base has not, or make no change of the shape of what they mean. Factors of a few
bytes can demand terabytes; so the product's shape is compared first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runner.architectures.base import Architecture
from runner.errors import IncompatibleError, NumericError, escape, nearest, quote
from runner.lora.algebra import BIASES, MAGNITUDES, Kind, MisfitError, fits, product, role_of
from runner.lora.names import Dialect, Slot, dialect_of, find_module, module_names
from runner.lora.settings import Settings, read_settings
from runner.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]
LENGTHS_APART = 2  # of a name and one it may be meant for
LARGEST_SCALE = 1e4  # a larger alpha for the rank is a mistake or an attack


@dataclass(frozen=True, slots=True)
class Share:
    """Rows of a tensor of the base that some rows of a change belong to.

    Attributes:
        key: of the tensor as folders name it, component/name.
        first: row of the tensor where they begin.
        rows: how many they are.
        start: row of the change where they begin.
    """

    key: str
    first: int
    rows: int
    start: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """A change of one tensor, or of one that a single file holds as one, by its factors.

    Attributes:
        name: of the module, as the file has it.
        kind: of algebra.
        factors: role → key in the file.
        shape: of the change; fits that of the rows it belongs to.
        rank: None if the kind has none.
        shares: whose rows its rows are, in order.
        alpha: key of the number that is divided by the rank; its value is no part of the header.
        stated: the scale, if the metadata say it.
        magnitude: key of DoRA's lengths; None if there are none.
        lengths: of what those are: of "rows", or of "inputs", columns over all rows.
    """

    name: str
    kind: Kind
    factors: Mapping[str, str]
    shape: tuple[int, ...]
    rank: int | None
    shares: tuple[Share, ...]
    alpha: str | None = None
    stated: float | None = None
    magnitude: str | None = None
    lengths: Literal["rows", "inputs"] | None = None

    @property
    def by_rows(self) -> bool:
        """Whether some rows of the result need no others: not where lengths of columns are needed."""
        return self.lengths != "inputs"

    @property
    def keys(self) -> tuple[str, ...]:
        """Its keys in the file."""
        return (*self.factors.values(), *(key for key in (self.alpha, self.magnitude) if key))

    def scale(self, alpha: float | None) -> float:
        """What the product is multiplied by.

        Args:
            alpha: the value at the key of that name; None if there is none.

        Raises:
            NumericError: it is not finite, or absurd.
        """
        # LyCORIS takes two whole factors as they are, whatever alpha says; they have no rank.
        if alpha is not None:
            scale = alpha / self.rank if self.rank else 1.0
        else:
            scale = 1.0 if self.stated is None else self.stated
        if not math.isfinite(scale) or abs(scale) > LARGEST_SCALE:
            found = f"a scale of {scale:g}" if alpha is None else f"alpha {alpha:g} for rank {self.rank}"
            raise NumericError(
                f"{escape(self.name)}: {found} is no scale: it must be a number up to {LARGEST_SCALE:g}",
                tag="ALPHA",
                hint="the file is damaged, or made for another tool",
            )
        return scale


@dataclass(frozen=True)
class Adapters:
    """All of an adapter's file.

    Attributes:
        adapters: in order of the file.
        unmatched: key → why it means no module of the architecture.
        absent: key → what the base has not.
        misfits: name of a module → why its factors make no change of it.
        notes: what is unusual, a line each.
    """

    adapters: tuple[Adapter, ...]
    unmatched: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    misfits: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def check(self, label: str, *, partial: bool = False) -> None:
        """Raises what is wrong with the file.

        Args:
            label: names the file in the error.
            partial: whether modules that the base has not are left out.

        Raises:
            IncompatibleError: with every key that has no place, and every module that does not fit.
        """
        wrong = {**self.unmatched, **({} if partial else self.absent), **self.misfits}
        lines = [f"{escape(label)}: {quote(name)}: {why}" for name, why in wrong.items()]
        if not lines and not self.adapters:
            lines = [f"{escape(label)}: nothing in it changes this model"]
        if lines:
            raise IncompatibleError("\n".join(lines), tag="ADAPTER")


@dataclass
class _Group:
    """The keys of one module and half of it, weight or bias: role → key."""

    name: str
    bias: bool
    roles: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)


def read_adapters(
    architecture: Architecture,
    base: Specs,
    specs: Specs,
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Adapters:
    """What a file changes of a model, and what of it does not fit.

    Args:
        architecture: of the model.
        base: its tensors by the names of views.
        specs: of the tensors of the file.
        metadata: of its header.
        config: PEFT's adapter_config.json that lies beside it, if there is one.

    Raises:
        InputError: the metadata or the config say scales in a way that cannot be read.
    """
    groups, unmatched = _grouped(specs)
    found: list[Adapter] = []
    absent: dict[str, str] = {}
    misfits: dict[str, str] = {}
    compared = False
    settings = read_settings(metadata or {}, config)
    for group in groups:
        module = find_module(architecture, group.name)
        slots = (module.bias if group.bias else module.weight) if module else ()
        keys = [*group.roles.values(), *group.twice]
        if not slots:
            hint = "" if compared else _alike(group.name, architecture)
            compared = True
            why = f"no module of {architecture.title} has this name{hint}"
            unmatched |= dict.fromkeys(keys, why)
        elif missing := [slot.key for slot in slots if slot.key not in base]:
            absent |= dict.fromkeys(keys, f"the base has no {missing[0]}")
        else:
            try:
                found.append(_adapter(group, slots, base, specs, settings))
            except MisfitError as misfit:
                misfits[group.name] = str(misfit)
    misfits |= _overlaps(found)
    return Adapters(tuple(found), unmatched, absent, misfits, _notes(found))


def _alike(name: str, architecture: Architecture) -> str:
    """A hint to a module of nearly this name: only of those as long, to compare with thousands takes long."""
    names = module_names(architecture)
    return nearest(name, (known for known in names if abs(len(known) - len(name)) <= LENGTHS_APART))


def _notes(adapters: Iterable[Adapter]) -> tuple[str, ...]:
    """What is unusual: a file of PEFT's without its config."""
    for adapter in adapters:
        said = adapter.alpha or adapter.stated is not None
        if dialect_of(adapter.name) is Dialect.PEFT and adapter.rank and not said:
            return ("no alpha is stated (PEFT does in adapter_config.json): the scale is 1",)
    return ()


def _grouped(specs: Specs) -> tuple[list[_Group], dict[str, str]]:
    """The keys by module, and those that are of no adapter."""
    groups: dict[tuple[str, bool], _Group] = {}
    unmatched: dict[str, str] = {}
    for key in specs:
        split = role_of(key)
        if split is None:
            unmatched[key] = "no key of an adapter that is known"
            continue
        name, role = split
        bias = role in BIASES
        group = groups.setdefault((name, bias), _Group(name, bias))
        if role in group.roles:
            group.twice.append(key)
        else:
            group.roles[role] = key
    return list(groups.values()), unmatched


def _adapter(
    group: _Group, slots: tuple[Slot, ...], base: Specs, specs: Specs, settings: Settings
) -> Adapter:
    """The adapter of a module.

    Raises:
        MisfitError: its factors make no change of it.
    """
    roles = dict(group.roles)
    if group.twice:
        raise MisfitError(f"{group.twice[0]} is there beside another of the same role")
    if "other" in roles:
        raise MisfitError(f"{roles['other']} is of an algebra that is not implemented")
    for key in roles.values():
        if not specs[key].is_float and not key.endswith(".alpha"):
            raise MisfitError(f"{key} is {specs[key]}, which is no number to compute with")
    alpha = roles.pop("alpha", None)
    if alpha and specs[alpha].elements != 1:
        raise MisfitError(f"{alpha} is {specs[alpha]}, not one number")
    lengths = {role: roles.pop(role) for role in MAGNITUDES if role in roles}
    if not roles:
        raise MisfitError("no factors")
    made = product({role: specs[key].shape for role, key in roles.items()})
    shares, target = _shares(slots, base)
    if not fits(made.shape, target):
        where = ", ".join(slot.key for slot in slots)
        raise MisfitError(f"the product is {_text(made.shape)}, but {where} is {_text(target)}")
    if (alpha or lengths) and made.kind in (Kind.DIFF, Kind.NORM, Kind.BIAS):
        raise MisfitError(f"{alpha or next(iter(lengths.values()))} beside a whole change")
    magnitude, of = _magnitude(lengths, specs, target)
    stated = settings.scale(group.name, made) if alpha is None else None
    return Adapter(group.name, made.kind, roles, made.shape, made.rank, shares, alpha, stated, magnitude, of)


def _shares(slots: tuple[Slot, ...], base: Specs) -> tuple[tuple[Share, ...], tuple[int, ...]]:
    """Whose rows the rows of a change are, and the shape it must have."""
    shares: list[Share] = []
    start = 0
    rests = set()
    for slot in slots:
        shape = base[slot.key].shape
        if not shape or shape[0] % slot.of:
            raise MisfitError(f"{slot.key} is {_text(shape)}, which has no {slot.of} equal parts")
        unit = shape[0] // slot.of
        shares.append(Share(slot.key, slot.first * unit, slot.units * unit, start))
        start += slot.units * unit
        rests.add(shape[1:])
    if len(rests) > 1:
        raise MisfitError(f"{', '.join(slot.key for slot in slots)} are not rows of one tensor")
    return tuple(shares), (start, *rests.pop())


def _magnitude(
    lengths: Mapping[str, str], specs: Specs, target: tuple[int, ...]
) -> tuple[str | None, Literal["rows", "inputs"] | None]:
    """The key of DoRA's lengths, and of what they are.

    PEFT takes those of rows, whatever the shape it keeps them in (tuners/lora/dora.py); LyCORIS those of
    rows or, in older files, of inputs, in the shape they multiply the weight by (functional/general.py).
    """
    if not lengths:
        return None, None
    if len(lengths) > 1:
        raise MisfitError("two kinds of DoRA's lengths")
    (role, key), shape = next(iter(lengths.items())), specs[next(iter(lengths.values()))].shape
    rows = (target[0], *(1 for _ in target[1:]))
    inputs = (1, *target[1:2], *(1 for _ in target[2:]))
    if role == "magnitude_vector":
        if math.prod(shape) == target[0] and len([size for size in shape if size != 1]) <= 1:
            return key, "rows"
    elif shape in (rows, rows[:2], rows[:1]):
        return key, "rows"
    elif shape in (inputs, inputs[:2]):
        return key, "inputs"
    raise MisfitError(f"{key} is {_text(shape)}: no lengths of the rows or inputs of {_text(target)}")


def _overlaps(adapters: Iterable[Adapter]) -> dict[str, str]:
    """Modules whose rows another one changes too."""
    wrong: dict[str, str] = {}
    ends: dict[str, list[tuple[int, int, str]]] = {}
    for adapter in adapters:
        for share in adapter.shares:
            ends.setdefault(share.key, []).append((share.first, share.first + share.rows, adapter.name))
    for key, ranges in ends.items():
        ranges.sort()
        for (_, end, one), (begin, _, other) in itertools.pairwise(ranges):
            if begin < end:
                wrong[other] = f"changes {key}, as {one} does"
    return wrong


def _text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"

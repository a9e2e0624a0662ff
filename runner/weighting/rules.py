"""Rules that give parts of a model a value, and which of them wins where."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from runner.architectures import Architecture, Place
from runner.errors import KeyPath, Problems, quote
from runner.weighting.dialects import LEFT, Dialect, fall

# From the least specific to the most. BASE is all but the main component, so a component is part of it.
_BASE, _COMPONENT, _BLOCK, _ELEMENT, _KEY = range(5)
_COARSEST = -99  # below every name that a place has

Rank: TypeAlias = tuple[int, int, bool, bool, int]


@dataclass(frozen=True)
class Names:
    """The parts of the models that a recipe can name.

    Attributes:
        places: where each key of any of the models stands.
        architecture: of the primary; None if unknown.
        single_file_name: what a single file calls a key of theirs; None if that is not known.
        other_names: what the other layout calls the tensors that a key of theirs holds.
    """

    places: Mapping[str, Place]
    architecture: Architecture | None
    single_file_name: Callable[[str], str | None] = lambda key: key
    other_names: Callable[[str], Collection[str]] = lambda key: ()

    @functools.cached_property
    def components(self) -> frozenset[str]:
        """Of all keys."""
        return frozenset(place.component for place in self.places.values())

    @functools.cached_property
    def blocks(self) -> frozenset[str]:
        """The names of blocks that occur."""
        return frozenset(block for place in self.places.values() for block in place.blocks)

    def under(self, dialect: Dialect | None) -> Mapping[str, Place]:
        """The places as a dialect sees them."""
        if dialect is None:
            return self.places
        return {
            key: fall(dialect, self.architecture, key, self.single_file_name(key), place)
            for key, place in self.places.items()
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for part of the model.

    Attributes:
        value: of the parameter there.
        path: where in the recipe it stands.
        component: it applies only inside this component; None: everywhere.
        blocks: it applies only to these blocks; () if it selects otherwise.
        keys: it applies only to these keys; None if it selects otherwise.
        said: whether the recipe names the part itself; no: it follows from a list or string.
        element: its number among the elemental entries; None if it is none.
        prefix: how much of a key it names, if it is one of a set of prefixes; None if it is none.
        text: what selects, for errors.
    """

    value: float
    path: KeyPath
    component: str | None = None
    blocks: tuple[str, ...] = ()
    keys: frozenset[str] | None = None
    said: bool = True
    element: int | None = None
    prefix: int | None = None
    text: str = ""

    def at(self, place: Place) -> Rank | None:
        """How specifically it selects a place, higher for more; None if it does not, or selects keys."""
        nested = self.component is not None
        if self.keys is not None or (nested and place.component != self.component):
            return None
        if not self.blocks:
            return (_COMPONENT, 0, self.said, nested, 0)
        # place.blocks begins with the most specific name; a single block beats a range.
        for depth, block in enumerate(place.blocks):
            if block in self.blocks:
                if block in ("BASE", LEFT):
                    return (_BASE, 0, self.said, nested, -len(self.blocks))
                return (_BLOCK, -depth, self.said, nested, -len(self.blocks))
        return None

    @property
    def of_keys(self) -> Rank:
        """How specifically it selects its keys."""
        if self.element is not None:
            return (_ELEMENT, self.element, False, False, 0)  # a later one wins
        if self.prefix is not None:
            return (_BLOCK, _COARSEST, False, False, self.prefix)  # the longest prefix wins
        return (_KEY, int(self.text in (self.keys or ())), True, self.component is not None, 0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a set of rules comes to.

    Attributes:
        values: by key, where any rule selects it.
        unused: rules of the recipe's own that select nothing.
    """

    values: Mapping[str, float]
    unused: tuple[Rule, ...]


def decide(rules: Iterable[Rule], places: Mapping[str, Place], problems: Problems) -> Decision:
    """The value that the most specific rule gives each key; notes those that contradict each other."""
    rules = tuple(rules)
    by_key: dict[str, list[Rule]] = {}
    for rule in rules:
        for key in rule.keys or ():
            by_key.setdefault(key, []).append(rule)
    by_place: dict[Place, list[tuple[Rank, Rule]]] = {}
    values: dict[str, float] = {}
    used: set[int] = set()
    told: set[tuple[int, int]] = set()
    for key, place in places.items():
        ranked = by_place.get(place)
        if ranked is None:
            selecting = [(rank, rule) for rule in rules if (rank := rule.at(place)) is not None]
            used.update(id(rule) for _, rule in selecting)
            ranked = by_place[place] = _best(selecting)
        if key in by_key:
            ranked = _best([*ranked, *((rule.of_keys, rule) for rule in by_key[key])])
        if ranked:
            values[key] = ranked[0][1].value
            first = ranked[0][1]
            for _, other in ranked[1:]:
                if other.value != first.value and (id(first), id(other)) not in told:
                    told.add((id(first), id(other)))
                    problems.add(other.path, _contradiction(first, other, key))
    unused = (rule for rule in rules if not rule.keys and id(rule) not in used and _must_select(rule))
    return Decision(values, tuple(unused))


def _best(ranked: list[tuple[Rank, Rule]]) -> list[tuple[Rank, Rule]]:
    highest = max((rank for rank, _ in ranked), default=None)
    return [item for item in ranked if item[0] == highest]


def _must_select(rule: Rule) -> bool:
    return rule.said or rule.element is not None or rule.prefix is not None


def _contradiction(first: Rule, second: Rule, key: str) -> str:
    doubt = f"{second.value:g} or {first.value:g} for {quote(key)}?"
    return f"{doubt} {quote(first.text)} selects it too and is as specific; make one narrower"

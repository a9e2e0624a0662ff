"""One numeric parameter of a method, resolved to every key of the model.

A recipe gives a number, a list, or a mapping by component, then block, then key pattern:

    alpha: 0.35
    alpha: [0, 0.5, 1]                               # over the depth of the main component
    alpha: {default: 0.35, text_encoder: 0, unet: {default: 0.4, M00: 0.7, "*.attn2.*": 0.2}}
    alpha: {mbw: GRAD_V, elemental: "OUT04:attn2:0.5", vae: 0}      # block weights as other tools write them

The most specific wins: key pattern, then elemental entry, part or fine name of a block (MID103, TIME),
block (IN00), component, BASE, default. Of two that are equally specific, one that the recipe names
beats one from a list or string, one written under its component is the more specific, a smaller range
beats a larger one. What is equal in all this must not contradict.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.architectures import Place, expand_block
from runner.errors import KeyPath, Problems, nearest, quote
from runner.methods import Parameter
from runner.weighting.dialects import DIALECTS, Dialect
from runner.weighting.pasted import KEYS, Pasted
from runner.weighting.rules import Names, Rule, decide

_PATTERN = re.compile(r"[*?\[./]")  # what tells a key pattern from a name
# Blocks of the UNets with four levels that are names of parts in SDXL.
_OTHERWISE = {"IN10": "input_blocks.1.0", "OUT10": "output_blocks.1.0", "OUT11": "output_blocks.1.1"}


@dataclass(frozen=True, slots=True)
class Weighting:
    """The value of a parameter at every key.

    Attributes:
        default: where nothing else is said.
        values: by key.
        unused: what in the recipe selects nothing: its path, and what to say of it.
        open: a key of which the recipe, giving more than a number, says nothing; None: there is none.
    """

    default: float
    values: Mapping[str, float] = field(default_factory=dict)
    unused: tuple[tuple[KeyPath, str], ...] = field(default=(), compare=False)
    open: str | None = field(default=None, compare=False)

    def at(self, key: str, place: Place) -> float:
        """The value at a key, which is one of those the weighting was made for."""
        return self.values.get(key, self.default)


def parse_weighting(
    parameter: Parameter, value: Any, path: KeyPath, extrapolate: bool, names: Names, problems: Problems
) -> Weighting:
    """Reads what a recipe says of a numeric parameter.

    Args:
        parameter: its schema.
        value: a number, a list or a mapping; None if the recipe does not say.
        path: where in the recipe it stands.
        extrapolate: whether the recipe allows values outside the usual range.
        names: what it can name.
        problems: where mistakes are noted.
    """
    return _Parser(parameter, extrapolate, names, problems).weighting(value, path)


@dataclass
class _Parser:
    parameter: Parameter
    extrapolate: bool
    names: Names
    problems: Problems

    def weighting(self, value: Any, path: KeyPath) -> Weighting:
        divided = isinstance(value, (Mapping, list))
        said = value.get("default") if isinstance(value, Mapping) else None if divided else value
        default = self.default(said, path, divided)
        if not divided:
            return Weighting(default)
        dialect: Dialect | None = None
        if isinstance(value, Mapping):
            dialect = self.dialect(value, path)
            rules = self.rules(value, path, None)
        else:
            rules = self.whole_gradient(value, path)
            if not rules:  # it is wrong, and that is told
                return Weighting(default)
        places = self.names.under(dialect)
        if isinstance(value, Mapping):
            rules += Pasted(self.names, places, self.problems, self.number).rules(value, path)
        decided = decide(rules, places, self.problems)
        closed = isinstance(value, Mapping) and "default" in value
        left = None if closed else next((key for key in places if key not in decided.values), None)
        unused = tuple((rule.path, _nothing(rule)) for rule in decided.unused)
        return Weighting(default, decided.values, unused, left)

    def default(self, value: Any, path: KeyPath, divided: bool) -> float:
        if value is not None:
            return self.number(value, (*path, "default") if divided else path)
        if isinstance(self.parameter.default, (int, float)):
            return float(self.parameter.default)
        if not divided:
            self.problems.add(path, f"{self.parameter.name} must be given")
        return 0.0

    def dialect(self, tree: Mapping[Any, Any], path: KeyPath) -> Dialect | None:
        """The tool whose block weights these are; None if they are none."""
        name = tree.get("dialect", "runner")
        if isinstance(name, str) and name in DIALECTS:
            return DIALECTS[name] if "dialect" in tree or "mbw" in tree else None
        hint = nearest(str(name), DIALECTS) or f" (there are: {', '.join(DIALECTS)})"
        self.problems.add((*path, "dialect"), f"unknown dialect {quote(name)}{hint}")
        return None

    def rules(self, tree: Mapping[Any, Any], path: KeyPath, component: str | None) -> list[Rule]:
        rules: list[Rule] = []
        for name, value in tree.items():
            at, text = (*path, name), str(name)
            if name == "default":
                if component is not None:
                    rules.append(Rule(self.number(value, at), at, component, text=component))
            elif name in self.names.components and component is None:
                rules += self.component(value, at, text)
            elif name in KEYS:
                if component is not None:
                    self.problems.add(at, f"is for the whole model: write it beside {component}")
            elif blocks := self.blocks_named(text):
                self.warn_otherwise(text, at)
                rules.append(Rule(self.number(value, at), at, component, blocks, text=text))
            elif isinstance(name, str) and _PATTERN.search(name):
                keys = self.matching(name, component)
                rules.append(Rule(self.number(value, at), at, component, keys=keys, text=text))
            else:
                self.unknown(text, at, component)
        return rules

    def unknown(self, name: str, path: KeyPath, component: str | None) -> None:
        outside = {*self.names.components, *KEYS} if component is None else set()
        there_are = ", ".join(sorted(self.names.components))
        hint = nearest(name, self.names.blocks | outside) or f" (components: {there_are})"
        self.problems.add(path, f"unknown component, block or key pattern{hint}")

    def matching(self, pattern: str, component: str | None) -> frozenset[str]:
        """The keys a pattern selects, by their own name or by those in the other layout."""
        matches = re.compile(fnmatch.translate(pattern)).match

        def selects(key: str) -> bool:
            others = () if matches(key) else self.names.other_names(key)
            return all(map(matches, others)) if others else bool(matches(key))

        places = self.names.places.items()
        return frozenset(key for key, at in places if component in (None, at.component) and selects(key))

    def blocks_named(self, name: str) -> tuple[str, ...]:
        architecture = self.names.architecture
        if architecture is not None and (blocks := expand_block(architecture, name)):
            return blocks
        return (name,) if name in self.names.blocks else ()

    def warn_otherwise(self, name: str, path: KeyPath) -> None:
        architecture = self.names.architecture
        if architecture and architecture.parts and name in _OTHERWISE:
            title = architecture.title
            self.problems.warn(path, f"in {title} this is {_OTHERWISE[name]}, no block of its own as in SD1")

    def component(self, value: Any, path: KeyPath, name: str) -> list[Rule]:
        if isinstance(value, Mapping):
            return self.rules(value, path, name)
        if isinstance(value, list):
            return self.gradient(value, path, name)
        return [Rule(self.number(value, path), path, name, text=name)]

    def whole_gradient(self, values: Sequence[Any], path: KeyPath) -> list[Rule]:
        """The rules of a list that is all a recipe says: over the main component, if it is clear which."""
        if self.too_short(values, path):
            return []
        architecture, places = self.names.architecture, self.names.places.values()
        divided = {place.component for place in places if place.blocks}
        if architecture is None and len(divided) != 1:
            choice = f" ({', '.join(sorted(divided))})" if divided else ""
            self.problems.add(path, f"a list runs over the blocks of one component: name it{choice}")
            return []
        return self.gradient(values, path, architecture.main if architecture else divided.pop())

    def too_short(self, values: Sequence[Any], path: KeyPath) -> bool:
        if len(values) >= 2:
            return False
        self.problems.add(path, f"a list runs from its first number to its last; found {quote(values)}")
        return True

    def gradient(self, values: Sequence[Any], path: KeyPath, component: str) -> list[Rule]:
        """A rule for each block of a component, its value interpolated between those of a list."""
        numbers = [self.number(value, (*path, at)) for at, value in enumerate(values)]
        architecture = self.names.architecture
        if architecture is not None and component != architecture.main:
            self.problems.add(path, f"a list runs over blocks, and only {architecture.main} has any")
            return []
        if self.too_short(values, path):
            return []
        places = self.names.places.values()
        there = {block for place in places if place.component == component for block in place.blocks}
        blocks = architecture.depth if architecture else sorted(there, key=_natural)
        if not blocks:
            self.problems.add(path, "has no numbered modules that a list could run over")
        last = max(len(blocks) - 1, 1)
        return [
            Rule(_between(numbers, at / last), path, component, (block,), said=False)
            for at, block in enumerate(blocks)
        ]

    def number(self, value: Any, path: KeyPath, label: str = "") -> float:
        """A number of the recipe, 0 if it is none; `label` names it where the path does not."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problems.add(path, f"{label}expected a number, found {quote(value)}")
            return 0.0
        if not abs(value) <= sys.float_info.max:  # nan too
            self.problems.add(path, f"{label}expected a finite number, found {quote(value)}")
            return 0.0
        limits = self.parameter.range
        if limits and not limits.low <= value <= limits.high:
            if limits.outside == "error" or (limits.outside == "ask" and not self.extrapolate):
                hint = "; say extrapolate: true to go outside" if limits.outside == "ask" else ""
                self.problems.add(path, f"{label}expected {limits}, found {value:g}{hint}")
                return 0.0
            self.problems.warn(path, f"{label}{value:g} is outside the usual {limits}")
        return float(value)


def _nothing(rule: Rule) -> str:
    named = f"{quote(rule.text)} " if rule.element is not None or rule.prefix is not None else ""
    return f"{named}selects no tensor of these models"


def _natural(name: str) -> tuple[str, int]:
    module, _, number = name.rpartition(".")
    return module, int(number)


def _between(values: Sequence[float], t: float) -> float:
    """The value at t in [0, 1] of the line through values at equal distances."""
    position = t * (len(values) - 1)
    left = min(int(position), len(values) - 2)
    share, ends = position - left, values[left : left + 2]
    # Rounding must not leave the line: between two equal values there is no other.
    return max(min(ends), min(max(ends), (1 - share) * ends[0] + share * ends[1]))

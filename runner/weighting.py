"""One numeric parameter of a method, resolved to every place of the model.

A recipe gives a number, or a mapping by component, then block, then key pattern:

    alpha: {default: 0.35, text_encoder: 0, unet: {default: 0.4, M00: 0.7, "*.attn2.*": 0.2}}

The most specific wins: key pattern, then fine block (TIME), block (IN00), component, default. Of two
that are equally specific, one written under its component is the more specific.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.architectures import Architecture, Place, expand_block
from runner.errors import KeyPath, Problems, nearest, quote
from runner.methods import Parameter

_PATTERN = re.compile(r"[*?\[./]")  # what tells a key pattern from a name
_COMPONENT, _BLOCK, _KEY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for part of the model.

    Attributes:
        component: it applies only inside this component; None: everywhere.
        blocks: it applies only to these blocks; () if it selects otherwise.
        pattern: it applies only to keys that match this glob; None if it selects otherwise.
        value: of the parameter there.
        path: where in the recipe it stands.
    """

    component: str | None
    blocks: tuple[str, ...]
    pattern: str | None
    value: float
    path: KeyPath

    def rank(self, key: str, place: Place) -> tuple[int, int, bool, int] | None:
        """How specifically it selects a key, higher for more; None if it does not."""
        nested = self.component is not None
        if nested and place.component != self.component:
            return None
        if self.pattern is not None:
            return (_KEY, 0, nested, 0) if _glob(self.pattern).match(key) else None
        if self.blocks:
            # place.blocks begins with the most specific name; a single block beats a range.
            depth = next((at for at, block in enumerate(place.blocks) if block in self.blocks), None)
            return None if depth is None else (_BLOCK, -depth, nested, -len(self.blocks))
        return (_COMPONENT, 0, nested, 0)


@dataclass(frozen=True, slots=True)
class Weighting:
    """The value of a parameter at every key.

    Attributes:
        default: where no rule applies.
        rules: in recipe order.
    """

    default: float
    rules: tuple[Rule, ...] = ()

    def at(self, key: str, place: Place) -> float:
        """The value at a key."""
        selecting = [(rank, rule) for rule in self.rules if (rank := rule.rank(key, place)) is not None]
        if not selecting:
            return self.default
        return max(selecting, key=lambda item: item[0])[1].value  # of equals the one written first


@functools.lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def parse_weighting(
    parameter: Parameter,
    value: Any,
    path: KeyPath,
    extrapolate: bool,
    components: frozenset[str],
    architecture: Architecture | None,
    blocks: frozenset[str],
    problems: Problems,
) -> Weighting:
    """Reads what a recipe says of a numeric parameter.

    Args:
        parameter: its schema.
        value: a number or a mapping; None if the recipe does not say.
        path: where in the recipe it stands.
        extrapolate: whether the recipe allows values outside the usual range.
        components: of the primary.
        architecture: of the primary, for the names of blocks; None if unknown.
        blocks: the names of blocks that occur.
        problems: where mistakes are noted.
    """
    parser = _Parser(parameter, extrapolate, components, architecture, blocks, problems)
    default = parser.default(value, path)
    rules = tuple(parser.rules(value, path, None)) if isinstance(value, Mapping) else ()
    return Weighting(default, rules)


@dataclass
class _Parser:
    parameter: Parameter
    extrapolate: bool
    components: frozenset[str]
    architecture: Architecture | None
    blocks: frozenset[str]
    problems: Problems

    def default(self, value: Any, path: KeyPath) -> float:
        if isinstance(value, Mapping):
            path, value = (*path, "default"), value.get("default")
        if value is not None:
            return self.number(value, path)
        if isinstance(self.parameter.default, (int, float)):
            return float(self.parameter.default)
        self.problems.add(path, f"{self.parameter.name} must be given")
        return 0.0

    def rules(self, tree: Mapping[Any, Any], path: KeyPath, component: str | None) -> list[Rule]:
        rules: list[Rule] = []
        for name, value in tree.items():
            at = (*path, name)
            if name == "default":
                if component is not None:
                    rules.append(Rule(component, (), None, self.number(value, at), at))
            elif name in self.components and component is None:
                if isinstance(value, Mapping):
                    rules += self.rules(value, at, name)
                else:
                    rules.append(Rule(name, (), None, self.number(value, at), at))
            elif blocks := self.blocks_named(str(name)):
                rules.append(Rule(component, blocks, None, self.number(value, at), at))
            elif isinstance(name, str) and _PATTERN.search(name):
                rules.append(Rule(component, (), name, self.number(value, at), at))
            else:
                known = self.blocks | (self.components if component is None else frozenset())
                hint = nearest(str(name), known) or f" (components: {', '.join(sorted(self.components))})"
                self.problems.add(at, f"unknown component, block or key pattern{hint}")
        return rules

    def blocks_named(self, name: str) -> tuple[str, ...]:
        if self.architecture is not None and (blocks := expand_block(self.architecture, name)):
            return blocks
        return (name,) if name in self.blocks else ()

    def number(self, value: Any, path: KeyPath) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problems.add(path, f"expected a number, found {quote(value)}")
            return 0.0
        if not abs(value) <= sys.float_info.max:  # nan too
            self.problems.add(path, f"expected a finite number, found {quote(value)}")
            return 0.0
        limits = self.parameter.range
        if limits and not limits.low <= value <= limits.high:
            if limits.outside == "error" or (limits.outside == "ask" and not self.extrapolate):
                hint = "; say extrapolate: true to go outside" if limits.outside == "ask" else ""
                self.problems.add(path, f"expected {limits}, found {value:g}{hint}")
                return 0.0
            self.problems.warn(path, f"{value:g} is outside the usual {limits}")
        return float(value)

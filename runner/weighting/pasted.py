"""Block weights as other tools write them: lists, strings, presets, sliders and elemental entries.

alpha: {mbw: "0,0.1,...", dialect: supermerger, base: 0.3, elemental: "OUT04:attn2:0.5"}
alpha: {mbw: GRAD_V, mix: {preset: SMOOTHSTEP, by: 0.3}}
alpha: {dialect: comfyui, mbw: {default: 1, output_blocks.3.: 0.25}}
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runner.architectures import Architecture, Place, expand_block
from runner.architectures.unet import MODULE_NAMES
from runner.errors import KeyPath, Problems, nearest, quote
from runner.weighting.blockstring import (
    Element,
    UnreadableError,
    Words,
    is_name,
    read_elements,
    read_numbers,
)
from runner.weighting.dialects import DIALECTS, LEFT, layouts, misfit, wants_base
from runner.weighting.presets import PRESET_NAMES, mixed, preset
from runner.weighting.rules import Names, Rule

KEYS = ("default", "mbw", "dialect", "base", "mix", "elemental")
_MAIN = "model.diffusion_model."


class Number(Protocol):
    """Reads a number of the recipe and notes what is wrong with it."""

    def __call__(self, value: Any, path: KeyPath, label: str = "") -> float:
        """The number; `label` says which it is where the path does not."""


@dataclass(frozen=True, slots=True)
class Pasted:
    """Reads the block weights of one parameter.

    Attributes:
        names: what they can name.
        places: where the dialect sees each key.
        problems: where mistakes are noted.
        number: reads one number in the range of the parameter.
    """

    names: Names
    places: Mapping[str, Place]
    problems: Problems
    number: Number

    def rules(self, tree: Mapping[Any, Any], path: KeyPath) -> list[Rule]:
        """The rules that follow from the keys mbw, dialect, base, mix and elemental."""
        dialect = tree.get("dialect", "runner")
        if not isinstance(dialect, str) or dialect not in DIALECTS:
            return []  # noted already
        rules: list[Rule] = []
        parts = False
        if "mbw" in tree:
            if self.names.architecture is None:
                self.problems.add((*path, "mbw"), "block weights need an architecture whose blocks are known")
                return []
            if DIALECTS[dialect].sliders:
                rules += self.sliders(tree["mbw"], (*path, "mbw"), self.names.architecture)
            else:
                blocks = self.blocks(tree, path, dialect, self.names.architecture)
                parts = any(rule.blocks[0] in MODULE_NAMES.values() for rule in blocks)
                rules += blocks
        for key in ("base", "mix"):
            if key in tree and ("mbw" not in tree or DIALECTS[dialect].sliders):
                instead = "; for all but the main component write BASE" if key == "base" else ""
                self.problems.add((*path, key), f"goes with the numbers or the preset of mbw{instead}")
        if any(LEFT in place.blocks for place in self.places.values()):
            at = (*path, "dialect" if "dialect" in tree else "mbw")
            label = f"tensors that {dialect} leaves as they are in a: "
            rules.append(Rule(self.number(0, at, label), at, blocks=(LEFT,), said=False))
        if "elemental" in tree:
            rules += self.elements(tree["elemental"], (*path, "elemental"), parts)
        return rules

    def blocks(
        self, tree: Mapping[Any, Any], path: KeyPath, dialect: str, architecture: Architecture
    ) -> list[Rule]:
        """A rule for each block of a list, a string or a preset."""
        at = (*path, "mbw")
        values = self.values(tree["mbw"], at)
        if values is not None and "mix" in tree:
            values = self.mix(values, tree["mix"], (*path, "mix"))
        if values is None:
            return []
        names = layouts(dialect, architecture).get(len(values))
        if names is None:
            decimal = not isinstance(tree["mbw"], str) or "." in tree["mbw"]
            self.problems.add(at, misfit(dialect, architecture, len(values), decimal))
            return []
        self.warn_unused(names, at, architecture)
        rules = []
        for place, (name, value) in enumerate(zip(names, values, strict=True)):
            if name and not (name == "BASE" and "base" in tree):
                where = (*at, place) if isinstance(tree["mbw"], list) else at
                rules.append(Rule(self.number(value, where, f"{name}: "), at, blocks=(name,), said=False))
        if "base" in tree:
            if "BASE" not in architecture.blocks:
                self.problems.add((*path, "base"), f"{architecture.title} has no BASE: leave it out")
            base = self.number(tree["base"], (*path, "base"))
            rules.append(Rule(base, (*path, "base"), blocks=("BASE",), said=False))
        elif wants_base(architecture, names):
            without = f"{len(values)} numbers leave out BASE, all but {architecture.main}"
            self.problems.add(at, f"{without}: add base: NUMBER")
        elif names == architecture.parts:
            rules.append(Rule(self.number(0, at, "BASE: "), at, blocks=("BASE",), said=False))
        return rules

    def warn_unused(self, names: tuple[str, ...], path: KeyPath, architecture: Architecture) -> None:
        """Says which numbers a shorter UNet has no blocks for."""
        unused = [str(at) for at, name in enumerate(names, start=1) if not name]
        if unused and names != architecture.parts:
            which = f"the numbers in places {', '.join(unused)} of {len(names)}"
            self.problems.warn(path, f"{which} are not used in {architecture.title}")

    def values(self, given: Any, path: KeyPath) -> tuple[Any, ...] | None:
        """The numbers of a list, a string or a preset; None if they cannot be read."""
        if isinstance(given, list):
            return tuple(given)
        if not isinstance(given, str):
            self.problems.add(path, f"expected numbers or the name of a preset, found {quote(given)}")
            return None
        if is_name(given):
            return self.preset(given, path)
        try:
            return read_numbers(given)
        except UnreadableError as error:
            self.problems.add(path, str(error))
            return None

    def preset(self, name: Any, path: KeyPath) -> tuple[float, ...] | None:
        """The numbers of a preset."""
        found = preset(name) if isinstance(name, str) else None
        if found is None:
            hint = nearest(str(name).replace("-", "_"), PRESET_NAMES) or " (GRAD_V and SMOOTHSTEP are some)"
            self.problems.add(path, f"unknown preset {quote(name)}{hint}")
        return found

    def mix(self, values: tuple[Any, ...], given: Any, path: KeyPath) -> tuple[Any, ...] | None:
        """The numbers mixed with those of a preset."""
        if not isinstance(given, Mapping) or set(given) != {"preset", "by"}:
            self.problems.add(path, f"expected {{preset: NAME, by: SHARE}}, found {quote(given)}")
            return None
        by = given["by"]
        if not _is_number(by) or not 0 <= by <= 1:
            self.problems.add((*path, "by"), f"expected 0 to 1, found {quote(by)}")
            return None
        other = self.preset(given["preset"], (*path, "preset"))
        if other is None:
            return None
        if len(values) not in (len(other), len(other) - 1) or not all(map(_is_number, values)):
            expected = f"{len(other)} numbers, or {len(other) - 1} and base"
            self.problems.add(path, f"a preset is mixed with {expected}; mbw has {len(values)}")
            return None
        return mixed(values, other[-len(values) :], by)

    def sliders(self, given: Any, path: KeyPath, architecture: Architecture) -> list[Rule]:
        """A rule for each prefix of keys; the numbers are shares of the first model."""
        if not isinstance(given, Mapping):
            example = "{default: 1, output_blocks.3.: 0.25}"
            expected = f"expected comfyui's sliders by prefix, as in {example}"
            self.problems.add(path, f"{expected}; found {quote(given)}")
            return []
        main = {key: None for key, place in self.places.items() if place.component == architecture.main}
        inner: dict[str, str] = {}
        rules: list[Rule] = []
        for prefix, value in given.items():
            at, text = (*path, prefix), str(prefix)
            share = value if not _is_number(value) else 1 - value
            number = self.number(share, at)
            if prefix == "default":
                rules.append(Rule(number, at, keys=frozenset(main), said=False, prefix=0, text=text))
                continue
            if not inner and (read := self.single_names(list(main), at)) is not None:
                inner = {key: name.removeprefix(_MAIN) for key, name in read.items()}
            # ComfyUI compares beginnings; a number without its dot there would begin others too.
            begins = f"{text}." if text[-1:].isdigit() else text
            keys = frozenset(key for key, name in inner.items() if name.startswith(begins))
            rules.append(Rule(number, at, keys=keys, said=False, prefix=len(begins), text=text))
        return rules

    def single_names(self, keys: list[str], path: KeyPath, text: str = "") -> dict[str, str] | None:
        """What a single file calls keys; None, with a mistake noted, if that is not known of one."""
        names = {key: self.names.single_file_name(key) for key in keys}
        known = {key: name for key, name in names.items() if name is not None}
        if len(known) == len(names):
            return known
        unknown = next(key for key in keys if key not in known)
        what = f"{quote(text)} " if text else ""
        reason = f"is read by the names of a single file, and that of {quote(unknown)} is not known"
        self.problems.add(path, f"{what}{reason}; write key patterns instead")
        return None

    def elements(self, given: Any, path: KeyPath, parts: bool) -> list[Rule]:
        """A rule for each elemental entry.

        Args:
            given: their text.
            path: where it stands.
            parts: whether names that blocks and parts share are those of parts.
        """
        if not isinstance(given, str):
            self.problems.add(path, f'expected entries such as "OUT04:attn2:0.5", found {quote(given)}')
            return []
        elements, mistakes = read_elements(given)
        for mistake in mistakes:
            self.problems.add(path, mistake)
        rules = []
        for at, element in enumerate(elements):
            keys = self.selected(element, path, parts)
            if keys is not None:
                value = self.number(element.ratio, path, f"{quote(element.text)}: ")
                rules.append(Rule(value, path, keys=keys, said=False, element=at, text=element.text))
        return rules

    def selected(self, element: Element, path: KeyPath, parts: bool) -> frozenset[str] | None:
        """The keys of an elemental entry; None if something is wrong with it."""
        blocks: set[str] = set()
        for word in element.blocks.words:
            named = self.named(MODULE_NAMES.get(word, word) if parts else word)
            if not named:
                hint = nearest(word, self.names.blocks)
                self.problems.add(path, f"{quote(element.text)}: unknown block {quote(word)}{hint}")
                return None
            blocks.update(named)
        by_name = blocks and not element.blocks.inverted
        keys = [
            key
            for key, place in self.places.items()
            if element.blocks.select(not blocks.isdisjoint(place.blocks))
            # What the tool leaves as it is takes part only where the entry names it.
            and (by_name or LEFT not in place.blocks)
        ]
        if not element.elements.words:
            return frozenset(keys)
        names = self.single_names(keys, path, element.text)
        return (
            None
            if names is None
            else frozenset(filter(lambda key: _contains(element.elements, names[key]), keys))
        )

    def named(self, word: str) -> tuple[str, ...]:
        """The blocks a word stands for."""
        architecture = self.names.architecture
        if architecture is None:
            return (word,) if word in self.names.blocks else ()
        return expand_block(architecture, word) or ()


def _contains(words: Words, name: str) -> bool:
    return words.select(any(word in name for word in words.words))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.float_info.max

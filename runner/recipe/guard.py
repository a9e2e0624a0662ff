"""Reads the text of a recipe file from a stranger: plain data, or a list of what is wrong with it.

Nothing of a refused file reaches Hydra. A recipe can name other recipes in `defaults` and refer to
its own scalars by ${...}; it can name no code, no key of Hydra's, no variable of the environment.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from runner.disk.files import read_small
from runner.errors import InputError, KeyPath, Location, escape, quote

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_DIGITS = 21  # of an integer: 2^64 with its sign

_HEADER = re.compile(r"^[ \t]*#[ \t]*@", re.MULTILINE)  # "# @package" would lay a file anywhere
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
_ESCAPED_CONTROL = re.compile(rf"\r|{_CONTROL.pattern}")  # in a text a line ends in \n alone
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_RESERVED = re.compile(r"_.+_")
_NAME = r"[A-Za-z0-9_][\w-]*(?:/[A-Za-z0-9_][\w-]*)*"
_DEFAULT = re.compile(rf"(?P<name>{_NAME})(?:@(?P<package>models(?:\.[A-Za-z_]\w*)+))?", re.ASCII)
REFERENCE = re.compile(r"\$\{(?P<path>\.*[A-Za-z_]\w*(?:\.\w+)*)\}", re.ASCII)

_MAPPINGS = {
    "models": "models by role: {a: ..., b: ...}",
    "components": "sources by component: {vae: ...}",
    "output": "{name: ..., dtype: ...}",
}

_YAML = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file as it was read.

    Attributes:
        name: as recipes name each other, "anime/mix".
        label: the file as messages call it.
        sha256: of its bytes; "" if it could not be read.
        tree: its content without `defaults`; empty if there are problems.
        defaults: the recipes it inherits and composes: (name, package), ("_self_", "") for itself.
        locations: where each key path was written.
        problems: what is wrong with it, each with file, line and key path.
    """

    name: str
    label: str
    sha256: str = ""
    tree: Mapping[str, Any] = field(default_factory=dict)
    defaults: tuple[tuple[str, str], ...] = (("_self_", ""),)
    locations: Mapping[KeyPath, Location] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_recipe(path: Path, name: str) -> RecipeFile:
    """Reads a recipe file. Never raises for what it contains; see RecipeFile.problems."""
    label = _label(path)
    try:
        content = read_small(path, label, MAX_BYTES)
    except InputError as error:
        return RecipeFile(name, label, problems=(error.message,))
    return read_text(content, label, name)


def read_text(content: bytes, label: str, name: str) -> RecipeFile:
    """Reads the text of a recipe. Never raises for what it contains; see RecipeFile.problems."""
    digest = hashlib.sha256(content).hexdigest()
    reader = _Reader(label)
    tree = reader.read(content)
    if reader.problems:
        return RecipeFile(name, label, digest, problems=tuple(reader.problems))
    defaults = reader.defaults
    if ("_self_", "") not in defaults:
        defaults = [*defaults, ("_self_", "")]  # what a file says itself is what it means
    return RecipeFile(name, label, digest, tree, tuple(defaults), reader.locations)


def read_plain(content: bytes, label: str) -> dict[str, Any]:
    """The mapping in a YAML text of another tool, under the limits of recipes.

    Raises:
        InputError: it is none, or more than plain data.
    """
    reader = _Reader(label)
    node = reader.compose(content)
    value = reader.value(node, ()) if node is not None else None
    if reader.problems:
        raise InputError(reader.problems[0], tag="YAML")
    if not isinstance(value, dict):
        raise InputError(f"{escape(label)}: expected `key: value` lines", tag="YAML")
    return value


def _label(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except (ValueError, OSError):
        return str(path)


def forbidden_reference(text: str) -> bool:
    """Whether a text holds ${...} that is more than a plain reference: a resolver, or one inside another."""
    return "${" in REFERENCE.sub("", text)


class _Reader:
    """Collects what is wrong with one file while turning it into plain data."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.problems: list[str] = []
        self.locations: dict[KeyPath, Location] = {}
        self.defaults: list[tuple[str, str]] = []

    def problem(self, mark: Any, path: KeyPath, message: str) -> None:
        where = Location(self.label, mark.line + 1, mark.column + 1) if mark else Location(self.label)
        key = f"{escape('.'.join(map(str, path)))}: " if path else ""
        self.problems.append(f"{where}: {key}{message}")

    def read(self, content: bytes) -> dict[str, Any]:
        node = self.compose(content)
        return {} if self.problems else self._document(node)

    def compose(self, content: bytes) -> yaml.Node | None:
        """The nodes of the text; None if there are none, or if something is wrong."""
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self.problem(None, (), f"not UTF-8 at byte {error.start}")
            return None
        if match := _HEADER.search(text):
            line = text.count("\n", 0, match.start()) + 1
            self.problems.append(f"{self.label}:{line}: a comment to Hydra (# @...); a recipe has none")
        if control := _CONTROL.search(text):
            line = text.count("\n", 0, control.start()) + 1
            self.problems.append(f"{self.label}:{line}: a control character, {quote(control[0])}")
        if self.problems:
            return None
        try:
            if self._check_events(text):
                node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
                return node
        except yaml.MarkedYAMLError as error:
            self.problem(error.problem_mark, (), f"not YAML: {error.problem or error.context}")
        except (yaml.YAMLError, ValueError) as error:
            self.problem(None, (), f"not YAML: {quote(error)}")
        return None

    def _check_events(self, text: str) -> bool:
        """Looks at the stream of events, which does not recurse and expands nothing."""
        depth = nodes = documents = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            nodes += isinstance(event, yaml.NodeEvent)
            fault = _event_fault(event)
            if documents > 1:
                fault = "a second document; a recipe is one"
            elif depth > MAX_DEPTH:
                fault = f"nested more than {MAX_DEPTH} deep"
            elif nodes > MAX_NODES:
                fault = f"more than {MAX_NODES} values"
            if fault:
                self.problem(event.start_mark, (), fault)
                return False
        return True

    def _document(self, node: yaml.Node | None) -> dict[str, Any]:
        if node is None:
            self.problem(None, (), "empty; a recipe says at least method and models")
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.problem(node.start_mark, (), "expected `key: value` lines, such as method: weighted_sum")
            return {}
        tree: dict[str, Any] = {}
        for key, key_node, value_node in self._items(node, ()):
            if key == "hydra":
                self.problem(key_node.start_mark, (key,), "hydra's own settings do not belong in a recipe")
            elif key == "defaults":
                self._read_defaults(value_node)
            elif key in _MAPPINGS and not isinstance(value_node, yaml.MappingNode):
                # Hydra could not lay it over that of a parent.
                self.problem(key_node.start_mark, (key,), f"expected {_MAPPINGS[key]}")
            else:
                self._locate((key,), key_node)
                tree[key] = self.value(value_node, (key,))
        return tree

    def _items(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            mark, text = key_node.start_mark, key_node.value
            if key_node.tag == f"{_YAML}merge":
                self.problem(mark, path, "a merge key (<<); use defaults to inherit")
            elif (
                not isinstance(key_node, yaml.ScalarNode) or self._scalar(key_node, path) != text or not text
            ):
                self.problem(mark, path, f"a key is a word or a quoted text; found {quote(text)}")
            elif text in seen:
                self.problem(mark, (*path, text), "a duplicate key")
            elif _RESERVED.fullmatch(text):
                self.problem(mark, (*path, text), "keys of the form _x_ are Hydra's; a recipe has none")
            elif "${" in text:
                self.problem(mark, path, f"${{ in a key: {quote(text)}")
            else:
                seen.add(text)
                yield text, key_node, value_node

    def _locate(self, path: KeyPath, node: yaml.Node) -> None:
        mark = node.start_mark
        self.locations[path] = Location(self.label, mark.line + 1, mark.column + 1)

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            mapping = {}
            for key, key_node, value_node in self._items(node, path):
                self._locate((*path, key), key_node)
                mapping[key] = self.value(value_node, (*path, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            items = []
            for at, item in enumerate(node.value):
                self._locate((*path, at), item)
                items.append(self.value(item, (*path, at)))
            return items
        assert isinstance(node, yaml.ScalarNode)  # there is no fourth kind
        return self._scalar(node, path)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        """A text, number, boolean or None, judged by how it is written; nothing is guessed."""
        text: str = node.value
        if node.style is not None and node.tag == f"{_YAML}str":
            if _ESCAPED_CONTROL.search(text):
                self.problem(node.start_mark, path, f"a control character: {quote(text)}")
            elif forbidden_reference(text):
                self.problem(node.start_mark, path, f"${{ is only for plain references; found {quote(text)}")
            return text
        if _NUMBER.fullmatch(text):
            # Longer integers than a seed's are numbers all the same, but floats.
            number = int(text) if _INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS else float(text)
            if not math.isfinite(number):
                self.problem(node.start_mark, path, f"{quote(text)} is not finite")
            return number
        if node.tag == f"{_YAML}null":
            return None
        if node.tag == f"{_YAML}bool":
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            self.problem(node.start_mark, path, f"write true or false, or quote it; found {quote(text)}")
        elif node.tag in (f"{_YAML}int", f"{_YAML}float"):
            self.problem(node.start_mark, path, f"write the number plainly, or quote it; found {quote(text)}")
        elif forbidden_reference(text):
            self.problem(node.start_mark, path, f"${{ is only for plain references; found {quote(text)}")
        return text

    def _read_defaults(self, node: yaml.Node) -> None:
        expected = "_self_, the name of a recipe, or NAME@models.ROLE"
        if not isinstance(node, yaml.SequenceNode):
            self.problem(node.start_mark, ("defaults",), f"expected a list of {expected}")
            return
        for at, item in enumerate(node.value):
            path = ("defaults", at)
            if isinstance(item, yaml.ScalarNode) and item.value == "_self_":
                if ("_self_", "") in self.defaults:
                    self.problem(item.start_mark, path, "_self_ a second time")
                self.defaults.append(("_self_", ""))
                continue
            match = _DEFAULT.fullmatch(item.value) if isinstance(item, yaml.ScalarNode) else None
            if match is None:
                found = quote(item.value) if isinstance(item, yaml.ScalarNode) else "a list or mapping"
                self.problem(item.start_mark, path, f"expected {expected}; found {found}")
                continue
            self.defaults.append((match["name"], match["package"] or ""))


def _event_fault(event: yaml.Event) -> str:
    if isinstance(event, yaml.AliasEvent):
        return "an alias (*name); write the value out"
    if getattr(event, "anchor", None):
        return "an anchor (&name); a recipe has no aliases"
    if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag not in (None, "!"):
        return f"a tag, {quote(event.tag)}; a recipe is plain data"
    return ""

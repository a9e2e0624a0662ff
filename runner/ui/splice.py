"""Changes single values in the text of a recipe and leaves every other byte of it alone.

A change is a splice at the place where the value stands. What comes of it is read again and must be
exactly the tree that was meant: a text too unusual for this is refused, never damaged. Comments on
lines of their own survive every change; one behind a value goes only with the line it stands on.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from runner.errors import KeyPath, RecipeError
from runner.imports.recipe_text import yaml_lines, yaml_text, yaml_value
from runner.recipe.guard import read_text
from runner.recipe.structure import RECIPE_KEYS, RESULT_KEYS

# The order of the fields of a merge in a recipe that does not have them yet: these, its parameters, what is
# allowed in it, and what is said of the result.
_FIRST = ("defaults", "description", "author", "license", "method", "compat", "models")
_LAST = (*(key for key in RESULT_KEYS if key not in (*_FIRST, "output")), "output")
_COMMENT = re.compile(r"^[ \t]*(#.*?)[ \t]*$", re.MULTILINE)


def with_value(text: str, path: KeyPath, value: Any) -> str:
    """The text with a value at a key path; mappings that lead there are made.

    Raises:
        RecipeError: the text is no recipe, or this value cannot be written there.
    """
    wanted = _tree(text)
    here: Any = wanted
    for key in path[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[path[-1]] = value
    return _checked(text, _put(text, path, value), wanted, path)


def without(text: str, path: KeyPath) -> str:
    """The text without the entry at a key path; as it is if there is none.

    Raises:
        RecipeError: the text is no recipe, or the entry cannot be taken out of it.
    """
    wanted = _tree(text)
    here: Any = wanted
    for key in path[:-1]:
        here = here.get(key) if isinstance(here, dict) else None
    if not isinstance(here, dict) or path[-1] not in here:
        return text
    del here[path[-1]]
    return _checked(text, _cut(text, path), wanted, path)


def renamed(text: str, path: KeyPath, key: str) -> str:
    """The text with another key at the end of a key path.

    Raises:
        RecipeError: the text is no recipe, or the key cannot be written there.
    """
    wanted = _tree(text)
    here: Any = wanted
    for part in path[:-1]:
        here = here[part]
    here[key] = here.pop(path[-1])
    pair = _entry(_compose(text), path)
    assert pair is not None
    start, end = pair[0].start_mark.index, pair[0].end_mark.index
    return _checked(text, text[:start] + yaml_text(key) + text[end:], wanted, path)


def _tree(text: str) -> dict[str, Any]:
    file = read_text(text.encode("utf-8", "surrogatepass"), "recipe", "recipe")
    if file.problems:
        raise RecipeError("\n".join(file.problems))
    return copy.deepcopy(dict(file.tree))


def _checked(before: str, after: str, wanted: Mapping[str, Any], path: KeyPath) -> str:
    """The new text with the comments it lost put back, if it says what was meant."""
    name = ".".join(map(str, path))
    for text in (_with_comments(before, after, path), after):
        file = read_text(text.encode("utf-8", "surrogatepass"), "recipe", "recipe")
        if not file.problems and _same(file.tree, wanted):
            return text
    raise RecipeError(
        file.problems[0] if file.problems else f"{name}: cannot be changed here; write it in the text"
    )


def _same(one: Any, other: Any) -> bool:
    """Equal, in kind too: true is not 1."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    number = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return (type(one) is type(other) or (number and bool not in (type(one), type(other)))) and one == other


def _with_comments(before: str, after: str, path: KeyPath) -> str:
    """The text with whole-line comments that only the old one has, above the field they were in."""
    lost = Counter(_COMMENT.findall(before)) - Counter(_COMMENT.findall(after))
    if not lost:
        return after
    lines = [comment for comment in _COMMENT.findall(before) if lost[comment] > 0]
    root = _compose(after)
    at, indent = len(after), ""
    for length in range(len(path), 0, -1):
        if (found := _entry(root, path[:length])) is not None:
            at = _line_start(after, found[0].start_mark.index)
            indent = " " * (found[0].start_mark.index - at)
            if not indent.strip() and not after[at : found[0].start_mark.index].strip():
                break
    return after[:at] + "".join(f"{indent}{line}\n" for line in lines) + after[at:]


def _compose(text: str) -> yaml.Node | None:
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    return node


def _entry(root: yaml.Node | None, path: KeyPath) -> tuple[yaml.Node, yaml.Node] | None:
    """Key and value at a key path."""
    found: tuple[yaml.Node, yaml.Node] | None = None
    node = root
    for key in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        found = next((pair for pair in node.value if pair[0].value == key), None)
        if found is None:
            return None
        node = found[1]
    return found


def _end(text: str, node: yaml.Node) -> int:
    """Where a value really ends: PyYAML counts what follows a block as part of it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(node, yaml.MappingNode) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return len(text[: node.end_mark.index].rstrip())
    return int(node.end_mark.index)


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _put(text: str, path: KeyPath, value: Any) -> str:
    root = _compose(text)
    node, flow, indent = root, False, 0
    for depth, key in enumerate(path):
        if not isinstance(node, yaml.MappingNode):
            return _replaced(text, path[:depth], _nested(path[depth:], value), root)
        flow = flow or bool(node.flow_style)
        if not flow and node.value:
            indent = node.value[0][0].start_mark.column
        pair = next((pair for pair in node.value if pair[0].value == key), None)
        if pair is None:
            nested = _nested(path[depth + 1 :], value)
            in_block = depth and not any(_is_flow(root, path[:n]) for n in range(depth))
            if not node.value and in_block:  # "models: {}" becomes a block
                return _replaced(text, path[:depth], {key: nested}, root)
            return _inserted(text, node, str(key), nested, flow, indent, _place(node, str(key), path[:depth]))
        node = pair[1]
    return _replaced(text, path, value, root)


def _is_flow(root: yaml.Node | None, path: KeyPath) -> bool:
    found = _entry(root, path) if path else None
    node = found[1] if found else root
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _nested(path: Sequence[str | int], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


def _replaced(text: str, path: KeyPath, value: Any, root: yaml.Node | None) -> str:
    pair = _entry(root, path)
    assert pair is not None
    key, node = pair
    flow = any(_is_flow(root, path[:depth]) for depth in range(len(path)))
    colon = text.index(":", key.end_mark.index) + 1
    start, end = node.start_mark.index, _end(text, node)
    below = "\n" in text[colon:start]
    rendered = _rendered(value, key.start_mark.column, flow, key.value)
    if not flow and (below or rendered.startswith("\n")):
        # A block begins or began below its key; the comment behind the key stays there.
        beside = text[colon:start] if below else text[end : _line_end(text, end)]
        beside = beside.partition("\n")[0].rstrip()
        tail = text[_line_end(text, end) :]
        value_first = f" {rendered}{beside}" if not rendered.startswith("\n") else f"{beside}{rendered}"
        return text[:colon] + value_first + tail
    if start == end:  # nothing was there: YAML's null
        return f"{text[:colon]} {rendered}{text[colon:]}"
    return text[:start] + rendered + text[end:]


def _rendered(value: Any, indent: int, flow: bool, key: str) -> str:
    """A value as it stands behind its key: on the same line, or as a block below."""
    if flow or not isinstance(value, Mapping) or not value:
        return yaml_value(value)
    lines = list(yaml_lines({"x": value}, 0))
    if len(lines) == 1 and key == "models":  # a line for each role, however short
        lines += [f"  {line}" for line in yaml_lines(value, 0)]
    if len(lines) == 1:
        return lines[0].removeprefix("x: ")
    return "\n" + "\n".join(" " * indent + line for line in lines[1:])


def _inserted(
    text: str,
    node: yaml.MappingNode,
    key: str,
    value: Any,
    flow: bool,
    indent: int,
    after: int,
) -> str:
    """The text with one more entry in a mapping, behind the one of that number; -1: before all."""
    if flow:
        entry = f"{yaml_text(key)}: {yaml_value(value)}"
        if not node.value:
            at = node.end_mark.index - 1
            return text[:at] + entry + text[at:]
        at = _end(text, node.value[-1][1])
        return f"{text[:at]}, {entry}{text[at:]}"
    entry = f"{yaml_text(key)}: {_rendered(value, indent, False, key)}".replace(": \n", ":\n", 1)
    if after < 0:
        at = _line_start(text, node.value[0][0].start_mark.index)
        return f"{text[:at]}{' ' * indent}{entry}\n{text[at:]}"
    at = _line_end(text, _end(text, node.value[after][1]))
    return f"{text[:at]}\n{' ' * indent}{entry}{text[at:]}"


def _place(node: yaml.MappingNode, key: str, above: KeyPath) -> int:
    """The number of the entry that a new one comes behind."""
    if (above and above[-1] in ("models", "components", "output")) or len(above) % 2:
        return len(node.value) - 1  # roles, components, parts of a parameter: in the order they are given
    ranks = [_rank(pair[0].value) for pair in node.value]
    own = _rank(key)
    return max((at for at, rank in enumerate(ranks) if rank <= own), default=-1)


def _rank(key: str) -> int:
    if key in _FIRST:
        return _FIRST.index(key)
    if key in _LAST:
        return len(_FIRST) + 2 + _LAST.index(key)
    return len(_FIRST) + (key in RECIPE_KEYS)


def _cut(text: str, path: KeyPath) -> str:
    root = _compose(text)
    above = _entry(root, path[:-1]) if len(path) > 1 else None
    node = above[1] if above else root
    assert isinstance(node, yaml.MappingNode)
    number = next(at for at, pair in enumerate(node.value) if pair[0].value == path[-1])
    key, value = node.value[number]
    start, end = key.start_mark.index, _end(text, value)
    if node.flow_style:
        if number + 1 < len(node.value):
            return text[:start] + text[node.value[number + 1][0].start_mark.index :]
        if number:
            return text[: _end(text, node.value[number - 1][1])] + text[end:]
        return text[:start] + text[end:]
    if len(node.value) == 1 and above is not None:  # an empty block would be null
        return _replaced(text, path[:-1], {}, root)
    return text[: _line_start(text, start)] + text[_line_end(text, end) + 1 :]

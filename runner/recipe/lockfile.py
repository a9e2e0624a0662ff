"""NAME.lock.yaml: what a recipe was made from, as a text for version control; where two of them differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runner.disk.files import read_small
from runner.errors import InputError, clip, escape, quote
from runner.recipe.guard import MAX_BYTES, read_plain
from runner.recipe.structure import SHA256

SUFFIX = ".lock.yaml"  # after the name of a recipe, beside its file
VERSION = 1
_PLACE = re.compile(r"[A-Za-z_]\w*(\.\w+)+", re.ASCII)  # no word that YAML reads as something else
# What of a lock differs: another model or method is an error, the rest is one only if all must be equal.
MODEL, METHOD, RECIPE, FILE, ASIDE = "model", "method", "recipe", "file", "aside"
REFUSED = (MODEL, METHOD)


@dataclass(frozen=True, slots=True)
class LockedSource:
    """A model of the recipe.

    Attributes:
        source: its name, without folders.
        sha256: of it; None if that is not known yet, which no lock file says.
        bytes: of its weight files.
        architecture: None if it is none we know.
        variant: which weight files of a folder; None: the plain ones.
        revision: the commit of a model of the hub.
    """

    source: str
    sha256: str | None
    bytes: int
    architecture: str | None = None
    variant: str | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class LockedOutput:
    """What a merge made of it.

    Attributes:
        name: of the file or folder.
        sha256: of it.
        tensor_root: one digest of all its tensors, whatever the headers say.
        determinism: "exact", "stable" or "machine": where the same digest is promised.
    """

    name: str
    sha256: str
    tensor_root: str
    determinism: str


@dataclass(frozen=True, slots=True)
class Lock:
    """What a recipe was made from.

    Attributes:
        recipe_sha256: of the canonical recipe.
        files: of the recipe and those it builds on, by name: SHA-256.
        sources: by where they stand in the recipe: "models.a".
        methods: each with its version: "weighted_sum@1".
        output: None as long as no merge of it is known.
    """

    recipe_sha256: str
    files: Mapping[str, str]
    sources: Mapping[str, LockedSource]
    methods: tuple[str, ...]
    output: LockedOutput | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the lock says.

    Attributes:
        kind: MODEL, METHOD, RECIPE, FILE or ASIDE.
        where: what differs, for people.
        locked, found: both values.
    """

    kind: str
    where: str
    locked: str
    found: str


def read_lock(path: Path) -> Lock | None:
    """The lock in a file; None if there is none.

    Raises:
        InputError: it is no lock, or of another version.
    """
    label = str(path)
    try:
        content = read_small(path, label, MAX_BYTES)
    except InputError:
        if not path.exists() and not path.is_symlink():
            return None
        raise
    return parse_lock(content, label)


def parse_lock(content: bytes, label: str) -> Lock:
    """The lock in a text.

    Raises:
        InputError: it is no lock, or of another version.
    """
    top = _Node(read_plain(content, label), label, "")
    if (version := top.take("version")) != VERSION:
        raise top.refuse("version", str(VERSION), version)
    recipe, sources = top.node("recipe"), top.node("sources")
    output = top.node("output", optional=True)
    methods = top.take("methods")
    if not isinstance(methods, list) or not all(isinstance(one, str) for one in methods):
        raise top.refuse("methods", "a list of names", methods)
    digest, files = recipe.digest("sha256"), recipe.node("files")
    lock = Lock(
        digest,
        {name: files.digest(name) for name in list(files.tree)},
        {place: _source(sources.node(place)) for place in list(sources.tree)},
        tuple(methods),
        None if output is None else _output(output),
    )
    for node in (recipe, files, sources, top):
        node.raise_if_unknown()
    return lock


def _source(node: _Node) -> LockedSource:
    size = node.take("bytes")
    if type(size) is not int or size < 0:
        raise node.refuse("bytes", "a number of bytes", size)
    source = LockedSource(
        node.text("source"),
        node.digest("sha256"),
        size,
        node.text_or_none("architecture"),
        node.text_or_none("variant"),
        node.text_or_none("revision"),
    )
    node.raise_if_unknown()
    return source


def _output(node: _Node) -> LockedOutput:
    output = LockedOutput(
        node.text("name"), node.digest("sha256"), node.digest("tensor_root"), node.text("determinism")
    )
    node.raise_if_unknown()
    return output


class _Node:
    """Takes typed values out of a mapping of a lock; what is left at the end does not belong there."""

    def __init__(self, tree: Mapping[str, Any], label: str, path: str) -> None:
        self.tree = dict(tree)
        self.label = label
        self.path = path

    def take(self, name: str) -> Any:
        return self.tree.pop(name, None)

    def refuse(self, name: str, expected: str, found: object) -> InputError:
        return InputError(
            f"{escape(self.label)}: {escape(self.path + name)}: expected {expected}, found {quote(found)}",
            tag="LOCK",
            hint="write it anew: job=lock job.update=true, after moving it away",
        )

    def node(self, name: str, *, optional: bool = False) -> Any:
        value = self.take(name)
        if optional and value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(name, "`key: value` lines", value)
        return _Node(value, self.label, f"{self.path}{name}.")

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            raise self.refuse(name, "a text", value)
        return value

    def text_or_none(self, name: str) -> str | None:
        return self.text(name) if self.tree.get(name) is not None else self.take(name)

    def digest(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str) or not SHA256.fullmatch(value):
            raise self.refuse(name, "64 hexadecimal digits in quotation marks", value)
        return value

    def raise_if_unknown(self) -> None:
        for name, value in self.tree.items():
            raise self.refuse(name, "nothing of this name", value)


def lock_text(lock: Lock, name: str) -> str:
    """The lock as YAML: one thing a line, in an order of its own, so that a change is a short diff.

    Args:
        lock: the lock.
        name: of the recipe.

    Raises:
        InputError: a name in it that a lock cannot hold, such as one with a line break.
    """
    text = "\n".join(_lines(lock, name)) + "\n"
    if parse_lock(text.encode("utf-8", "surrogatepass"), name + SUFFIX) != lock:
        raise InputError(f"{escape(name)}: a model has a name that cannot be locked", tag="LOCK")
    return text


def _lines(lock: Lock, name: str) -> Iterator[str]:
    yield clip(
        f"# The models that the recipe {json.dumps(name, ensure_ascii=False)} is made from, by digest."
    )
    yield "# Written by job=lock; keep it in version control. A merge refuses other models and other methods,"
    yield "# and, if the result promises the same bytes here, another result."
    yield "# To allow a change: job=lock job.update=true, which says what it changes."
    yield f"version: {VERSION}"
    yield ""
    yield "recipe:"
    yield f"  sha256: {_text(lock.recipe_sha256)}  # of what it says, comments aside"
    yield "  files:"
    for file in sorted(lock.files):
        yield f"    {_key(file)}: {_text(lock.files[file])}"
    yield ""
    yield "sources:  # by where they stand in the recipe; sha256 of a folder: of the list of its weight files"
    for place in sorted(lock.sources):
        yield f"  {_key(place)}:"
        for field in fields(LockedSource):
            value = getattr(lock.sources[place], field.name)
            if value is not None:
                yield f"    {field.name}: {value if isinstance(value, int) else _text(value)}"
    yield ""
    yield "methods:"
    yield from (f"  - {_text(method)}" for method in lock.methods)
    yield ""
    if lock.output is None:
        yield "output: null  # not known yet: merge, then job=lock"
        return
    yield "output:"
    yield from (
        f"  {field.name}: {_text(getattr(lock.output, field.name))}" for field in fields(LockedOutput)
    )


def _key(text: str) -> str:
    return text if _PLACE.fullmatch(text) else _text(text)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def differences(lock: Lock, here: Lock) -> list[Difference]:
    """What is here otherwise than in a lock, results aside. A digest that is not known differs from none."""
    found = list(_unequal(RECIPE, "the recipe: sha256", lock.recipe_sha256, here.recipe_sha256))
    # By content alone: a file has another name if it is given by its path.
    for name in sorted(here.files):
        if here.files[name] not in lock.files.values():
            locked = lock.files.get(name)
            found += _unequal(FILE, f"recipe file {quote(name)}: sha256", locked, here.files[name])
    for name in sorted(lock.files.keys() - here.files.keys()):
        if lock.files[name] not in here.files.values():
            found += _unequal(FILE, f"recipe file {quote(name)}: sha256", lock.files[name], None)
    for place in sorted({*lock.sources, *here.sources}):
        found += _of_sources(place, lock.sources.get(place), here.sources.get(place))
    versions, ours = _versions(lock.methods), _versions(here.methods)
    for name in sorted({*versions, *ours}):
        kind = METHOD if name in versions and name in ours else RECIPE
        found += _unequal(kind, f"method {escape(name)}", versions.get(name), ours.get(name))
    return found


def _of_sources(place: str, locked: LockedSource | None, here: LockedSource | None) -> Iterator[Difference]:
    if locked is None or here is None:
        names = (None if one is None else quote(one.source) for one in (locked, here))
        yield from _unequal(RECIPE, escape(place), *names)
        return
    if (locked.source, locked.variant) != (here.source, here.variant):
        names = (" ".join(filter(None, (one.source, one.variant))) for one in (locked, here))
        yield from _unequal(RECIPE, escape(place), *map(quote, names))
        return
    where = f"{escape(place)} {quote(here.source)}"
    if here.sha256 is not None and here.sha256 != locked.sha256:
        yield Difference(MODEL, f"{where}: sha256", str(locked.sha256), here.sha256)
    else:
        yield from _unequal(MODEL, f"{where}: bytes", str(locked.bytes), str(here.bytes))
    for name in ("architecture", "revision"):
        yield from _unequal(ASIDE, f"{where}: {name}", getattr(locked, name), getattr(here, name))


def _unequal(kind: str, where: str, locked: str | None, found: str | None) -> Iterator[Difference]:
    if locked != found:
        yield Difference(kind, where, *("nothing" if one is None else escape(one) for one in (locked, found)))


def _versions(methods: tuple[str, ...]) -> dict[str, str]:
    return {name: label for label in methods for name in [label.rpartition("@")[0]]}

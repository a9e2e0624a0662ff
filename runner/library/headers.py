"""What a model is, from its headers: read once, and remembered until one of its files changes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runner import __version__
from runner.architectures import ARCHITECTURES
from runner.digests import folder_digest
from runner.disk import cachefile
from runner.disk.files import Identity, identity_of
from runner.library.facts import Facts, HeaderReader
from runner.library.processes import spread
from runner.library.walk import Found

# What was remembered by a program that knows other architectures, or reads otherwise, is read again.
_READS = 1
EDITION = hashlib.sha256(f"{_READS} {__version__} {sorted(ARCHITECTURES)}".encode()).hexdigest()[:16]
SAVE_SECONDS = 10.0
MAX_FILES = 10_000  # of one folder of a model


@dataclass(frozen=True, slots=True)
class Entry:
    """A model with what is known of it.

    Attributes:
        found: where it is.
        facts: what it is.
        weights: its weight files, name inside a folder → what the file was.
        sha256: its digest, as recipes state it; None if it is not known.
    """

    found: Found
    facts: Facts
    weights: Mapping[str, Identity]
    sha256: str | None


def look_at(found: Found) -> dict[str, Identity]:
    """The files of a model, name inside a folder → what the file is; empty if it cannot be looked at."""
    try:
        if not found.folder:
            return {"": identity_of(found.path.stat())}
        files: dict[str, Identity] = {}
        below = [(found.path, "")]
        for folder, prefix in below:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if len(files) > MAX_FILES:
                        return {}
                    if entry.is_file():
                        files[prefix + entry.name] = identity_of(entry.stat())
                    elif not prefix and entry.is_dir():
                        below.append((Path(entry.path), f"{entry.name}/"))
        return files
    except (OSError, ValueError):
        return {}


def _key(files: Mapping[str, Identity]) -> str:
    """What the headers of a model are remembered by."""
    if files.keys() == {""}:
        return files[""].key
    text = json.dumps(sorted((name, identity.key) for name, identity in files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def entries_of(
    found: Sequence[Found],
    memory: Path | None,
    digests: Mapping[str, str],
    advance: Callable[[int], None] = lambda count: None,
    processes: int = 1,
) -> list[Entry]:
    """What all these models are.

    Args:
        found: the models.
        memory: file that remembers headers; None: all are read.
        digests: that are known, by Identity.key.
        advance: called with the number of models that were looked at, when some have to be read.
        processes: how many may read.
    """
    known, fresh = known_facts(memory), dict[str, Any]()
    looked = [look_at(one) for one in found]
    facts = [known.get(_key(files)) if files else None for files in looked]
    unread = [at for at, one in enumerate(facts) if one is None]
    if unread:
        advance(len(found) - len(unread))
    reader, saved = HeaderReader(), time.monotonic()

    def read(at: int) -> tuple[dict[str, Identity], bool, Facts]:
        now, files = time.time(), look_at(found[at])  # whatever is written later has another time
        settled = bool(files) and all(identity.settled(now) for identity in files.values())
        return files, settled, reader.read(found[at])

    try:
        with closing(spread(unread, read, processes)) as results:
            for index, (files, settled, one) in results:
                looked[unread[index]], facts[unread[index]] = files, one
                advance(1)
                if settled:
                    fresh[_key(files)] = asdict(one)
                if time.monotonic() - saved > SAVE_SECONDS:
                    _save(memory, fresh)
                    fresh, saved = {}, time.monotonic()
    finally:
        _save(memory, fresh)
    return [
        _entry(one, its, files, digests)
        for one, its, files in zip(found, facts, looked, strict=True)
        if its is not None
    ]


def remembered(found: Found, memory: Mapping[str, Facts], digests: Mapping[str, str]) -> Entry | None:
    """What is known of a model without reading it; None if nothing is."""
    files = look_at(found)
    facts = memory.get(_key(files)) if files else None
    return None if facts is None else _entry(found, facts, files, digests)


def _entry(found: Found, facts: Facts, files: Mapping[str, Identity], digests: Mapping[str, str]) -> Entry:
    weights = {name: files[name] for name in facts.files if name in files}
    return with_digest(Entry(found, facts, weights, None), digests)


def with_digest(entry: Entry, digests: Mapping[str, str]) -> Entry:
    """The same model with its digest, which is known if those of all its weight files are.

    Args:
        entry: the model.
        digests: of files, by Identity.key.
    """
    known = [(digests[one.key], name) for name, one in entry.weights.items() if one.key in digests]
    if len(known) < len(entry.facts.files) or not known:
        return replace(entry, sha256=None)
    return replace(entry, sha256=folder_digest(known) if entry.found.folder else known[0][0])


def known_facts(memory: Path | None) -> dict[str, Facts]:
    """The headers that are remembered, by what they are remembered by."""
    content = cachefile.load(memory)
    if content.get("edition") != EDITION:
        return {}
    found = {}
    for key, value in content.items():
        if (facts := _facts(value)) is not None:
            found[key] = facts
    return found


def _facts(value: Any) -> Facts | None:
    """Facts from what a file says; None if they are none."""
    if not isinstance(value, dict) or value.keys() != Facts.__dataclass_fields__.keys():
        return None
    texts = [
        value["kind"],
        value["format"],
        *(value[name] or "" for name in ("architecture", "variant", "problem")),
    ]
    lists = [value["dtypes"], value["files"]]
    if not all(isinstance(text, str) for text in texts) or type(value["nbytes"]) is not int:
        return None
    if not all(isinstance(part, list) and all(isinstance(text, str) for text in part) for part in lists):
        return None
    return Facts(**{**value, "dtypes": tuple(value["dtypes"]), "files": tuple(value["files"])})


def _save(memory: Path | None, fresh: Mapping[str, Any]) -> None:
    if memory is None or not fresh:
        return

    def ours(path: Path) -> dict[str, Any]:
        content = cachefile.load(path)
        return content if content.get("edition") == EDITION else {"edition": EDITION}

    try:
        cachefile.add(memory, fresh, ours)
    except OSError:  # a list must not fail because its memory cannot be kept
        return

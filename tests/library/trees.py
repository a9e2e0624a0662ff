"""Folders as programs keep them, with small real models in them."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from runner.formats.safetensors import output_file
from runner.library.headers import Entry, entries_of
from runner.library.roots import roots_of
from runner.library.walk import Found, models_in
from runner.tensors import TensorSpec
from tests.build import SHAPES, digest

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
PLAIN = {key: TensorSpec("F16", shape) for key, shape in SHAPES.items()}

# The table of version 6, as migration 22 and after leave it.
INVOKEAI = """
CREATE TABLE models (
    id TEXT NOT NULL PRIMARY KEY,
    hash TEXT GENERATED ALWAYS as (json_extract(config, '$.hash')) VIRTUAL NOT NULL,
    base TEXT GENERATED ALWAYS as (json_extract(config, '$.base')) VIRTUAL NOT NULL,
    type TEXT GENERATED ALWAYS as (json_extract(config, '$.type')) VIRTUAL NOT NULL,
    path TEXT GENERATED ALWAYS as (json_extract(config, '$.path')) VIRTUAL NOT NULL,
    format TEXT GENERATED ALWAYS as (json_extract(config, '$.format')) VIRTUAL NOT NULL,
    name TEXT GENERATED ALWAYS as (json_extract(config, '$.name')) VIRTUAL NOT NULL,
    source TEXT GENERATED ALWAYS as (json_extract(config, '$.source')) VIRTUAL NOT NULL,
    config TEXT NOT NULL,
    created_at DATETIME NOT NULL DEFAULT(STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')),
    updated_at DATETIME NOT NULL DEFAULT(STRFTIME('%Y-%m-%d %H:%M:%f', 'NOW')),
    UNIQUE(path)
);
CREATE INDEX name_index ON models(name);
"""


def write(
    path: Path,
    specs: Mapping[str, TensorSpec] | None = None,
    fill: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A safetensors file; models of different fill have different digests."""
    file = output_file("", specs or PLAIN, metadata or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.header + bytes([fill]) * (file.nbytes - len(file.header)))
    os.utime(path, (1_000_000_000, 1_000_000_000))  # old enough to be remembered
    return path


def invokeai(root: Path, models: Mapping[str, str], journal: str = "DELETE") -> Path:
    """InvokeAI's root, with a database of models: name → path as it stores it."""
    (root / "databases").mkdir(parents=True)
    (root / "models").mkdir(exist_ok=True)
    database = root / "databases" / "invokeai.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.executescript(INVOKEAI)
        insert(connection, models)
    return database


def insert(connection: sqlite3.Connection, models: Mapping[str, str]) -> None:
    """Registers models as InvokeAI does."""
    for name, path in models.items():
        config: dict[str, Any] = {"key": name, "name": name, "path": path, "hash": f"blake3:{name}"}
        config |= {"base": "sd-1", "type": "main", "format": "checkpoint", "source": path}
        connection.execute("INSERT INTO models (id, config) VALUES (?, ?)", (name, json.dumps(config)))
    connection.commit()


def keep(
    hub: Path, repository: str, files: Mapping[str, Path], commit: str = COMMIT, ref: str = "main"
) -> None:
    """Puts files into a cache of the hub as its library does: links to blobs."""
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    (root / "blobs").mkdir(exist_ok=True)
    for name, source in files.items():
        blob = root / "blobs" / digest(source)
        blob.write_bytes(source.read_bytes())
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def found(*folders: Path) -> tuple[list[Found], list[str]]:
    """What is in some folders, and what could not be read."""
    return models_in(roots_of(folders))


def names(*folders: Path) -> list[str]:
    """Names of what is in some folders."""
    return [one.name for one in found(*folders)[0]]


def entries(*folders: Path, memory: Path | None = None) -> dict[str, Entry]:
    """What is in some folders, by name."""
    return {entry.found.name: entry for entry in entries_of(found(*folders)[0], memory, {})}

"""Recipes of other tools as recipes of ours. What a file is, its content says, not its name.

Each importer is a pure function from a text or from the metadata of a model to Imported: a recipe as
plain data, and a list of what is exact, approximate or refused. Everything read here was written by
strangers: sizes and depths are limited, nothing is evaluated, no pattern of theirs is compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.disk.files import open_regular, read_into, read_small
from runner.errors import InputError, escape, quote
from runner.formats import FORMATS
from runner.formats.strict_json import parse_object
from runner.imports import chattiori, mecha, mergekit, own, supermerger, webui
from runner.imports.history import History
from runner.imports.imported import Imported, Note, Notes, Present
from runner.recipe.guard import read_plain
from runner.stated import RUNNER, mapping
from runner.tensors import OUTPUT_DTYPES

__all__ = ["IMPORTERS", "Imported", "Note", "import_file", "import_metadata", "import_text"]

MAX_TEXT = 1 << 20
MAX_METADATA = 8 << 20  # characters of one entry of a header
EXPECTED = (
    "expected a model with sd_merge_recipe, mecha_recipe or runner.recipe in its header, or a text: "
    "that recipe as JSON, mergehistory.csv, a .mecha recipe, or the YAML of mergekit"
)

# sd_merge_recipe by its `type`
IMPORTERS: Mapping[str, tuple[str, Callable[[Mapping[str, Any], History], dict[str, Any] | None]]] = {
    "webui": (webui.TITLE, webui.merge),
    "sd-webui-supermerger": (supermerger.TITLE, supermerger.merge),
    "merge-models-chattiori": (chattiori.TITLE, chattiori.merge),
    RUNNER: (own.TITLE, own.recorded),
}


def nothing_present(name: str) -> bool:
    """No model is there, so every ancestor that can be is expanded."""
    return False


def import_file(path: Path, present: Present = nothing_present) -> Imported:
    """The recipe in a model's header, or in a text file.

    Args:
        path: a .safetensors file, a diffusers folder or a text file.
        present: whether a model of this name is there; an ancestor that is not is expanded to its own merge.

    Raises:
        InputError: no such file, nothing recognised, or nothing that can be translated.
    """
    label = path.name or str(path)
    if path.is_dir() or b"\0" in _start(path, label):
        entry = next(entry for entry in FORMATS.values() if entry.accepts(path))
        checkpoint = entry.open(path, label, None)
        stored = {spec.dtype for spec in checkpoint.specs.values()} & set(OUTPUT_DTYPES.values())
        return _with_dtype(import_metadata(checkpoint.metadata, label, present), stored)
    content = read_small(path, label, MAX_TEXT)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{escape(label)}: not UTF-8 at byte {error.start}; {EXPECTED}", tag="IMPORT"
        ) from error
    return import_text(text, label, present)


def _start(path: Path, label: str) -> bytes:
    descriptor = open_regular(path, label)
    try:
        buffer = bytearray(min(os.fstat(descriptor).st_size, 64))
        read_into(descriptor, memoryview(buffer), 0, label)
        return bytes(buffer)
    finally:
        os.close(descriptor)


def import_text(text: str, label: str, present: Present = nothing_present) -> Imported:
    """The recipe in a text.

    Raises:
        InputError: nothing recognised, or nothing that can be translated.
    """
    label = escape(label)
    if mecha.is_recipe(text):
        return mecha.read(text, label)
    if text.lstrip().startswith("{"):
        return import_metadata(parse_object(text.encode(), label), label, present)
    if supermerger.is_history(text):
        return supermerger.read_history(text, label)
    if mergekit.is_configuration(text):
        return mergekit.read(read_plain(text.encode(), label), label)
    raise InputError(f"{label}: no recipe is recognised in it; {EXPECTED}", tag="IMPORT")


def import_metadata(metadata: Mapping[str, Any], label: str, present: Present = nothing_present) -> Imported:
    """The recipe in the metadata of a model, or in what a person copied of it.

    Args:
        metadata: entries of a header; those that are JSON may be texts or objects.
        label: names the file in an error.
        present: as for import_file.

    Raises:
        InputError: there is none, or nothing of it can be translated.
    """
    label = escape(label)
    for key, value in metadata.items():
        if isinstance(value, str) and len(value) > MAX_METADATA:
            raise InputError(
                f"{label}: {quote(key)} has {len(value)} characters; at most {MAX_METADATA} are read"
            )
    if record := mapping(metadata.get("runner.recipe")):
        ours = mapping(metadata.get("sd_merge_recipe")) or {}
        digests = ours.get("models") if ours.get("type") == RUNNER else None
        return own.read(record, label, digests if isinstance(digests, Mapping) else {})
    if isinstance(text := metadata.get("mecha_recipe"), str):
        return mecha.read(text, label)
    # A person may have copied the recipe alone.
    record = mapping(metadata.get("sd_merge_recipe")) or (
        metadata if metadata.get("type") in IMPORTERS else None
    )
    if record is None:
        found = (
            "a graph of ComfyUI, which is not read; "
            if "prompt" in metadata or "workflow" in metadata
            else ""
        )
        raise InputError(f"{label}: {found}{EXPECTED}", tag="IMPORT")
    notes = Notes()
    models = mapping(metadata.get("sd_merge_models")) or {}
    readers = {kind: reader for kind, (_, reader) in IMPORTERS.items()}
    tree = History(models, readers, present, notes).merge(record)
    if tree is None:
        raise notes.cannot(label, "no merge could be read from sd_merge_recipe")
    title, _ = IMPORTERS[record["type"]]
    return Imported(title, tree, tuple(notes.found))


def _with_dtype(imported: Imported, stored: set[str]) -> Imported:
    """A recipe that says the dtype of the model it was read from, if it said none."""
    output = dict(imported.tree.get("output") or {})
    if len(stored) != 1 or "dtype" in output or imported.dialect == own.TITLE:
        return imported
    output["dtype"] = next(name for name, dtype in OUTPUT_DTYPES.items() if {dtype} == stored)
    note = Note("exact", "dtype", f"output.dtype {output['dtype']}, which the tensors of the file have")
    return replace(imported, tree={**imported.tree, "output": output}, notes=(*imported.notes, note))

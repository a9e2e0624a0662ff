"""Where a merge that is asked about lies: its model, and what was written beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.checkpoint import RECORD, SIDECAR, STATEMENT_SUFFIX, Checkpoint
from runner.disk.files import open_regular, read_into
from runner.errors import InputError, escape, quote
from runner.formats import FORMATS
from runner.formats.component_files import INDEX
from runner.proof.recorded import Recorded, of_header, read_text


@dataclass(frozen=True)
class Places:
    """A result and its witnesses; what is None is not there.

    Attributes:
        asked: what the user named.
        model: the file or folder.
        sidecar, record, statement: files about it.
    """

    asked: Path
    model: Path | None
    sidecar: Path | None = None
    record: Path | None = None
    statement: Path | None = None


def places_of(source: Path, output_dir: Path | None) -> Places:
    """Looks what a path is: the folder of a run, its run.json, a statement, or a model.

    Args:
        source: the path.
        output_dir: where a model lies that is not beside its record.

    Raises:
        InputError: there is nothing, or it is none of these.
    """
    if source.is_dir() and not (source / INDEX).exists():
        if not (source / RECORD).exists():
            expected = f"expected the folder of a run with {RECORD}, or a model"
            raise InputError(f"{escape(str(source))}: {expected}", tag="MISSING")
        return _by_record(source, source / RECORD, output_dir)
    if not source.is_dir() and _is_json(source):
        return _by_record(source, source, output_dir)
    return _with_witnesses(Places(source, source), source.parent, source.name)


def _by_record(asked: Path, path: Path, output_dir: Path | None) -> Places:
    kind = "statement" if path.name.endswith(STATEMENT_SUFFIX) else "record"
    try:
        recorded = read_text(path, path.name)
        name, kind = recorded.name or "", "record" if recorded.kind == RECORD else "statement"
    except InputError:
        # A record that is damaged does not say the name of its model; the sidecar's is its own.
        beside = [one.name.removesuffix(SIDECAR) for one in path.parent.glob(f"*{SIDECAR}")]
        if len(beside) != 1:
            raise
        name = beside[0]
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InputError(f"{escape(path.name)}: {quote(name)} is no name of a model", tag="RECORD")
    folders = [path.parent, *([output_dir] if output_dir else [])]
    model = next((folder / name for folder in folders if (folder / name).exists()), None)
    # What was named is taken for what it is, and read no more to see whether it is about the model.
    places = Places(asked, model, **{kind: path})
    for folder in dict.fromkeys((*folders, *([model.parent] if model else []))):
        places = _with_witnesses(places, folder, name)
    return places


def _with_witnesses(places: Places, folder: Path, name: str) -> Places:
    """The same with what a folder has about a model of that name, as far as nothing was found before."""
    sidecar, statement = folder / (name + SIDECAR), folder / (name + STATEMENT_SUFFIX)
    record = folder / RECORD
    return Places(
        places.asked,
        places.model,
        places.sidecar or (sidecar if sidecar.exists() else None),
        places.record or (record if record.exists() and _is_about(record, name) else None),
        places.statement or (statement if statement.exists() else None),
    )


def _is_about(record: Path, name: str) -> bool:
    """Whether a run.json is of a model of that name; one that cannot be read may be."""
    try:
        return read_text(record, record.name).name == name
    except InputError:
        return True


def _is_json(path: Path) -> bool:
    """Whether a file begins as JSON does: the length of a header of tensors has zeros in it."""
    descriptor = open_regular(path, str(path))
    try:
        start = bytearray(min(8, os.fstat(descriptor).st_size))
        read_into(descriptor, memoryview(start), 0, str(path))
    finally:
        os.close(descriptor)
    return start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and 0 not in start


def recorded_at(places: Places) -> Iterator[Recorded]:
    """What each text about a result says: what was named first, then run.json, the statement, the header.

    Raises:
        InputError: what was named cannot be read. Of the others those that can be are taken.
    """
    readers: list[tuple[Path | None, Callable[[Path], Recorded | None]]] = [
        (places.record, lambda path: read_text(path, path.name)),
        (places.statement, lambda path: read_text(path, path.name)),
        (places.model, header_of),
    ]
    first = places.record if places.asked not in (places.statement, places.model) else places.asked
    for path, reader in sorted(readers, key=lambda one: one[0] != first):
        if path is None:
            continue
        try:
            said = reader(path)
        except InputError:
            if path == first:
                raise
            continue
        if said is not None:
            yield said


def header_of(model: Path) -> Recorded | None:
    """What the header of a model says; None if it is no result of ours.

    Raises:
        InputError: it cannot be read.
    """
    return of_header(opened(model).metadata, f"the header of {model.name}")


def opened(model: Path) -> Checkpoint:
    """A model by its headers, in one of the formats that merges write.

    Raises:
        InputError: it is none.
    """
    entry = next(entry for entry in FORMATS.values() if entry.accepts(model))
    return entry.open(model, model.name, None)

"""The model of a finished run, from what stands in the folder of the run; and what is noted there of it.

Such a folder may come from somebody else: its names are held to the model's folder, and what lies there has
the digests that the record says, or nothing of it is published.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from runner.architectures.configs import PREDICTION_WORDS
from runner.checkpoint import CARD, RECORD, STATEMENT_SUFFIX
from runner.disk.files import read_small
from runner.errors import InputError, MismatchError, escape, quote
from runner.formats.strict_json import parse_object
from runner.provenance.masking import all_masked
from runner.publish.folder import digest_of
from runner.publish.target import CHECKPOINT, PIPELINE, Model, Publication, kind_of
from runner.recipe.canonical import readable_json
from runner.write import write_file

MAX_BYTES = 256 << 20  # of a record: every deviation stands in it


def finished_model(folder: Path, model_folder: Path) -> Model:
    """The model that a run says it made.

    Args:
        folder: of the run.
        model_folder: where the model lies.

    Raises:
        InputError: there is no record, or none of a finished merge.
    """
    tree = _read(folder / RECORD)
    try:
        output = tree["deterministic"]["output"]
        name, files = str(output["name"]), {str(one["name"]): str(one["sha256"]) for one in output["files"]}
        kind = kind_of(str(output["format"]), list(tree["deterministic"]["dtypes"]["written"]))
        blake3 = {str(one["name"]): str(one["blake3"]) for one in output["files"]}
        says = str(tree["deterministic"].get("predicts")) if kind in (CHECKPOINT, PIPELINE) else ""
    except (KeyError, TypeError, IndexError) as error:
        hint = "run= is the folder of a finished merge, such as runs/NAME/TIME"
        raise InputError(f"{quote(folder / RECORD)}: no model was made in this run", hint=hint) from error
    _check_names([name])
    if "/" in name:
        raise InputError(f"{quote(name)}: no name of a file of a model")
    prediction = PREDICTION_WORDS.get(says.partition(",")[0])  # what follows is said of the noise schedule
    if kind == PIPELINE:
        files = _of_folder(folder, name, files)
        return Model(model_folder / name, kind, files, blake3=blake3, prediction=prediction)
    if list(files) != [name]:
        raise InputError(f"{quote(folder / RECORD)}: a model of this format is one file of its name")
    files, blake3 = {"": files[name]}, {"": blake3[name]}
    card = folder / CARD if (folder / CARD).is_file() else None
    return Model(model_folder / name, kind, files, card, blake3, prediction)


def _of_folder(folder: Path, name: str, weights: Mapping[str, str]) -> dict[str, str]:
    """Every file of a model that is a folder: the record has its weight files, the statement all."""
    subjects = _read(folder / f"{name}{STATEMENT_SUFFIX}").get("subject")
    try:
        assert isinstance(subjects, list)
        found = {str(one["name"]).removeprefix(f"{name}/"): str(one["digest"]["sha256"]) for one in subjects}
    except (AssertionError, KeyError, TypeError) as error:
        raise InputError(f"{quote(folder / (name + STATEMENT_SUFFIX))}: no statement of a merge") from error
    if not weights.items() <= found.items():
        raise InputError(f"{quote(folder / (name + STATEMENT_SUFFIX))}: not the statement of this run")
    _check_names(found)
    return found


def _check_names(names: Mapping[str, str] | list[str]) -> None:
    """Raises: InputError if a name leads out of the folder it is for, or below a hidden one."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or any(part.startswith((".", "/")) for part in parts):
            raise InputError(f"{quote(name)}: no name of a file of a model")


def verify(model: Model) -> None:
    """Compares every file of a model with its digest.

    Raises:
        InputError: one is missing, a symbolic link, or cannot be read.
        MismatchError: one has another content.
    """
    for name, sha256 in model.files.items():
        path = model.file(name)
        above = [parent for parent in path.parents if parent.is_relative_to(model.path)]
        if any(one.is_symlink() for one in (path, *above)) or not path.is_file():
            hint = "if the merge had an output_dir elsewhere, say it here too: output_dir=FOLDER"
            raise InputError(f"{quote(path)}: no such file, or a link", hint=hint)
        try:
            found = digest_of(path)
        except OSError as error:
            raise InputError(f"{quote(path)}: {error.strerror or error}") from error
        if found != sha256:
            raise MismatchError(
                f"{quote(path)}: sha256 {found}, the record says {escape(sha256)}. Nothing was published."
            )


def note(folder: Path, publication: Publication) -> None:
    """Adds to the record of a run what was published.

    Raises:
        OutputError: the device refused.
    """
    entry: dict[str, Any] = {
        "target": publication.target,
        "place": publication.place,
        "result": publication.result,
        "seconds": round(publication.seconds, 3),
    }
    if publication.error is not None:
        entry["error"] = publication.error
    add_to_record(folder, "published", entry)


def add_to_record(folder: Path, part: str, entry: Mapping[str, Any]) -> None:
    """Adds to a list in the record of a run, and has its statement say the record's new digest.

    Raises:
        OutputError: the device refused.
    """
    path = folder / RECORD
    before = read_small(path, path.name, MAX_BYTES)
    tree = json.loads(before)
    tree["run"].setdefault(part, []).append(all_masked(entry))
    after = readable_json(tree).encode()
    write_file(path, after)
    statement = folder / f"{tree['deterministic']['output']['name']}{STATEMENT_SUFFIX}"
    if statement.is_file():
        old, new = (hashlib.sha256(text).hexdigest() for text in (before, after))
        said = read_small(statement, statement.name, MAX_BYTES)
        write_file(statement, said.replace(old.encode(), new.encode()))


def _read(path: Path) -> dict[str, Any]:
    return parse_object(read_small(path, str(path), MAX_BYTES), str(path))

"""job=verify: a result against everything that was written about it. Every digest is computed anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.checkpoint import RECORD, Checkpoint
from runner.disk.files import read_small
from runner.engine.tensor_digests import tensor_root
from runner.errors import InputError, counted, escape, quote
from runner.formats.safetensors import CONTENT_HASH, read_header
from runner.proof.contents import Contents, contents_of
from runner.proof.finding import There
from runner.proof.places import Places, opened
from runner.proof.recorded import (
    STATED,
    NewerError,
    Recorded,
    byproducts,
    of_header,
    read_text,
    tensors_of,
)
from runner.provenance.record import MAX_RECORD_BYTES
from runner.recipe.canonical import canonical_json
from runner.signing import fault, key_digest, signature_path

VERIFIED, UNPROVEN, MISMATCH = "VERIFIED", "UNPROVEN", "MISMATCH"
RIGHT, WRONG, ABSENT = "right", "WRONG", "absent"
_NO_MODEL = ("MISSING", "NOT-A-FILE", "LOOK-ALIKE", "HUB", "URL")


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison.

    Attributes:
        part: what was compared.
        verdict: RIGHT, WRONG, or ABSENT if there is nothing to compare with.
        text: more about it.
    """

    part: str
    verdict: str
    text: str = ""


@dataclass
class Verification:
    """What was found of a result.

    Attributes:
        findings: every comparison.
        witnesses: what vouches for the result, beside its own header.
        sha256: of the model; None: it could not be read.
        first: the first tensor that is not what it was; None: none, or not known.
        inputs: the recorded inputs, where they are stated.
    """

    findings: list[Finding] = field(default_factory=list)
    witnesses: list[str] = field(default_factory=list)
    sha256: str | None = None
    first: str | None = None
    inputs: Recorded | None = None

    @property
    def word(self) -> str:
        """What it comes to."""
        if any(one.verdict == WRONG for one in self.findings):
            return MISMATCH
        return VERIFIED if self.witnesses and not self.lacking else UNPROVEN

    @property
    def lacking(self) -> list[Finding]:
        """The recorded inputs that are not there."""
        return [one for one in self.findings if one.part.startswith("input ") and one.verdict == ABSENT]

    def add(self, part: str, right: bool, text: str = "") -> None:
        """Notes a comparison; the text only says what is wrong."""
        self.findings.append(Finding(part, RIGHT if right else WRONG, "" if right else text))


def total_bytes(model: Path) -> int:
    """How much there is to read, for a bar."""
    paths = model.rglob("*") if model.is_dir() else [model]
    return sum(path.stat().st_size for path in paths if path.is_file())


def verify(places: Places, advance: Callable[[int], None]) -> Verification:
    """Compares a model with its header, its sidecar, its record and its statement.

    Args:
        places: where they are.
        advance: called with the number of bytes done.

    Raises:
        InputError: the model is missing or no model; or it is malformed and nothing says what it was.
    """
    if places.model is None:
        raise InputError(
            f"{escape(str(places.asked))}: its model is not there",
            tag="MISSING",
            hint="output_dir=FOLDER says where it lies if not beside its record",
        )
    found = Verification()
    texts = list(_texts(places, found))
    try:
        contents = contents_of(_merged(places.model), advance)
    except InputError as error:
        if error.tag in _NO_MODEL or not (places.sidecar or places.record or places.statement):
            raise
        found.findings.append(Finding("model", WRONG, error.message))
        return found
    found.sha256 = contents.sha256
    _header(contents, found)
    header = _of_header(contents, found)
    _tensors(places, contents, texts, found)
    for one in texts:
        _files(one, contents, found)
        if one.kind == RECORD:
            _record(one, contents, found)
    _references(places, texts, found)
    _agree([*texts, *([header] if header else [])], found)
    found.inputs = next(iter([*texts, *([header] if header else [])]), None)
    return found


def inputs_found(there: Sequence[There]) -> Iterator[Finding]:
    """A comparison for each recorded input with what is there now."""
    for one in there:
        part = f"input {', '.join(one.said.roles)}"
        named = f"{quote(one.said.name)}, sha256 {one.said.sha256}"
        if one.name is not None:
            yield Finding(part, RIGHT, escape(one.name))
        elif one.other is not None:
            yield Finding(part, WRONG, f"{named}: of this name there is another, sha256 {one.other}")
        else:
            yield Finding(part, ABSENT, f"{named}: not found")


def verify_signature(model: Path, public: bytes | None, found: Verification) -> None:
    """Checks the signature beside a model, if there is a key that it has to be by.

    Args:
        model: the file or folder.
        public: the key, as PEM; None: a signature that is there is only pointed out.
        found: is told.
    """
    place = signature_path(model)
    if public is not None:
        by = f"signature {place.name} by the key {key_digest(public)}"
        wrong = fault(model, public)
        found.add(by, wrong is None, wrong or "")
        found.witnesses += [place.name] if wrong is None else []
    elif place.exists():
        found.findings.append(
            Finding(f"signature {place.name}", ABSENT, "job.key=PUBLIC.pem says whose it is")
        )


def _texts(places: Places, found: Verification) -> Iterator[Recorded]:
    """The record and the statement, as far as they can be read."""
    for path in (places.record, places.statement):
        if path is None:
            continue
        try:
            yield read_text(path, path.name)
        except NewerError as error:
            found.findings.append(Finding(path.name, ABSENT, error.message))
            continue
        except InputError as error:
            found.findings.append(Finding(path.name, WRONG, error.message))
        found.witnesses.append(path.name)


def _merged(model: Path) -> Checkpoint:
    """A model that may be the result of a merge, by its headers."""
    checkpoint = opened(model)
    for file in checkpoint.files:
        if not file.path.name.endswith(".safetensors") and checkpoint.format == "diffusers":
            what = "pickled weights, which no merge writes; nothing to verify"
            raise InputError(f"{escape(file.label)}: {what}", tag="LOOK-ALIKE")
    return checkpoint


def _header(contents: Contents, found: Verification) -> None:
    """The hash of the data that each weight file states in its header."""
    checkpoint = contents.checkpoint
    for file in checkpoint.files:
        name = checkpoint.inside(file)
        metadata = checkpoint.metadata if not name else read_header(file)[1]
        stated = metadata.get(CONTENT_HASH)
        part = f"hash of the data in the header{f' of {escape(name)}' if name else ''}"
        if stated is None:
            found.findings.append(Finding(part, ABSENT))
        else:
            hashed = f"0x{contents.hashes[name].content}"
            found.add(part, stated.lower() == hashed, f"{quote(stated)}, the data has {hashed}")


def _of_header(contents: Contents, found: Verification) -> Recorded | None:
    try:
        header = of_header(contents.checkpoint.metadata, "header")
    except InputError as error:
        found.findings.append(Finding("recipe in the header", WRONG, error.message))
        return None
    if header is not None:
        found.add("recipe in the header", not header.edited, "it is not the one its digest is of")
    return header


def _tensors(places: Places, contents: Contents, texts: Sequence[Recorded], found: Verification) -> None:
    """Each tensor against the sidecar, and the root of all against the sidecar's and the record's."""
    specs = contents.checkpoint.specs
    ours = {
        key: [specs[key].dtype, list(specs[key].shape), digest] for key, digest in contents.tensors.items()
    }
    root = tensor_root([[key, *ours[key]] for key in sorted(ours, key=str.encode)])
    for one in texts:
        if one.kind == RECORD:
            stated = _output(one).get("tensor_root")
            found.add(f"tensor root in {one.label}", stated == root, f"{quote(stated)}, the model has {root}")
    if places.sidecar is None:
        found.findings.append(Finding("digests of the tensors", ABSENT, "no .tensors.json beside the model"))
        return
    found.witnesses.append(places.sidecar.name)
    part = f"tensors in {places.sidecar.name}"
    try:
        theirs, stated = tensors_of(
            read_small(places.sidecar, places.sidecar.name, MAX_RECORD_BYTES), places.sidecar.name
        )
    except InputError as error:
        found.findings.append(Finding(part, WRONG, error.message))
        return
    of_list = tensor_root([[key, *theirs[key]] for key in sorted(theirs, key=str.encode)])
    found.add(f"root in {places.sidecar.name}", stated == of_list, "it is not that of the list beside it")
    wrong = [key for key in contents.checkpoint.tensors if theirs.get(key) != ours[key]]
    wrong += [key for key in theirs if key not in ours]
    if wrong:
        found.first = wrong[0]
    count = counted(len(wrong), "tensor")
    found.add(part, not wrong, f"{count} of {len(ours)} differ, first {escape(wrong[0]) if wrong else ''}")


def _output(record: Recorded) -> Mapping[str, object]:
    output: Mapping[str, object] = record.content["deterministic"]["output"]
    return output


def _files(said: Recorded, contents: Contents, found: Verification) -> None:
    """The files of the model against what a text says they are."""
    there = contents.files
    wrong = [name for name, digest in said.files.items() if there.get(name) != digest]
    lacking = [name for name in wrong if name not in there]
    more = sorted(there.keys() - said.files.keys()) if said.whole else []
    reasons = [
        f"{escape(name) or 'sha256'}: {there.get(name, 'not there')}, stated {said.files[name]}"
        for name in (lacking or wrong)[:1]
    ]
    if more:
        reasons.append(f"{counted(len(more), 'file')} that the run did not write, first {escape(more[0])}")
    what = counted(len(said.files), "file")
    found.add(f"{what} in {said.label}", not wrong and not more, "; ".join(reasons))


def _record(said: Recorded, contents: Contents, found: Verification) -> None:
    """The other hashes a record has of each file."""
    found.add(f"recipe in {said.label}", not said.edited, "it is not the one its digest is of")
    files = _output(said)["files"]
    assert isinstance(files, list)  # it was read
    hashes = contents.hashes
    for one in files:
        ours = hashes.get(one["name"]) or hashes.get("")
        if ours is None:
            continue  # told with the files
        pairs = {"content_sha256": ours.content, "blake3": ours.blake3, "auto_v1": ours.auto_v1}
        for name, digest in pairs.items():
            if one.get(name) not in (None, digest):
                found.add(f"{name} in {said.label}", False, f"{quote(one[name])}, the file has {digest}")


def _references(places: Places, texts: Sequence[Recorded], found: Verification) -> None:
    """What the record and the statement say of the files beside the model."""
    stated: list[tuple[str, str, str]] = []
    for one in texts:
        if one.kind == STATED:
            try:
                stated += [(one.label, name, digest) for name, digest in byproducts(one).items()]
            except InputError as error:
                found.findings.append(Finding(one.label, WRONG, error.message))
        elif isinstance(tensors := _output(one).get("tensors"), Mapping):
            stated.append((one.label, str(tensors.get("name")), str(tensors.get("sha256"))))
    paths = {path.name: path for path in (places.sidecar, places.record) if path is not None}
    for label, name, digest in stated:
        if name in paths:
            content = read_small(paths[name], name, MAX_RECORD_BYTES)
            right = hashlib.sha256(content).hexdigest() == digest
            found.add(f"{escape(name)} in {label}", right, "the file is another")


def _agree(texts: Sequence[Recorded], found: Verification) -> None:
    """Whether header, record and statement say the same of the recipe and of the inputs."""
    for one in texts[1:]:
        both = f"{texts[0].label} and {one.label}"
        same = canonical_json(one.recipe) == canonical_json(texts[0].recipe)
        found.add(f"recipe of {both}", same, "they name different ones")
        found.add(f"inputs of {both}", one.by_role == texts[0].by_role, "they name different ones")

"""What a model is, from its headers: read once, and remembered until one of its files changes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from runner import __version__
from runner.architectures import ARCHITECTURES, Architecture, detect, variant
from runner.checkpoint import Checkpoint
from runner.digests import folder_digest
from runner.disk import cachefile
from runner.disk.files import Identity, identity_of
from runner.errors import RunnerError
from runner.formats import READERS
from runner.library.walk import Found
from runner.lora.summary import detect_lora, likely_architectures
from runner.models.model import main_alone
from runner.models.quantised import quantised
from runner.tensors import TensorSpec

# What was remembered by a program that knows other architectures, or reads otherwise, is read again.
_READS = 1
EDITION = hashlib.sha256(f"{_READS} {__version__} {sorted(ARCHITECTURES)}".encode()).hexdigest()[:16]
BROKEN = "broken"
SAVE_SECONDS = 10.0
MAX_FILES = 10_000  # of one folder of a model

# A tensor that every model of a kind has, whole or alone, whatever stands before its name.
_ALONE = (
    ("vae", ("decoder.conv_in.weight",)),
    ("text_encoder", ("text_model.embeddings.token_embedding.weight", "SelfAttention.q.weight")),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the headers of a model say.

    Attributes:
        kind: "checkpoint", "folder" of a pipeline, "lora", "unet", "transformer", "vae", "text_encoder",
            "other", or "broken".
        architecture: its name in ARCHITECTURES; of a LoRA the likeliest.
        variant: what else than the plain model it is: "inpainting".
        format: "safetensors", "pickle" or "diffusers"; "" if it cannot be read.
        dtypes: of its tensors, that of most bytes first.
        nbytes: of its weight files.
        files: its weight files, inside a folder; "" is the model itself.
        problem: why it cannot be read or merged.
    """

    kind: str
    architecture: str | None = None
    variant: str | None = None
    format: str = ""
    dtypes: tuple[str, ...] = ()
    nbytes: int = 0
    files: tuple[str, ...] = ()
    problem: str | None = None


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


def read(found: Found) -> Facts:
    """Reads the headers of a model; never fails."""
    try:
        reader = next(reader for reader in READERS if reader.accepts(found.path))
        return facts_of(reader.open(found.path, found.inside, None))
    except RunnerError as error:
        return Facts(BROKEN, problem=error.message.partition("\n")[0])
    except (OSError, RuntimeError) as error:  # a name too long, links in a circle
        return Facts(BROKEN, problem=getattr(error, "strerror", None) or str(error))


def facts_of(checkpoint: Checkpoint) -> Facts:
    """What a model is."""
    specs = checkpoint.specs
    architecture = detect(checkpoint.format, specs)
    names: tuple[str, ...] = ()
    what: str | None = None
    if architecture is not None:
        kind = _kind(architecture, checkpoint)
        names, what = (architecture.name,), variant(architecture, checkpoint.format, specs)
    elif detect_lora(specs) is not None:
        kind, names = "lora", likely_architectures(specs)[:1]
    elif checkpoint.format == "checkpoint" and (alone := main_alone(specs)):
        kind, names, what = alone[0].main, (alone[0].name,), alone[1]
    else:
        kind = _kind(None, checkpoint)
    sizes: Counter[str] = Counter()
    for spec in specs.values():
        sizes[spec.dtype] += spec.nbytes
    facts = Facts(
        kind,
        architecture=names[0] if names else None,
        variant=what,
        format=_format(checkpoint),
        dtypes=tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype))),
        nbytes=checkpoint.nbytes,
        files=tuple(map(checkpoint.inside, checkpoint.files)),
    )
    try:
        if kind != "lora":
            quantised(checkpoint.label, specs)
    except RunnerError as error:
        return replace(facts, problem=error.message)
    return facts


def _kind(architecture: Architecture | None, checkpoint: Checkpoint) -> str:
    if checkpoint.format == "diffusers":
        return "folder"
    specs: Mapping[str, TensorSpec] = checkpoint.specs
    if architecture is not None:
        beside = tuple(
            prefix for prefix, component in architecture.prefixes.items() if component != architecture.main
        )
        return "checkpoint" if any(key.startswith(beside) for key in specs) else architecture.main
    parts = [kind for kind, ends in _ALONE if any(key.endswith(ends) for key in specs)]
    return parts[0] if len(parts) == 1 else "other"


def _format(checkpoint: Checkpoint) -> str:
    if "pickle" in (checkpoint.title or ""):
        return "pickle"
    return "safetensors" if checkpoint.format == "checkpoint" else checkpoint.format


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
) -> list[Entry]:
    """What all these models are.

    Args:
        found: the models.
        memory: file that remembers headers; None: all are read.
        digests: that are known, by Identity.key.
        advance: called with the number of models that were looked at, when one of them had to be read.
    """
    known, fresh = known_facts(memory), dict[str, Any]()
    saved = time.monotonic()
    entries, untold = [], 0
    try:
        for one in found:
            files = look_at(one)
            key = _key(files) if files else None
            facts = known.get(key) if key else None
            untold += 1
            if facts is None:
                facts = read(one)
                advance(untold)
                untold = 0
                now = time.time()
                if key and all(identity.settled(now) for identity in files.values()):
                    known[key], fresh[key] = facts, asdict(facts)
                if time.monotonic() - saved > SAVE_SECONDS:
                    _save(memory, fresh)
                    fresh, saved = {}, time.monotonic()
            entries.append(_entry(one, facts, files, digests))
    finally:
        _save(memory, fresh)
    return entries


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

"""How a model that was built again differs from the one that is recorded: files, headers, tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.build import Made
from runner.checkpoint import Checkpoint
from runner.config import Settings
from runner.disk.files import read_small
from runner.errors import InputError, escape
from runner.formats.safetensors import CONTENT_HASH, read_header
from runner.models.view import view_of
from runner.planning.plan import Plan, weakest
from runner.proof.contents import Contents, contents_of
from runner.proof.places import Places, opened
from runner.proof.recorded import HEADER, Recorded, tensors_of
from runner.provenance.record import MAX_RECORD_BYTES
from runner.tensors import TensorSpec
from runner.write import Staging

IDENTICAL, EQUIVALENT, DIFFERENT = "IDENTICAL", "EQUIVALENT", "DIFFERENT"
ULPS = 1  # tensors so near each other are called equivalent, whether or not that is accepted
EXAMPLES = 5


@dataclass(frozen=True)
class Difference:
    """Where the two differ.

    Attributes:
        files: names of files of other bytes, or that one of them lacks; "" is the single file.
        headers: entries of headers that differ beside the hash of the data.
        tensors: those that differ, or that one of them lacks, in the order of the output.
        known: whether it could be told which tensors those are.
        ulps: of those with the same dtype and shape, how many numbers of that dtype lie between two elements
            at most; empty where the recorded model is not there.
        classes: the determinism of each tensor that differs.
    """

    files: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    known: bool = True
    ulps: Mapping[str, int] | None = None
    classes: Mapping[str, str] | None = None

    def word(self, accepted: int) -> str:
        """IDENTICAL; EQUIVALENT if only tensors of classes that promise less differ, and little; DIFFERENT.

        Args:
            accepted: how many ulp are so little; at least one is.
        """
        if not self.files:
            return IDENTICAL
        apart, classes = self.ulps or {}, self.classes or {}
        little = self.tensors and all(
            key in apart and apart[key] <= max(ULPS, accepted) and classes[key] != "exact"
            for key in self.tensors
        )
        return EQUIVALENT if little and not self.headers else DIFFERENT

    @property
    def most(self) -> int | None:
        """The largest difference in ulp, if it is known of every tensor."""
        apart = self.ulps or {}
        return max(apart.values()) if self.tensors and set(self.tensors) <= apart.keys() else None

    def lines(self) -> tuple[str, ...]:
        """What differs, for people."""
        if not self.files:
            return ()
        if not self.known:
            return ("tensors: which differ is not known; neither the model nor its .tensors.json is there",)
        lines = [f"header: {escape(name)} differs" for name in self.headers[:EXAMPLES]]
        if not self.tensors:
            names = [escape(name) for name in self.files if name][:EXAMPLES]
            return (*lines, f"tensors: all equal{': other bytes in ' + ', '.join(names) if names else ''}")
        lines.append(f"tensors: {len(self.tensors)} differ, first {self._told(self.tensors[0])}")
        if self.ulps:
            largest = max(self.ulps, key=lambda key: self.ulps[key] if self.ulps else 0)
            lines.append(f"largest difference: {self._told(largest)}")
        return tuple(lines)

    def _told(self, key: str) -> str:
        apart, kind = (self.ulps or {}).get(key), (self.classes or {}).get(key)
        about = [f"{apart} ulp" if apart is not None else "", f"of class {kind}" if kind else ""]
        text = ", ".join(filter(None, about))
        return f"{escape(key)} ({text})" if text else escape(key)


def difference(
    plan: Plan,
    staging: Staging,
    made: Made,
    places: Places,
    texts: Sequence[Recorded],
    settings: Settings,
) -> Difference:
    """Compares a model that is built, but not published, with what is recorded.

    Args:
        plan: by which it was built.
        staging: where it is.
        made: its digests.
        places: of the recorded model.
        texts: what is said of that one; the first was done again.
        settings: threads and tiles for reading.

    Raises:
        InputError: the recorded model changed meanwhile, or what says of it cannot be read.
    """
    by_header = texts[0].kind == HEADER
    original = _original(places, texts, by_header=True) if by_header else None
    theirs: dict[str, str] = {}
    if original is not None:
        theirs = original.files
    else:
        for one in reversed(texts):  # what is done again has the last word
            theirs |= one.files
    whole = by_header or any(one.whole for one in texts)
    ours = {file.name: digest for file, digest in zip(made.layout.files, made.outputs, strict=True)}
    if made.layout.folder:
        ours |= {name: hashlib.sha256(text).hexdigest() for name, text in made.layout.texts.items()}
    lacking = [name for name in ours if name not in theirs] if whole else []
    wrong = [name for name, digest in theirs.items() if ours.get(name) != digest] + lacking
    if not wrong:
        return Difference()
    original = original or _original(places, texts, by_header=by_header)
    listed = _listed(places, original)
    if listed is None:
        return Difference(tuple(wrong), known=False)
    specs = {key: spec for file in made.layout.files for key, (_, spec) in file.tensors.items()}
    now = {key: [spec.dtype, list(spec.shape), made.tensors[key]] for key, spec in specs.items()}
    keys = [key for key in now if listed.get(key) != now[key]] + [key for key in listed if key not in now]
    apart: Mapping[str, int] | None = None
    headers: tuple[str, ...] = ()
    if original is not None:
        built = opened(staging.partial)
        alike = [k for k in keys if k in now and k in listed and listed[k][:2] == now[k][:2]]
        floats = [key for key in alike if specs[key].is_float and specs[key].elements]
        apart = _ulps(original.checkpoint, built, floats, settings) if floats else {}
        headers = _headers(original.checkpoint, built)
    return Difference(tuple(wrong), headers, tuple(keys), True, apart, _classes(plan, keys))


def _original(places: Places, texts: Sequence[Recorded], *, by_header: bool) -> Contents | None:
    """The recorded model, if it is there and is the recorded one."""
    if places.model is None:
        return None
    try:
        contents = contents_of(opened(places.model), lambda count: None)
    except InputError:
        if by_header:
            raise
        return None
    stated = {name: digest for one in reversed(texts) for name, digest in one.files.items()}
    same = all(stated.get(name) == str(one.sha256) for name, one in contents.hashes.items())
    return contents if by_header or same else None


def _listed(places: Places, original: Contents | None) -> dict[str, list[Any]] | None:
    """[dtype, shape, digest] of each recorded tensor; None if that is known from nowhere."""
    if original is not None:
        specs = original.checkpoint.specs
        return {key: [specs[key].dtype, list(specs[key].shape), one] for key, one in original.tensors.items()}
    if places.sidecar is None:
        return None
    try:
        content = read_small(places.sidecar, places.sidecar.name, MAX_RECORD_BYTES)
        return tensors_of(content, places.sidecar.name)[0]
    except InputError:
        return None


def _ulps(first: Checkpoint, second: Checkpoint, keys: Sequence[str], settings: Settings) -> dict[str, int]:
    from runner.engine.distance import ulps  # here: it needs torch

    models = [(one, view_of(None, one.format, one.specs)) for one in (first, second)]
    return ulps(models, keys, settings.threads, settings.tile_elements)


def _headers(first: Checkpoint, second: Checkpoint) -> tuple[str, ...]:
    """Entries of the headers that differ, less the hashes of the data, which follow the tensors."""
    found = []
    theirs = {first.inside(file): file for file in first.files}
    for file in second.files:
        name = second.inside(file)
        if name not in theirs:
            found.append(name)
            continue
        (here, ours), (there, other) = read_header(file), read_header(theirs[name])
        entries = [key for key in sorted({*ours, *other}) if ours.get(key) != other.get(key)]
        at = f"{name}: " if name else ""
        found += [f"{at}{key}" for key in entries if key != CONTENT_HASH]
        if not entries and _data_start(here) != _data_start(there):
            found.append(f"{at}the order or spelling of its entries")
    return tuple(found)


def _data_start(tensors: Mapping[str, tuple[int, TensorSpec]]) -> int:
    """Where the data of a file begins: behind its header."""
    return min(offset for offset, _ in tensors.values())


def _classes(plan: Plan, keys: Sequence[str]) -> dict[str, str]:
    """What was promised of each tensor; of the factors of a LoRA what is promised of the whole."""
    found: dict[str, str] = {}
    for job in plan.jobs:
        found[job.stored or job.key] = weakest((job.determinism, found.get(job.stored or job.key, "exact")))
    return {key: found.get(key, plan.determinism) for key in keys}

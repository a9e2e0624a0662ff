"""One model as sections of a report: what it is, its parts, what its other layout lacks, its hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from runner.architectures import Place, place
from runner.architectures.layouts import to_checkpoint
from runner.architectures.left import Left
from runner.checkpoint import Checkpoint
from runner.disk.files import InputFile
from runner.disk.hashes import FileHashes
from runner.errors import counted, escape
from runner.formats import FORMATS
from runner.inspection.adapters import adapter_lines
from runner.inspection.hashes import whole_digest
from runner.inspection.metadata import claimed_hashes
from runner.models.model import Model
from runner.planning.prediction import predictions, summary
from runner.tables import size, table
from runner.tensors import TensorSpec

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf")
_MAX_BESIDE = 6
_OTHER_LAYOUT = {"checkpoint": "diffusers folder", "diffusers": "single file"}


def title(model: Model) -> str:
    """How a model is stored, for people."""
    return model.checkpoint.title or FORMATS[model.checkpoint.format].title


def facts(model: Model) -> list[tuple[str, str]]:
    """What a model is, as pairs of a word and a text."""
    checkpoint = model.checkpoint
    specs = checkpoint.specs
    adapter = adapter_lines(specs, checkpoint.metadata)
    stored = f"{title(model)}, {counted(len(checkpoint.files), 'weight file')}, {size(checkpoint.nbytes)}"
    kind = "none: an adapter, to be added to a model" if adapter else model.title
    pairs = [("format", stored), ("architecture", kind)]
    if checkpoint.pipeline:
        pairs.append(("pipeline", checkpoint.pipeline))
    pairs.append(("prediction", summary(predictions(model))))
    if model.architecture and not adapter:
        there = {at.component for at in _places(model).values()}
        absent = {model.architecture.main, *model.architecture.prefixes.values()} - there
        if absent:
            pairs.append(("without", ", ".join(sorted(absent))))
    return pairs


def model_sections(model: Model, *, all_keys: bool) -> list[tuple[str, list[str]]]:
    """Components, files, the adapter, what has no counterpart, and every tensor if that is asked for."""
    checkpoint, places = model.checkpoint, _places(model)
    sections = [
        ("components", _components(model, places)),
        ("files", [] if checkpoint.is_file else _files(checkpoint)),
        ("adapter", adapter_lines(checkpoint.specs, checkpoint.metadata)),
        (f"no counterpart in a {_OTHER_LAYOUT[checkpoint.format]}", _left(model)),
    ]
    if all_keys:
        sections.append(("tensors", _every_key(model, places)))
    return [(head, lines) for head, lines in sections if lines]


def _places(model: Model) -> dict[str, Place]:
    """Where each stored tensor stands in the model; those of a component by itself as its view has them."""
    architecture, layout = model.architecture, model.checkpoint.format
    places = {key: place(architecture, layout, key) for key in model.checkpoint.specs}
    for name, made in model.view.tensors.items():
        for piece in made.pieces:
            if architecture and name not in model.view.left and places[piece.key].component == "other":
                places[piece.key] = place(architecture, "diffusers", name)
    return places


def _components(model: Model, places: Mapping[str, Place]) -> list[str]:
    found: dict[str, list[TensorSpec]] = {}
    for key, spec in model.checkpoint.specs.items():
        name = places[key].component
        found.setdefault(f"{name} (EMA)" if key.startswith("model_ema.") else name, []).append(spec)
    rows = [["component", "tensors", "parameters", "size", "dtypes"]]
    rows += [[escape(name), *_cells(found[name])] for name in sorted(found)]
    if len(found) > 1:
        rows.append(["all", *_cells([spec for specs in found.values() for spec in specs])])
    return table(rows, right=(1, 2, 3))


def _cells(specs: list[TensorSpec]) -> list[str]:
    counts = Counter(spec.dtype for spec in specs)
    dtypes = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    names = ", ".join(f"{name} ({count})" if len(dtypes) > 1 else name for name, count in dtypes)
    # Counts and masks are no parameters.
    parameters = sum(spec.elements for spec in specs if spec.is_float)
    return [str(len(specs)), f"{parameters:,}", size(sum(spec.nbytes for spec in specs)), names]


def _files(checkpoint: Checkpoint) -> list[str]:
    """The weight files of the components of a folder, and those beside them that were not read."""
    read: dict[str, list[str]] = {}
    for file in checkpoint.files:
        folder, _, name = checkpoint.inside(file).rpartition("/")
        read.setdefault(folder, []).append(name)
    rows = [["component", "read", "not read"]]
    for folder, names in sorted(read.items()):
        shown = names[0] if len(names) == 1 else f"{names[0]} ... ({len(names)} shards)"
        there = sorted(entry.name for entry in (checkpoint.root / folder).iterdir())
        beside = [name for name in there if name.endswith(_WEIGHT_SUFFIXES) and name not in names]
        more = [f"and {len(beside) - _MAX_BESIDE} more"] if len(beside) > _MAX_BESIDE else []
        rows.append(
            [
                escape(folder or checkpoint.root.name),
                escape(shown),
                ", ".join([*map(escape, beside[:_MAX_BESIDE]), *more]),
            ]
        )
    return table(rows)


def _left(model: Model) -> list[str]:
    """Tensors that the other layout has no place for, by kind."""
    if model.architecture is None:
        return []
    checkpoint = model.checkpoint
    left: Mapping[str, Left] = model.view.left
    if checkpoint.format == "diffusers":
        left = to_checkpoint(model.architecture, checkpoint.specs).left
    kinds: dict[str, list[str]] = {}
    for key, reason in left.items():
        kinds.setdefault(reason.kind, []).append(key)
    rows = [["kind", "tensors", "first", "why"]]
    for kind, keys in sorted(kinds.items()):
        rows.append([kind, str(len(keys)), escape(keys[0]), escape(left[keys[0]].why)])
    return table(rows, right=(1,)) if kinds else []


def _every_key(model: Model, places: Mapping[str, Place]) -> list[str]:
    rows = [["key", "dtype", "shape", "component", "blocks"]]
    for key, spec in model.checkpoint.specs.items():
        at = places[key]
        shape = f"[{','.join(map(str, spec.shape))}]"
        rows.append([escape(key), spec.dtype, escape(shape), escape(at.component), " ".join(at.blocks)])
    return table(rows)


def hash_lines(checkpoint: Checkpoint, hashes: Mapping[InputFile, FileHashes]) -> list[str]:
    """The hashes of a file, or of each file of a folder; what the header states otherwise is marked."""
    if not checkpoint.is_file:
        rows = [["file", "sha256", "AutoV3"]]
        for file, one in hashes.items():
            name = checkpoint.inside(file)
            rows.append([escape(name), one.sha256 or "–", one.auto_v3 or "–"])
        lines = table(rows)
        if whole := whole_digest(checkpoint, hashes):
            lines.append(f"  of the folder: {whole}")
        return lines if any(one.sha256 for one in hashes.values()) else [_NOT_READ]
    (one,) = hashes.values()
    pairs = [("sha256", one.sha256), ("AutoV1", f"{one.auto_v1}  (A1111's legacy hash)")]
    pairs += [("AutoV2", one.auto_v2), ("AutoV3", one.auto_v3), ("BLAKE3", one.blake3)]
    rows = [[name, text] for name, text in pairs if text]
    for name, text in claimed_hashes(checkpoint.metadata):
        rows.append([name, f"{escape(text)}  (the header says so{_verdict(name, text, one)})"])
    lines = table(rows)
    return lines if one.sha256 else [*lines, _NOT_READ]


_NOT_READ = "  the others need the whole file: job.hashes=true"


def _verdict(name: str, text: str, hashes: FileHashes) -> str:
    """Whether a hash that the header states is the one of the data, where both are over the same bytes."""
    if name != "modelspec.hash_sha256" or hashes.content is None:
        return ""
    return ", rightly" if text.lower().removeprefix("0x") == hashes.content else ", but it is another"

"""The diffusers pipeline folder: model_index.json and a folder for each component.

Keys are component/name. Nothing a folder says is imported or executed: only JSON and the headers of
weight files are read, pickles by our own reader. Source: diffusers' saving conventions
(src/diffusers/pipelines/pipeline_utils.py, models/modeling_utils.py, utils/constants.py).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.checkpoint import Checkpoint, Layout, OutputFile, Stored
from runner.disk.files import InputFile, look, read_file, read_small
from runner.errors import IncompatibleError, InputError, escape, nearest, quote
from runner.formats.component_files import CONFIG, INDEX, SUFFIXES, choose_variant, files_of
from runner.formats.pickled import read_pickled
from runner.formats.safetensors import output_file, read_header, shard_names, shards
from runner.formats.strict_json import parse_object
from runner.tensors import TensorSpec

MAX_OTHER_BYTES = 64 << 20
DEFAULT_SHARD_BYTES = 10_000_000_000  # what diffusers' save_pretrained splits at
MAIN_COMPONENTS = ("unet", "transformer")  # the weight file that carries the metadata

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# Entries of configs that are not: a path, code, and how the tensors were quantised, which they are no more.
_NOT_CARRIED = ("_name_or_path", "auto_map", "custom_pipelines", "trust_remote_code", "quantization_config")
# Where the classes of components may come from: what loads the output imports it. Most are diffusers' own
# pipelines, which have classes for themselves.
_LIBRARIES: tuple[str, ...] = (
    "diffusers",
    "transformers",
    "alt_diffusion",
    "audioldm2",
    "blip_diffusion",
    "deepfloyd_if",
)
_LIBRARIES += ("kandinsky", "kolors", "latent_diffusion", "ltx", "ltx2", "paint_by_example", "pixart_alpha")
_LIBRARIES += ("shap_e", "stable_audio", "stable_cascade", "stable_diffusion", "stable_diffusion_safe")
_LIBRARIES += ("stable_diffusion_xl", "stable_unclip", "unidiffuser", "wuerstchen")


class DiffusersFolder:
    """A pipeline as diffusers saves it, of any class; or the folder of one component of it."""

    name = "diffusers"
    title = "diffusers folder"

    def accepts(self, path: Path) -> bool:
        """Whether this is a folder; its model_index.json decides."""
        return path.is_dir()

    def open(self, path: Path, label: str, variant: str | None) -> Checkpoint:
        """Reads model_index.json and the header of every weight file.

        The folder of one component is read as a single file with the names its weights have: a layout has
        a name for the component, and the folder does not say which.

        Raises:
            InputError: something is missing, ambiguous, malformed, or points outside the folder.
        """
        folder = _Folder(path, label)
        if not (path / INDEX).exists() and (path / CONFIG).exists():
            return _component_alone(folder, variant)
        index = folder.json(INDEX)
        pipeline = index.get("_class_name")
        if not isinstance(pipeline, str) or not _IDENTIFIER.fullmatch(pipeline):
            raise folder.error(INDEX, f"_class_name: expected a class name, found {quote(pipeline)}")
        folder.add_other(INDEX)
        for component in _components(index, folder):
            _open_component(folder, component, variant)
        if not folder.tensors:
            raise folder.error("", "no component with weights")
        return Checkpoint(
            label=label,
            format=self.name,
            root=path,
            files=tuple(folder.files),
            tensors=folder.tensors,
            metadata=folder.metadata,
            others=folder.others,
            pipeline=pipeline,
            title="diffusers folder, pickles" if folder.pickles else None,
            warnings=tuple(folder.warnings),
        )

    def layout(
        self,
        name: str,
        specs: Mapping[str, TensorSpec],
        carrier: Checkpoint | Mapping[str, bytes] | None,
        metadata: Mapping[str, str],
        max_shard_bytes: int | None,
    ) -> Layout:
        """A folder NAME with a weight file, or shards and their index, for each component."""
        components: dict[str, dict[str, TensorSpec]] = {}
        for key, spec in specs.items():
            component, _, inner = key.partition("/")
            components.setdefault(component, {})[inner] = spec
        main = next((name for name in MAIN_COMPONENTS if name in components), next(iter(components)))
        files: list[OutputFile] = []
        described = 0
        assert carrier is not None  # resolve has found one
        texts = _carried(carrier, set(components)) if isinstance(carrier, Checkpoint) else dict(carrier)
        for component, inner_specs in components.items():
            parts = shards(inner_specs, max_shard_bytes or DEFAULT_SHARD_BYTES)
            stem = (
                _stem(carrier, component)
                if isinstance(carrier, Checkpoint)
                else _built_in_stem(texts, component)
            )
            names = list(shard_names(stem, len(parts)))
            for number, (file_name, part) in enumerate(zip(names, parts, strict=True)):
                says_all = component == main and number == 0
                described = len(files) if says_all else described
                file = output_file(f"{component}/{file_name}", part, metadata if says_all else {})
                tensors = {f"{component}/{inner}": place for inner, place in file.tensors.items()}
                files.append(replace(file, tensors=tensors))
            if len(parts) > 1:
                texts[f"{component}/{stem}.safetensors.index.json"] = _shard_index(names, parts)
        _check_case([*(file.name for file in files), *texts])
        return Layout(
            name, folder=True, files=tuple(files), texts=dict(sorted(texts.items())), described=described
        )


@dataclass
class _Folder:
    """What has been read of a folder so far."""

    root: Path
    label: str
    files: list[InputFile] = field(default_factory=list)
    tensors: dict[str, Stored] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    others: dict[str, InputFile] = field(default_factory=dict)
    pickles: bool = False
    warnings: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        """A file inside, which may be a link only to inside (or to the blobs of its hub cache entry)."""
        path = self.root / name
        try:
            real, root = path.resolve(), self.root.resolve()
        except (OSError, RuntimeError) as error:
            raise self.error(name, "a symbolic link that leads to itself") from error
        # The folder of a pipeline lies in "snapshots", that of a component one deeper.
        cached = next((above for above in list(root.parents)[:2] if above.name == "snapshots"), None)
        blobs = cached.parent / "blobs" if cached else root
        if not (real.is_relative_to(root) or real.is_relative_to(blobs)):
            raise self.error(name, "a symbolic link that leaves the folder")
        return path

    def names(self, component: str) -> list[str]:
        try:
            return sorted(entry.name for entry in self.path(component).iterdir())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise self.error(component, f"{INDEX} names this component: {reason}") from error

    def json(self, name: str) -> dict[str, Any]:
        label = f"{self.label}/{name}"
        try:
            return parse_object(read_small(self.path(name), label, 16 << 20), label)
        except InputError as error:
            if name == INDEX and error.tag == "MISSING":
                error.hint = f"a diffusers folder has a {INDEX}; for a single file give the path of the file"
            raise

    def add_other(self, name: str) -> None:
        file = look(self.path(name), f"{self.label}/{name}")
        if file.identity.size > MAX_OTHER_BYTES:
            raise self.error(name, f"{file.identity.size} bytes; at most {MAX_OTHER_BYTES} are carried on")
        self.others[name] = file

    def add_weights(self, component: str, name: str) -> set[str]:
        """Reads one header; returns the names of the tensors inside the component."""
        inside = _joined(component, name)
        file = look(self.path(inside), f"{self.label}/{inside}")
        metadata: dict[str, str] = {}
        if name.endswith(".bin"):
            tensors, self.pickles = read_pickled(file), True
        else:
            tensors, metadata = read_header(file)
        for inner, (offset, spec) in tensors.items():
            key = _joined(component, inner)
            if key in self.tensors:
                raise self.error(component, f"tensor {quote(inner)} is in more than one file")
            self.tensors[key] = Stored(len(self.files), offset, spec)
        self.files.append(file)
        for entry, text in metadata.items():
            self.metadata.setdefault(entry, text)
        return set(tensors)

    def warn(self, name: str, what: str) -> None:
        """Notes what is odd, but no error."""
        self.warnings.append(f"{escape(f'{self.label}/{name}')}: {what}")

    def error(self, name: str, reason: str) -> InputError:
        where = f"{self.label}/{name}" if name else self.label
        return InputError(f"{escape(where)}: {reason}", tag="FOLDER")


def _joined(component: str, name: str) -> str:
    """A name inside a component; of the folder of one component alone the component is ""."""
    return f"{component}/{name}" if component else name


def _component_alone(folder: _Folder, variant: str | None) -> Checkpoint:
    """A folder with a config.json and the weights it belongs to."""
    _open_component(folder, "", variant)
    return Checkpoint(
        label=folder.label,
        format="checkpoint",
        root=folder.root,
        files=tuple(folder.files),
        tensors=folder.tensors,
        metadata=folder.metadata,
        others=folder.others,
        title="folder of a component",
        warnings=tuple(folder.warnings),
    )


def ema_weights(root: Path, label: str, component: str) -> Checkpoint | None:
    """The running means of a component's weights, under the names of the weights; None if there are none.

    They are in a folder of their own, COMPONENT_ema, or a variant of the weight files. Where one of these
    is called non_ema, those without a variant are the means.

    Args:
        root: the folder of the pipeline.
        label: how messages call it.
        component: its name.

    Raises:
        InputError: they are there, and malformed.
    """
    folder, own, prefix = _Folder(root, label), f"{component}_ema", f"{component}/"
    if (root / own / CONFIG).exists():
        _open_component(folder, own, None)
        prefix = f"{own}/"
    else:
        files = files_of(folder.names(component))
        variants = files.variants
        if "ema" not in variants and not variants >= {None, "non_ema"}:
            return None
        _open_component(folder, component, "ema" if "ema" in variants else None)
    tensors = {f"{component}/{key.removeprefix(prefix)}": at for key, at in folder.tensors.items()}
    return Checkpoint(label, DiffusersFolder.name, root, tuple(folder.files), tensors)


def _components(index: Mapping[str, Any], folder: _Folder) -> Iterator[str]:
    """Names of the components that are there, from model_index.json."""
    for name, value in sorted(index.items()):
        if name.startswith("_") or not isinstance(value, list):
            continue  # a setting of the pipeline
        if not _IDENTIFIER.fullmatch(name):
            raise folder.error(INDEX, f"component name {quote(name)} is no identifier")
        if value in ([], [None, None]):
            continue
        if len(value) != 2 or not all(isinstance(v, str) and _IDENTIFIER.fullmatch(v) for v in value):
            raise folder.error(INDEX, f"{name}: expected [library, class], found {quote(json.dumps(value))}")
        if value[0] not in _LIBRARIES:
            known = f"a class of diffusers or transformers{nearest(value[0], _LIBRARIES)}"
            raise folder.error(INDEX, f"{name}: expected {known}; found {quote('.'.join(value))}")
        yield name


def _open_component(folder: _Folder, component: str, variant: str | None) -> None:
    names = folder.names(component)
    files = files_of(names)
    for name in files.others:
        folder.add_other(_joined(component, name))
        if name == CONFIG:
            folder.json(_joined(component, name))  # a broken one is an error now, not when it is written
    if not files.variants:
        if CONFIG in names:  # a model; a scheduler, tokenizer or image processor has none
            raise folder.error(component, "expected .safetensors or .bin weights, found none")
        return
    chosen = choose_variant(folder.error, component, files.variants, variant)
    suffix = files.suffix(chosen)
    single, index = files.singles[suffix], files.indices[suffix]
    if variant is not None and chosen is None:
        folder.warn(component, f"no variant {quote(variant)}: its plain weights are read")
    if better := sorted(filter(None, files.of(SUFFIXES[0]))) if suffix != SUFFIXES[0] else []:
        name = files.of(suffix)[chosen]
        there_is = f"as safetensors there is variant {', '.join(better)}"
        folder.warn(component, f"{name} is read, a pickle; {there_is}")
    if chosen in single and chosen in index:
        raise folder.error(component, f"both {single[chosen]} and {index[chosen]}: which is the model?")
    if chosen in single:
        folder.add_weights(component, single[chosen])
    else:
        _open_shards(folder, component, index[chosen], suffix)


def _open_shards(folder: _Folder, component: str, index_name: str, suffix: str) -> None:
    where = _joined(component, index_name)
    index = folder.json(where)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise folder.error(where, "weight_map: expected a mapping from tensor names to file names")
    shards_of: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        shards_of.setdefault(name, set()).add(key)
    for name, keys in sorted(shards_of.items()):
        if not re.fullmatch(rf"[\w-][\w.-]*\.{suffix}", name, re.ASCII):
            raise folder.error(where, f"weight_map: {quote(name)} is no bare name of a .{suffix} file")
        found = folder.add_weights(component, name)
        if difference := sorted(found ^ keys):
            side = "the index only" if difference[0] in keys else "the shard only"
            raise folder.error(where, f"{name}: tensor {quote(difference[0])} is in {side}")
    total = sum(folder.tensors[_joined(component, key)].spec.nbytes for key in weight_map)
    metadata = index.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    if said not in (None, total):
        folder.warn(where, f"total_size {quote(said)}, its tensors have {total} bytes")


def _stem(carrier: Checkpoint, component: str) -> str:
    """The stem of a component's weight files in a pipeline: without variant and shard number."""
    stored = next(stored for key, stored in carrier.tensors.items() if key.startswith(f"{component}/"))
    name = carrier.files[stored.file].path.name
    return "diffusion_pytorch_model" if name.startswith("diffusion_pytorch_model") else "model"


def _built_in_stem(texts: Mapping[str, bytes], component: str) -> str:
    """The stem that the library of a component gives its weight files."""
    library, _ = parse_object(texts[INDEX], INDEX)[component]
    return "diffusion_pytorch_model" if library == "diffusers" else "model"


def _carried(carrier: Checkpoint, components: set[str]) -> dict[str, bytes]:
    """The files without weights of a pipeline, less those of components that the output does not have.

    Raises:
        IncompatibleError: the output has a component that the pipeline lacks.
    """
    weighted = {key.partition("/")[0] for key in carrier.tensors}
    if extra := sorted(components - weighted):
        raise IncompatibleError(
            f"{escape(carrier.label)} has no configuration of {', '.join(extra)}",
            tag="CONFIG",
            hint="output.config: FOLDER names a pipeline that has",
        )
    absent = weighted - components
    others = {name: file for name, file in carrier.others.items() if name.partition("/")[0] not in absent}
    texts = {name: config_text(file) for name, file in others.items()}
    if absent:
        index = parse_object(texts[INDEX], f"{carrier.label}/{INDEX}")
        texts[INDEX] = json_text(
            {name: [None, None] if name in absent else value for name, value in index.items()}
        )
    return texts


def config_text(file: InputFile) -> bytes:
    """The content of a file that is carried on; configs lose the path they were loaded from."""
    content = read_file(file)
    if not file.label.endswith(("config.json", INDEX)):
        return content
    config = parse_object(content, file.label)
    kept = _without_code(config)
    return content if kept == config else json_text(kept)


def _without_code(value: Any) -> Any:
    """A config without the entries that are not carried on, at any depth."""
    if isinstance(value, dict):
        return {name: _without_code(part) for name, part in value.items() if name not in _NOT_CARRIED}
    return [_without_code(part) for part in value] if isinstance(value, list) else value


def _check_case(names: Iterable[str]) -> None:
    """Raises: IncompatibleError if two names would be one file where case or spelling makes no difference."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise IncompatibleError(
                f"the output would have {quote(other)} and {quote(name)}, which differ by case alone: "
                "they are one file on many systems",
                tag="CASE",
            )


def _shard_index(names: list[str], parts: list[dict[str, TensorSpec]]) -> bytes:
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    total = sum(spec.nbytes for part in parts for spec in part.values())
    return json_text({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def json_text(value: Mapping[str, Any]) -> bytes:
    """A JSON file, as everything that makes a folder writes it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

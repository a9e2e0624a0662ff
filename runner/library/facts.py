"""What a model is, from its headers alone."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from runner.architectures import Architecture, detect, variant
from runner.checkpoint import Checkpoint
from runner.disk.files import InputFile, look
from runner.errors import InputError, RunnerError
from runner.formats import READERS
from runner.formats.safetensors import SafetensorsFile, header_text, parse_header
from runner.formats.strict_json import parse_object
from runner.library.walk import Found
from runner.lora.summary import detect_lora, likely_architectures
from runner.models.model import main_alone
from runner.models.quantised import quantised
from runner.tensors import TensorSpec

BROKEN = "broken"

# Texts by name at the beginning of a header, as the format's library writes them, up to the first tensor.
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_METADATA = re.compile(
    rb'\{"__metadata__":(\{(?:%b:%b(?:,%b:%b)*+)?\}),' % (_TEXT, _TEXT, _TEXT, _TEXT), re.DOTALL
)

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


class HeaderReader:
    """Reads the headers of models, one after the other; of single files that are alike it parses one.

    Of thousands of files most have the same tensors as another one, saved by the same program: their headers
    are equal, byte for byte, but for the metadata and the blanks at the end. What such a file is follows from
    what is equal. That has passed every check beside the metadata of the other file, so only those of its own
    are left to be checked.
    """

    def __init__(self) -> None:
        self._alike: dict[tuple[bytes, int], Facts] = {}

    def read(self, found: Found) -> Facts:
        """What a model is; never fails."""
        try:
            reader = next(reader for reader in READERS if reader.accepts(found.path))
            if isinstance(reader, SafetensorsFile):
                return self._single(look(found.path, found.inside))
            checkpoint = reader.open(found.path, found.inside, None)
            return replace(
                facts_of(checkpoint.label, checkpoint.format, checkpoint.specs),
                format=_format(checkpoint),
                nbytes=checkpoint.nbytes,
                files=tuple(map(checkpoint.inside, checkpoint.files)),
            )
        except RunnerError as error:
            return Facts(BROKEN, problem=error.message.partition("\n")[0])
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle
            return Facts(BROKEN, problem=getattr(error, "strerror", None) or str(error))

    def _single(self, file: InputFile) -> Facts:
        header = header_text(file)
        metadata = _METADATA.match(header)
        table = header[metadata.end() if metadata else 0 :].rstrip(b" ")
        key = hashlib.sha256(table).digest(), file.identity.size - len(header)
        alike = self._alike.get(key)
        if alike is not None and (metadata is None or _is_sound(metadata[1])):
            return replace(alike, nbytes=file.identity.size)
        specs = {name: spec for name, (_, spec) in parse_header(file, header)[0].items()}
        facts = facts_of(file.label, "checkpoint", specs)
        facts = replace(facts, format="safetensors", nbytes=file.identity.size, files=("",))
        if facts.problem is None:  # it names the file
            self._alike[key] = facts
        return facts


def _is_sound(metadata: bytes) -> bool:
    """Whether the metadata of a header pass its checks. If not, the whole header says why."""
    try:
        parse_object(metadata, "")
    except InputError:
        return False
    return True


def facts_of(label: str, layout: str, specs: Mapping[str, TensorSpec]) -> Facts:
    """What a model is by its tensors.

    Args:
        label: names the model in a problem.
        layout: "checkpoint" or "diffusers".
        specs: of its tensors.
    """
    architecture = detect(layout, specs)
    names: tuple[str, ...] = ()
    what: str | None = None
    if architecture is not None:
        kind = _kind(architecture, layout, specs)
        names, what = (architecture.name,), variant(architecture, layout, specs)
    elif detect_lora(specs) is not None:
        kind, names = "lora", likely_architectures(specs)[:1]
    elif layout == "checkpoint" and (alone := main_alone(specs)):
        kind, names, what = alone[0].main, (alone[0].name,), alone[1]
    else:
        kind = _kind(None, layout, specs)
    sizes: Counter[str] = Counter()
    for spec, count in Counter(specs.values()).items():
        sizes[spec.dtype] += spec.nbytes * count
    dtypes = tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))
    problem = None
    try:
        if kind != "lora":
            quantised(label, specs)
    except RunnerError as error:
        problem = error.message
    return Facts(kind, names[0] if names else None, what, dtypes=dtypes, problem=problem)


def _kind(architecture: Architecture | None, layout: str, specs: Mapping[str, TensorSpec]) -> str:
    if layout == "diffusers":
        return "folder"
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

"""What is published where, as plain data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHECKPOINT, LORA, DENOISER, VAE, TEXT_ENCODER = "checkpoint", "LoRA", "denoiser", "VAE", "text encoder"
PIPELINE = "diffusers folder"
TARGETS = A1111, COMFYUI, FOLDER, INVOKEAI, HUB = "a1111", "comfyui", "folder", "invokeai", "hub"
PUBLISHED, LINKED, COPIED = "published", "linked", "copied"
THERE, DRY_RUN, FAILED = "there already", "dry run", "failed"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a finished model goes.

    Attributes:
        name: one of TARGETS.
        root: of a program's folder, or the folder; None: not said.
        link: whether files are hard-linked where that is possible.
        overwrite: whether another model of that name is replaced.
        dry_run: whether nothing is done but to look.
        url: where InvokeAI answers.
        patience: seconds InvokeAI may take.
        repository: ORG/NAME of the hub; None: not said.
        private: whether a repository that is made is.
    """

    name: str
    root: Path | None = None
    link: bool = True
    overwrite: bool = False
    dry_run: bool = False
    url: str = ""
    patience: int = 0
    repository: str | None = None
    private: bool = True


@dataclass(frozen=True, slots=True)
class Model:
    """A finished model, or one that will be.

    Attributes:
        path: of its file or folder.
        kind: what programs take it for, such as CHECKPOINT; PIPELINE is a folder, all others are files.
        files: name inside the folder → SHA-256; "" is the name if the model is a file. Empty before a merge.
        card: its README.md, of a file; part of a folder.
        blake3: name of a weight file, as in files → BLAKE3.
        prediction: "epsilon" or "v_prediction", of what denoises; None: neither, or it is not known.
    """

    path: Path
    kind: str
    files: Mapping[str, str]
    card: Path | None = None
    blake3: Mapping[str, str] = field(default_factory=dict)
    prediction: str | None = None

    @property
    def folder(self) -> bool:
        """Whether it is a folder."""
        return self.kind == PIPELINE

    def file(self, name: str) -> Path:
        """Where one of its files lies."""
        return self.path / name if self.folder else self.path


@dataclass(frozen=True, slots=True)
class Publication:
    """What came of it.

    Attributes:
        target: its name.
        place: below the root of a program, at an address, or in the hub.
        result: one word of those above.
        seconds: it took.
        error: why it failed.
    """

    target: str
    place: str
    result: str
    seconds: float
    error: str | None = None


def kind_of(output_format: str, components: Collection[str]) -> str:
    """What a model is for the programs that load it.

    Args:
        output_format: diffusers, checkpoint or lora.
        components: that have tensors in it.
    """
    if output_format == "diffusers":
        return PIPELINE
    if output_format == "lora":
        return LORA
    names = set(components)
    if names == {"vae"}:
        return VAE
    if names and names <= {"unet", "transformer"}:
        return DENOISER
    if names and all(name.startswith("text_encoder") for name in names):
        return TEXT_ENCODER
    return CHECKPOINT

"""Where programs look for models of a kind.

Source: A1111's modules/paths_internal.py and modules/shared_cmd_options.py, Forge's modules/sd_vae.py;
ComfyUI's folder_paths.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.errors import UsageError, quote
from runner.library.comfyui import folder_of_kinds
from runner.publish.target import (
    A1111,
    CHECKPOINT,
    COMFYUI,
    DENOISER,
    FOLDER,
    LORA,
    PIPELINE,
    TEXT_ENCODER,
    VAE,
    Model,
    Target,
)

_A1111 = {
    CHECKPOINT: "Stable-diffusion",
    DENOISER: "Stable-diffusion",
    LORA: "Lora",
    VAE: "VAE",
    TEXT_ENCODER: "text_encoder",
}
# The newer name of a kind first.
_COMFYUI = {
    CHECKPOINT: ("checkpoints",),
    DENOISER: ("diffusion_models", "unet"),
    LORA: ("loras",),
    VAE: ("vae",),
    TEXT_ENCODER: ("text_encoders", "clip"),
}
_TITLES = {A1111: "A1111", COMFYUI: "ComfyUI"}


def place_of(target: Target, model: Model) -> Path:
    """The path a model gets in a program's folder, or in a plain one.

    Raises:
        UsageError: the root is not said, no such program's, or the program cannot load such a model.
    """
    if target.root is None:
        raise UsageError("publish.root=FOLDER is missing", hint=f"publish={target.name} publish.root=FOLDER")
    title = _TITLES.get(target.name)
    if title and model.kind == PIPELINE:
        raise UsageError(
            f"publish={target.name}: {title} loads single files, and the result is a folder",
            hint="recipe.output.format=checkpoint writes a single file",
        )
    if not target.root.exists():
        raise UsageError(f"publish.root: {quote(target.root)}: no such folder")
    folder = _FOLDERS[target.name](target.root, model.kind)
    if not folder.is_dir():
        raise UsageError(f"publish.root: {quote(folder)}: no such folder", hint=f"make it: mkdir -p {folder}")
    return folder / model.path.name


def _a1111(root: Path, kind: str) -> Path:
    if not (root / "models" / "Stable-diffusion").is_dir():
        raise UsageError(f"publish.root: {quote(root)} has no models/Stable-diffusion")
    return root / "models" / _A1111[kind]


def _comfyui(root: Path, kind: str) -> Path:
    folder = folder_of_kinds(root, _COMFYUI[kind])
    if folder is None:
        kinds = " or ".join(_COMFYUI[kind])
        raise UsageError(
            f"publish.root: {quote(root)}: no folder for {kinds}",
            hint="give ComfyUI's own folder, or the path of its extra_model_paths.yaml",
        )
    return folder


def _plain(root: Path, kind: str) -> Path:
    return root


_FOLDERS: dict[str, Callable[[Path, str], Path]] = {A1111: _a1111, COMFYUI: _comfyui, FOLDER: _plain}

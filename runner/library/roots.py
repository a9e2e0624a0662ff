"""Where models lie: folders of the user's, and the programs that keep models, known by what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.errors import InputError, escape
from runner.library.comfyui import EXTRA_PATHS, comfyui_folders, extra_folders
from runner.library.invokeai import invokeai_names, invokeai_places, is_invokeai

# Below the root of A1111's web UI and of Forge. Their other folders hold no models that are merged.
_A1111 = ("Stable-diffusion", "Lora", "LyCORIS", "VAE", "text_encoder")


@dataclass(frozen=True)
class Root:
    """A place that models are looked for in.

    Attributes:
        title: of the program whose folder it is; "folder" for any other, "hub" for a cache of the hub's.
        path: of the folder.
        folders: what is searched; inside it, or where its settings say.
        names: real path of a model → the name its program gives it.
        problems: what could not be read, a line each.
    """

    title: str
    path: Path
    folders: tuple[Path, ...]
    names: Mapping[Path, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def root_of(path: Path) -> Root:
    """A folder as a place for models; what it is is told by what is in it.

    Args:
        path: a folder of models, the root of A1111, Forge, ComfyUI or InvokeAI, a cache of the hub, or an
            extra_model_paths.yaml.
    """
    try:
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return Root("ComfyUI's paths", path, extra_folders(path))
        with os.scandir(path) as entries:
            inside = {entry.name for entry in entries}
        models = path / "models"
        if "models" in inside and (models / "Stable-diffusion").is_dir():
            return Root("A1111", path, tuple(models / name for name in _A1111))
        if EXTRA_PATHS in inside or (models / "checkpoints").is_dir():
            return _comfyui(path)
        if is_invokeai(path):
            return _invokeai(path)
    except InputError as error:
        return Root("ComfyUI's paths", path, (), problems=(error.message,))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Root("folder", path, (), problems=(f"{escape(str(path))}: {reason}",))
    if any(name.startswith("models--") for name in inside):
        return Root("hub", path, (path,))
    return Root("folder", path, (path,))


def _comfyui(path: Path) -> Root:
    """ComfyUI's root: its own folders, and those its settings name."""
    own, extra = comfyui_folders(path / "models"), path / EXTRA_PATHS
    try:
        more = extra_folders(extra) if extra.exists() else ()
    except InputError as error:
        return Root("ComfyUI", path, own, problems=(error.message,))
    return Root("ComfyUI", path, tuple(dict.fromkeys((*own, *more))))


def _invokeai(path: Path) -> Root:
    """InvokeAI's root: its folder of models, and models elsewhere that its database knows."""
    models = path / "models"
    try:
        database, models = invokeai_places(path)
        names = invokeai_names(database, models)
    except InputError as error:
        return Root("InvokeAI", path, (models,), problems=(error.message,))
    outside = (place for place in names if not place.is_relative_to(models.resolve()))
    return Root("InvokeAI", path, (models, *outside), names)


def roots_of(folders: Sequence[Path]) -> list[Root]:
    """Every folder as a place for models, each once."""
    return [root_of(path) for path in dict.fromkeys(folders)]

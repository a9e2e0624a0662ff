"""ComfyUI's folders, and those its extra_model_paths.yaml names.

Source: ComfyUI, folder_paths.py and utils/extra_config.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.library.programs import read_settings

EXTRA_PATHS = "extra_model_paths.yaml"
# Kinds of its folders, and the names of the folders; the other kinds are not merged.
_KINDS = ("checkpoints", "loras", "vae", "diffusion_models", "unet", "text_encoders", "clip", "diffusers")


def comfyui_folders(models: Path) -> tuple[Path, ...]:
    """Where ComfyUI keeps models by itself."""
    return tuple(folder for kind in _KINDS if (folder := models / kind).is_dir())


def folder_of_kinds(root: Path, kinds: Sequence[str]) -> Path | None:
    """The folder that models of a kind go to: the first there is, ComfyUI's own before others.

    Args:
        root: ComfyUI's folder, or an extra_model_paths.yaml.
        kinds: the names of the kind.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    alone = root.is_file()
    own = () if alone else tuple(root / "models" / kind for kind in kinds)
    extra = root if alone else root / EXTRA_PATHS
    more = extra_folders(extra, kinds) if extra.exists() else ()
    return next((folder for folder in (*own, *more) if folder.is_dir()), None)


def extra_folders(path: Path, kinds: Sequence[str] = _KINDS) -> tuple[Path, ...]:
    """The folders that an extra_model_paths.yaml names for kinds of models, those that are merged.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    tree = read_settings(path, "groups of folders")
    here = path.resolve().parent
    found = [
        folder for group in tree.values() if isinstance(group, Mapping) for folder in _of(group, here, kinds)
    ]
    return tuple(dict.fromkeys(found))


def _of(group: Mapping[str, Any], here: Path, kinds: Sequence[str]) -> Iterator[Path]:
    """The folders of one group: relative ones start at its base_path, or beside the file."""
    stated = group.get("base_path")
    base = here / _expanded(stated) if isinstance(stated, str) and stated.strip() else here
    for kind in kinds:
        value = group.get(kind)
        lines = value.splitlines() if isinstance(value, str) else value if isinstance(value, list) else ()
        for line in lines:
            if isinstance(line, str) and line.strip():
                yield base / _expanded(line)


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text.strip())))  # noqa: PTH111 - no error without a home

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
    """The folder that models of a kind go to: the first there is.

    Those of groups that are the default come before ComfyUI's own, the others after.

    Args:
        root: ComfyUI's folder, or an extra_model_paths.yaml.
        kinds: the names of the kind.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    alone = root.is_file()
    own = () if alone else tuple(root / "models" / kind for kind in kinds)
    extra = root if alone else root / EXTRA_PATHS
    before: list[Path] = []
    after: list[Path] = []
    for group in _groups(extra) if extra.exists() else ():
        (before if group.get("is_default") else after).extend(_of(group, extra, kinds))
    # ComfyUI puts each default one in front of all it has, so the last that it reads is the first.
    return next((folder for folder in (*reversed(before), *own, *after) if folder.is_dir()), None)


def extra_folders(path: Path) -> tuple[Path, ...]:
    """The folders that an extra_model_paths.yaml names for models that are merged.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    return tuple(dict.fromkeys(folder for group in _groups(path) for folder in _of(group, path, _KINDS)))


def _groups(path: Path) -> list[Mapping[str, Any]]:
    tree = read_settings(path, "groups of folders")
    return [group for group in tree.values() if isinstance(group, Mapping)]


def _of(group: Mapping[str, Any], path: Path, kinds: Sequence[str]) -> Iterator[Path]:
    """The folders of one group in its order: relative ones start at its base_path, or beside the file."""
    here, stated = path.resolve().parent, group.get("base_path")
    base = here / _expanded(stated) if isinstance(stated, str) and stated.strip() else here
    for kind, value in group.items():
        if kind not in kinds:
            continue
        lines = value.splitlines() if isinstance(value, str) else value if isinstance(value, list) else ()
        for line in lines:
            if isinstance(line, str) and line.strip():
                yield base / _expanded(line)


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text.strip())))  # noqa: PTH111 - no error without a home

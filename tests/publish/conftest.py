"""Finished runs to publish: one of a single file, one of a folder, each merged once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.build import write_models
from tests.runs import made


def mix(**models: str) -> dict[str, Any]:
    """A recipe for two models."""
    return {"method": "weighted_sum", "models": models, "alpha": 0.5}


@pytest.fixture(scope="session")
def _file_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("file")
    write_models(folder, a=1, b=2)
    made(folder, "run", mix(a="a.safetensors", b="b.safetensors"), cache_dir=cache)
    return folder / "run"


@pytest.fixture(scope="session")
def _folder_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    made(folder, "run", mix(a="demo:photo", b="demo:anime"), cache_dir=cache)
    return folder / "run"


@pytest.fixture
def file_run(_file_run: Path, tmp_path: Path) -> Path:
    """The folder of a run whose model is mix.safetensors."""
    return Path(shutil.copytree(_file_run, tmp_path / "file_run"))


@pytest.fixture
def folder_run(_folder_run: Path, tmp_path: Path) -> Path:
    """The folder of a run whose model is the folder mix."""
    return Path(shutil.copytree(_folder_run, tmp_path / "folder_run"))

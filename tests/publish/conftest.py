"""Finished runs to publish: one of a single file, one of a folder, each merged once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build import write_models


def merged(folder: Path, cache: Path, *arguments: str) -> Path:
    """The folder of a run that has merged."""
    command = [sys.executable, "-m", "runner", *arguments, f"hydra.run.dir={folder / 'run'}", "progress=off"]
    environment = {**os.environ, "RUNNER_CACHE": str(cache)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=300)
    return folder / "run"


@pytest.fixture(scope="session")
def _file_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("file")
    write_models(folder, a=1, b=2)
    models = [f"recipe.models.{role}={folder / role}.safetensors" for role in "ab"]
    return merged(folder, cache, "recipe=weighted_sum", *models, "recipe.output.name=mix")


@pytest.fixture(scope="session")
def _folder_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return merged(tmp_path_factory.mktemp("folder"), cache, "recipe=anime_mix")


@pytest.fixture
def file_run(_file_run: Path, tmp_path: Path) -> Path:
    """The folder of a run whose model is mix.safetensors."""
    return Path(shutil.copytree(_file_run, tmp_path / "file_run"))


@pytest.fixture
def folder_run(_folder_run: Path, tmp_path: Path) -> Path:
    """The folder of a run whose model is the folder anime_mix."""
    return Path(shutil.copytree(_folder_run, tmp_path / "folder_run"))

"""Finished runs to publish: one of a single file, one of a folder, each merged once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.compose import ComposedRecipe
from runner.config import Job, Settings
from runner.place import Devices
from runner.publish.target import Target
from runner.run import run
from tests.build import here, write_models


def settings(folder: Path, cache: Path, target: Target | None = None, job: str = "merge") -> Settings:
    """The default settings, with models in a folder."""
    return Settings(
        job=Job(job),
        placement=Devices(("cpu",), {}),
        models_dir=folder,
        output_dir=None,
        cache_dir=cache,
        memory=None,
        threads=1,
        tile_elements=262144,
        digests="fresh",
        verify=True,
        progress="off",
        hub="online",
        publish=target,
    )


def merged(name: str, tree: Mapping[str, Any], settings: Settings, folder: Path) -> Path:
    """The folder of a run that has merged."""
    folder.mkdir(parents=True)
    run(ComposedRecipe(name, tree, (), (), here), settings, folder)
    return folder


def mix(**models: str) -> dict[str, Any]:
    """A recipe for two models."""
    return {"method": "weighted_sum", "models": models, "alpha": 0.5}


@pytest.fixture(scope="session")
def _file_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("file")
    write_models(folder, a=1, b=2)
    recipe = mix(a="a.safetensors", b="b.safetensors")
    return merged("mix", recipe, settings(folder, cache), folder / "run")


@pytest.fixture(scope="session")
def _folder_run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    return merged("mix", mix(a="demo:photo", b="demo:anime"), settings(folder, cache), folder / "run")


@pytest.fixture
def file_run(_file_run: Path, tmp_path: Path) -> Path:
    """The folder of a run whose model is mix.safetensors."""
    return Path(shutil.copytree(_file_run, tmp_path / "file_run"))


@pytest.fixture
def folder_run(_folder_run: Path, tmp_path: Path) -> Path:
    """The folder of a run whose model is the folder mix."""
    return Path(shutil.copytree(_folder_run, tmp_path / "folder_run"))

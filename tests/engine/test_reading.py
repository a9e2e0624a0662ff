"""Open models: what is open already is closed where one of the files cannot be opened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runner.demo.models import demo_model
from runner.engine.reading import Inputs
from runner.errors import InputError
from tests.build import planned, write_models


def open_files() -> set[str]:
    return {one.name for one in Path("/dev/fd").iterdir()}


def test_a_second_model_that_is_gone_leaves_no_file_of_the_first_one_open(tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2)
    models = {"a": "a.safetensors", "b": "b.safetensors"}
    plan = planned({"method": "weighted_sum", "models": models, "alpha": 0.3}, tmp_path)
    (tmp_path / "b.safetensors").unlink()
    before = open_files()
    with pytest.raises(InputError, match="no such file"):
        Inputs(plan)
    assert open_files() == before


def test_a_second_file_of_a_model_that_is_gone_leaves_the_first_one_closed(
    tmp_path: Path, cache: Path
) -> None:
    shutil.copytree(demo_model("photo", cache), tmp_path / "photo")
    plan = planned({"method": "copy", "models": {"a": "photo"}}, tmp_path)
    next((tmp_path / "photo" / "vae").glob("*.safetensors")).unlink()
    before = open_files()
    with pytest.raises(InputError, match="no such file"):
        Inputs(plan)
    assert open_files() == before

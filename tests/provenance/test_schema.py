"""run.json is what its schema says, and nothing else, whatever became of the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import save_file

import runner
from runner.config import Job
from runner.errors import RunnerError
from tests.build import write_models
from tests.runs import made, record, tree

SCHEMA = json.loads((Path(runner.__file__).parent / "schemas" / "run.json").read_text())
SINGLE = ("a.safetensors", "b.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema")
    write_models(path, a=1, b=2)
    return path


def recorded(folder: Path, name: str, recipe_tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """run.json of a run, whether or not it succeeds."""
    with suppress(RunnerError):
        made(folder, name, recipe_tree, **changes)
    return record(folder / name)


def complaints(content: Any) -> list[str]:
    return [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(content)
    ]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def objects(schema: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object in a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield where, schema
        for name, part in schema.items():
            yield from objects(part, f"{where}/{name}")
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from objects(part, f"{where}/{number}")


def test_every_object_in_it_says_what_may_be_there() -> None:
    found = dict(objects(SCHEMA))
    assert len(found) > 20
    assert [
        where for where, schema in found.items() if schema.get("additionalProperties") in (None, True)
    ] == []


MERGES = {
    "a single file": (tree(), {}),
    "a folder": (
        tree(models={"a": "demo:photo", "b": tree(models={"a": "demo:anime", "b": "demo:base"})}),
        {},
    ),
    "a folder as one file": (
        tree(
            models={"a": "demo:photo", "b": "demo:anime"}, output={"format": "checkpoint", "dtype": "float16"}
        ),
        {"verify": False},
    ),
    "a LoRA": (
        {
            "method": "extract_lora",
            "models": {"base": "demo:base", "model": "demo:anime"},
            "rank": 2,
            "output": {"format": "lora"},
        },
        {},
    ),
    "numbers by place and for each model, a seed": (
        {
            "method": "dare_ties",
            "models": {"base": "demo:base", "x": "demo:anime", "y": "demo:photo"},
            "weight": {"x": 0.5, "y": {"default": 0.3, "vae": 0}},
            "seed": 7,
            "author": "me",
        },
        {},
    ),
    "components, policies": (
        tree(
            models={"a": "demo:photo", "b": "demo:anime"},
            components={"vae": "demo:base"},
            force=True,
            nonfinite=["*"],
        ),
        {},
    ),
    "a plan": (tree(), {"job": Job("plan", "summary")}),
}


@pytest.mark.parametrize("name", MERGES)
def test_what_a_run_records_is_what_the_schema_says(name: str, folder: Path, cache: Path) -> None:
    recipe_tree, changes = MERGES[name]
    content = recorded(folder, name, recipe_tree, cache_dir=cache, **changes)
    assert content["run"]["error"] is None
    assert complaints(content) == []


FAILURES = {
    "in the recipe": tree(alhpa=1),
    "in the models": tree(models={"a": "a.safetensors", "b": "other.safetensors"}),
    "while computing": tree(models=dict.fromkeys("ab", "nan.safetensors")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_a_failed_run_records_is_too(name: str, folder: Path) -> None:
    save_file({"other": torch.ones(1)}, folder / "other.safetensors")
    save_file({"x": torch.tensor([float("nan")])}, folder / "nan.safetensors")
    content = recorded(folder, name, FAILURES[name])
    assert content["run"]["error"]["exit_code"] > 0
    assert complaints(content) == []


def test_what_is_not_in_the_schema_is_found(folder: Path) -> None:
    content = recorded(folder, "one more", tree())
    for part in (
        content,
        content["run"],
        content["deterministic"],
        content["deterministic"]["output"]["files"][0],
    ):
        part["more"] = 1
        assert len(complaints(content)) == 1
        del part["more"]


def test_a_record_without_the_names_of_files_is_as_the_schema_says(folder: Path) -> None:
    content = recorded(folder, "hidden", tree(output={"name": "mix", "hide_names": True}))
    assert not complaints(content)
    assert [one["source"] for one in content["deterministic"]["inputs"]] == ["input-1", "input-2"]

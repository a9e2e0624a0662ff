"""The statement beside a record has what in-toto and SLSA ask of one, and says what is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from runner.compose import ComposedRecipe
from runner.recipe.guard import RecipeFile
from runner.run import run
from tests.build import digest, here, write_models
from tests.runs import made, record, settings, tree


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path, a=1, b=2)
    return tmp_path


def statement(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.intoto.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_it_has_the_required_fields_and_only_those_that_are_specified(models: Path) -> None:
    made(models, "one", tree())
    found = statement(models / "one")
    assert list(found) == ["_type", "subject", "predicateType", "predicate"]
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    build, details = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert set(found["predicate"]) == {"buildDefinition", "runDetails"}
    assert set(build) == {"buildType", "externalParameters", "resolvedDependencies"}
    assert set(details) == {"builder", "metadata", "byproducts"}
    assert set(details["metadata"]) == {"invocationId", "startedOn", "finishedOn"}
    for name in (build["buildType"], details["builder"]["id"]):
        assert re.fullmatch(r"urn:[a-z0-9][a-z0-9-]{1,30}:\S+", name)  # RFC 8141
    for time in ("startedOn", "finishedOn"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", details["metadata"][time])
    described = [*found["subject"], *build["resolvedDependencies"], *details["byproducts"]]
    for one in described:
        assert one.keys() <= {"name", "digest", "annotations"} and one["name"]
        ((algorithm, value),) = one["digest"].items()
        assert algorithm in ("sha256", "dirHash") and re.fullmatch("[0-9a-f]{64}", value)


def test_a_recipe_that_was_given_by_path_is_named_without_its_folder(models: Path) -> None:
    file = RecipeFile(str(models / "mine.yaml"), str(models / "mine.yaml"), "0" * 64)
    (models / "one").mkdir()
    composed = ComposedRecipe("mix", tree(), (file,), (), here)
    run(composed, settings(models), models / "one")
    build = statement(models / "one")["predicate"]["buildDefinition"]
    assert build["resolvedDependencies"][-1] == {"name": "recipe:mine.yaml", "digest": {"sha256": "0" * 64}}


def test_it_names_the_output_the_inputs_and_the_record_by_their_digests(models: Path) -> None:
    folder = models / "one"
    made(models, "one", tree())
    found = statement(folder)
    output = folder / "mix.safetensors"
    assert found["subject"] == [{"name": "mix.safetensors", "digest": {"sha256": digest(output)}}]
    build = found["predicate"]["buildDefinition"]
    assert build["resolvedDependencies"] == [
        {
            "name": f"model:{role}",
            "digest": {"sha256": digest(models / f"{role}.safetensors")},
            "annotations": {"source": f"{role}.safetensors", "roles": [role]},
        }
        for role in "ab"
    ]
    assert build["externalParameters"] == {"recipe": record(folder)["deterministic"]["recipe"]}
    details = found["predicate"]["runDetails"]
    assert details["byproducts"] == [
        {"name": name, "digest": {"sha256": digest(folder / name)}}
        for name in ("mix.safetensors.tensors.json", "run.json")
    ]
    assert details["metadata"]["invocationId"] == record(folder)["run"]["id"]


def test_every_file_of_a_folder_is_a_subject_and_every_weight_file_of_a_model_is_named(models: Path) -> None:
    made(models, "one", tree(models={"a": "demo:base", "b": "demo:photo"}))
    found, folder = statement(models / "one"), models / "one"
    files = sorted(path for path in (folder / "mix").rglob("*") if path.is_file())
    assert {one["name"]: one["digest"]["sha256"] for one in found["subject"]} == {
        path.relative_to(folder).as_posix(): digest(path) for path in files
    }
    named = {
        one["name"]: one["digest"] for one in found["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    assert set(named["model:a"]) == {"dirHash"}
    assert set(named["model:a/unet/diffusion_pytorch_model.safetensors"]) == {"sha256"}


def test_what_was_made_of_what_is_the_same_for_equal_runs(models: Path) -> None:
    found = []
    for name in ("one", "two"):
        made(models, name, tree())
        one = statement(models / name)
        found.append((one["subject"], one["predicate"]["buildDefinition"]))
    assert found[0] == found[1]
    assert str(models) not in json.dumps(found)


def test_the_card_of_a_single_file_stands_beside_the_record(models: Path) -> None:
    made(models, "one", tree())
    text = (models / "one" / "README.md").read_text()
    assert digest(models / "a.safetensors") in text and "library_name" not in text
    made(models, "two", tree(models={"a": "demo:base", "b": "demo:photo"}))
    assert not (models / "two" / "README.md").exists()
    assert (models / "two" / "mix" / "README.md").exists()

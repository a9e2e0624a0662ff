"""run.json and the header: equal for equal merges, and free of what is only this machine's."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runner.compose import ComposedRecipe
from runner.errors import IncompatibleError, MismatchError, NumericError, RecipeError, RunnerError
from runner.methods import METHODS
from runner.provenance.record import RunRecord, relative
from runner.recipe.canonical import canonical_json, canonical_recipe, recipe_digest
from runner.recipe.guard import RecipeFile
from runner.recipe.parse import parse_recipe
from runner.run import run
from tests.build import here, metadata_of, write_models
from tests.faults.disk import DiedError, Disk
from tests.runs import made, recipe, record, settings, tree


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path, a=1, b=2)
    return tmp_path


def merged(models: Path, name: str, recipe_tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made(models, name, recipe_tree, **changes)
    return record(models / name)


def test_a_run_that_dies_leaves_no_record_of_another_model_beside_its_own(models: Path) -> None:
    folder = models / "run"
    folder.mkdir()
    again = settings(models, rerun=True)
    run(recipe(tree()), again, folder)
    with Disk("death", 10_000).in_place() as undisturbed:
        run(recipe(tree(alpha=0.4)), again, folder)
    undisturbed.forget()
    for back in range(1, 12):  # from the last call on
        run(recipe(tree()), again, folder)
        with Disk("death", undisturbed.count - back).in_place() as disk, suppress(DiedError):
            run(recipe(tree(alpha=0.4)), again, folder)
        disk.forget()
        assert disk.name
        if (folder / "run.json").exists():
            found = hashlib.sha256((folder / "mix.safetensors").read_bytes()).hexdigest()
            assert record(folder)["deterministic"]["output"]["sha256"] == found


def test_the_deterministic_part_is_equal_for_equal_merges(models: Path) -> None:
    first = merged(models, "one", tree(), threads=1)
    second = merged(
        models, "two", tree(models={r: str(models / f"{r}.safetensors") for r in "ab"}), threads=3
    )
    assert canonical_json(first["deterministic"]) == canonical_json(second["deterministic"])
    assert first["run"]["id"] != second["run"]["id"]


def test_no_folder_is_in_the_record_or_the_header(models: Path) -> None:
    merged(models, "one", tree(models={r: str(models / f"{r}.safetensors") for r in "ab"}))
    text = (models / "one" / "run.json").read_text()
    assert str(models) not in text
    metadata = metadata_of(models / "one" / "mix.safetensors")
    assert str(models) not in json.dumps(metadata)
    assert json.loads(metadata["runner.recipe"])["models"][0] == {"role": "a", "source": "a.safetensors"}
    assert metadata["format"] == "pt" and metadata["runner.method"] == "weighted_sum@1"


def test_the_header_is_equal_for_equal_merges_and_tells_no_time(models: Path) -> None:
    headers = []
    for name, threads in (("one", 1), ("two", 2)):
        merged(models, name, tree(), threads=threads)
        headers.append(metadata_of(models / name / "mix.safetensors"))
    assert headers[0] == headers[1]
    assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d|/", " ".join(headers[0].values()))
    assert headers[0]["runner.recipe_sha256"] == recipe_digest(parse_recipe("mix", tree(), here))


def test_the_output_of_a_pipeline_tells_no_folder_either(models: Path) -> None:
    recipe_tree = tree(models={"a": "demo:photo", "b": tree(models={"a": "demo:anime", "b": "demo:base"})})
    content = merged(models, "one", recipe_tree)
    for path in (models / "one").rglob("*"):
        if path.is_file():
            assert str(models).encode() not in path.read_bytes(), path
    names = [file["name"] for file in content["deterministic"]["output"]["files"]]
    assert "unet/diffusion_pytorch_model.safetensors" in names and not any(n.startswith("/") for n in names)
    assert [entry["roles"] for entry in content["deterministic"]["inputs"]] == [["a"], ["b.a"], ["b.b"]]


def test_reasons_name_models_without_their_folders(models: Path, tmp_path: Path) -> None:
    records = []
    for name in ("here", "there"):
        folder = tmp_path / name / "deep"
        folder.mkdir(parents=True)
        save_file({"x": torch.ones(2), "y": torch.ones(1)}, folder / "a.safetensors")
        save_file({"x": torch.zeros(2), "z": torch.ones(1)}, folder / "b.safetensors")
        sources = {role: str(folder / f"{role}.safetensors") for role in "ab"}
        records.append(merged(models, name + "-run", tree(models=sources, missing="keep", extra="drop")))
    first, second = (canonical_json(one["deterministic"]) for one in records)
    assert first == second and str(tmp_path) not in first
    assert records[0]["deterministic"]["deviations"] == {"missing in b.safetensors: kept": ["y"]}
    assert list(records[0]["deterministic"]["dropped"].values()) == [["z"]]


def test_nothing_in_the_record_is_an_absolute_path_even_if_the_run_fails(models: Path) -> None:
    overrides = (
        f"output_dir={models}/out",
        f"recipe.models.a='{models}/a.safetensors'",
        "hf_token=hf_" + "x" * 20,
        f"key={models}/hf_{'x' * 20}",
    )
    file = RecipeFile(str(models / "mine.yaml"), str(models / "mine.yaml"), "0" * 64)
    for name, recipe_tree, changes in (
        ("done", tree(models={r: str(models / f"{r}.safetensors") for r in "ab"}), {}),
        ("failed", tree(models={r: str(models / "missing" / r) for r in "ab"}), {}),
        ("refused", tree(), {"output_dir": models / "nowhere"}),
    ):
        folder = models / name
        folder.mkdir()
        composed = ComposedRecipe("mine", recipe_tree, (file,), overrides, here)
        with suppress(RunnerError):
            run(composed, settings(models, **changes), folder)
        text = (folder / "run.json").read_text()
        assert str(models) not in text and str(Path.home()) + "/" not in text and "x" * 20 not in text
        assert not re.search(r'[" =]/\w', text), text
        content = json.loads(text)
        assert (content["run"]["error"] is None) == (name == "done")
        if "recipe_files" in content["deterministic"]:
            assert content["deterministic"]["recipe_files"][0]["name"] == "mine.yaml"


def test_every_deviation_is_listed_with_its_tensors(models: Path) -> None:
    for name, step in (("a", 1.0), ("b", 2.0)):
        tensors = {
            "parallel": torch.tensor([step, 2 * step]),
            "odd": torch.tensor([float("nan"), step]),
            "ids": torch.arange(3),
            "model_ema.x": torch.ones(1),
        }
        save_file(tensors, models / f"{name}.safetensors")
    found = merged(models, "one", tree(method="slerp", nonfinite=["odd"]))["deterministic"]
    assert found["deviations"]["NaN and Inf let pass if there are any"] == ["odd"]
    assert found["deviations"]["integers, not merged"] == ["ids"]
    assert found["deviations"]["zero, parallel or opposite vectors: weighted sum"] == ["odd", "parallel"]
    assert found["dropped"] == {"left out: running means of the weights (EMA)": ["model_ema.x"]}


def test_of_every_merge_all_numbers_are_recorded_also_those_the_recipe_does_not_mention(models: Path) -> None:
    inner = tree(method="dare_ties", models={"base": "a.safetensors", "x": "b.safetensors"}, seed=3)
    del inner["alpha"]
    alpha = {"default": 0.3, "vae": 0.5}
    outer = tree(models={"a": "a.safetensors", "b": inner}, alpha=alpha)
    first, second = merged(models, "one", outer)["deterministic"]["methods"]
    assert (first["at"], first["method"], first["class"]) == ("", "weighted_sum@1", "exact")
    assert first["parameters"] == {"alpha": {"default": 0.3, "least": 0.3, "most": 0.5}}
    assert (second["at"], second["class"], second["seed"]) == ("b", "exact", 3)
    assert second["parameters"].keys() == METHODS["dare_ties", None].parameters.keys()


def strictly(folder: Path) -> Any:
    """run.json as another program reads it: NaN and Infinity are no JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in run.json")

    return json.loads((folder / "run.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("a", "b", "changes"),
    [
        pytest.param(1.0, 2.0, {}, id="plain"),
        pytest.param(*(0.0, 1.0, {}), id="zeros"),
        pytest.param(*(1e30, 2e30, {}), id="large"),
        pytest.param(*(float("nan"), 1.0, {"nonfinite": ["*"]}), id="allowed NaN"),
    ],
)
def test_run_json_is_json_whatever_the_models_hold(
    a: float, b: float, changes: dict[str, Any], models: Path
) -> None:
    for name, value in (("a", a), ("b", b)):
        save_file({"x": torch.tensor([value, value])}, models / f"{name}.safetensors")
    merged(models, "one", tree(**changes))
    assert "other" in strictly(models / "one")["run"]["moved"]


def test_the_record_says_what_was_read_written_and_moved(models: Path) -> None:
    content = merged(models, "one", tree())
    deterministic, ran = content["deterministic"], content["run"]
    assert [entry["roles"] for entry in deterministic["inputs"]] == [["a"], ["b"]]
    assert all(len(entry["sha256"]) == 64 for entry in deterministic["inputs"])
    assert deterministic["output"]["name"] == "mix.safetensors"
    assert deterministic["keys"] == {"buffer": 1, "merged": 8}
    assert set(ran["moved"]) == {"text_encoder", "model", "vae"}
    assert {"resolve", "plan", "execute", "sync", "verify", "publish", "total"} <= set(ran["seconds"])
    assert ran["peak_memory_bytes"] > 0 and ran["overrides"] == ["recipe.alpha=0.3"]


def test_a_failure_is_recorded_with_its_stage_and_code(models: Path) -> None:
    for name, bad, error, stage in (
        ("one", tree(alhpa=1), RecipeError, "resolve"),
        ("two", tree(models={"a": "a.safetensors", "b": "demo.safetensors"}), IncompatibleError, "plan"),
    ):
        if stage == "plan":
            save_file({"other": torch.ones(1)}, models / "demo.safetensors")
        with pytest.raises(error):
            merged(models, name, bad)
        found = record(models / name)["run"]["error"]
        assert (found["stage"], found["exit_code"]) == (stage, error.exit_code)


def test_a_failure_while_numbers_are_computed_is_recorded_with_what_was_known(models: Path) -> None:
    save_file({"x": torch.tensor([float("nan")])}, models / "a.safetensors")
    save_file({"x": torch.tensor([1.0])}, models / "b.safetensors")
    with pytest.raises(NumericError):
        merged(models, "one", tree())
    content = strictly(models / "one")
    error = content["run"]["error"]
    assert (error["stage"], error["exit_code"]) == ("execute", 6) and "NaN or Inf" in error["message"]
    assert content["deterministic"]["keys"] == {"merged": 1} and "output" not in content["deterministic"]
    assert [path.name for path in (models / "one").iterdir()] == ["run.json"]


def test_an_interruption_is_recorded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("runner.build.place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merged(models, "one", tree())
    error = record(models / "one")["run"]["error"]
    assert error == {"stage": "plan", "exit_code": 130, "message": "interrupted"}


def test_a_log_that_goes_nowhere_as_well_does_not_spoil_the_record(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("said")
    with suppress(OSError), Path("/dev/full").open("w") as full:  # it cannot be closed either
        full.write("what did not fit")
        handler = logging.StreamHandler(full)
        logging.getLogger().addHandler(handler)
        try:
            text = RunRecord((), (), tmp_path / "run.log").text()
        finally:
            logging.getLogger().removeHandler(handler)
    assert json.loads(text)["run"]["log"]["bytes"] == 4


def test_a_source_that_is_not_the_one_of_the_recipe_is_refused(models: Path) -> None:
    content = merged(models, "one", tree())
    right = content["deterministic"]["inputs"][0]["sha256"]
    source = {"source": "a.safetensors", "sha256": right}
    merged(models, "two", tree(models={"a": source, "b": "b.safetensors"}))
    wrong = {"source": "a.safetensors", "sha256": "0" * 64}
    with pytest.raises(MismatchError, match=right):
        merged(models, "three", tree(models={"a": wrong, "b": "b.safetensors"}))
    assert not (models / "three" / "mix.safetensors").exists()


def test_a_result_that_did_not_move_is_a_warning(models: Path) -> None:
    warnings = merged(models, "one", tree(models=dict.fromkeys("ab", "a.safetensors")))["run"]["warnings"]
    assert any("nothing moved" in warning for warning in warnings)


def test_what_does_not_change_the_merge_does_not_change_the_recipes_digest() -> None:
    one, two = (
        parse_recipe("mix", tree(models={"a": f"{folder}/a.safetensors", "b": "b"}), here)
        for folder in ("x", "/y/z")
    )
    assert recipe_digest(one) == recipe_digest(two)
    assert recipe_digest(one) != recipe_digest(parse_recipe("mix", tree(alpha=0.4), here))
    assert "policies" not in canonical_recipe(one)


def test_the_canonical_recipe_has_names_and_no_folders() -> None:
    inner = tree(models={"a": "../deep/er/x.safetensors", "b": {"source": "~/y", "variant": "fp16"}}, seed=7)
    models_of = {"a": "/abs/olute/a.safetensors", "b": inner}
    parsed = parse_recipe("mix", tree(models=models_of, output={"dtype": "float16"}, author="me"), here)
    inner_models = [
        {"role": "a", "source": "x.safetensors"},
        {"role": "b", "source": "y", "variant": "fp16"},
    ]
    assert canonical_recipe(parsed) == {
        "method": "weighted_sum",
        "models": [
            {"role": "a", "source": "a.safetensors"},
            {"role": "b", "method": "weighted_sum", "models": inner_models, "alpha": 0.3, "seed": 7},
        ],
        "alpha": 0.3,
        "compute_dtype": "float32",
        "output": {"name": "mix", "dtype": {"default": "float16"}},
        "author": "me",
    }


def test_distances_are_relative_to_the_first_model() -> None:
    assert relative(4.0, 16.0) == 0.5
    assert relative(0.0, 0.0) == 0.0
    assert relative(1.0, 0.0) is None

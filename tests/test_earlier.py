"""What is done already is not done again; and only if nothing that decides a byte is different."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.compose import ComposedRecipe
from runner.demo.models import demo_model
from runner.errors import MismatchError, UsageError
from runner.recipe.guard import RecipeFile
from runner.run import Outcome, run
from tests.build import flip, here, write_models
from tests.runs import settings, tree

NAME = "mix.safetensors"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path, a=1, b=2)
    return tmp_path


def again(models: Path, number: int, recipe: dict[str, Any] | None = None, **changes: Any) -> Outcome:
    """A run in a folder such as a command makes under runs/."""
    folder = models / "runs" / "mix" / f"2026-01-01_00-00-{number:02}_abcdef"
    folder.mkdir(parents=True)
    file = RecipeFile("mix", "mix.yaml", f"{number:064}")  # another text each time, as with another comment
    composed = ComposedRecipe("mix", recipe or tree(), (file,), (), here)
    return run(composed, settings(models, **{"digests": "remember", **changes}), folder)


def test_the_same_merge_is_not_done_twice_and_says_where_the_model_is(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = again(models, 1)
    capsys.readouterr()
    second = again(models, 2)
    assert not first.earlier and second.earlier and second.path == first.path
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(first.path) and "there already" in said[2] and "rerun=true" in said[2]
    assert not any((models / "runs" / "mix" / "2026-01-01_00-00-02_abcdef").iterdir())
    assert second.summary() == {**first.summary(), "earlier": True}


def test_the_newest_of_several_is_taken_and_rerun_merges_again(models: Path) -> None:
    first = again(models, 1)
    second = again(models, 2, rerun=True)
    assert not second.earlier and second.path != first.path
    assert again(models, 3).path == second.path


def changed_numbers(models: Path) -> dict[str, Any]:
    return {"recipe": tree(alpha=0.4)}


def changed_text(models: Path) -> dict[str, Any]:
    return {"recipe": tree(description="another header")}


def another_input(models: Path) -> dict[str, Any]:
    """Of the same size and the same time of change."""
    path = models / "b.safetensors"
    before = path.stat()
    flip(path, -1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    return {}


def damaged_model(models: Path) -> dict[str, Any]:
    (path,) = models.glob(f"runs/mix/*/{NAME}")
    flip(path, -1)
    return {}


def another_model_of_the_name(models: Path) -> dict[str, Any]:
    (path,) = models.glob(f"runs/mix/*/{NAME}")
    other = again(models, 8, tree(alpha=0.4)).path
    assert other is not None
    shutil.move(other, path)
    return {}


def missing_model(models: Path) -> dict[str, Any]:
    (path,) = models.glob(f"runs/mix/*/{NAME}")
    path.unlink()
    return {}


def linked_model(models: Path) -> dict[str, Any]:
    (path,) = models.glob(f"runs/mix/*/{NAME}")
    path.rename(models / "elsewhere")
    path.symlink_to(models / "elsewhere")
    return {}


def missing_sidecar(models: Path) -> dict[str, Any]:
    (path,) = models.glob(f"runs/mix/*/{NAME}.tensors.json")
    path.unlink()
    return {}


def record_of(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], dict[str, Any]]:
    def changed(models: Path) -> dict[str, Any]:
        (path,) = models.glob("runs/mix/*/run.json")
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return {}

    return changed


@pytest.mark.parametrize(
    "change",
    [
        changed_numbers,
        changed_text,
        another_input,
        damaged_model,
        another_model_of_the_name,
        missing_model,
        linked_model,
        missing_sidecar,
        pytest.param(record_of(lambda run: run.update(schema=1)), id="record_of_another_schema"),
        pytest.param(record_of(lambda run: run["run"]["code"].update(runner_sha256="0" * 64)), id="code"),
        pytest.param(record_of(lambda run: run["run"].update(error={"exit_code": 7})), id="failed_run"),
        pytest.param(record_of(lambda run: run["deterministic"].pop("output")), id="unfinished_run"),
        pytest.param(
            record_of(lambda run: run["deterministic"]["methods"][0].update(method="weighted_sum@0")),
            id="version_of_the_method",
        ),
        pytest.param(record_of(lambda run: run.update(run=[])), id="no_record_of_ours"),
    ],
)
def test_a_difference_in_anything_that_counts_merges_again(
    models: Path, change: Callable[[Path], dict[str, Any]]
) -> None:
    assert not again(models, 1).earlier
    outcome = again(models, 2, **change(models))
    assert not outcome.earlier
    assert outcome.path == models / "runs" / "mix" / "2026-01-01_00-00-02_abcdef" / NAME


def test_the_settings_that_decide_no_byte_do_not_count(models: Path) -> None:
    first = again(models, 1)
    assert again(models, 2, threads=3, digests="fresh", verify=False).path == first.path


def test_a_result_of_the_class_stable_counts_on_the_same_kind_of_machine_only(models: Path) -> None:
    slerp = tree(method="slerp")
    first = again(models, 1, slerp)
    assert again(models, 2, slerp).path == first.path
    record_of(lambda run: run["run"]["machine"].update(processor="another"))(models)
    assert not again(models, 3, slerp).earlier


def test_in_a_folder_for_models_the_same_model_is_left_and_another_replaced(models: Path) -> None:
    (out := models / "out").mkdir()
    first = again(models, 1, output_dir=out)
    inode = (out / NAME).stat().st_ino
    assert again(models, 2, output_dir=out).earlier
    assert (out / NAME).stat().st_ino == inode
    assert not again(models, 3, tree(alpha=0.4), output_dir=out).earlier
    third = again(models, 4, output_dir=out)  # the record of the first is there, its model is not
    assert not third.earlier and third.summary() == first.summary()


def test_a_model_in_another_place_is_not_the_one_that_was_asked_for(models: Path) -> None:
    (out := models / "out").mkdir()
    again(models, 1)
    assert not again(models, 2, output_dir=out).earlier
    (models / "runs" / "mix" / "mine").mkdir()
    composed = ComposedRecipe("mix", tree(), (), (), here)
    mine = run(composed, settings(models), models / "runs" / "mix" / "mine")
    assert not mine.earlier and mine.path == models / "runs" / "mix" / "mine" / NAME
    assert run(composed, settings(models), models / "runs" / "mix" / "mine").earlier


def test_other_files_of_a_folder_count_too(tmp_path: Path, cache: Path) -> None:
    """The digest of an input folder is that of its weights; its configuration goes into the result."""
    shutil.copytree(demo_model("photo", cache), tmp_path / "photo")
    recipe = {"method": "copy", "models": {"a": "photo"}}
    first = again(tmp_path, 1, recipe)
    assert first.path is not None and first.path.is_dir()
    assert again(tmp_path, 2, recipe).path == first.path
    (config,) = tmp_path.glob("photo/scheduler/scheduler_config.json")
    config.write_text(config.read_text().replace("}", ', "more": 1}'))
    second = again(tmp_path, 3, recipe)
    assert not second.earlier
    assert second.path is not None
    (second.path / "README.md").write_text("changed by hand")
    assert again(tmp_path, 4, recipe).path != second.path


def test_equal_jobs_of_a_sweep_are_one(models: Path) -> None:
    sweep, out = models / "sweep", models / "out"
    for folder in (sweep / "0_x=1", sweep / "1_x=2", sweep / "2_x=1.0", out / "0_x=1", out / "2_x=1.0"):
        folder.mkdir(parents=True)
    (sweep / "multirun.yaml").touch()

    def job(name: str, alpha: float, **changes: Any) -> Outcome:
        composed = ComposedRecipe("mix", tree(alpha=alpha), (), (), here)
        return run(composed, settings(models, **changes), sweep / name)

    first = job("0_x=1", 0.3)
    assert not job("1_x=2", 0.4).earlier
    assert job("2_x=1.0", 0.3).path == first.path
    assert not job("0_x=1", 0.3, output_dir=out / "0_x=1").earlier
    assert job("2_x=1.0", 0.3, output_dir=out / "2_x=1.0").path == out / "0_x=1" / NAME


def test_what_is_there_is_not_what_the_recipe_asks_for_if_its_digest_is_another(models: Path) -> None:
    again(models, 1)
    wrong = {"source": "b.safetensors", "sha256": "0" * 64}
    with pytest.raises(MismatchError, match="the recipe says"):
        again(models, 2, tree(models={"a": "a.safetensors", "b": wrong}))


def test_a_folder_that_is_damaged_is_not_replaced(tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    recipe = {"method": "copy", "models": {"a": "demo:photo"}}
    again(tmp_path, 1, recipe, output_dir=out)
    (weights,) = out.glob("*/unet/*.safetensors")
    os.truncate(weights, 1000)
    with pytest.raises(UsageError, match="there already"):
        again(tmp_path, 2, recipe, output_dir=out)

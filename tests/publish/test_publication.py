"""From the command line: a merge that publishes, and one whose publication fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runner.config import Job
from runner.errors import MismatchError, PublishError, UsageError
from runner.publish.finished import finished_model
from runner.publish.publication import announce, publish, publish_run
from runner.publish.target import CHECKPOINT, PIPELINE, Model, Target
from runner.run import run
from tests import command, runs
from tests.build import write_models
from tests.publish.conftest import mix
from tests.runs import made

SCHEMA = json.loads((Path(__file__).parents[2] / "runner" / "schemas" / "run.json").read_text())
RECIPE = mix(a="a.safetensors", b="b.safetensors")
PLACE = "models/Stable-diffusion/mix.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, and the folders of a web UI."""
    write_models(tmp_path, a=1, b=2)
    (tmp_path / "ui" / "models" / "Stable-diffusion").mkdir(parents=True)
    return tmp_path


def a1111(folder: Path) -> Target:
    return Target("a1111", folder / "ui")


def record(run: Path) -> Any:
    """The record, which keeps to its schema and names no folder of this machine."""
    text = (run / "run.json").read_text()
    jsonschema.validate(json.loads(text), SCHEMA)
    assert str(run.parent) not in text
    return json.loads(text)["run"]


def test_a_merge_publishes_after_its_record_and_again_later(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain = folder / "out", folder / "plain"
    made(folder, "out", RECIPE, cache_dir=cache, publish=a1111(folder))
    assert capsys.readouterr().out.splitlines()[-1] == f"a1111 {PLACE}: linked"
    assert (folder / "ui" / PLACE).samefile(out / "mix.safetensors")
    made(folder, "plain", RECIPE, cache_dir=cache)
    assert (plain / "mix.safetensors").read_bytes() == (out / "mix.safetensors").read_bytes()
    publish_run(out, a1111(folder), None, offline=False)
    publish_run(plain, a1111(folder), None, offline=False)  # the same bytes of another run
    places = [(one["place"], one["result"]) for one in record(out)["published"]]
    assert places == [(PLACE, "linked"), (PLACE, "there already")]
    assert record(plain)["published"][0]["result"] == "there already"


def test_a_publication_that_fails_leaves_the_merge_done(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ui" / PLACE).write_bytes(b"another")
    with pytest.raises(PublishError) as caught:
        made(folder, "out", RECIPE, cache_dir=cache, publish=a1111(folder))
    error, hint = caught.value.lines()
    assert caught.value.exit_code == 7
    assert error.startswith("runner: error[E-PUBLISH]: the model is in place, publishing failed: ")
    assert "publish.overwrite=true" in hint and "job=publish run=" in hint
    model = folder / "out" / "mix.safetensors"
    assert capsys.readouterr().out.startswith(str(model)) and model.is_file()
    assert (folder / "ui" / PLACE).read_bytes() == b"another"
    said = record(folder / "out")
    assert said["error"] is None and said["published"][0]["result"] == "failed"


def test_a_publication_of_an_earlier_merge_that_fails_leaves_its_record_as_it_was(
    folder: Path, cache: Path
) -> None:
    out = folder / "out"
    made(folder, "out", RECIPE, cache_dir=cache)
    before, again = record(out), runs.settings(folder, cache_dir=cache, publish=a1111(folder))
    (folder / "ui" / PLACE).write_bytes(b"another")
    for _ in range(2):  # a record that was lost would have the model merged again
        with pytest.raises(PublishError):
            run(runs.recipe(RECIPE), again, out)
    said = record(out)
    assert [one["result"] for one in said.pop("published")] == ["failed", "failed"]
    assert said == before and said["error"] is None


def test_a_place_that_went_away_during_the_merge_is_no_other_failure(file_run: Path, folder: Path) -> None:
    model = finished_model(file_run, file_run)
    with pytest.raises(PublishError, match=r"the model is in place, publishing failed: .*no such folder"):
        publish(Target("a1111", folder / "gone"), model, file_run)


def test_a_plan_says_where_and_writes_nothing(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(folder, "out", RECIPE, job=Job("plan"), cache_dir=cache, publish=a1111(folder))
    expected = f"publish\n  a1111: {folder / 'ui' / PLACE}, hard link, or copy\n"
    assert expected in capsys.readouterr().out and not (folder / "ui" / PLACE).exists()


def test_a_target_that_cannot_load_the_result_is_told_before_the_merge(folder: Path, cache: Path) -> None:
    recipe = mix(a="demo:photo", b="demo:anime")
    with pytest.raises(UsageError, match="the result is a folder"):
        made(folder, "out", recipe, cache_dir=cache, publish=a1111(folder))
    assert not (folder / "out" / "mix").exists()


def test_a_model_that_is_not_the_records_is_not_published(file_run: Path, folder: Path) -> None:
    (file_run / "mix.safetensors").write_bytes(b"another")
    with pytest.raises(MismatchError):
        publish_run(file_run, a1111(folder), None, offline=False)
    assert not (folder / "ui" / PLACE).exists()


def test_run_and_target_must_be_said(tmp_path: Path) -> None:
    for finished, target, words in (
        (None, Target("folder", tmp_path), "run=FOLDER is missing"),
        (tmp_path, None, "publish=TARGET is missing"),
    ):
        with pytest.raises(UsageError, match=words):
            publish_run(finished, target, None, offline=False)


def test_the_command_line_has_the_settings_of_a_target_and_no_recipe_has(tmp_path: Path) -> None:
    (tmp_path / "sly.yaml").write_text("defaults: [/publish@_global_.publish: hub]\nmethod: copy\n")
    for arguments, code, words in (
        (["job=plan", f"recipe={tmp_path / 'sly.yaml'}"], 3, "defaults.0: expected _self_"),
        (["publish.root=ui"], 2, '"publish.root": no target is chosen that has this setting'),
        (["job=plan", "+recipe.publish=hub"], 3, "publish: unknown parameter"),
    ):
        done = command.run(tmp_path, *arguments)
        assert done.returncode == code and words in done.stderr, done.stderr


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    place = tmp_path / "mix.safetensors"
    place.write_bytes(b"an input")
    status = place.stat()
    model, target = Model(tmp_path / "out" / "mix.safetensors", CHECKPOINT, {}), Target("folder", tmp_path)
    with pytest.raises(UsageError, match="is one of the inputs"):
        announce(target, model, {(status.st_dev, status.st_ino)}, offline=False)
    assert announce(target, model, (), offline=False)[1].endswith("it is not replaced")


def test_what_is_announced_names_place_and_manner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    model = Model(tmp_path / "mix", PIPELINE, {})
    hub = Target("hub", repository="me/mix", dry_run=True)
    assert announce(hub, model, (), offline=False) == [
        "hub: me/mix, made as a private repository if it is not there",
        "dry run: nothing will be published",
    ]
    invokeai = Target("invokeai", url="http://localhost:9090/")
    assert announce(invokeai, model, (), offline=False) == [
        "invokeai: at http://localhost:9090, which loads it from its place"
    ]

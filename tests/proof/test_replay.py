"""job=replay: every word with real files, and how inputs are found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from runner.config import Job
from runner.errors import RunnerError, UsageError
from runner.place import Devices
from runner.proof.job import replay_job
from runner.recipe.canonical import canonical_digest, canonical_json
from tests.build import flip, write_models
from tests.proof.build import NAME, answer_of, by_another_machine, edited, made
from tests.runs import settings

KEY = "model.diffusion_model.linear.weight"


def answer(source: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> dict[str, Any]:
    """The answer for programs; nothing but what is kept stays."""
    models = changes.pop("models", source.parent)
    more = {"cache_dir": changes.pop("cache")} if "cache" in changes else {}
    out = models / "out"
    out.mkdir(exist_ok=True)
    job = Job("replay", source=source, json=True, **changes)
    found = answer_of(lambda: replay_job(settings(models, job=job, **more), out), capsys)
    assert found["kept"] or not any(out.iterdir())
    return found


def test_a_run_its_texts_and_its_model_give_the_same_bytes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    digest = json.loads((run / "run.json").read_text())["deterministic"]["output"]["sha256"]
    for source in (run, run / "run.json", run / f"{NAME}.intoto.json", run / NAME):
        found = answer(source, capsys, models=tmp_path)
        assert (found["word"], found["sha256"], found["exit_code"]) == ("IDENTICAL", digest, 0)


def test_the_record_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    (tmp_path / "mine.json").write_text((run / "run.json").read_text())
    assert answer(tmp_path / "mine.json", capsys)["word"] == "IDENTICAL"


def test_inputs_are_found_by_digest_under_other_names_in_other_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    other = tmp_path / "else" / "deep"
    other.mkdir(parents=True)
    (tmp_path / "a.safetensors").rename(other / "first.safetensors")
    (tmp_path / "b.safetensors").rename(other / "a.safetensors")  # the name of the other one
    for source in (run, run / f"{NAME}.intoto.json", run / NAME):
        assert answer(source, capsys, models=tmp_path / "else")["word"] == "IDENTICAL"


@pytest.mark.parametrize("hidden", [False, True])
def test_nested_merges_components_and_hidden_names_are_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hidden: bool
) -> None:
    inner = {"method": "dare_ties", "models": {"base": "a.safetensors", "x": "b.safetensors"}, "seed": 0}
    changes: dict[str, Any] = {
        "models": {"a": "a.safetensors", "b": inner},
        "seed": 5,
        "components": {"vae": "b.safetensors", "text_encoder": "c.safetensors"},
        "output": {"name": "mix", "hide_names": hidden},
        "alpha": {"default": 0.25, "*linear*": 1, "*norm*": 0.5},
    }
    write_models(tmp_path, a=1, b=2, c=3)
    run = made(tmp_path, **changes)
    for source in (run, run / f"{NAME}.intoto.json", run / NAME):
        found = answer(source, capsys, models=tmp_path)
        assert (found["word"], found["reasons"]) == ("IDENTICAL", [])


def test_folders_and_demo_models_are_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    run = made(tmp_path, cache=cache, models={"a": "demo:photo", "b": "demo:anime"})
    assert answer(run / "mix", capsys, models=tmp_path, cache=cache)["word"] == "IDENTICAL"
    (run / "mix" / "unet" / "config.json").write_text("{}")
    found = answer(run / "mix", capsys, models=tmp_path, cache=cache)
    assert (found["word"], found["tensors"]) == ("DIFFERENT", 0) and "unet/config.json" in str(
        found["reasons"]
    )


def test_two_inputs_of_the_same_bytes_are_two_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(tmp_path, a=1, b=1)
    assert answer(made(tmp_path), capsys)["word"] == "IDENTICAL"


def test_what_is_built_is_kept_if_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    assert answer(run, capsys, keep=True)["kept"]
    for name in (NAME, f"{NAME}.tensors.json"):
        assert (tmp_path / "out" / name).read_bytes() == (run / name).read_bytes()
    told = [json.loads((folder / "run.json").read_text()) for folder in (run, tmp_path / "out")]
    assert canonical_json(told[0]["deterministic"]) == canonical_json(told[1]["deterministic"])


def test_an_input_that_is_gone_or_another_is_named_with_its_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    digest = json.loads((run / "run.json").read_text())["deterministic"]["inputs"][1]["sha256"]
    flip(tmp_path / "b.safetensors", -1)
    found = answer(run, capsys)
    assert (found["word"], found["exit_code"]) == ("CANNOT REPLAY", 11)
    (reason,) = found["reasons"]
    assert f'input b: "b.safetensors", sha256 {digest}: not found' in reason and "there is another" in reason
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "b.safetensors").unlink()
    assert len(answer(run, capsys)["reasons"]) == 2


def test_digests_that_are_remembered_are_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    digest = json.loads((run / "run.json").read_text())["deterministic"]["inputs"][1]["sha256"]
    flip(tmp_path / "b.safetensors", -1)
    status = (tmp_path / "b.safetensors").stat()
    key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "digests.json").write_text(json.dumps({key: digest}))
    assert answer(run, capsys)["word"] == "CANNOT REPLAY"


def test_a_recipe_that_was_edited_is_different_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    text = json.loads((run / "run.json").read_text())
    text["deterministic"]["recipe"]["alpha"] = 0.4
    edited(run / NAME, **{"runner.recipe": canonical_json(text["deterministic"]["recipe"])})
    (run / "run.json").write_text(json.dumps(text))
    for source in (run, run / NAME):
        found = answer(source, capsys, models=tmp_path)
        assert (found["word"], found["exit_code"]) == ("DIFFERENT", 10)
        assert found["reasons"][0].startswith("recipe: ") and "it was changed" in found["reasons"][0]


def test_a_recipe_that_was_edited_with_its_digest_gives_other_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = made(tmp_path), made(tmp_path, "other", alpha=0.4)
    told = [json.loads((folder / "run.json").read_text()) for folder in (run, other)]
    for name in ("recipe", "recipe_sha256", "methods"):
        told[0]["deterministic"][name] = told[1]["deterministic"][name]
    (run / "run.json").write_text(json.dumps(told[0]))
    found = answer(run, capsys)
    assert (found["word"], found["exit_code"]) == ("DIFFERENT", 10) and found["ulps"] > 1
    assert "header: runner.recipe differs" in found["reasons"]


def test_a_flipped_bit_in_a_model_is_named_with_its_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    flip(run / NAME, -1)
    found = answer(run / NAME, capsys, models=tmp_path)
    assert (found["word"], found["tensors"]) == ("DIFFERENT", 1)
    assert found["first_tensor"] == max(load_file(run / NAME)) and "of class exact" in str(found["reasons"])
    assert answer(run, capsys)["word"] == "IDENTICAL"  # to what is recorded; job=verify is about the model


def test_last_digits_of_a_stable_method_are_equivalent_and_may_be_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, method="slerp")
    by_another_machine(run, KEY, 1)
    found = answer(run, capsys)
    assert (found["word"], found["tensors"], found["ulps"], found["exit_code"]) == ("EQUIVALENT", 1, 1, 10)
    assert found["first_tensor"] == KEY and any(
        line.startswith("torch: 1.0.0 → ") for line in found["reasons"]
    )
    assert answer(run, capsys, ulps=1)["exit_code"] == 0


def test_more_than_the_last_digit_is_different_unless_it_is_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, method="slerp")
    by_another_machine(run, KEY, 3)
    assert answer(run, capsys)["word"] == "DIFFERENT"
    found = answer(run, capsys, ulps=3)
    assert (found["word"], found["ulps"], found["exit_code"]) == ("EQUIVALENT", 3, 0)


def test_a_difference_in_an_exact_method_is_different_however_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    by_another_machine(run, KEY, 1)
    found = answer(run, capsys, ulps=9)
    assert (found["word"], found["ulps"], found["exit_code"]) == ("DIFFERENT", 1, 10)


def test_without_the_recorded_model_the_tensors_are_known_by_their_digests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, method="slerp")
    by_another_machine(run, KEY, 1)
    (run / NAME).unlink()
    found = answer(run, capsys)
    assert (found["word"], found["first_tensor"], found["ulps"]) == ("DIFFERENT", KEY, None)
    (run / f"{NAME}.tensors.json").unlink()
    found = answer(run, capsys)
    assert (found["word"], found["tensors"]) == ("DIFFERENT", None) and "not known" in found["reasons"][0]


def test_a_gpu_that_is_not_there_is_refused_though_its_memory_is_stated(tmp_path: Path) -> None:
    run = made(tmp_path)
    absent = Devices((99,), {99: 1 << 30})
    with pytest.raises(UsageError, match="99: no such GPU"):
        replay_job(settings(tmp_path, job=Job("replay", source=run), placement=absent), tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('"schema": 2', '"schema": 3', "schema 3, this program knows 2"),
        ('"weighted_sum@1"', '"weighted_sum@7"', "made by"),
    ],
)
def test_a_newer_record_or_another_version_of_a_method_cannot_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, reason: str
) -> None:
    run = made(tmp_path)
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace(before, after))
    found = answer(run, capsys)
    assert (found["word"], found["exit_code"]) == ("CANNOT REPLAY", 11) and reason in found["reasons"][0]


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "no_such_method"},
        {"no_such_parameter": 1.0},
        {"output": {"name": "mix", "no_such_field": 1}},
        {"no_such_policy": [["a", 1.0]]},
        {"compute_dtype": "float128"},
    ],
)
def test_a_recipe_with_what_this_version_does_not_know_cannot_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: dict[str, Any]
) -> None:
    run = made(tmp_path)
    statement = json.loads((run / f"{NAME}.intoto.json").read_text())
    statement["predicate"]["buildDefinition"]["externalParameters"]["recipe"] |= recipe
    (run / f"{NAME}.intoto.json").write_text(json.dumps(statement))
    found = answer(run / f"{NAME}.intoto.json", capsys, models=tmp_path)
    assert (found["word"], found["exit_code"]) == ("CANNOT REPLAY", 11)
    assert re.search("no_such|float128", str(found["reasons"]))


@pytest.mark.parametrize("told", [None, [], "x", {"versions": []}, {"versions": {"runner": 7}}])
def test_what_a_record_says_of_versions_may_be_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], told: Any
) -> None:
    run = made(tmp_path)
    record = json.loads((run / "run.json").read_text().replace('"weighted_sum"', '"no_such_method"'))
    record["run"] = told
    record["deterministic"]["recipe_sha256"] = canonical_digest(record["deterministic"]["recipe"])
    (run / "run.json").write_text(json.dumps(record))
    assert answer(run, capsys)["word"] == "CANNOT REPLAY"


@pytest.mark.parametrize("listed", [7, "x", {"x": 1}, [7, {"name": []}]])
def test_the_recipe_files_that_a_record_lists_may_be_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: Any
) -> None:
    run = made(tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["deterministic"]["recipe_files"] = listed
    (run / "run.json").write_text(json.dumps(record))
    assert answer(run, capsys)["word"] in ("IDENTICAL", "DIFFERENT")


def test_a_model_of_another_tool_and_a_run_that_failed_cannot_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(tmp_path, a=1)
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "plain.safetensors")
    assert answer(tmp_path / "plain.safetensors", capsys)["word"] == "CANNOT REPLAY"
    (tmp_path / "run.json").write_text('{"schema": 2, "deterministic": {}, "run": {}}')
    with pytest.raises(RunnerError, match="of a run that made no model"):
        replay_job(settings(tmp_path, job=Job("replay", source=tmp_path / "run.json")), tmp_path)

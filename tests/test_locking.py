"""Locks: what job=lock writes, and what a merge then refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from runner.compose import DATA_ROOT, ComposedRecipe, recipe_names, recipe_of, register
from runner.config import Job
from runner.errors import InputError, MismatchError
from runner.listing import find_digests
from runner.recipe.lockfile import Lock, LockedOutput, LockedSource, differences, lock_text, parse_lock
from runner.run import Outcome, run
from tests.build import write_models
from tests.runs import settings

RECIPE = """
method: weighted_sum
models: {a: a.safetensors, b: b.safetensors}
alpha: 0.3
"""
LOCK = Job("lock")
UPDATE = Job("lock", update=True)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe and its two models."""
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, a=1, b=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mix.yaml").write_text(RECIPE)
    return tmp_path


def composed(path: Path | str, *overrides: str) -> ComposedRecipe:
    register()
    with initialize_config_dir(str(DATA_ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"recipe={path}", *overrides], return_hydra_config=True)
    return recipe_of(config, str(path), overrides)


def go(work: Path, *overrides: str, recipe: str = "mine/mix.yaml", **changes: Any) -> Outcome:
    """One run, in a folder as a command makes."""
    runs = work / "runs" / "mix"
    runs.mkdir(parents=True, exist_ok=True)
    folder = runs / f"2026-01-01_00-00-{len(list(runs.iterdir())):02}_abcdef"
    folder.mkdir()
    path = work / recipe
    return run(composed(path, *overrides), settings(work, **{"digests": "remember", **changes}), folder)


def lock(work: Path) -> Any:
    return yaml.safe_load((work / "mine" / "mix.lock.yaml").read_text())


def another(work: Path, name: str = "b", seed: int = 7) -> None:
    write_models(work, **{name: seed})


def refused(work: Path, *overrides: str, **changes: Any) -> list[str]:
    with pytest.raises(MismatchError) as caught:
        go(work, *overrides, **changes)
    assert caught.value.exit_code == 10 and caught.value.tag == "LOCK"
    return [*caught.value.message.split("\n"), f"hint: {caught.value.hint}"]


# job=lock


def test_a_lock_says_what_the_recipe_is_made_from(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = go(work, job=LOCK)
    assert outcome.path == Path("mine/mix.lock.yaml")
    merged = go(work)
    inputs = {entry["roles"][0]: entry for entry in merged.record.deterministic["inputs"]}
    found = lock(work)
    assert found["version"] == 1
    assert found["recipe"]["sha256"] == merged.record.deterministic["recipe_sha256"]
    assert found["recipe"]["files"] == {"mix": merged.record.deterministic["recipe_files"][0]["sha256"]}
    assert found["sources"] == {
        f"models.{role}": {
            "source": f"{role}.safetensors",
            "sha256": inputs[role]["sha256"],
            "bytes": (work / f"{role}.safetensors").stat().st_size,
        }
        for role in "ab"
    }
    assert found["methods"] == ["weighted_sum@1"] and found["output"] is None
    assert "written: 2 models" in capsys.readouterr().out
    assert str(work) not in (work / "mine" / "mix.lock.yaml").read_text()


def test_after_a_merge_the_result_is_added_and_nothing_else_changes(work: Path) -> None:
    go(work, job=LOCK)
    before = (work / "mine" / "mix.lock.yaml").read_text()
    output = go(work).record.deterministic["output"]
    assert (work / "mine" / "mix.lock.yaml").read_text() == before  # a merge writes no lock
    go(work, job=LOCK)
    after = (work / "mine" / "mix.lock.yaml").read_text()
    head, _, _ = before.partition("output:")
    assert after.partition("output:")[0] == head
    assert lock(work)["output"] == {
        "name": "mix.safetensors",
        "sha256": output["sha256"],
        "tensor_root": output["tensor_root"],
        "determinism": "exact",
    }
    go(work, job=LOCK)
    assert (work / "mine" / "mix.lock.yaml").read_text() == after
    shutil.rmtree(work / "runs")
    go(work, job=LOCK)  # what is locked is not forgotten because its run was removed
    assert (work / "mine" / "mix.lock.yaml").read_text() == after


def test_a_lock_is_changed_on_request_only_and_says_what_changed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(work, job=LOCK)
    before = (work / "mine" / "mix.lock.yaml").read_text()
    another(work)
    lines = refused(work, job=LOCK)
    assert 'models.b "b.safetensors": sha256: locked' in lines[0] and "job.update=true" in lines[-1]
    assert (work / "mine" / "mix.lock.yaml").read_text() == before
    old = lock(work)["sources"]["models.b"]["sha256"]
    capsys.readouterr()
    go(work, job=UPDATE)
    new = lock(work)["sources"]["models.b"]["sha256"]
    assert old != new and f"{old} → {new}" in capsys.readouterr().out
    go(work)


def test_an_update_forgets_a_result_that_no_run_has(work: Path) -> None:
    go(work)
    go(work, job=LOCK)
    another(work)
    go(work, job=UPDATE)
    assert lock(work)["output"] is None


def test_a_recipe_that_comes_with_runner_is_locked_in_the_current_folder(work: Path) -> None:
    recipe = DATA_ROOT / "recipes" / "copy.yaml"
    outcome = go(work, "recipe.models.a=a.safetensors", recipe=str(recipe), job=LOCK)
    assert outcome.path == Path("copy.lock.yaml") and (work / "copy.lock.yaml").is_file()
    another(work, "a")
    refused(work, "recipe.models.a=a.safetensors", recipe=str(recipe))


def test_a_lock_is_no_recipe(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(work, job=LOCK)
    monkeypatch.setenv("RUNNER_RECIPES", str(work / "mine"))
    assert "mix" in recipe_names() and "mix.lock" not in recipe_names()


# What a lock is compared with


def test_another_model_is_refused_and_nothing_is_written(work: Path) -> None:
    go(work, job=LOCK)
    another(work)
    several: list[dict[str, Any]] = [{}, {"locked": True}, {"digests": "fresh"}]
    for changes in several:
        (line, hint) = refused(work, **changes)
        assert line.startswith('"mine/mix.lock.yaml": models.b "b.safetensors": sha256: locked ')
        assert line.endswith("No output was written.") and "job=lock job.update=true" in hint
    assert not list(work.glob("runs/**/*.safetensors"))


def test_a_plan_compares_what_it_knows_without_reading_the_models(work: Path) -> None:
    go(work, job=LOCK)
    tensors = load_file(work / "b.safetensors")
    save_file(tensors | {"model.diffusion_model.extra": torch.zeros(3)}, work / "b.safetensors")
    (line, _) = refused(work, "recipe.force=true", job=Job("plan"))
    assert 'models.b "b.safetensors": bytes: locked ' in line


def test_another_state_of_the_recipe_is_a_warning_and_the_models_count_all_the_same(work: Path) -> None:
    go(work)
    go(work, job=LOCK)
    outcome = go(work, "recipe.alpha=0.4")  # the result is another, and not compared
    (warning,) = outcome.record.run["warnings"]
    assert "another state of the recipe" in warning
    another(work)
    refused(work, "recipe.alpha=0.4")


def test_a_model_that_the_lock_does_not_have_is_another_state_of_the_recipe(work: Path) -> None:
    go(work, job=LOCK)
    another(work, "c")
    outcome = go(work, "recipe.models.b=c.safetensors")
    assert any("another state" in warning for warning in outcome.record.run["warnings"])
    (*lines, _) = refused(work, "recipe.models.b=c.safetensors", locked=True)
    assert any('models.b: locked "b.safetensors", found "c.safetensors"' in line for line in lines)


def test_another_version_of_a_method_is_refused(work: Path) -> None:
    go(work, job=LOCK)
    path = work / "mine" / "mix.lock.yaml"
    path.write_text(path.read_text().replace("weighted_sum@1", "weighted_sum@0"))
    (line, _) = refused(work, job=Job("plan"))
    assert "method weighted_sum: locked weighted_sum@0, found weighted_sum@1" in line


def test_locked_refuses_anything_else_and_a_recipe_without_a_lock(work: Path) -> None:
    (line, hint) = refused(work, locked=True)
    assert "no such lock" in line and "job=lock" in hint
    go(work, job=LOCK)
    go(work, locked=True)
    assert "the recipe: sha256" in refused(work, "recipe.alpha=0.4", locked=True)[0]
    (work / "mine" / "mix.yaml").write_text(f"# a comment\n{RECIPE}")
    assert go(work).earlier  # what it says is the same
    assert 'recipe file "mix": sha256' in refused(work, locked=True)[0]


def forged(work: Path, **output: str) -> None:
    """A lock that says another result."""
    path = work / "mine" / "mix.lock.yaml"
    text = path.read_text()
    for name, value in output.items():
        text = text.replace(str(lock(work)["output"][name]), value)
    path.write_text(text)


def test_another_result_is_refused_also_if_it_is_there_already(work: Path) -> None:
    go(work)
    go(work, job=LOCK)
    forged(work, sha256="0" * 64)
    before = set(work.glob("runs/**/*.safetensors"))
    for rerun in (False, True):
        (line, hint) = refused(work, rerun=rerun)
        assert f"locked {'0' * 64}, found " in line and "only headers differ" in line
        assert "forgets the locked result" in hint
    assert set(work.glob("runs/**/*.safetensors")) == before
    assert not list(work.glob("runs/**/.rnr-*"))
    forged(work, tensor_root="1" * 64)
    assert "only headers differ" not in refused(work)[0]


def test_another_result_of_the_class_stable_is_a_warning(work: Path) -> None:
    (work / "mine" / "mix.yaml").write_text(RECIPE.replace("weighted_sum", "slerp"))
    go(work)
    go(work, job=LOCK)
    forged(work, sha256="0" * 64)
    outcome = go(work, rerun=True)
    assert outcome.path is not None and outcome.path.exists()
    assert any("class stable" in warning for warning in outcome.record.run["warnings"])


def test_the_digest_in_a_lock_finds_a_model_that_was_renamed(work: Path) -> None:
    go(work, job=LOCK)
    (work / "b.safetensors").rename(work / "renamed.safetensors")
    with pytest.raises(InputError, match="no such file") as caught:
        go(work)
    assert "job=find" in str(caught.value.hint)
    os.utime(work / "renamed.safetensors", (1_000_000_000, 1_000_000_000))  # of a new file none is remembered
    find_digests(settings(work, job=Job("find"), digests="remember"))
    assert go(work, locked=True).path is not None
    shutil.copy(work / "a.safetensors", work / "b.safetensors")  # a path comes before a digest
    assert "models.b" in refused(work)[0]


# The text


SOURCE = LockedSource("x.safetensors", "a" * 64, 10)
WHOLE = Lock("b" * 64, {"mix": "c" * 64}, {"models.a": SOURCE}, ("copy@1",))


@pytest.mark.parametrize("name", ["ä 😀.safetensors", 'q"uote\\.ckpt', "# no comment: [x]", "null", "1e5"])
def test_a_lock_is_read_as_it_was_written_whatever_models_are_called(name: str) -> None:
    source = LockedSource(name, "1" * 64, 10, "sd1", "fp16", "d" * 40)
    output = LockedOutput("mix", "e" * 64, "f" * 64, "machine")
    lock = Lock("b" * 64, {name: "c" * 64}, {"models.a": source, "components.vae": SOURCE}, ("x@1",), output)
    assert parse_lock(lock_text(lock, name).encode(), "x") == lock


def test_a_name_that_no_lock_can_hold_is_told() -> None:
    with pytest.raises(InputError):
        lock_text(Lock("b" * 64, {}, {"models.a": LockedSource("a\rb", "1" * 64, 1)}, ()), "mix")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 2", "version: expected 1, found 2"),
        ("version: 1", "version: 1\nmore: 1", "more: expected nothing of this name"),
        ('"' + "a" * 64 + '"', "123", "sources.models.a.sha256: expected 64 hexadecimal digits"),
        ("bytes: 10", "bytes: many", "sources.models.a.bytes: expected a number of bytes"),
        ("bytes: 10", "bytes: 10\n    size: 1", "sources.models.a.size: expected nothing"),
        ('  - "copy@1"', "  x: 1", "methods: expected a list of names"),
        ("output: null", "output: here", "output: expected `key: value` lines"),
        ('source: "x.safetensors"', "source: 1", "sources.models.a.source: expected a text"),
        ("version: 1", "version: &x 1", "an anchor"),
        ("version: 1", "[", "not YAML"),
    ],
)
def test_a_text_that_is_no_lock_is_refused_with_the_place(old: str, new: str, message: str) -> None:
    text = lock_text(WHOLE, "mix")
    assert old in text
    with pytest.raises(InputError) as caught:
        parse_lock(text.replace(old, new).encode(), "mix.lock.yaml")
    assert message in caught.value.message and caught.value.message.startswith("mix.lock.yaml")


def test_a_digest_that_is_not_known_differs_from_none_but_a_size_does() -> None:
    def with_source(**changes: Any) -> Lock:
        values = {"source": "x.safetensors", "sha256": None, "bytes": 10, **changes}
        return Lock(WHOLE.recipe_sha256, WHOLE.files, {"models.a": LockedSource(**values)}, WHOLE.methods)

    assert differences(WHOLE, with_source()) == []
    (found,) = differences(WHOLE, with_source(bytes=11))
    assert (found.kind, found.locked, found.found) == ("model", "10", "11")
    (found,) = differences(WHOLE, with_source(sha256="a" * 64, revision="r"))
    assert (found.kind, found.locked, found.found) == ("aside", "nothing", "r")

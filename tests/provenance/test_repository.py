"""A recipe's commit: read from git without running what a repository names."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from runner.provenance.record import RunRecord
from runner.provenance.repository import committed
from tests.test_locking import composed

NAMED = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *arguments: str) -> str:
    environment = os.environ | NAMED | {"GIT_CONFIG_GLOBAL": os.devnull}
    run = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, env=environment
    )
    return run.stdout.strip()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    path = folder / "mix.yaml"
    path.write_text("method: copy\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "one")
    return path


def test_a_committed_file_is_what_the_commit_has(recipe: Path) -> None:
    assert committed(recipe) == (git(recipe.parent, "rev-parse", "HEAD"), False)


def test_a_changed_file_and_one_that_was_never_added_differ(recipe: Path) -> None:
    commit = git(recipe.parent, "rev-parse", "HEAD")
    other = recipe.with_name("other.yaml")
    other.write_text("method: copy\n")
    recipe.write_text("method: copy # changed\n")
    assert committed(recipe) == committed(other) == (commit, True)
    git(recipe.parent, "add", ".")  # staged is not committed
    assert committed(recipe) == committed(other) == (commit, True)


def test_of_a_link_the_file_that_is_read_counts(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(recipe)
    assert committed(tmp_path / "link.yaml") == (git(recipe.parent, "rev-parse", "HEAD"), False)


def test_outside_a_repository_before_a_commit_and_without_git_there_is_nothing_to_say(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = tmp_path / "loose.yaml"
    loose.write_text("")
    assert committed(loose) is None and committed(tmp_path / "missing" / "x.yaml") is None
    git(tmp_path, "init", "-q")
    assert committed(loose) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert committed(recipe) is None


@pytest.mark.parametrize("by_path", [False, True])
def test_the_commit_is_that_of_each_file_wherever_the_command_is_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_path: bool
) -> None:
    """A recipe by its name or its path, on a parent that comes with runner or lies in no repository."""
    commit = git(recipe.parent, "rev-parse", "HEAD")
    recipe.write_text("defaults: [loose, _self_]\nalpha: 0.5\n")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "loose.yaml").write_text(
        "method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\nalpha: 0.3\n"
    )
    monkeypatch.setenv("RUNNER_RECIPES", os.pathsep.join([str(recipe.parent), str(tmp_path / "others")]))
    for folder in (tmp_path, recipe.parent, tmp_path / "others"):
        monkeypatch.chdir(folder)
        choice = str(recipe) if by_path else "mix"
        text = RunRecord(composed(choice).files, ()).text()
        assert json.loads(text)["run"]["recipe_commits"] == [
            {"name": "mix.yaml" if by_path else "mix", "commit": commit, "differs": True}
        ]


def test_nothing_that_the_repository_names_is_run(recipe: Path, tmp_path: Path) -> None:
    marker, script = tmp_path / "ran", tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    script.chmod(0o755)
    for name in (
        "core.fsmonitor",
        "core.pager",
        "core.sshCommand",
        "filter.evil.clean",
        "diff.evil.textconv",
    ):
        git(recipe.parent, "config", name, str(script))
    (recipe.parent / ".gitattributes").write_text("* filter=evil diff=evil\n")
    recipe.write_text("method: copy # changed\n")
    found = committed(recipe)
    assert found is not None and found[1] and not marker.exists()

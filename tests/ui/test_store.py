"""Recipes on the disk: opened as they are, saved whole, never over what somebody else wrote."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runner.errors import BusyError, InputError, OutputError, UsageError
from runner.ui import store
from runner.ui.draft import EMPTY
from runner.ui.opened import Opened
from tests.command import bound_by_permissions, process


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_was_saved_is_opened_by_its_name(folder: Path) -> None:
    saved = store.save(store.path_of("mix"), "a: ß\r\n", "")
    assert saved.path == folder / "recipes" / "mix.yaml" and store.names()[0] == ("mix", "")
    assert store.opened("mix") == saved == store.read(saved.path)


def test_bytes_that_are_no_text_come_back_as_they_were(folder: Path) -> None:
    path = folder / "odd.yaml"
    path.write_bytes(b"\xff\xfe# \xe9\n")
    found = store.read(path)
    store.save(path, found.text, found.sha256)
    assert path.read_bytes() == b"\xff\xfe# \xe9\n"


@pytest.mark.parametrize("theirs", ["other", None])
def test_a_file_that_changed_meanwhile_stays_as_it_is(theirs: str | None) -> None:
    saved = store.save(store.path_of("mix"), "mine", "")
    saved.path.unlink() if theirs is None else saved.path.write_text(theirs)
    with pytest.raises(BusyError, match="somebody else"):
        store.save(saved.path, "mine again", saved.sha256)
    assert (saved.path.read_text() if saved.path.exists() else None) == theirs


def test_a_name_that_is_taken_is_not_taken_again(folder: Path) -> None:
    store.save(store.path_of("new_mix"), "mine", "")
    assert store.fresh().name == "new_mix_2"
    with pytest.raises(BusyError, match="is there already"):
        store.save(store.path_of("new_mix"), "other", "")
    (folder / "recipes" / "link.yaml").symlink_to("nowhere")
    with pytest.raises(BusyError):
        store.save(store.path_of("link"), "other", "")


def test_a_new_recipe_is_saved_under_the_name_of_its_output(folder: Path) -> None:
    assert store.name_for(store.fresh(), "mine") == "mine"
    assert store.name_for(store.fresh(), None) == "new_mix"
    assert store.name_for(store.fresh(), "a/b") == "new_mix"
    assert store.name_for(store.fresh("other"), "mine") == "other"
    saved = store.save(store.path_of("new_mix"), "mine", "")
    assert store.name_for(saved, "mine") == "new_mix"
    assert store.path_of("mine.yaml") == store.path_of("mine")


def test_an_empty_file_is_filled_in(folder: Path) -> None:
    opened = Opened(store.save(store.path_of("empty"), "\n", ""))
    assert opened.draft.text == EMPTY and opened.can_be_left and not opened.is_saved


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", ".yaml", "x.yml", "-x", "a b", "x" * 101])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        store.path_of(name)


def test_a_file_too_large_for_a_recipe_is_not_opened(folder: Path) -> None:
    (folder / "big.yaml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(InputError):
        store.read(folder / "big.yaml")


def test_the_first_folder_of_the_environment_is_where_recipes_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_RECIPES", f"{folder / 'one'}:{folder / 'two'}")
    assert store.path_of("x") == folder / "one" / "x.yaml"


def test_a_lock_beside_a_recipe_is_no_recipe(folder: Path) -> None:
    store.save(store.path_of("mix"), "mine", "")
    (folder / "recipes" / "mix.lock.yaml").write_text("lock: 1\n")
    assert store.names()[0] == ("mix", "")


def test_recipes_that_come_with_the_program_are_opened_and_saved_among_ones_own(folder: Path) -> None:
    assert dict(store.names())["anime_mix"] == "comes with runner; saved among your own"
    found = store.opened("anime_mix")
    assert found is not None and (found.path, found.sha256) == (folder / "recipes" / "anime_mix.yaml", "")
    store.save(found.path, found.text, found.sha256)
    assert dict(store.names())["anime_mix"] == ""


@pytest.mark.parametrize("confined", [False, True])
def test_a_path_is_saved_where_it_is_unless_the_form_is_confined(folder: Path, confined: bool) -> None:
    (folder / "mine.yaml").write_text("a: 1\n")
    found = store.opened(str(folder / "mine.yaml"), confined)
    assert found is not None and (found.path.parent == folder) != confined


def test_a_name_too_long_for_a_file_is_that_of_no_recipe() -> None:
    assert store.opened("x" * 300) is None


def test_separators_alone_name_no_folder_of_recipes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_RECIPES", os.pathsep)
    assert store.own_folder() == folder / "recipes"


SAVE = """
from runner.errors import OutputError
from runner.ui import store
from runner.ui.draft import EMPTY
from runner.ui.opened import Opened
try:
    store.save(store.path_of("mix"), "mine", "")
except OutputError as error:
    print(error.message)
"""


@pytest.mark.parametrize("mode", [0o300, 0o000])
def test_a_folder_that_cannot_be_listed_is_said(folder: Path, mode: int) -> None:
    (folder / "recipes").mkdir(mode)
    done = process(folder, *bound_by_permissions(), sys.executable, "-c", SAVE)
    (folder / "recipes").chmod(0o700)
    assert done.stdout == f'"{folder}/recipes": Permission denied\n', done.stderr


@pytest.mark.parametrize("below", ["", "x"])
def test_a_file_where_the_folder_would_be_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("RUNNER_RECIPES", str(folder / "file" / below))
    with pytest.raises(OutputError, match="file"):
        store.save(store.path_of("mix"), "mine", "")

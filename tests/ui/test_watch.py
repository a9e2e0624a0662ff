"""The files that a draft names, wherever in the recipe they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.ui.draft import Draft
from runner.ui.watch import Watch

RECIPE = """\
method: weighted_sum
models:
  a: a
  b: {method: weighted_sum, models: {a: b, b: {source: c}}}
components: {vae: d, text_encoder: {source: e}}
"""


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e"])
def test_every_model_of_a_recipe_is_watched(tmp_path: Path, name: str) -> None:
    for file in "abcde":
        (tmp_path / file).touch()
    watch, draft = Watch(tmp_path, {one: tmp_path / one for one in "abcde"}), Draft("x", RECIPE)
    assert not watch.look(draft) and not watch.gone
    (tmp_path / name).unlink()
    assert watch.look(draft) and watch.gone == {name}
    (tmp_path / name).touch()
    assert watch.look(draft) and not watch.gone


def test_a_model_that_is_another_file_now_is_noticed_wherever_it_lies(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "e.safetensors").touch()
    watch, draft = Watch(tmp_path, {"e": elsewhere / "e.safetensors"}), Draft("x", RECIPE)
    watch.look(draft)
    assert not watch.look(draft) and not watch.gone
    (elsewhere / "e.safetensors").write_text("more")
    assert watch.look(draft) and not watch.look(draft)


def test_a_component_of_a_folder_that_changes_is_noticed(tmp_path: Path) -> None:
    for file in "ac":
        (tmp_path / file / "unet").mkdir(parents=True)
        (tmp_path / file / "model_index.json").touch()
    weights = tmp_path / "a" / "unet" / "weights"
    weights.touch()
    watch, draft = Watch(tmp_path), Draft("x", RECIPE)
    watch.look(draft)
    assert not watch.look(draft)
    weights.write_text("more")
    assert watch.look(draft) and not watch.look(draft)


def test_a_folder_that_is_no_model_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "a" / "more").mkdir(parents=True)
    watch, draft = Watch(tmp_path), Draft("x", RECIPE)
    watch.look(draft)
    (tmp_path / "a" / "more" / "file").touch()
    assert not watch.look(draft)


def test_a_name_no_file_can_have_is_no_change(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    draft = Draft("x", RECIPE.replace("a: a", f"a: {'x' * 5000}"))
    assert not watch.look(draft) and not watch.look(draft) and not watch.gone

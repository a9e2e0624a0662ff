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
    watch, draft = Watch(tmp_path), Draft("x", RECIPE)
    assert not watch.look(draft, set("abcde")) and not watch.gone
    (tmp_path / name).unlink()
    assert watch.look(draft, set("abcde")) and watch.gone == {name}
    (tmp_path / name).touch()
    assert watch.look(draft, set("abcde")) and not watch.gone

"""Changing one value of a recipe's text: what was meant is what it says, and nothing else moves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.compose import DATA_ROOT
from runner.errors import KeyPath, RecipeError
from runner.recipe.guard import read_text
from runner.ui.splice import with_value, without

RECIPES = sorted((DATA_ROOT / "recipes").glob("*.yaml"))
SMALL = Path(DATA_ROOT / "recipes" / "anime_mix.yaml").read_text()
ODD = """# head

method:   weighted_sum   # what
"models": {a: demo:photo,   # the photo
           # a comment between
           b: 'x.safetensors'}
description: |
  two
  lines

# about alpha
alpha:
  # inside
  default: 0.5
  unet:      # deeper
    IN00: .5
    # after
  vae:
output: {}
# end
"""


def tree(text: str) -> dict[str, Any]:
    file = read_text(text.encode(), "x", "x")
    assert not file.problems
    return dict(file.tree)


def paths(value: Any, above: KeyPath = ()) -> list[KeyPath]:
    found = [above] if above else []
    for key, inner in value.items() if isinstance(value, dict) else ():
        found += paths(inner, (*above, key))
    return found


def whole_lines(text: str) -> list[str]:
    return sorted(line.strip() for line in text.splitlines() if line.strip().startswith("#"))


VALUES = st.one_of(
    st.integers(-5, 5),
    st.floats(-2, 2),
    st.booleans(),
    st.sampled_from(
        ["demo:photo", "a b.safetensors", "no", "1e3", "0x1", "null", "weiß.safetensors", "- x", "#"]
    ),
    st.text(max_size=6).filter(lambda text: "$" not in text and text.isprintable()),
    st.dictionaries(
        st.sampled_from(["default", "unet", "vae", "IN00-IN03", "*.attn2.*"]), st.floats(0, 1), max_size=3
    ),
    st.just({"method": "slerp", "models": {"a": "demo:photo", "b": {"source": "x", "sha256": "0" * 64}}}),
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_takes_a_parameter_and_gives_it_back_unchanged(path: Path) -> None:
    text = path.read_text()
    more = with_value(text, ("alpha_of_mine",), {"default": 0.25, "unet": {"M00": 1}})
    assert tree(more) == {**tree(text), "alpha_of_mine": {"default": 0.25, "unet": {"M00": 1}}}
    assert without(more, ("alpha_of_mine",)) == text


@settings(max_examples=25, deadline=None)
@given(text=st.sampled_from([SMALL, ODD]), data=st.data(), value=VALUES)
def test_a_value_set_anywhere_is_there_and_no_comment_is_lost(
    text: str, data: st.DataObject, value: Any
) -> None:
    for _ in range(2):
        before = tree(text)
        path = data.draw(st.sampled_from(paths(before)))
        if path in (("models",), ("output",)) and not isinstance(value, dict):
            continue
        if data.draw(st.booleans()):
            path = (*path[:-1], data.draw(st.sampled_from(["fresh", "vae", "seed"])))
        wanted = copy.deepcopy(before)
        here = wanted
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value
        text, old = with_value(text, path, value), text
        assert tree(text) == wanted
        assert set(whole_lines(old)) <= set(whole_lines(text))


@settings(max_examples=25, deadline=None)
@given(text=st.sampled_from([SMALL, ODD]), data=st.data())
def test_an_entry_taken_out_is_gone_and_no_comment_on_its_own_line_is_lost(
    text: str, data: st.DataObject
) -> None:
    for _ in range(3):
        before = tree(text)
        path = data.draw(st.sampled_from(paths(before)))
        if path in (("method",), ("models",)):
            continue
        wanted = copy.deepcopy(before)
        here = wanted
        for key in path[:-1]:
            here = here[key]
        del here[path[-1]]
        text, old = without(text, path), text
        assert tree(text) == wanted
        assert set(whole_lines(old)) <= set(whole_lines(text))
        if len(tree(text)) < 3:
            return


def test_a_change_touches_its_own_line_alone() -> None:
    changed = with_value(SMALL, ("models", "b", "alpha"), 0.7)
    pairs = list(zip(SMALL.splitlines(), changed.splitlines(), strict=True))
    assert [pair for pair in pairs if pair[0] != pair[1]] == [
        (
            "    alpha: 0.6                     # strength of the difference",
            "    alpha: 0.7                     # strength of the difference",
        )
    ]


def test_a_block_that_becomes_a_number_keeps_the_comment_beside_its_name() -> None:
    changed = with_value(SMALL, ("alpha",), 0.5)
    assert (
        "\nalpha: 0.5                             # the share of b, by component and block\noutput:"
        in changed
    )


def test_a_new_recipe_grows_line_by_line() -> None:
    text = "method: weighted_sum\nmodels: {}\n"
    text = with_value(text, ("models", "a"), "demo:photo")
    text = with_value(text, ("output", "name"), "mix")
    text = with_value(text, ("alpha",), 0.5)
    text = with_value(text, ("models", "b"), "my model.safetensors")
    assert text == (
        'method: weighted_sum\nmodels:\n  a: demo:photo\n  b: "my model.safetensors"\n'
        "alpha: 0.5\noutput: {name: mix}\n"
    )


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a\x07b", float("nan"), float("inf")])
def test_what_no_recipe_may_say_is_refused(value: object) -> None:
    with pytest.raises(RecipeError):
        with_value(SMALL, ("models", "a"), value)


def test_a_text_that_is_no_recipe_is_refused_and_not_touched() -> None:
    with pytest.raises(RecipeError, match="an anchor"):
        with_value("method: &x weighted_sum\nmodels: {}\n", ("seed",), 1)


def test_parameters_and_policies_come_before_what_is_said_of_the_result() -> None:
    text = "method: weighted_sum\nmodels: {a: x, b: y}\nprediction_type: epsilon\noutput: {name: z}\n"
    for key, value in {"zero_terminal_snr": True, "missing": "keep", "alpha": 0.3}.items():
        text = with_value(text, (key,), value)
    keys = [line.partition(":")[0] for line in text.splitlines()]
    said = ["prediction_type", "zero_terminal_snr", "output"]
    assert keys == ["method", "models", "alpha", "missing", *said]

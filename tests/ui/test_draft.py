"""A draft: every change a form can make leaves a text that the guard accepts and the parser reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.compose import DATA_ROOT, recipe_in
from runner.errors import Location, RecipeError
from runner.methods import METHODS
from runner.recipe.parse import parse_recipe
from runner.ui.draft import Draft

MIX = Draft("anime_mix", (DATA_ROOT / "recipes" / "anime_mix.yaml").read_text())
NAMES = sorted(name for name, tool in METHODS if tool is None)
# Those that build on others, and a few that do not.
COMPOSED = [
    path
    for at, path in enumerate(sorted((DATA_ROOT / "recipes").glob("*.yaml")))
    if "\ndefaults:" in path.read_text() or "${" in path.read_text() or at % 12 == 0
]
NUMBERS = st.floats(-1, 2).map(lambda value: round(value, 3))
BLOCKS = ("IN00", "IN01", "IN02", "M00", "OUT00")


def change(data: st.DataObject, draft: Draft) -> Draft:
    """One change at random, as the form makes them; a merge only where its first model is there already."""
    at = data.draw(st.sampled_from(draft.merges()))
    roles = draft.roles(at)
    held = [role for role in roles if draft.value((*at, "models", role)) is not None]
    method = draft.method(at)
    numeric = [
        one
        for one in (method.parameters if method else {})
        if not method or not method.parameters[one].choices
    ]
    kinds = ["method", "model", "merge", "name", "dtype", "force"] + (
        ["number", "part", "curve", "pasted"] if numeric else []
    )
    kind = data.draw(st.sampled_from(kinds))
    if kind == "method":
        return draft.with_method(at, data.draw(st.sampled_from(NAMES)))
    if kind == "model":
        name = data.draw(
            st.sampled_from(["demo:base", "a b/c.safetensors", "/x=1.ckpt", "no", "hf:org/name@v1"])
        )
        return draft.with_model(at, data.draw(st.sampled_from([*roles, "m7"])), name)
    if kind == "merge":
        return draft.with_merge(at, data.draw(st.sampled_from(held))) if len(at) < 6 else draft
    if kind == "name":
        return draft.with_value(("output", "name"), data.draw(st.sampled_from(["x", "null", "1.5", "a-b"])))
    if kind == "dtype":
        return draft.with_value(("output", "dtype"), {"default": "float16", "vae": "float32"})
    if kind == "force":
        return draft.with_value(("force",), True).without(("force",)).with_value(("force",), True)
    path = (*at, data.draw(st.sampled_from(numeric)))
    if kind == "number":
        return draft.with_value(path, data.draw(NUMBERS))
    if kind == "part":
        return draft.with_part(
            path, data.draw(st.sampled_from(["unet", "vae"])), data.draw(st.none() | NUMBERS)
        )
    if kind == "curve":
        values = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=5))
        return draft.with_curve(path, "unet", BLOCKS, values, 0.5)
    return draft.with_pasted(
        path, data.draw(st.sampled_from(["GRAD_V", "0,0.5,1", " 0, 1\n"])), data.draw(st.none() | NUMBERS)
    )


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_change_leaves_a_recipe_with_all_its_comments(data: st.DataObject) -> None:
    draft = MIX
    for _ in range(4):
        draft = change(data, draft)
        assert draft.is_readable, draft.file.problems
        composed = recipe_in(draft.file)
        parse_recipe(composed.name, composed.tree, composed.locate)
        kept = [line for line in draft.text.splitlines() if line.startswith("#")]
        assert {line for line in MIX.text.splitlines() if line.startswith("#")} <= set(kept)


def test_another_method_keeps_the_models_and_drops_parameters_it_does_not_have() -> None:
    draft = Draft("x", "method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\nalpha: 0.3\nseed: 1\n")
    assert draft.with_method((), "slerp").text == draft.text.replace("weighted_sum", "slerp")
    ties = draft.with_method((), "ties")
    assert ties.text == "method: ties\nmodels: {base: demo:photo, b: demo:anime}\nseed: 1\n"
    assert ties.with_method((), "weighted_sum").merge(("models",)) == {"a": "demo:photo", "b": "demo:anime"}


def test_a_merge_takes_the_model_that_was_there_as_its_first() -> None:
    draft = Draft("x", "method: weighted_sum\nmodels:\n  a: demo:photo\n  b: demo:anime\n").with_merge(
        (), "b"
    )
    assert draft.merges() == [(), ("models", "b")]
    assert draft.merge(("models", "b")) == {"method": "add_difference", "models": {"a": "demo:anime"}}
    assert draft.roles(("models", "b")) == ["a", "b", "c"]


def test_a_curve_says_runs_of_equal_numbers_once_and_leaves_other_components_alone() -> None:
    draft = MIX.with_curve(("alpha",), "unet", BLOCKS, (0.5, 0.5, 0.5, 1, 0), 0.5)
    assert draft.value(("alpha",)) == {
        "default": 0.35,
        "text_encoder": 0,
        "unet": {"IN00-IN02": 0.5, "M00": 1, "OUT00": 0},
    }


def test_a_part_taken_back_leaves_the_number_it_was() -> None:
    draft = Draft("x", "method: weighted_sum\nmodels: {a: x, b: y}\nalpha: 0.25\n")
    assert draft.with_part(("alpha",), "vae", 0).with_part(("alpha",), "vae", None).text == draft.text


def test_a_method_that_is_not_there_and_a_role_that_is_no_word_are_refused() -> None:
    with pytest.raises(RecipeError, match="no such method"):
        MIX.with_method((), "blend")
    with pytest.raises(RecipeError, match="a role is a word"):
        MIX.with_model((), "my role", "demo:photo")


@pytest.mark.parametrize("path", COMPOSED, ids=lambda path: path.stem)
def test_a_recipe_in_memory_is_composed_as_hydra_composes_its_file(path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from runner.compose import recipe_of, register

    register()
    with initialize_config_dir(str(DATA_ROOT / "conf"), version_base="1.3"):
        expected = recipe_of(compose("config", [f"recipe={path.stem}"]), path.stem, [])
    found = recipe_in(Draft(path.stem, path.read_text()).file)
    assert found.tree == expected.tree
    assert parse_recipe(found.name, found.tree, lambda path: Location("x"))


def test_a_component_is_taken_from_a_source_and_given_back() -> None:
    draft = Draft("x", "method: weighted_sum\nmodels: {a: x, b: y}\noutput: {name: z}\n")
    baked = draft.with_said(("components", "vae"), "kl.safetensors")
    assert baked.value(("components", "vae")) == "kl.safetensors"
    assert list(baked.file.tree) == ["method", "models", "components", "output"]
    assert baked.with_said(("components", "vae"), None).text == draft.text


def test_a_dtype_is_one_or_by_component() -> None:
    draft, path = Draft("x", "method: weighted_sum\nmodels: {a: x, b: y}\n"), ("output", "dtype")
    one = draft.with_part(path, "default", "float16")
    assert one.value(path) == "float16"
    by_component = one.with_part(path, "vae", "float32").with_part(path, "default", "bfloat16")
    assert by_component.value(path) == {"default": "bfloat16", "vae": "float32"}
    assert by_component.with_part(path, "vae", None).value(path) == "bfloat16"
    assert one.with_part(path, "default", None).text == draft.text
    assert draft.with_part(path, "vae", "float32").with_part(path, "vae", None).text == draft.text

"""What can be said follows from the schema: every method, parameter, field and setting, in its own words."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from runner.completion.words import Words, completions, vocabulary
from runner.config import Settings
from runner.errors import Location, RecipeError
from runner.methods import METHODS, Method
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import FLAGS, RECIPE_KEYS, WORDS


def no_settings() -> Settings:
    raise AssertionError("nobody asks for models here")


def said(recipe: dict[str, Any], **settings: Any) -> dict[str, Words]:
    return vocabulary({**settings, "recipe": recipe}, {"job": ("merge", "plan")}, no_settings)


def offered(word: str, recipe: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    return completions(word, said(recipe or {}, **settings))


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.label)
def test_every_method_is_offered_with_its_roles_and_parameters_in_their_words(method: Method) -> None:
    recipe = {"method": method.name, "compat": method.compat}
    keys = said({"models": {"b": recipe}})
    assert f"recipe.method={method.name}" in offered("recipe.method=")
    for role in method.roles:
        assert f"recipe.models.{role}" in said(recipe)
    for name, parameter in method.parameters.items():
        words = keys[f"recipe.models.b.{name}"]
        if parameter.choices:
            assert list(words) == [str(one).lower() for one in parameter.choices]
        else:
            assert list(words) == ([] if parameter.default is None else [str(parameter.default)])


def test_every_field_of_a_recipe_is_offered() -> None:
    parts = {key.split(".")[1] for key in said({"models": {"a": "demo:photo"}}) if key.startswith("recipe.")}
    assert parts == set(RECIPE_KEYS)


@pytest.mark.parametrize("name", [*WORDS, *FLAGS])
def test_what_is_offered_for_a_field_is_what_it_takes(name: str) -> None:
    recipe = {"method": "copy", "models": {"a": "demo:photo"}}
    words = offered("recipe.output.hide_names=" if name == "hide_names" else f"recipe.{name}=")
    assert words
    for word in (*(word.partition("=")[2] for word in words), "nonsense"):
        value: Any = {"true": True, "false": False}.get(word, word)
        told = {"output": {name: value}} if name == "hide_names" else {name: value}
        if word == "nonsense":
            with pytest.raises(RecipeError, match=f"{name}: expected"):
                parse_recipe("mine", {**recipe, **told}, lambda path: Location("mine.yaml"))
        else:
            parse_recipe("mine", {**recipe, **told}, lambda path: Location("mine.yaml"))


def test_a_key_is_offered_part_by_part_and_what_has_parts_and_a_value_as_both() -> None:
    recipe = {"method": "weighted_sum"}
    assert offered("recipe.al", recipe) == ["recipe.alpha.", "recipe.alpha="]
    assert offered("jo", job={"keys": "summary"}) == ["job.", "job="]
    assert offered("+recipe.alp", recipe) == ["+recipe.alpha.", "+recipe.alpha="]


def test_numbers_are_offered_by_component_block_and_model_unless_one_number_stands_there() -> None:
    assert "recipe.alpha.text_encoder=" in offered("recipe.alpha.", {"method": "weighted_sum"})
    divided = {"method": "weighted_sum", "alpha": {"unet": {"M00": 0.7, "*.attn2.*": 0.1}}}
    assert offered("recipe.alpha.unet.M", divided) == ["recipe.alpha.unet.M00="]
    assert offered("recipe.alpha.unet.M00=", divided) == ["recipe.alpha.unet.M00=0.7"]
    assert offered("recipe.alpha.", {"method": "weighted_sum", "alpha": 0.5}) == []
    ties = {"method": "ties", "models": {"base": "demo:base", "anime": "demo:anime"}}
    assert "recipe.weight.anime=" in offered("recipe.weight.", ties)
    assert offered("recipe.alpha.dialect=c", divided) == [
        f"recipe.alpha.dialect={name}" for name in ("chattiori", "comfyui")
    ]
    assert "recipe.alpha.mbw=GRAD_V" in offered("recipe.alpha.mbw=G", divided)


def test_what_the_recipe_says_is_offered_and_else_the_default() -> None:
    assert offered("recipe.alpha=", {"method": "weighted_sum", "alpha": 0.35}) == ["recipe.alpha=0.35"]
    assert offered("recipe.alpha=", {"method": "weighted_sum"}) == ["recipe.alpha=0.5"]
    assert offered("recipe.alpha=", {"method": "weighted_sum", "alpha": "${.other}"}) == []


def test_parameters_of_a_recipe_that_the_chosen_method_does_not_take_are_not_offered() -> None:
    inner = {"method": "ties", "density": 0.2, "alpha": {"unet": {"M00": 0.5}}}
    recipe = {"method": "ties", "alpha": 0.35, "models": {"base": "demo:base", "b": inner}, "seed": 3}
    assert offered("recipe.alpha", recipe) == offered("recipe.models.b.alpha", recipe) == []
    assert offered("recipe.models.b.density=", recipe) == ["recipe.models.b.density=0.2"]
    assert offered("recipe.seed=", recipe) == ["recipe.seed=3"]
    assert offered("recipe.alp", {"method": "unknown", "alpha": 0.35}) == ["recipe.alpha="]


def test_of_several_values_the_last_is_completed() -> None:
    words = offered("recipe.method=slerp,dare_")
    assert words == ["recipe.method=slerp,dare_linear", "recipe.method=slerp,dare_ties"]


def test_settings_are_offered_in_their_words_and_flags_as_true_and_false() -> None:
    settings = {"progress": "auto", "verify": True, "threads": 0, "job": {"name": "plan", "keys": "summary"}}
    assert offered("progress=o", **settings) == ["progress=off", "progress=on"]
    assert offered("verify=", **settings) == ["verify=false", "verify=true"]
    assert offered("threads=", **settings) == ["threads=0"]
    assert offered("job.keys=", **settings) == ["job.keys=all", "job.keys=summary"]
    assert offered("job=", **settings) == ["job=merge", "job=plan"]


def test_every_setting_of_the_schema_that_is_a_path_is_completed_as_one() -> None:
    paths = [field.name for field in fields(Settings) if field.type in ("Path", "Path | None")]
    assert {"models_dir", "output_dir", "sign_key"} <= set(paths)
    keys = said({}, **dict.fromkeys(paths), publish={"root": None}, job={"source": None, "other": None})
    assert all(callable(keys[name]) for name in (*paths, "publish.root", "job.source", "job.other"))


def test_a_recipe_of_another_shape_offers_what_can_be_said_of_any() -> None:
    shapes: list[dict[str, Any]] = [
        {"method": ["ties"], "models": [1], "output": "x"},
        {"method": {"a": 1}, "compat": 3, "models": {1: 2, "b": {"models": None, "method": "nope"}}},
        {"components": None, "output": {"dtype": [1]}},
    ]
    for recipe in shapes:
        assert "recipe.method=ties" in offered("recipe.method=t", recipe)
        assert "recipe.output." in offered("recipe.", recipe)

"""The structure of a recipe: what is read, and every mistake at once."""

from __future__ import annotations

from typing import Any

import pytest

from runner.errors import RecipeError
from runner.recipe.canonical import recipe_digest
from runner.recipe.parse import parse_recipe, parse_size
from runner.recipe.structure import Merge, Output, Policies, Recipe, Source
from tests.build import here

MINIMAL: dict[str, Any] = {"method": "weighted_sum", "models": {"a": "x", "b": "y"}}


def parse(**changes: Any) -> Recipe:
    return parse_recipe("mix", {**MINIMAL, **changes}, here)


def mistakes(**changes: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(**changes)
    return caught.value.message.split("\n")


def test_a_minimal_recipe_has_sensible_defaults() -> None:
    assert parse() == Recipe(
        "mix", Merge("weighted_sum", {"a": Source("x"), "b": Source("y")}, {}), Output("mix")
    )


def test_parameters_are_what_no_other_key_is() -> None:
    recipe = parse(alpha={"default": 0.1}, beta=2, seed=3, output={"name": "n"}, author="me")
    assert recipe.merge.parameters == {"alpha": {"default": 0.1}, "beta": 2}
    assert (recipe.merge.seed, recipe.output.name, recipe.author) == (3, "n", "me")


def test_merges_nest_and_inherit_policies_and_seed() -> None:
    inner = {"method": "add_difference", "models": {"a": "x", "b": "y", "c": "z"}, "missing": "keep"}
    recipe = parse(models={"a": "x", "b": inner}, seed=7, extrapolate=True)
    nested = recipe.merge.models["b"]
    assert isinstance(nested, Merge)
    assert nested.policies == Policies(missing="keep", extrapolate=True)
    assert nested.seed == 7
    assert [source.name for source in recipe.merge.sources()] == ["x", "x", "y", "z"]


def test_a_recipe_composed_as_a_model_brings_its_output_and_texts_in_vain() -> None:
    nested = {**MINIMAL, "output": {"name": "other"}, "description": "d"}
    assert isinstance(parse(models={"a": "x", "b": nested}).merge.models["b"], Merge)


def test_force_is_short_for_the_policies_that_keep() -> None:
    assert parse(force=True).merge.policies == Policies("keep", "drop", "keep", "keep")
    assert parse(force=True, extra="error").merge.policies.extra == "error"


def test_a_source_can_say_more() -> None:
    model = {"source": "x", "sha256": "A" * 64, "variant": "fp16"}
    assert parse(models={"a": model, "b": "y"}).merge.models["a"] == Source("x", "a" * 64, "fp16")


def test_output_dtypes_are_one_or_by_component() -> None:
    assert parse(output={"dtype": "float16"}).output.dtype == {"default": "float16"}
    by_component = {"default": "float16", "vae": "float32"}
    assert parse(output={"dtype": by_component}).output.dtype == by_component


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"method": 3}, "method", "name of a method"),
    ({"models": []}, "models", "models by role"),
    ({"models": {"a": 3}}, "models.a", "expected a path"),
    ({"models": {"a": ["x"]}}, "models.a", "expected a path"),
    ({"models": {"a b": "x"}}, "models.a b", "a role is a word"),
    ({"models": {"a": {"source": "x", "sha": "y"}}}, "models.a.sha", 'did you mean "sha256"'),
    ({"models": {"a": {"source": "x", "sha256": "abc"}}}, "models.a.sha256", "64 hexadecimal"),
    ({"models": {"a": {"source": ""}}}, "models.a.source", "expected a path"),
    ({"seed": -1}, "seed", "integer"),
    ({"seed": True}, "seed", "integer"),
    ({"seed": 1.5}, "seed", "integer"),
    ({"force": "yes"}, "force", "true or false"),
    ({"missing": "kep"}, "missing", 'did you mean "keep"'),
    ({"nonfinite": "x"}, "nonfinite", "list of key patterns"),
    ({"compute_dtype": "float16"}, "compute_dtype", "float32 or float64"),
    ({"prediction_type": "v"}, "prediction_type", "epsilon or v_prediction"),
    ({"zero_terminal_snr": "yes"}, "zero_terminal_snr", "expected true or false"),
    ({"prediction_type": "v_predicton"}, "prediction_type", 'did you mean "v_prediction"'),
    ({"output": "x"}, "output", "{name: ..., dtype: ...}"),
    ({"output": {"nam": "x"}}, "output.nam", 'did you mean "name"'),
    ({"output": {"name": "a/b"}}, "output.name", "letters, digits"),
    ({"output": {"name": ".."}}, "output.name", "letters, digits"),
    ({"output": {"name": "ä"}}, "output.name", "letters, digits"),
    ({"output": {"dtype": "float61"}}, "output.dtype", "expected one of float16"),
    ({"output": {"dtype": ["float16"]}}, "output.dtype", "expected one of float16"),
    ({"output": {"dtype": {"vae": "half"}}}, "output.dtype.vae", "expected one of"),
    ({"output": {"max_shard_size": "big"}}, "output.max_shard_size", "5GB"),
    ({"author": 3}, "author", "expected a text"),
]


@pytest.mark.parametrize(("changes", "path", "reason"), MISTAKES)
def test_a_mistake_names_its_place_and_what_is_expected(
    changes: dict[str, Any], path: str, reason: str
) -> None:
    (line,) = mistakes(**changes)
    assert line.startswith(f"test.yaml:1: {path}: ")
    assert reason in line


def test_every_mistake_is_reported_at_once() -> None:
    found = mistakes(method=3, seed="x", force=1, output={"name": "/", "dtype": "x"})
    assert len(found) == 5


def test_a_nested_merge_cannot_have_a_compute_dtype_of_its_own() -> None:
    nested = {**MINIMAL, "compute_dtype": "float64"}
    (line,) = mistakes(models={"a": "x", "b": nested})
    assert "at the top" in line


def test_a_nested_merge_predicts_what_the_recipe_says_at_the_top() -> None:
    nested = {**MINIMAL, "prediction_type": "epsilon"}
    (line,) = mistakes(models={"a": "x", "b": nested})
    assert "at the top" in line
    assert parse(models={"a": "x", "b": nested}, prediction_type="epsilon").prediction_type == "epsilon"


def test_a_nested_merge_has_no_noise_schedule_of_its_own() -> None:
    nested = {**MINIMAL, "zero_terminal_snr": False}
    assert all("at the top" in line for line in mistakes(models={"a": "x", "b": nested}))
    assert mistakes(models={"a": "x", "b": nested}, zero_terminal_snr=True)
    assert parse(models={"a": "x", "b": nested}, zero_terminal_snr=False).zero_terminal_snr is False
    assert parse().zero_terminal_snr is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5, 5),
        ("5", 5),
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("10kB", 10_000),
        ("0.1", None),
        ("0", None),
        (True, None),
        ("x", None),
    ],
)
def test_sizes(text: object, size: int | None) -> None:
    assert parse_size(text) == size


def test_the_order_of_components_does_not_matter() -> None:
    sources = {"vae": "x.safetensors", "text_encoder": "y.safetensors"}
    tree = {"method": "copy", "models": {"a": "demo:photo"}, "output": {"hide_names": True}}
    one = parse_recipe("mix", {**tree, "components": sources}, here)
    other = parse_recipe("mix", {**tree, "components": dict(reversed(sources.items()))}, here)
    assert list(one.sources()) == list(other.sources()) and recipe_digest(one) == recipe_digest(other)

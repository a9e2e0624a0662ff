"""The canonical recipe of a header or record is the recipe again, for every recipe there can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.compose import DATA_ROOT
from runner.imports import own
from runner.imports.recipe_text import recipe_text
from runner.recipe.canonical import canonical_json, canonical_recipe, recipe_digest
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import Recipe
from tests.build import here

WITHOUT_PARENTS = [
    path for path in sorted((DATA_ROOT / "recipes").rglob("*.yaml")) if "\ndefaults:" not in path.read_text()
]


def again(recipe: Recipe) -> Recipe:
    """A recipe from the text that a header has of it."""
    record = json.loads(canonical_json(canonical_recipe(recipe)))
    return parse_recipe("again", own.read(record, "header").tree, here)


@pytest.mark.parametrize("path", WITHOUT_PARENTS, ids=lambda path: path.stem)
def test_a_recipe_read_from_its_header_is_the_same_recipe(path: Path) -> None:
    recipe = parse_recipe(path.stem, yaml.safe_load(path.read_text()), here)
    assert recipe_digest(again(recipe)) == recipe_digest(recipe)
    assert again(recipe).merge == again(again(recipe)).merge


WORDS = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
NUMBERS = st.one_of(st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False))
VALUES = st.recursive(
    st.one_of(NUMBERS, st.booleans(), st.text("abc:*.", min_size=1, max_size=4)),
    lambda value: st.one_of(
        st.lists(NUMBERS, max_size=3),
        st.lists(st.dictionaries(WORDS, value, min_size=1, max_size=2), max_size=2),
        st.dictionaries(st.text("aB0*.-", min_size=1, max_size=4), value, max_size=3),
    ),
    max_leaves=6,
)
SOURCES = st.one_of(
    st.sampled_from(["demo:photo", "hf:org/name@v1/file.safetensors", "folder/a.safetensors", "/b", "~/c"]),
    st.fixed_dictionaries(
        {"source": st.sampled_from(["x/a.safetensors", "y/a.safetensors", "pipeline"])},
        optional={"variant": st.just("fp16"), "sha256": st.just("0" * 64)},
    ),
)
POLICIES: dict[str, st.SearchStrategy[Any]] = {
    "force": st.booleans(),
    "missing": st.sampled_from(["error", "keep"]),
    "extra": st.sampled_from(["error", "drop", "keep"]),
    "shapes": st.sampled_from(["error", "keep", "channels"]),
    "integers": st.sampled_from(["error", "keep"]),
    "ema": st.sampled_from(["drop", "keep", "use"]),
    "nonfinite": st.lists(st.sampled_from(["*", "a.*", "b"]), max_size=2),
    "extrapolate": st.booleans(),
    "seed": st.integers(0, 2**64 - 1) | st.just(0),
    "compat": st.sampled_from(["a1111", "diffusers"]),
}


def merges(models: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda fixed, parameters: {**{f"p_{name}": value for name, value in parameters.items()}, **fixed},
        st.fixed_dictionaries(
            {"method": WORDS, "models": st.dictionaries(WORDS, models, min_size=1, max_size=3)},
            optional=POLICIES,
        ),
        st.dictionaries(WORDS, VALUES, max_size=2),
    )


OUTPUTS = st.fixed_dictionaries(
    {"name": st.just("mix")},
    optional={
        "format": st.sampled_from(["diffusers", "checkpoint"]),
        "dtype": st.just("float16")
        | st.dictionaries(st.sampled_from(["default", "vae"]), st.just("bfloat16")),
        "max_shard_size": st.sampled_from(["5GB", 1000, "1.5MiB"]),
        "config": SOURCES.filter(lambda source: "sha256" not in source),
        "hide_names": st.booleans(),
    },
)
RECIPES = st.builds(
    lambda merge, more: {**merge, **more},
    merges(st.recursive(SOURCES, merges, max_leaves=6)),
    st.fixed_dictionaries(
        {"output": OUTPUTS},
        optional={
            "components": st.dictionaries(st.sampled_from(["vae", "unet", "text_encoder"]), SOURCES),
            "compute_dtype": st.sampled_from(["float32", "float64"]),
            "description": st.text(max_size=5),
            "license": st.just("mit"),
            "prediction_type": st.just("epsilon"),
            "zero_terminal_snr": st.booleans(),
        },
    ),
)


@settings(deadline=None, max_examples=150)
@given(RECIPES)
def test_whatever_a_recipe_says_its_canonical_form_says_the_same_again(tree: dict[str, Any]) -> None:
    recipe = parse_recipe("mix", tree, here)
    assert canonical_json(canonical_recipe(again(recipe))) == canonical_json(canonical_recipe(recipe))
    assert recipe_digest(again(recipe)) == recipe_digest(recipe)


def test_what_a_merge_inside_says_against_the_one_around_it_is_kept() -> None:
    inner = {"method": "copy", "models": {"a": "a"}, "missing": "error", "seed": 0, "nonfinite": ["x"]}
    tree = {"method": "copy", "models": {"a": inner}, "missing": "keep", "seed": 3, "nonfinite": ["*"]}
    merge = again(parse_recipe("mix", tree, here)).merge.models["a"]
    assert merge == parse_recipe("mix", tree, here).merge.models["a"]
    text = recipe_text(own.read(canonical_recipe(parse_recipe("mix", tree, here)), "x"), "x")
    assert "nonfinite: [x]" in text and "missing: error" in text and "seed: 0" in text

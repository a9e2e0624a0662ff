"""Names to things: every wrong name at once, every source once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.architectures import Place
from runner.demo.models import demo_model
from runner.errors import IncompatibleError, InputError, RecipeError
from runner.weighting.parameter import Weighting
from tests.build import resolved, write_models


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path, a=1, b=2, c=3)
    return tmp_path


def tree(method: str = "weighted_sum", roles: str = "ab", **changes: Any) -> dict[str, Any]:
    return {"method": method, "models": {role: f"{role}.safetensors" for role in roles}, **changes}


def mistakes(folder: Path, recipe: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolved(recipe, folder)
    return caught.value.message.split("\n")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (tree("weigthed_sum"), 'method: unknown method "weigthed_sum", did you mean "weighted_sum"?'),
    (tree("add_diff"), 'method: unknown method "add_diff", did you mean "add_difference"?'),
    (tree(compat="difusers"), 'compat: unknown tool "difusers", did you mean "diffusers"?'),
    (tree("slerp", compat="diffusers"), 'method: unknown method "slerp" with compat: diffusers'),
    (tree("add_difference"), "models.c: missing: add_difference takes a, b, c"),
    (tree(roles="abc"), "models.c: no such model: weighted_sum takes a, b"),
    (tree("ties"), "models.base: missing: ties takes base and 1 or more models"),
    ({"method": "model_stock", "models": {"base": "a.safetensors", "x": "b.safetensors"}}, "models: too few"),
    (tree(alhpa=0.3), 'alhpa: unknown parameter of weighted_sum, did you mean "alpha"? (found 0.3)'),
    (tree(alpha=True), "alpha: expected a number, found true"),
    (tree(alpha="0.3"), 'alpha: expected a number, found "0.3"'),
    (tree(alpha=[0.3]), "alpha: a list runs from its first number to its last; found [0.3]"),
    (tree(alpha=1.5), "alpha: expected 0 to 1, found 1.5; say extrapolate: true"),
    (tree("sigmoid", alpha=1.5, extrapolate=True), "alpha: expected 0 to 1, found 1.5"),
    (
        tree(alpha={"default": 0.1, "vea": 1}),
        'alpha.vea: unknown component, block or key pattern, did you mean "vae"?',
    ),
    (tree(alpha={"default": 0.1, "*.nothing.*": 1}), "alpha.*.nothing.*: selects no tensor"),
    (tree(alpha={"vae": 1}), "alpha: says nothing of"),
    (
        tree("slerp", per="rows"),
        'per: expected one of tensor, row, column; found "rows", did you mean "row"?',
    ),
    (tree("linear", normalize="yes"), 'normalize: expected one of true, false; found "yes"'),
    (tree("linear", weight={"a": 1, "d": 2}), "weight.d: no such model (there are: a, b)"),
    (
        tree(output={"format": "diffuser"}),
        'output.format: unknown format "diffuser", did you mean "diffusers"?',
    ),
    (
        tree(output={"format": "diffusers"}),
        'output.format: "a.safetensors" is of an unknown architecture: its layout cannot be converted',
    ),
    (tree(output={"dtype": {"vea": "float16"}}), 'output.dtype.vea: no such component, did you mean "vae"?'),
    (tree(output={"max_shard_size": "1GB"}), "output.max_shard_size: a single file is not split"),
]


@pytest.mark.parametrize(("recipe", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_a_wrong_name_or_value_is_told_with_its_place(
    recipe: dict[str, Any], message: str, models: Path
) -> None:
    (line,) = mistakes(models, recipe)
    assert line.startswith(f"test.yaml:1: {message}")


def test_mistakes_of_nested_merges_and_missing_files_are_told_together(models: Path) -> None:
    inner = {"method": "add_diference", "models": {"a": "a.safetensors", "b": "nope.safetensors"}}
    found = mistakes(models, tree(alhpa=1, models={"a": "a.safetensors", "b": inner}))
    assert len(found) == 3
    assert any("models.b.method" in line for line in found)
    assert any("alhpa" in line for line in found)
    assert any("nope.safetensors" in line for line in found)


def places_of(mistakes: list[str]) -> set[str]:
    """The key paths of messages "test.yaml:1: PATH: ..."."""
    return {line.split(": ")[1] for line in mistakes}


def test_all_wrong_names_are_told_at_once(models: Path) -> None:
    inner = {"method": "slerp", "models": {"a": "a.safetensors", "basis": "b.safetensors"}, "pre": "row"}
    recipe = tree(models={"a": inner, "c": "c.safetensors"}, alhpa=0.5)
    assert places_of(mistakes(models, recipe)) == {
        *("models.a.models.b", "models.a.models.basis", "models.a.pre"),
        *("models.b", "models.c", "alhpa"),
    }


WRONG_VALUES = {
    "alpha": {"default": 0.1, "IN99": 0.2, "vea": 0.3, "unet": 2},
    "alhpa": 0.5,
    "output": {"format": "diffuser", "dtype": {"unte": "float16"}},
}
WRONG_PLACES = {"alpha.IN99", "alpha.vea", "alpha.unet", "alhpa", "output.format", "output.dtype.unte"}


def test_all_wrong_values_are_told_at_once(models: Path, cache: Path) -> None:
    demos = {"a": "demo:photo", "b": "demo:anime"}
    inner = {"method": "slerp", "models": demos, "per": "rows"}
    with pytest.raises(RecipeError) as caught:
        resolved({"method": "weighted_sum", "models": {**demos, "b": inner}, **WRONG_VALUES}, models, cache)
    assert places_of(caught.value.message.split("\n")) == {*WRONG_PLACES, "models.b.per"}
    assert caught.value.exit_code == 3


def test_wrong_values_are_told_beside_a_role_too_many(models: Path, cache: Path) -> None:
    roles = {"a": "demo:photo", "b": "demo:anime", "c": "demo:base"}
    with pytest.raises(RecipeError) as caught:
        resolved({"method": "weighted_sum", "models": roles, **WRONG_VALUES}, models, cache)
    assert places_of(caught.value.message.split("\n")) == {*WRONG_PLACES, "models.c"}


def test_wrong_values_are_told_beside_a_missing_role(models: Path, cache: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved({"method": "weighted_sum", "models": {"a": "demo:photo"}, **WRONG_VALUES}, models, cache)
    assert places_of(caught.value.message.split("\n")) == {*WRONG_PLACES, "models.b"}


def test_a_source_that_stands_twice_is_opened_once(models: Path) -> None:
    inner = tree("add_difference", "abc")
    found = resolved(tree(models={"a": "./a.safetensors", "b": inner}), models)
    assert [len(model.sources) for model in found.models] == [2, 1, 1]


def test_a_file_under_other_names_is_opened_once(models: Path) -> None:
    (models / "link.safetensors").symlink_to(models / "a.safetensors")
    names = {"a": "a.safetensors", "b": str(models / "a.safetensors"), "c": "link.safetensors"}
    found = resolved(tree("add_difference", models=names), models)
    assert [len(model.sources) for model in found.models] == [3]
    assert set(found.merge.models.values()) == {0}


def test_a_missing_file_names_the_nearest_one(models: Path) -> None:
    with pytest.raises(InputError, match=r"aa\.safetensors: no such file") as caught:
        resolved(tree(models={"a": "aa.safetensors", "b": "b.safetensors"}), models)
    assert 'did you mean "a.safetensors"' in str(caught.value.hint)


def test_all_unreadable_sources_are_told_together(models: Path) -> None:
    (models / "b.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        resolved(tree(models={"a": "x.safetensors", "b": "b.safetensors"}), models)
    assert len(caught.value.message.split("\n")) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("https://example.org/model.safetensors", "a URL"),
        ("hf:org/name", "hub"),
        ("demo:phot", 'did you mean "photo"'),
        ("folder", "model_index.json"),
    ],
)
def test_what_is_no_model_says_why(name: str, reason: str, models: Path) -> None:
    (models / "folder").mkdir()
    with pytest.raises(InputError, match=reason) as caught:
        resolved(tree(models={"a": name, "b": "b.safetensors"}), models)
    assert caught.value.exit_code == 4 and name in caught.value.message


def test_layouts_of_unknown_architectures_are_not_mixed(models: Path, cache: Path) -> None:
    shutil.copytree(demo_model("photo", cache), models / "photo")
    with pytest.raises(IncompatibleError, match="their layouts cannot be mixed") as caught:
        resolved(tree(models={"a": "photo", "b": "b.safetensors"}), models)
    assert caught.value.exit_code == 5
    assert '"photo" is a diffusers folder (Stable Diffusion 1.x)' in caught.value.message
    assert '"b.safetensors" is a single file (unknown)' in caught.value.message


def test_blocks_are_named_by_architecture(models: Path, cache: Path) -> None:
    recipe = {"method": "weighted_sum", "models": {"a": "demo:photo", "b": "demo:anime"}}
    alpha = {"default": 0, "IN00-IN05": 0.1, "M00": 0.2, "TIME": 0.3, "OUT3": 0.4}
    weighting = resolved({**recipe, "alpha": alpha}, models, cache).merge.weightings["alpha"]
    assert isinstance(weighting, Weighting)
    assert set(weighting.values.values()) == {0.1, 0.2, 0.3, 0.4}
    with pytest.raises(RecipeError, match="IN99"):
        resolved({**recipe, "alpha": {"default": 0, "IN99": 1}}, models, cache)


def test_a_list_leaves_the_components_without_blocks_open(models: Path, cache: Path) -> None:
    recipe = {"method": "weighted_sum", "models": {"a": "demo:photo", "b": "demo:anime"}}
    with pytest.raises(RecipeError, match=r"text_encoder/.*write {COMPONENT: LIST, default:"):
        resolved({**recipe, "alpha": [0, 1]}, models, cache)
    weighting = resolved({**recipe, "alpha": {"unet": [0, 1], "default": 0.5}}, models, cache)
    assert weighting.merge.weightings["alpha"].at("unet/conv_out.bias", Place("unet")) == 1  # type: ignore[union-attr]


def test_each_of_many_models_may_have_block_weights(models: Path, cache: Path) -> None:
    demos = {"photo": "demo:photo", "anime": "demo:anime"}
    weight = {"photo": {"mbw": "GRAD_V", "base": 0.5}, "anime": {"unet": [0, 1], "default": 1}}
    found = resolved({"method": "linear", "models": demos, "weight": weight}, models, cache)
    photo, anime = found.merge.weightings["weight"]  # type: ignore[misc]
    key = "unet/mid_block.resnets.0.conv1.weight"
    assert (photo.at(key, found.places[key]), anime.at(key, found.places[key])) == (0, 0.5)
    both = {"method": "linear", "models": demos, "weight": {"mbw": "FLAT_25", "base": 0.5}}
    photo, anime = resolved(both, models, cache).merge.weightings["weight"]  # type: ignore[misc]
    assert photo.at(key, found.places[key]) == anime.at(key, found.places[key]) == 0.25


def test_a_list_is_no_number_for_each_model(models: Path) -> None:
    (line,) = mistakes(models, {**tree("linear"), "weight": [0.3, 0.7]})
    assert "weight: a list runs over blocks; for a number for each model write {MODEL: NUMBER" in line


def test_folders_are_selected_by_the_names_of_single_files_too(models: Path, cache: Path) -> None:
    recipe = {"method": "weighted_sum", "models": {"a": "demo:photo", "b": "demo:anime"}}
    alpha = {"mbw": "FLAT_25", "elemental": "OUT05:in_layers:0.5", "*.input_blocks.4.1.*.to_k.*": 0.75}
    found = resolved({**recipe, "alpha": alpha}, models, cache)
    weighting = found.merge.weightings["alpha"]
    assert isinstance(weighting, Weighting)
    expected = {
        "unet/up_blocks.1.resnets.2.norm1.weight": 0.5,
        "unet/up_blocks.1.resnets.2.norm2.weight": 0.25,
        "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": 0.75,
        "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight": 0.25,
    }
    assert {key: weighting.at(key, found.places[key]) for key in expected} == expected


def test_an_unusual_strength_is_a_warning(models: Path) -> None:
    found = resolved(tree("add_difference", "abc", alpha=3), models)
    assert found.warnings == ("test.yaml:1: alpha: 3 is outside the usual 0 to 2",)


@pytest.mark.parametrize(("name", "warnings"), [("nul.v1", 1), ("COM1", 1), ("com10", 0), ("null", 0)])
def test_a_name_that_windows_keeps_for_itself_is_a_warning(name: str, warnings: int, models: Path) -> None:
    found = resolved({**tree(), "output": {"name": name}}, models).warnings
    assert ["Windows" in text for text in found] == [True] * warnings

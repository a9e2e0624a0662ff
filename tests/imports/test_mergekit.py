"""mergekit's YAML: each method it shares with us, its parameters, and what it has that we have not."""

from __future__ import annotations

from typing import Any

import pytest

from runner.errors import InputError
from runner.imports import Imported, import_text
from runner.imports.recipe_text import recipe_text

THREE = """
base_model: org/base
models:
  - model: org/base
  - model: org/One-7B
    parameters: {weight: 0.5, density: 0.4}
  - model: two.safetensors
"""


def read(method: str, rest: str = THREE) -> Imported:
    found = import_text(f"merge_method: {method}\n{rest}", "x.yaml")
    assert recipe_text(found, "x.yaml")
    return found


def noted(found: Imported, kind: str) -> str:
    return "\n".join(f"{note.part}: {note.text}" for note in found.notes if note.kind == kind)


MODELS = {"one_7b": {"source": "org/One-7B"}, "two": {"source": "two.safetensors"}}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("task_arithmetic", {"weight": {"one_7b": 0.5, "two": 1}, "normalize": False, "scale": 1}),
        ("ties", {"density": {"one_7b": 0.4, "two": 1}, "normalize": True}),
        ("dare_linear", {"density": {"one_7b": 0.4, "two": 1}, "normalize": False}),
        ("dare_ties", {"density": {"one_7b": 0.4, "two": 1}, "normalize": False}),
        ("della", {"epsilon": {"one_7b": 0.15, "two": 0.15}, "normalize": True}),
        ("della_linear", {"epsilon": {"one_7b": 0.15, "two": 0.15}, "normalize": False}),
        ("breadcrumbs", {"gamma": {"one_7b": 0.01, "two": 0.01}, "density": {"one_7b": 0.4, "two": 1}}),
        ("breadcrumbs_ties", {"gamma": {"one_7b": 0.01, "two": 0.01}, "normalize": False}),
        ("sce", {"select_topk": 1}),
        ("model_stock", {"per": "tensor"}),
    ],
)
def test_methods_of_differences_have_a_base_and_the_others(method: str, expected: dict[str, Any]) -> None:
    tree = read(method).tree
    assert tree["models"] == {"base": {"source": "org/base"}, **MODELS}
    assert expected.items() <= tree.items()


def test_the_base_is_an_ordinary_model_of_linear_and_karcher() -> None:
    for method in ("linear", "karcher"):
        assert len(read(method).tree["models"]) == 3


def test_nuslerp_and_multislerp_take_a_base_only_if_there_is_one() -> None:
    assert list(read("nuslerp").tree["models"]) == ["base", "a", "b"]
    two = "models: [{model: x, parameters: {weight: 1}}, {model: y, parameters: {weight: 3}}]"
    tree = read("nuslerp", two + "\nparameters: {nuslerp_flatten: false, nuslerp_row_wise: true}").tree
    assert (tree["weight"], tree["per"]) == ({"a": 1, "b": 3}, "column")
    assert list(read("multislerp", two).tree["models"]) == ["x", "y"]


@pytest.mark.parametrize("order", [("base", "other"), ("other", "base"), ("other",)])
def test_t_is_the_share_of_the_model_that_is_not_the_base(order: tuple[str, ...]) -> None:
    models = ", ".join(f"{{model: {name}}}" for name in order)
    for method, name in (("slerp", "alpha"), ("nearswap", "t")):
        tree = read(method, f"base_model: base\nmodels: [{models}]\nparameters: {{t: 0.25}}").tree
        assert tree["models"] == {"a": {"source": "base"}, "b": {"source": "other"}}
        assert tree[name] == 0.25


def test_filters_are_patterns_and_the_first_that_fits_counts() -> None:
    settings = (
        "parameters: {t: [{filter: attn, value: 0.1}, {filter: attn2, value: 0.2}, {value: 0.5}, {value: 1}]}"
    )
    found = read("slerp", f"base_model: a\nmodels: [{{model: b}}]\n{settings}")
    assert found.tree["alpha"] == {"*attn*": 0.1, "*attn2*": 0.2, "default": 0.5}


def test_a_gradient_over_layers_is_refused_and_its_mean_stands_for_it() -> None:
    found = read("slerp", "base_model: a\nmodels: [{model: b}]\nparameters: {t: [0, 0.5, 0.7]}")
    assert found.tree["alpha"] == pytest.approx(0.4)
    assert "[0, 0.5, 0.7] changes from layer to layer" in noted(found, "refused")


def test_what_is_not_translated_is_listed() -> None:
    found = read(
        "dare_ties", THREE + "tokenizer_source: union\nparameters: {magic: 1, int8_mask: true}\nspell: 2\n"
    )
    for part in ("tokenizer_source", "magic", "spell"):
        assert f"{part}: " in noted(found, "refused")
    assert "int8_mask" not in noted(found, "refused")
    assert "random numbers" in noted(found, "approximate")


@pytest.mark.parametrize(
    ("method", "rest", "message"),
    [
        ("magic", THREE, '"magic" is not offered here'),
        ("ties", "models: [{model: x}]", "base_model"),
        ("slerp", THREE, "base_model and one other"),
        ("linear", "models: 3", "expected 1 to 100 models"),
        ("linear", "models: [{model: org/x+org/lora}]", "without an adapter"),
        ("linear", "modules: {unet: {models: []}}", "modules"),
        ("passthrough", "slices: [{sources: []}, {sources: []}]", "put together from layers"),
        ("passthrough", THREE, "passthrough takes one"),
        ("linear", "models: [{model: x}", "not YAML"),
        ("linear", "models: !!python/object:os.system [x]", "a tag"),
    ],
)
def test_a_configuration_of_which_nothing_can_be_made_is_an_error(
    method: str, rest: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(method, rest)
    assert message in str(caught.value)

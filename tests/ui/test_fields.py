"""The fields of a form: every one that a recipe has, with its meaning, and nothing that it may not say."""

from __future__ import annotations

import pytest

from runner.catalogue import standard
from runner.compose import recipe_in
from runner.methods import METHODS, find_method
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import OUTPUT_KEYS, POLICY_KEYS, RECIPE_KEYS, Policies, Recipe
from runner.ui.draft import Draft
from runner.ui.fields import DTYPE, FORMAT, NAME, Field, merge_fields, parameter_meaning, result_fields, shown

METHOD = find_method("weighted_sum", None)
FIELDS = [NAME, FORMAT, DTYPE, *merge_fields(METHOD, is_inner=False), *result_fields()]
SMALL = Draft("x", "method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\n")
TYPED = {"seed": "12", "nonfinite": "*.bias, x.*", "max_shard_size": "5GB"}


def parsed(draft: Draft) -> Recipe:
    composed = recipe_in(draft.file)
    return parse_recipe(composed.name, composed.tree, composed.locate)


def test_every_key_of_a_recipe_has_a_field() -> None:
    elsewhere = {("method",), ("models",), ("components",), ("output",)}  # rows and lists of their own
    keys = {(key,) for key in RECIPE_KEYS} | {("output", key) for key in OUTPUT_KEYS}
    assert {field.path for field in FIELDS} == keys - elsewhere


@pytest.mark.parametrize("field", FIELDS[3:], ids=lambda field: field.name)
def test_a_field_says_what_it_means(field: Field) -> None:
    assert len(field.meaning) > 10 and not field.meaning.endswith(".")


def test_every_parameter_of_a_method_has_a_meaning_that_can_be_read_by_itself() -> None:
    for method in standard():
        for name in method.parameters:
            meaning = parameter_meaning(method, name)
            assert len(meaning) > 9 and not meaning.endswith(".")
            assert "Source" not in meaning and not meaning.startswith("as in ")
    ties = find_method("breadcrumbs_ties", None)
    assert ties is not None
    assert parameter_meaning(ties, "density").startswith("share that is kept; 1 keeps all. Where density + ")
    assert parameter_meaning(ties, "vote") == 'whether the sign is elected by "mass" or by "count" of models'


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_whatever_a_field_offers_is_taken_and_taken_back(field: Field) -> None:
    values = [value for _, value in field.choices] or [field.read(TYPED.get(field.name, "some text"))]
    for value in values:
        if field is not NAME:  # which has no blanks
            draft = SMALL.with_said(field.path, value)
            parsed(draft)
            assert draft.with_said(field.path, None).text == SMALL.text
            assert field.choices or field.read(shown(value)) == value


def test_what_holds_unsaid_is_what_the_recipe_does() -> None:
    for field in merge_fields(METHOD, is_inner=False):
        if field.name in POLICY_KEYS and field.choices:
            said = dict(field.choices)[field.unsaid]
            assert parsed(SMALL.with_said(field.path, said)) == parsed(SMALL)
    assert {field.unsaid for field in merge_fields(METHOD, is_inner=True)} >= {"as in the merge around it"}
    assert parsed(SMALL).merge.policies == Policies()


def test_the_tools_whose_results_are_repeated_are_those_that_have_the_method() -> None:
    for name in sorted({name for name, _ in METHODS}):
        method = find_method(name, None)
        offered = [one for one in merge_fields(method, is_inner=False) if one.name == "compat"]
        words = [word for one in offered for word, _ in one.choices]
        assert all((name, word) in METHODS for word in words)


def test_a_number_that_is_none_is_kept_as_it_was_typed() -> None:
    seed = next(field for field in FIELDS if field.name == "seed")
    assert [seed.read(text) for text in (" 7 ", "-1", "1.5", "many", "")] == [7, "-1", "1.5", "many", None]

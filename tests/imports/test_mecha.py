"""sd-mecha's text: values, references, and the patterns of differences."""

from __future__ import annotations

from typing import Any

import pytest

from runner.errors import InputError
from runner.imports import Imported, import_metadata, import_text
from runner.imports.imported import MAX_MERGES, MAX_NESTED, merges
from runner.imports.recipe_text import recipe_text

HEAD = "version 0.1.0\n"
ABC = "".join(f'model "{name}.safetensors" model_config="sd1-ldm" merge_space="weight"\n' for name in "abc")


def read(lines: str) -> Imported:
    found = import_text(HEAD + lines, "x.mecha")
    assert recipe_text(found, "x.mecha")
    return found


def tree(lines: str) -> dict[str, Any]:
    return read(ABC + lines).tree


def refused(lines: str) -> str:
    with pytest.raises(InputError) as caught:
        read(ABC + lines)
    return str(caught.value)


SOURCE = {name: {"source": f"{name}.safetensors"} for name in "abc"}


def test_lines_that_are_comments_or_empty_have_no_number() -> None:
    assert tree('# a comment\n\nmerge "weighted_sum" &0 &2 0.25')["models"] == {
        "a": SOURCE["a"],
        "b": SOURCE["c"],
    }


def test_an_equals_sign_inside_quotation_marks_is_text() -> None:
    found = read(
        'model "a=1 \\"x\\".safetensors"\nmodel "b.safetensors"\nmerge "weighted_sum" &0 &1 alpha=.5'
    )
    assert found.tree["models"]["a"] == {"source": 'a=1 "x".safetensors'}


def test_a_path_is_looked_up_by_its_name() -> None:
    found = read('model "/home/x/a.safetensors"\nmodel "C:\\\\m\\\\b.safetensors"\nmerge "slerp" &0 &1')
    assert found.tree["models"] == {"a": SOURCE["a"], "b": SOURCE["b"]}
    assert sum('is looked up as "a.safetensors"' in note.text for note in found.notes) == 1


def test_the_header_of_a_model_holds_the_same_text() -> None:
    text = HEAD + ABC + 'merge "weighted_sum" &0 &1 alpha=0.5'
    assert import_metadata({"mecha_recipe": text}, "x").tree == import_text(text, "x").tree


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (  # one difference: add_difference
            'merge "subtract" &1 &2\nmerge "scale" &3 0.5\nmerge "add_difference" &0 &4 alpha=0.5',
            {"method": "add_difference", "models": SOURCE, "alpha": 0.25},
        ),
        (  # several from the model they are added to: task_arithmetic
            'merge "subtract" &1 &0\nmerge "subtract" &2 &0\nmerge "add_difference" &3 &4 alpha=0.5\n'
            'merge "add_difference" &0 &5 alpha=0.25',
            {"method": "task_arithmetic", "weight": {"model_1": 1, "model_2": 0.5}, "scale": 0.25},
        ),
        (  # several from several: a sum whose factors add up to 1
            'merge "subtract" &1 &2\nmerge "subtract" &2 &0\nmerge "weighted_sum" &3 &4 alpha=0.25\n'
            'merge "add_difference" &0 &5',
            {
                "method": "linear",
                "normalize": False,
                "weight": {"model_1": 1, "model_2": 0.75, "model_3": -0.5, "model_4": -0.25},
            },
        ),
        (
            'merge "subtract" &1 &0\nmerge "truncate_rank" &3 rank=4\nmerge "add_difference" &0 &4 1.0',
            {"method": "truncate_rank", "rank": 4},
        ),
        (
            'merge "subtract" &0 &2\nmerge "subtract" &1 &2\nmerge "tensor_sum" &3 &4 0.5 0.25\n'
            'merge "add_difference" &2 &5',
            {
                "method": "tensor_sum",
                "models": {"a": SOURCE["a"], "b": SOURCE["b"]},
                "alpha": 0.5,
                "beta": 0.25,
            },
        ),
        (
            'merge "subtract" &1 &0\nmerge "subtract" &2 &0\n'
            'merge "ties_sum_with_dropout" &3 &4 probability=0.6 della_eps=0.2 '
            "k=1 apply_stock=true rescale=false\n"
            'merge "add_difference" &0 &5 alpha=0.5',
            {
                "method": "della",
                "density": 0.4,
                "epsilon": 0.1,
                "rescale": "none",
                "vote": "count",
                "scale": 0.5,
            },
        ),
        (
            'merge "subtract" &1 &2\nmerge "add_opposite_mask" &0 &1 &2 0.5\nmerge "add_difference" &0 &3 &4',
            {"method": "add_opposite", "models": SOURCE, "alpha": 0.5},
        ),
        ('merge "rotate" &0 &1 alignment=0.5', {"method": "rotate", "alignment": 0.5, "alpha": 0}),
    ],
)
def test_differences_fold_into_the_method_that_adds_them(lines: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= tree(lines).items()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('merge "subtract" &1 &2', "no merge of models"),
        ("", "no merge of models"),
        ('merge "rebasin" &0 &1', '"rebasin" is not offered here'),
        ('merge "weighted_sum" &0 &7', '"&7" is no earlier line'),
        ('merge "weighted_sum" &0 &99999999999999', "is no earlier line"),
        ('merge "weighted_sum" &0', "expected 2 models, found 1"),
        ('merge "weighted_sum" &0 &1 alpha="x"', "alpha: expected a number"),
        ('merge "weighted_sum" &0 &1 alpha=1e999', '"1e999" is no value'),
        ('merge "weighted_sum" &0 &1 alpha=__import__', "is no value"),
        ('merge "weighted_sum" &0 &1 alpha=&2', "alpha: expected a number"),
        ('merge "weighted_sum" &0 &1 "unclosed', "cannot read"),
        ("launch &0", "expected dict, literal, model or merge"),
        (
            'dict IN00=0.5\nmerge "convert_sd1_blocks_to_ldm" &3\nmerge "weighted_sum" &0 &1 &4',
            "without BASE, IN01",
        ),
        (
            'merge "subtract" &1 &2\nmerge "ties_sum" &3\nmerge "add_difference" &0 &4',
            "another model than it is added to",
        ),
        ('model "l.safetensors" merge_space="delta"\nmerge "add_difference" &0 &3', "an adapter"),
    ],
)
def test_what_cannot_be_translated_says_the_line_and_why(lines: str, message: str) -> None:
    assert message in refused(lines)


def test_a_part_that_cannot_be_translated_is_a_file_that_is_not_there() -> None:
    found = read(ABC + 'merge "rebasin" &0 &1\nmerge "weighted_sum" &0 &3 alpha=0.5')
    assert found.tree["models"]["b"] == {"source": "result-of-line-5.safetensors"}
    assert [note.part for note in found.notes if note.kind == "refused"] == ["line 5"]


def test_a_text_whose_merges_double_at_every_line_is_refused() -> None:
    lines = "".join(f'merge "weighted_sum" &{n} &{n} alpha=0.5\n' for n in range(2, 60))
    found = read(ABC + lines)
    assert merges(found.tree) <= MAX_MERGES
    assert any(note.kind == "refused" and "merges" in note.text for note in found.notes)
    deep = "".join(f'merge "weighted_sum" &0 &{n} alpha=0.5\n' for n in range(2, 2 + MAX_NESTED + 1))
    assert "inside one another" in refused(deep)

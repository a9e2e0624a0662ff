"""JSON from strangers: how deep it may nest, and that long numbers are refused, however it is measured."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InputError
from runner.formats.strict_json import MANY, MAX_DEPTH, MAX_DIGITS, parse_object


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_object(text.encode(), "x")
    return caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        {"[" * 40: "{" * 40, "]}": '"[', "\\": '\\"]', '"': [["[", {"}": "]"}]]},
        {"a": [[], {}, [{}], {"b": [{}, []]}] * 40},
    ],
)
def test_brackets_in_strings_and_beside_each_other_are_no_nesting(value: dict[str, Any]) -> None:
    assert parse_object(json.dumps(value).encode(), "x") == value


@pytest.mark.parametrize("depth", [0, 1, 2, MAX_DEPTH - 2, MAX_DEPTH - 1])
def test_what_nests_as_deep_as_allowed_is_read(depth: int) -> None:
    text = '{"a": ' + "[" * depth + "1" + "]" * depth + ', "b": [[], {}, [{}]]}'
    assert parse_object(text.encode(), "x").keys() == {"a", "b"}


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 2 * MAX_DEPTH, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ("[", "")])
def test_what_nests_deeper_is_refused(depth: int, begin: str, end: str) -> None:
    text = '{"a": [[]],"b":' + begin * depth + "1" + end * depth + "}"
    assert refusal(text) == f"x: nested more than {MAX_DEPTH} deep"


def test_what_is_made_of_little_but_brackets_is_refused() -> None:
    many = MANY + MANY // 4  # with four bytes each
    assert len(parse_object(b'{"a":[' + b"[], " * (many - 10) + b"1]}", "x")["a"]) == many - 9
    assert (
        refusal('{"a":[' + "[], " * 2 * MANY + "1]}")
        == f"x: {2 * MANY + 2} lists and objects in {8 * MANY + 9} bytes"
    )


@pytest.mark.parametrize("text", ['{"a": [}', '{"a": 1}}', '{"a": 1}]', "}{", '{"a', '{"a": "\\'])
def test_brackets_that_do_not_fit_are_no_json(text: str) -> None:
    assert refusal(text).startswith("x: not JSON at line 1")


def test_a_long_number_is_refused_and_a_long_text_of_digits_is_not() -> None:
    digits = "1" * (MAX_DIGITS + 1)
    assert refusal(f'{{"a": {digits}}}') == f"x: a number of {MAX_DIGITS + 1} digits"
    assert parse_object(f'{{"a": "{digits}", "b": 7}}'.encode(), "x") == {"a": digits, "b": 7}


WHOLE_STRINGS = ('"]"', '"["', '"}"', r'"a\\"', r'"\"[{"', r'"\\\"]"')


@given(st.lists(st.sampled_from((*"[{]}1,:", *WHOLE_STRINGS))), st.integers(1, 60))
def test_depth_is_that_of_brackets_outside_strings(parts: list[str], times: int) -> None:
    depth = deepest = 1
    for part in parts * times:
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part, 0)
        deepest = max(deepest, depth)
    message = ""
    try:
        parse_object(("[" + "".join(parts) * times).encode(), "x")
    except InputError as error:
        message = error.message
    assert (message == f"x: nested more than {MAX_DEPTH} deep") == (deepest > MAX_DEPTH)


@pytest.mark.parametrize("opening", ['["]",', r'["\"]",', r'["\\]",', '{"]}":', '{"a":["}",'])
def test_closing_brackets_in_strings_hide_no_depth(opening: str) -> None:
    for times in (1000, 100_000):
        assert refusal(opening * times) == f"x: nested more than {MAX_DEPTH} deep"

"""Texts people paste: every spelling of numbers, and what is refused with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.weighting.blockstring import UnreadableError, is_name, read_elements, read_numbers


@pytest.mark.parametrize(
    "text",
    [
        "0,.5,1",
        " 0 , 0.5 ,1. ",
        "0;0.5;1",
        "0\t5e-1\t+1",
        "0\n0.5\n1\n",
        "0,0.5,\n1",
        "0,0.5,1,",
        "[0, 0.5, 1]",
        "MINE:0,0.5,1",
        "MINE 2\t0,0.5,1",
        "2SMOOTH: 0,0.5,1",
    ],
)
def test_every_spelling_of_numbers_is_read(text: str) -> None:
    assert read_numbers(text) == (0, 0.5, 1)


@given(
    numbers=st.lists(st.floats(-2, 2), min_size=2),
    separator=st.sampled_from([",", ", ", ";", "; ", "\t", "\n", ",\n"]),
)
def test_numbers_that_were_written_are_read_again(numbers: list[float], separator: str) -> None:
    assert read_numbers(separator.join(f"{number!r}" for number in numbers)) == tuple(numbers)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0,y,1", 'expected a number in place 2, found "y"'),
        ("0,,1", "expected a number in place 2, found nothing"),
        ("0,nan,1", 'place 2, found "nan"'),
        ("0,inf", 'place 2, found "inf"'),
        ("0,1_0", 'place 2, found "1_0"'),
        ("0,٣", "place 2"),
        ("0,5;1,0;0,25", r'decimal commas \("0,5"\); write decimal points: 0\.5'),
        ("0,5, 1,0, 0,25", "decimal commas"),
        ("0,5\t1,0", "decimal commas"),
        ("U,0,0.5", "letters for random numbers"),
        ("0,r,1", "letters for random numbers"),
        ("0 0.5 1", 'found "0 0.5 1"'),
        ("", "found nothing"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read_numbers(text)


@given(text=st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert all(isinstance(number, float) for number in read_numbers(text))
    except UnreadableError as error:
        assert "\n" not in str(error)
    elements, mistakes = read_elements(text)
    assert all("\n" not in mistake for mistake in mistakes)
    assert len(elements) + len(mistakes) <= text.count(",") + text.count("\n") + 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GRAD_V", True),
        ("SMOOTHSTEP*2", True),
        ("2SMOOTHSTEP", True),
        ("0,1", False),
        ("0.5", False),
        ("R", False),
        ("", False),
        ("MINE:0", False),
    ],
)
def test_one_word_is_the_name_of_a_preset(text: str, name: bool) -> None:
    assert is_name(text) is name


def test_elemental_entries_have_blocks_words_and_a_ratio() -> None:
    elements, mistakes = read_elements("OUT03 OUT04:attn2 attn1.to_out:0.5,\nNOT M00::1, :NOT norm:.25\n")
    assert mistakes == []
    first, second, third = elements
    assert (first.blocks.words, first.elements.words) == (("OUT03", "OUT04"), ("attn2", "attn1.to_out"))
    assert (second.blocks.words, second.blocks.inverted, second.elements.words) == (("M00",), True, ())
    assert (third.blocks.words, third.elements.words, third.elements.inverted) == ((), ("norm",), True)
    assert [element.ratio for element in elements] == [0.5, 1, 0.25]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("OUT04:attn", "expected BLOCKS:ELEMENTS:RATIO"),
        ("OUT04:attn:1:2", "expected BLOCKS:ELEMENTS:RATIO"),
        ("OUT04:attn:half", 'expected a number as ratio, found "half"'),
        ("OUT04:attn:", 'expected a number as ratio, found ""'),
        ("OUT04:attn:R", "letters for random numbers"),
    ],
)
def test_an_entry_that_is_wrong_is_told_beside_those_that_are_right(entry: str, reason: str) -> None:
    elements, (mistake,) = read_elements(f"IN00::1,{entry},IN01::1")
    assert len(elements) == 2
    assert reason in mistake and entry in mistake

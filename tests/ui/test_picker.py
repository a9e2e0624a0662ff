"""The list to choose from: what is typed is what is chosen."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("textual", reason="NOT TESTED: the composer; pip install 'runner[ui]'")

from textual.app import App
from textual.widgets import OptionList

from runner.catalogue import standard
from runner.ui.picker import Picker, Row, matching
from tests.ui.form import until

FILES = ("my_photo.safetensors", "sd/photo.v2.ckpt", "sd/photo.safetensors", "demo:photo", "hf:me/photos")


def found(rows: list[Row], typed: str) -> list[str]:
    return [row.value for row in matching(rows, typed)]


def test_the_method_that_is_called_what_is_typed_comes_first() -> None:
    rows = [Row(one.name, one.summary) for one in standard()]
    assert [found(rows, f" {row.value.upper()} ")[0] for row in rows] == [row.value for row in rows]


@pytest.mark.parametrize(
    ("typed", "order"),
    [
        ("photo", [2, 3, 1, 4, 0]),
        ("photo.safetensors", [2, 0]),
        ("sd/photo.v2.ckpt", [1]),
        ("demo:photo", [3]),
        ("hf:me", [4]),
        ("sd photo", [1, 2]),
        ("sd/", [1, 2]),
        ("", [0, 1, 2, 3, 4]),
    ],
)
def test_models_are_called_by_their_files_then_by_how_these_begin(typed: str, order: list[int]) -> None:
    assert found([Row(name) for name in FILES], typed) == [FILES[at] for at in order]


def test_what_fits_comes_first_unless_the_other_is_called_what_is_typed() -> None:
    rows = [Row("photo.ckpt", against="a LoRA"), Row("old_photo.ckpt"), Row("photos.ckpt", against="SDXL")]
    assert found(rows, "phot") == ["old_photo.ckpt", "photo.ckpt", "photos.ckpt"]
    assert found(rows, "photo") == ["photo.ckpt", "old_photo.ckpt", "photos.ckpt"]


def test_a_name_that_cannot_be_typed_is_found_by_how_it_is_shown() -> None:
    rows = [Row("a\udcff.ckpt"), Row("a\x1b.ckpt"), Row("b.ckpt")]
    assert found(rows, r"a\udcff") == ["a\udcff.ckpt"]
    assert found(rows, r"a\u001b.ckpt") == ["a\x1b.ckpt"]


def chosen(rows: list[Row], *keys: str, later: list[Row] | None = None) -> str | None:
    """What keys choose; `later` are the rows that are known only then, before the last of them."""
    answers: list[str | None] = []

    async def steps() -> None:
        app = App[None]()
        async with app.run_test(size=(60, 20)) as pilot:
            picker = Picker("model", rows, free="as written")
            await app.push_screen(picker, answers.append)
            await until(pilot, lambda: picker.query_one("#rows", OptionList).option_count)
            await pilot.press(*keys[:-1])
            if later is not None:
                picker.set_rows(later)
            await pilot.press(keys[-1])
            await until(pilot, lambda: answers)

    asyncio.run(steps())
    return answers[0]


def test_every_key_goes_to_the_row_that_is_first_then() -> None:
    rows = [Row("breadcrumbs_ties"), Row("ties"), Row("ties_two")]
    assert chosen(rows, *"ties", "enter") == "ties"
    assert chosen(rows, *"ties_t", "enter") == "ties_two"


def test_models_that_are_found_meanwhile_leave_the_row_one_is_at() -> None:
    rows = [Row("b/x"), Row("c/x")]
    assert chosen(rows, "down", "down", "enter", later=[Row("a/x"), *rows]) == "c/x"


def test_the_name_as_it_is_shown_chooses_no_other() -> None:
    assert chosen([Row("a\udcff.ckpt", against="no UTF-8")], *r"a\udcff.ckpt", "enter") == "a\udcff.ckpt"

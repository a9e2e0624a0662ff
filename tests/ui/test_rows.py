"""The rows of the form: they show what a recipe says, and write nothing but what somebody typed or chose."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

pytest.importorskip("textual", reason="NOT TESTED: the composer; pip install 'runner[ui]'")

from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Input, Select, Static

from runner.methods import find_method
from runner.ui.check import Checked
from runner.ui.draft import Draft
from runner.ui.fields import DTYPE, NAME, merge_fields, result_fields
from runner.ui.messages import Changed
from runner.ui.parameter import ParameterRow
from runner.ui.rows import FieldRow
from tests.ui.form import until

SMALL = "method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\n"
METHODS = [find_method(name, None) for name in ("weighted_sum", "ties")]
PARAMETERS = {one.name: one for method in METHODS if method for one in method.parameters.values()}
FIELDS = {one.name: one for one in (NAME, *merge_fields(METHODS[0], is_inner=False), *result_fields())}


class Rows(App[None]):
    """One row of the form."""

    def __init__(self, text: str, what: str, method: str) -> None:
        super().__init__()
        self.draft, self.what = Draft("x", SMALL.replace("weighted_sum", method) + text), what

    @property
    def said(self) -> str:
        return self.draft.text.removeprefix(SMALL)

    def compose(self) -> ComposeResult:
        if self.what in PARAMETERS:
            yield ParameterRow(PARAMETERS[self.what], (self.what,), self.draft)
        elif self.what == "dtype":
            yield FieldRow(DTYPE, DTYPE.path, "default")
        else:
            yield FieldRow(FIELDS[self.what], FIELDS[self.what].path)

    def on_mount(self) -> None:
        self.show(self.draft)

    def on_changed(self, event: Changed) -> None:
        self.show(event.change(self.draft))

    def show(self, draft: Draft) -> None:
        self.draft = draft
        with self.prevent(Input.Changed, Select.Changed):
            for row in self.query(ParameterRow):
                row.show(draft, Checked(""))
            for field in self.query(FieldRow):
                field.show(draft)

    @property
    def line(self) -> Input:
        return self.query_one(Input)

    @property
    def meaning(self) -> str:
        return str(self.query_one(".meaning", Static).content)


def drive(
    text: str,
    what: str,
    steps: Callable[[Rows, Pilot[None]], Awaitable[None]],
    method: str = "weighted_sum",
) -> None:
    async def run() -> None:
        app = Rows(text, what, method)
        async with app.run_test(size=(60, 12)) as pilot:
            await steps(app, pilot)

    asyncio.run(run())


def test_a_long_text_keeps_every_character_when_one_is_typed() -> None:
    long = "word " * 40 + "end"

    async def steps(app: Rows, pilot: Pilot[None]) -> None:
        app.line.focus()
        await pilot.press("end", "x")
        await until(pilot, lambda: app.said == f'description: "{long}x"\n')

    drive(f"description: {long}\n", "description", steps)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("description", 'description: "a\\u200Bb"\n'),
        ("description", "description: |\n  two\n  lines\n"),
        ("description", 'description: " a"\n'),
        ("license", "license: true\n"),
        ("seed", "seed: 1.0\n"),
        ("config", "output: {config: {source: demo:base}}\n"),
        ("nonfinite", 'nonfinite: ["a, b.*", c]\n'),
        ("nonfinite", "nonfinite: x\n"),
        ("name", "output: {name: [2]}\n"),
    ],
)
def test_what_a_line_cannot_hold_is_left_to_the_text(what: str, said: str) -> None:
    async def steps(app: Rows, pilot: Pilot[None]) -> None:
        app.line.focus()
        await pilot.press("end", "x")
        assert app.said == said
        assert app.line.value.isprintable() and app.line.value
        assert app.meaning.endswith("change it in the text (F3)")
        app.show(Draft("x", SMALL))
        assert not app.line.disabled and "text (F3)" not in app.meaning

    drive(said, what, steps)


def test_a_line_that_has_the_keyboard_shows_what_another_recipe_says() -> None:
    async def steps(app: Rows, pilot: Pilot[None]) -> None:
        app.line.focus()
        await pilot.press("end", "x")
        await until(pilot, lambda: app.said == "output: {name: onex}\n")
        app.show(Draft("x", SMALL + "output: {name: two}\n"))
        assert app.line.value == "two"
        await pilot.press("end", "x")
        await until(pilot, lambda: app.said == "output: {name: twox}\n")
        app.show(Draft("x", SMALL))
        assert app.line.value == ""

    drive("output: {name: one}\n", "name", steps)


def test_keys_that_come_at_once_are_all_kept_in_their_order() -> None:
    async def steps(app: Rows, pilot: Pilot[None]) -> None:
        app.line.focus()
        await pilot.pause()
        for key in "ab ":
            app.line.insert_text_at_cursor(key)  # before the recipe says what the first of them did
        await until(pilot, lambda: app.draft.value(("author",)) == "ab")
        await pilot.press("c")
        await until(pilot, lambda: app.draft.value(("author",)) == "ab c")
        assert app.line.value == "ab c"

    drive("", "author", steps)


def test_what_is_no_number_stays_while_it_is_typed_and_goes_with_its_mark() -> None:
    async def steps(app: Rows, pilot: Pilot[None]) -> None:
        may_be = app.meaning
        assert may_be == "0 to 1; default 0.5"
        assert app.line.value == "0.1234567"
        app.line.focus()
        await pilot.press("end", "q")
        app.show(app.draft)
        assert app.line.value == "0.1234567q" and app.line.has_class("-invalid")
        assert app.meaning == "✗ 0.1234567q is no number" and app.said == "alpha: 0.1234567\n"
        app.screen.set_focus(None)
        await pilot.pause()
        app.show(app.draft)
        assert app.line.value == "0.1234567" and not app.line.has_class("-invalid")
        assert app.meaning == may_be
        app.line.focus()
        await pilot.press("end", "q")
        app.show(Draft("x", SMALL + "alpha: 1\n"))  # another recipe
        assert app.line.value == "1" and app.meaning == may_be
        app.show(Draft("x", SMALL + "alpha: fast\n"))
        assert app.line.value == "fast" and app.meaning == "✗ fast is no number"

    drive("alpha: 0.1234567\n", "alpha", steps)


@pytest.mark.parametrize(
    ("what", "said", "shown"),
    [
        ("missing", "missing: foo\n", "✗ foo"),
        ("missing", "missing: {a: '[b]'}\n", '✗ {a: "[b]"}'),
        ("dtype", "output: {dtype: fp16}\n", "✗ fp16"),
        ("dtype", "output: {dtype: [float16]}\n", "✗ float16"),
        ("extrapolate", "extrapolate: 1\n", "✗ 1"),
        ("trim", "trim: foo\n", "✗ foo"),
    ],
)
def test_a_word_that_is_unknown_is_shown_and_can_be_taken_back_or_changed(
    what: str, said: str, shown: str
) -> None:
    async def steps(app: Rows, pilot: Pilot[None]) -> None:
        def label() -> str:
            return str(app.query_one("SelectCurrent #label", Static).content)

        odd = app.draft
        assert label() == shown and app.said == said
        app.query_one(Select).focus()
        await pilot.press("enter", "home", "enter")
        await until(pilot, lambda: app.said == "" and label().startswith("("))
        app.show(odd)
        await pilot.pause()
        assert label() == shown
        await pilot.press("enter", "home", "down", "enter")
        await until(pilot, lambda: app.said not in ("", said) and "✗" not in label())
        assert "✗" not in app.said

    drive(said, what, steps)


@pytest.mark.parametrize(
    ("what", "begins", "ends"),
    [("scale", "of the merged difference; ", "of the sum; "), ("trim", "whether the largest are ", "")],
)
def test_a_parameter_means_what_the_method_of_the_merge_says(what: str, begins: str, ends: str) -> None:
    async def steps(app: Rows, pilot: Pilot[None]) -> None:
        means = app.query_one("#means", Static)
        assert means.display and str(means.content).startswith(begins)
        assert means.region.bottom > means.region.y and means.region.right <= app.size.width
        app.show(Draft("x", app.draft.text.replace("ties", "breadcrumbs")))
        assert str(means.content).startswith(ends) and means.display is bool(ends)

    drive("", what, steps, method="ties")

"""A parameter of a method as rows of the form: a list of words, a bar and a number, or a curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Label, Select, Static

from runner.errors import KeyPath, escape
from runner.methods import Parameter
from runner.ui.bars import Bar
from runner.ui.check import Checked
from runner.ui.draft import Draft
from runner.ui.fields import parameter_meaning, shown
from runner.ui.messages import Changed
from runner.ui.numbers import read_number, summary
from runner.ui.rows import Line, Words, more, row


def is_varied(draft: Draft, path: KeyPath) -> bool:
    """Whether a parameter is no single number."""
    return isinstance(draft.value(path), (Mapping, list))


class ParameterRow(Vertical):
    """A parameter, and the numbers or words it may be."""

    DEFAULT_CSS = "ParameterRow { height: auto; }"

    def __init__(self, parameter: Parameter, path: KeyPath, draft: Draft) -> None:
        """Makes the row.

        Args:
            parameter: of the method.
            path: of its value in the recipe.
            draft: the recipe; whether the parameter varies by place in it decides what the row has.
        """
        super().__init__()
        self.parameter, self.path, self.draft = parameter, path, draft
        self.is_varied = is_varied(draft, path)

    def compose(self) -> ComposeResult:
        """The name, what is said, what it may be, what it means."""
        parameter, name = self.parameter, self.parameter.name
        default = parameter.default
        said = "must be given" if default is None else f"default {_word(default)}"
        if parameter.choices:
            words = [(_word(choice), choice) for choice in parameter.choices]
            yield row(Label(name), Words(words, f"choice-{name}", said))
        else:
            if self.is_varied:
                curve = Static("", id=f"curve-{name}", classes="curve", markup=False)
                yield row(Label(name), curve, more(f"places-{name}"))
            else:
                bar = Bar(self._number or 0.0, parameter.range, id=f"bar-{name}")
                line = Line(id=f"number-{name}", classes="number")
                yield row(Label(name), bar, line, more(f"places-{name}"))
            self.may_be = f"{parameter.range or 'any number'}; {said}"
            yield Static(self.may_be, id="may-be", classes="meaning", markup=False)
        yield Static(id="means", classes="meaning", markup=False)

    @property
    def _number(self) -> float | None:
        """The number it is here; None if there is none."""
        for one in (self.draft.value(self.path), self.parameter.default):
            if isinstance(one, (int, float)) and not isinstance(one, bool):
                return one
        return None

    def show(self, draft: Draft, checked: Checked) -> None:
        """Shows what a draft says."""
        self.draft = draft
        self._explain()
        value = draft.value(self.path)
        if self.parameter.choices:
            self.query_one(Words).show(value)
        elif self.is_varied:
            found = checked.curves.get(self.path)
            self.query_one(".curve", Static).update(summary(value, found[2] if found else ()))
        else:
            self.query_one(Bar).value = self._number or 0.0
            text = escape(shown(self.parameter.default if value is None else value))
            if self.query_one(Line).show(value, text):
                self._mark(text)

    def _explain(self) -> None:
        """Shows what the method of the merge says: another one may have a parameter that is the same."""
        method = self.draft.method(self.path[:-1])
        text = parameter_meaning(method, self.parameter.name) if method else ""
        means = self.query_one("#means", Static)
        if means.content != text:
            means.update(text)
        means.display = bool(text)

    def _mark(self, text: str) -> bool:
        """Whether a text in the line is a number or nothing; marks it and says so if not."""
        is_wrong = bool(text) and read_number(text) is None
        self.query_one(Line).set_class(is_wrong, "-invalid")
        said = f"✗ {escape(text)} is no number" if is_wrong else self.may_be
        self.query_one("#may-be", Static).update(said)
        return not is_wrong

    @on(Bar.Changed)
    def _moved(self, event: Bar.Changed) -> None:
        self.post_message(Changed(self._change(read_number(repr(event.value)))))

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        text = event.value.strip()
        if self._mark(text):
            value = read_number(text)
            self.post_message(self.query_one(Line).typed(value, self._change(value)))

    @on(Select.Changed)
    def _selected(self, event: Select.Changed) -> None:
        self.post_message(Changed(self._change(None if event.value is Select.NULL else event.value)))

    def _change(self, value: Any) -> Callable[[Draft], Draft]:
        path = self.path
        return lambda draft: draft.with_said(path, value)


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value)

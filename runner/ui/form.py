"""The form: one merge of the recipe at a time, its models, its numbers, and what the result is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.text import Text
from textual import on
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Button, Input, Label, OptionList, Select, Static
from textual.widgets.option_list import Option

from runner.errors import KeyPath, escape
from runner.formats import FORMATS
from runner.methods import Parameter
from runner.tensors import OUTPUT_DTYPES
from runner.ui.bars import Bar
from runner.ui.check import Checked
from runner.ui.draft import Draft, described
from runner.ui.numbers import read_number, summary


class Form(VerticalScroll):
    """Shows a draft and says what a person changes in it."""

    DEFAULT_CSS = """
    Form { padding: 0 1; }
    Form .row { height: 1; margin-top: 1; }
    Form .row > Label { width: 13; text-style: bold; }
    Form .row Button { width: 1fr; height: 1; min-width: 8; border: none; }
    Form .row Button { content-align: left middle; text-align: left; }
    Form .row Button:focus { text-style: reverse bold; }
    Form .row Button.small { width: 7; }
    Form .row Input { width: 1fr; height: 1; border: none; padding: 0 1; background: $surface-lighten-1; }
    Form .row Input.number { width: 10; }
    Form .row Select { width: 1fr; height: 1; }
    Form .row SelectCurrent { height: 1; border: none; padding: 0 1; }
    Form .row .curve { width: 1fr; }
    Form #steps { height: auto; max-height: 6; border: none; margin-top: 1; }
    Form #formula { color: $text-muted; margin-left: 13; height: auto; }
    Form .range { margin-left: 13; color: $text-muted; height: 1; }
    """

    class Changed(Message):
        """A person changed the recipe."""

        def __init__(self, change: Callable[[Draft], Draft]) -> None:
            super().__init__()
            self.change = change

    class Asked(Message):
        """A person wants to choose a "method", the "model" of a role, "numbers", one more "role", a "vae"."""

        def __init__(self, what: str, name: str = "") -> None:
            super().__init__()
            self.what, self.name = what, name

    class Moved(Message):
        """A person went to another merge of the recipe."""

        def __init__(self, at: KeyPath) -> None:
            super().__init__()
            self.at = at

    def __init__(self, id: str) -> None:
        super().__init__(id=id, can_focus=False)
        self.draft, self.checked = Draft("new"), Checked("")
        self.at: KeyPath = ()
        self.gone: frozenset[str] = frozenset()
        self._shape: object = None

    async def show(self, draft: Draft, at: KeyPath, checked: Checked, gone: frozenset[str]) -> None:
        """Shows a draft: fields that are there already get new values, so that the keyboard stays."""
        self.draft, self.at, self.checked, self.gone = draft, at, checked, gone
        shape = self._shape_of()
        if shape != self._shape:
            self._shape = shape
            focused = (
                self.app.focused.id if self.app.focused and self.app.focused in self.query("*") else None
            )
            async with self.batch():
                await self.remove_children()
                await self.mount_all(self._fields())
            if focused and self.query(f"#{focused}"):
                self.query_one(f"#{focused}").focus()
        with self.prevent(Input.Changed, Select.Changed, OptionList.OptionHighlighted):
            self._update()

    def _shape_of(self) -> object:
        """What decides which fields there are."""
        draft, method = self.draft, self.draft.method(self.at)
        kinds = tuple(
            (name, isinstance(draft.value((*self.at, name)), (Mapping, list)))
            for name in (method.parameters if method else ())
        )
        roles = tuple(draft.roles(self.at))
        return draft.is_readable, self.at, method and method.label, roles, kinds, tuple(draft.merges())

    def _fields(self) -> Iterator[Widget]:
        draft, at = self.draft, self.at
        if not draft.is_readable:
            yield Static(
                "✗ This text is no recipe that a form could show. Nothing of it is lost: correct it in the"
                " text (F3); the lines with mistakes are marked there.",
                id="unreadable",
                markup=False,
            )
            return
        if len(draft.merges()) > 1:
            yield OptionList(id="steps", markup=False)
        yield _row(Label("method"), Button("", id="method"))
        yield Static("", id="formula", markup=False)
        for role in draft.roles(at):
            yield _row(Label(role), Button("", id=f"role-{role}"))
        method = draft.method(at)
        if method is not None and method.variadic is not None:
            yield _row(Label(""), Button("+ one more model", id="more"))
        for parameter in method.parameters.values() if method else ():
            yield from self._parameter(parameter)
        if at == ():
            yield from _output_fields()

    def _parameter(self, parameter: Parameter) -> Iterator[Widget]:
        name, value = parameter.name, self.draft.value((*self.at, parameter.name))
        if parameter.choices:
            words = [(_word(choice), choice) for choice in parameter.choices]
            yield _row(Label(name), Select(words, id=f"choice-{name}", prompt="default", compact=True))
        elif isinstance(value, (Mapping, list)):
            yield _row(
                Label(name), Static("", id=f"curve-{name}", classes="curve", markup=False), _places(name)
            )
        else:
            number = _shown(value, parameter)
            bar = Bar(number if number is not None else 0.0, parameter.range, id=f"bar-{name}")
            yield _row(Label(name), bar, Input("", id=f"number-{name}", classes="number"), _places(name))
        said = "must be given" if parameter.default is None else f"default {_word(parameter.default)}"
        yield Static(
            said if parameter.choices else f"{parameter.range or 'any number'}; {said}",
            classes="range",
            markup=False,
        )

    def _update(self) -> None:
        draft, at, method = self.draft, self.at, self.draft.method(self.at)
        if not draft.is_readable:
            return
        for steps in self.query("#steps").results(OptionList):
            merges = draft.merges()
            steps.clear_options()
            steps.add_options([Option(_step(draft, merge, at)) for merge in merges])
            steps.highlighted = merges.index(at)
        name = str(draft.merge(at).get("method"))
        self.query_one("#method", Button).label = Text(f"{escape(name)} ▾")
        unknown = "✗ there is no such method"
        self.query_one("#formula", Static).update(method.summary if method else unknown)
        for role in draft.roles(at):
            value = draft.value((*at, "models", role))
            self.query_one(f"#role-{role}", Button).label = self._label(value, "choose a model")
        for parameter in method.parameters.values() if method else ():
            self._update_parameter(parameter)
        if at == ():
            self._update_output()

    def _label(self, model: Any, without: str) -> Text:
        """What the button of a model says: which it is, and whether it is still there."""
        name = described(model) or f"· {without}"
        return Text(f"{'✗ gone: ' if name in self.gone else ''}{name} ▾")

    def _update_parameter(self, parameter: Parameter) -> None:
        name, path = parameter.name, (*self.at, parameter.name)
        value = self.draft.value(path)
        if parameter.choices:
            chosen = value if value in parameter.choices else Select.NULL
            self.query_one(f"#choice-{name}", Select).value = chosen
        elif isinstance(value, (Mapping, list)):
            found = self.checked.curves.get(path)
            self.query_one(f"#curve-{name}", Static).update(summary(value, found[2] if found else ()))
        else:
            number = _shown(value, parameter)
            self.query_one(f"#bar-{name}", Bar).value = number if number is not None else 0.0
            field = self.query_one(f"#number-{name}", Input)
            if not field.has_focus:
                field.value = "" if number is None else f"{number:g}"

    def _update_output(self) -> None:
        output = self.draft.merge(("output",))
        name, field = output.get("name"), self.query_one("#output-name", Input)
        if not field.has_focus:
            field.value = str(name) if name is not None else ""
        field.placeholder = self.draft.name
        for key, known in (("format", tuple(FORMATS)), ("dtype", OUTPUT_DTYPES)):
            value = output.get(key)
            self.query_one(f"#output-{key}", Select).value = value if value in known else Select.NULL
        vae = self.draft.value(("components", "vae"))
        self.query_one("#vae", Button).label = self._label(vae, "merged like the rest")
        mark = "☑" if self.draft.value(("force",)) is True else "☐"
        self.query_one("#force", Button).label = Text(f"{mark} merge what fits of models that differ")

    def _change(self, change: Callable[[Draft], Draft]) -> None:
        self.post_message(self.Changed(change))

    def _set(self, path: KeyPath, value: Any) -> None:
        """Says a value, or with None that it is not said any more."""
        if self.draft.value(path) == value and type(self.draft.value(path)) is type(value):
            return
        if value is None:
            self._change(lambda draft: draft.without(path))
        else:
            self._change(lambda draft: draft.with_value(path, value))

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "force":
            self._set(("force",), None if self.draft.value(("force",)) is True else True)
            return
        what, _, name = (event.button.id or "").partition("-")
        asked = {"method": "method", "role": "model", "places": "numbers", "more": "role", "vae": "vae"}
        self.post_message(self.Asked(asked[what], name))

    @on(OptionList.OptionSelected, "#steps")
    def _went(self, event: OptionList.OptionSelected) -> None:
        self.post_message(self.Moved(self.draft.merges()[event.option_index]))

    @on(Bar.Changed)
    def _moved(self, event: Bar.Changed) -> None:
        name = (event.bar.id or "").removeprefix("bar-")
        self._set((*self.at, name), read_number(repr(event.value)))

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        kind, _, name = (event.input.id or "").partition("-")
        text = event.value.strip()
        if kind == "output":
            self._set(("output", name), text or None)
        elif not text or (number := read_number(text)) is None:
            event.input.set_class(bool(text), "-invalid")
            if not text:
                self._set((*self.at, name), None)
        else:
            event.input.remove_class("-invalid")
            self._set((*self.at, name), number)

    @on(Select.Changed)
    def _selected(self, event: Select.Changed) -> None:
        kind, _, name = (event.select.id or "").partition("-")
        value = None if event.value is Select.NULL else event.value
        self._set(("output", name) if kind == "output" else (*self.at, name), value)


def _row(*fields: Widget) -> Horizontal:
    return Horizontal(*fields, classes="row")


def _places(name: str) -> Button:
    return Button("… ▾", id=f"places-{name}", classes="small")


def _output_fields() -> Iterator[Widget]:
    yield _row(Label("output"), Input("", id="output-name"))
    formats = [(found.title, name) for name, found in FORMATS.items()]
    yield _row(
        Label("format"), Select(formats, id="output-format", prompt="as the first model", compact=True)
    )
    dtypes = [(name, name) for name in OUTPUT_DTYPES]
    yield _row(Label("dtype"), Select(dtypes, id="output-dtype", prompt="as the first model", compact=True))
    yield _row(Label("vae"), Button("", id="vae"))
    yield _row(Label("force"), Button("", id="force"))


def _step(draft: Draft, merge: KeyPath, at: KeyPath) -> str:
    mark = "▸" if merge == at else " "
    role = f"{merge[-1]}: " if merge else "result: "
    return f"{mark} {'  ' * (len(merge) // 2)}{role}{escape(str(draft.merge(merge).get('method')))}"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _shown(value: object, parameter: Parameter) -> float | None:
    """The number a parameter has here; None if there is none."""
    for one in (value, parameter.default):
        if isinstance(one, (int, float)) and not isinstance(one, bool):
            return one
    return None

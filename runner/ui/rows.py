"""A field of a recipe as rows of the form: its name, a list or a line to type in, and what it means."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Select, Static

from runner.errors import KeyPath, escape
from runner.ui.draft import Draft
from runner.ui.fields import Field, shown
from runner.ui.messages import Changed


def row(*widgets: Widget) -> Horizontal:
    """Widgets beside each other on a line."""
    return Horizontal(*widgets, classes="row")


def more(id: str) -> Button:
    """A button that says more of what stands before it."""
    return Button("… ▾", id=id, classes="small")


def button_row(name: str, id: str, beside: str = "") -> Horizontal:
    """A name and a button that opens something; beside it, if that has an id, one for more."""
    return row(Label(name, markup=False), Button(id=id), *([more(beside)] if beside else []))


class FieldRow(Vertical):
    """A field that is said where it stands."""

    DEFAULT_CSS = "FieldRow { height: auto; }"

    def __init__(self, field: Field, path: KeyPath, part: str = "", more: str = "") -> None:
        """Makes the row.

        Args:
            field: what may be said.
            path: where in the recipe.
            part: of the value there: a component, or "default" for the others; "": the value itself.
            more: the id of a button behind it; "": there is none.
        """
        super().__init__()
        self.field, self.path, self.part, self.more = field, path, part, more

    def compose(self) -> ComposeResult:
        """The name, what is said, what it means."""
        field = self.field
        is_inner = self.part not in ("", "default")
        id = "-".join(map(str, ("field", *field.path, *([self.part] if is_inner else []))))
        with Horizontal(classes="row"):
            yield Label(f"  {self.part}" if is_inner else field.name, markup=False)
            if field.choices:
                unsaid = "as the others" if is_inner else field.unsaid or "not said"
                yield Select(field.choices, id=id, prompt=f"({unsaid})", compact=True)
            else:
                yield Input(id=id, placeholder=field.unsaid)
            if self.more:
                yield more(self.more)
        if field.meaning:
            yield Static(field.meaning, classes="meaning", markup=False)

    def show(self, draft: Draft) -> None:
        """Shows what a draft says; a line that has the keyboard is left alone."""
        value = draft.value(self.path)
        if self.part:
            default = value if self.part == "default" else None
            value = value.get(self.part) if isinstance(value, Mapping) else default
        if self.field.choices:
            known = [choice for _, choice in self.field.choices]
            is_known = any(choice == value and type(choice) is type(value) for choice in known)
            self.query_one(Select).value = value if is_known else Select.NULL
        elif not (line := self.query_one(Input)).has_focus:
            line.value = escape(shown(value))
            line.disabled = "\n" in shown(value)  # several lines: only the text can change them

    @on(Select.Changed)
    def _selected(self, event: Select.Changed) -> None:
        event.stop()
        self._say(None if event.value is Select.NULL else event.value)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._say(self.field.read(event.value))

    def _say(self, value: object) -> None:
        path, part = self.path, self.part
        if part:
            self.post_message(Changed(lambda draft: draft.with_part(path, part, value)))
        else:
            self.post_message(Changed(lambda draft: draft.with_said(path, value)))


class Finer(Vertical):
    """A button that says what a few fields say, or could; pressed, it shows them.

    Attributes:
        is_open: whether they are shown.
    """

    DEFAULT_CSS = """
    Finer { height: auto; }
    Finer > Vertical { height: auto; margin-left: 2; }
    """

    def __init__(self, fields: tuple[Field, ...], at: KeyPath, id: str) -> None:
        """Makes it.

        Args:
            fields: that are shown.
            at: where in the recipe their paths begin.
            id: of the widget.
        """
        super().__init__(id=id)
        self.fields, self.at, self.is_open, self.draft = fields, at, False, Draft("")
        self.rows: list[FieldRow] = []

    def compose(self) -> ComposeResult:
        """The button."""
        yield button_row("more", f"{self.id}-more")

    def show(self, draft: Draft) -> None:
        """Shows what a draft says."""
        self.draft = draft
        values = [(field.name, draft.value((*self.at, *field.path))) for field in self.fields]
        said = [f"{name}: {escape(shown(value))}" for name, value in values if value is not None]
        words = ", ".join(said or [name.replace("_", " ") for name, _ in values])
        self.query_one(Button).label = Text(f"{'▾' if self.is_open else '▸'} {words}")
        for line in self.rows:
            line.show(draft)

    async def toggle(self) -> None:
        """Shows the fields, or hides them; not to be removed meanwhile: a list half made would fail."""
        self.is_open = not self.is_open
        if self.is_open:
            rows = [FieldRow(field, (*self.at, *field.path)) for field in self.fields]
            await self.mount(Vertical(*rows))
            self.rows = rows  # only now there is something in them to be shown
        else:
            self.rows = []
            await self.query_children(Vertical).remove()
        with self.prevent(Input.Changed, Select.Changed):
            self.show(self.draft)

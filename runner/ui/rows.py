"""A field of a recipe as rows of the form: its name, a list or a line to type in, and what it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Select, Static

from runner.errors import KeyPath, escape
from runner.ui.draft import Draft, is_same
from runner.ui.fields import Field, shown
from runner.ui.messages import Changed

ELSEWHERE = "change it in the text (F3)"


def row(*widgets: Widget) -> Horizontal:
    """Widgets beside each other on a line."""
    return Horizontal(*widgets, classes="row")


def more(id: str) -> Button:
    """A button that says more of what stands before it."""
    return Button("… ▾", id=id, classes="small")


def button_row(name: str, id: str, beside: str = "") -> Horizontal:
    """A name and a button that opens something; beside it, if that has an id, one for more."""
    return row(Label(name, markup=False), Button(id=id), *([more(beside)] if beside else []))


class Line(Input):
    """A line to type in. What is typed there stays until the recipe says something else than that."""

    _said: object = None  # what the recipe said when the line showed that or changed it

    def show(self, value: object, text: str) -> bool:
        """Shows what the recipe says; whether this took the place of what is being typed.

        Args:
            value: what the recipe says.
            text: how that is shown.
        """
        if self.has_focus and is_same(value, self._said):
            return False
        self._said, self.value = value, text
        return True

    def typed(self, value: object, change: Callable[[Draft], Draft]) -> Changed:
        """The message that something was typed.

        Args:
            value: what was typed.
            change: of the recipe, that makes it say so.
        """

        def changed(draft: Draft) -> Draft:
            after = change(draft)
            # Only now: more may be typed already, and that is not to be replaced by this.
            self._said = value
            return after

        return Changed(changed)


class Words(Select[str | bool]):
    """A list of words. If the recipe says something else, that is one of them while it stands."""

    def __init__(self, words: Sequence[tuple[str, str | bool]], id: str, unsaid: str) -> None:
        """Makes the list.

        Args:
            words: how each is shown, and what it is.
            id: of the widget.
            unsaid: what holds if the recipe says nothing.
        """
        super().__init__(words, id=id, prompt=f"({unsaid})", compact=True)
        self._words, self._other = words, ""

    def show(self, value: object) -> None:
        """Shows what the recipe says."""
        known = next((word for _, word in self._words if is_same(word, value)), None)
        other = "" if value is None or known is not None else f"✗ {escape(shown(value))}"
        if other != self._other:
            self.set_options([*self._words, *([(Text(other), other)] if other else [])])
            self._other = other
        self.value = other or (Select.NULL if known is None else known)


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
                yield Words(field.choices, id, unsaid)
            else:
                yield Line(id=id, placeholder=field.unsaid)
            if self.more:
                yield more(self.more)
        meaning = Static(field.meaning, classes="meaning", markup=False)
        meaning.display = bool(field.meaning)
        yield meaning

    def show(self, draft: Draft) -> None:
        """Shows what a draft says."""
        value = draft.value(self.path)
        if self.part:
            default = value if self.part == "default" else None
            value = value.get(self.part) if isinstance(value, Mapping) else default
        if self.field.choices:
            self.query_one(Words).show(value)
            return
        line, is_open = self.query_one(Line), self.field.can_be_typed(value)
        if line.show(value, shown(value) if is_open else escape(shown(value))) and line.disabled is is_open:
            line.disabled = not is_open
            meaning, elsewhere = self.query_one(".meaning", Static), "" if is_open else ELSEWHERE
            meaning.update("; ".join(filter(None, (self.field.meaning, elsewhere))))
            meaning.display = bool(self.field.meaning or elsewhere)

    @on(Select.Changed)
    def _selected(self, event: Select.Changed) -> None:
        event.stop()
        self.post_message(Changed(self._change(None if event.value is Select.NULL else event.value)))

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        value = self.field.read(event.value)
        self.post_message(self.query_one(Line).typed(value, self._change(value)))

    def _change(self, value: object) -> Callable[[Draft], Draft]:
        path, part = self.path, self.part
        if part:
            return lambda draft: draft.with_part(path, part, value)
        return lambda draft: draft.with_said(path, value)


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

"""A list to choose from: of models, methods or recipes, filtered while one types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from runner.errors import escape

SHOWN = 200  # rows at a time: typing is the way to the others


@dataclass(frozen=True, slots=True)
class Row:
    """Something to choose.

    Attributes:
        value: what is chosen.
        note: what it is.
        against: why it does not fit; "" if nothing speaks against it.
    """

    value: str
    note: str = ""
    against: str = ""

    @property
    def text(self) -> Text:
        """The row as it is shown: a mark, the value, what it is or why not."""
        mark = ("✗ ", "bold") if self.against else ("✓ ", "bold")
        said = f"  {escape(self.against)}" if self.against else f"  {escape(self.note)}"
        return Text.assemble(mark, self.shown, (said, "dim" if not self.against else "italic"))

    @property
    def shown(self) -> str:
        """The value as it is shown."""
        return escape(self.value)


def matching(rows: Sequence[Row], typed: str) -> list[Row]:
    """The rows that have every word typed: what is called so first, then those that fit.

    Of these the ones whose names begin with what was typed come first. A model is called by its file, with
    its suffix or without.
    """
    wanted = typed.strip().casefold()
    words = wanted.split()

    def said(row: Row) -> str:
        return f"{row.value} {row.shown} {row.note}".casefold()

    def place(row: Row) -> tuple[bool, bool, bool]:
        whole = row.value.casefold()
        name = escape(whole.rpartition("/")[2].removeprefix("demo:"))
        is_called_so = wanted in (whole, name, name.rpartition(".")[0] or name)
        begins = whole.startswith(wanted) or name.startswith(wanted)
        return not is_called_so, bool(row.against), not begins

    found = [row for row in rows if all(word in said(row) for word in words)]
    return sorted(found, key=place)


class Picker(ModalScreen[str | None]):
    """Asks for one of many rows; its result is the value of one, what was typed, or None."""

    DEFAULT_CSS = """
    Picker { align: center middle; }
    Picker > Vertical { width: 90%; max-width: 110; height: 90%; border: round $primary; padding: 0 1; }
    Picker OptionList { height: 2fr; min-height: 4; border: none; }
    Picker VerticalScroll { height: 1fr; border-top: solid $primary; }
    Picker.-short VerticalScroll { display: none; }
    Picker #count { color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "back"),
        Binding("down", "rows", "to the list", show=False),
    ]

    def __init__(
        self,
        title: str,
        rows: Sequence[Row],
        detail: Callable[[str], str] | None = None,
        free: str = "",
    ) -> None:
        """Makes the question.

        Args:
            title: what is asked for.
            rows: to choose from.
            detail: what there is to know of a row, by its value.
            free: what it is called to choose just what was typed; "": that cannot be chosen.
        """
        super().__init__()
        self.asked, self.rows, self.detail, self.free = title, list(rows), detail, free

    def compose(self) -> ComposeResult:
        """The field, the list, and what there is to know of the row."""
        with Vertical():
            yield Label(self.asked)
            yield Input(placeholder="type to filter", id="filter", compact=True)
            yield OptionList(id="rows", markup=False)
            yield Static("", id="count", markup=False)
            if self.detail is not None:
                with VerticalScroll(can_focus=False):
                    yield Static("", id="detail", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Shows everything."""
        self._show("")

    def set_rows(self, rows: Sequence[Row]) -> None:
        """Shows other rows: more is known now."""
        self.rows = list(rows)
        for line in self.query("#filter").results(Input):  # not there yet: it begins with these
            self._show(line.value, self._highlighted())

    @on(Input.Changed, "#filter")
    def _typed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def _show(self, typed: str, at: str | None = None) -> None:
        """Shows the rows that have what is typed, and goes to a value or to the first."""
        found = matching(self.rows, typed)
        shown, options = self.query_one("#rows", OptionList), []
        self._values = [row.value for row in found[:SHOWN]]
        options += [Option(row.text) for row in found[:SHOWN]]
        if self.free and typed.strip():
            self._values.append(typed.strip())
            options.append(Option(Text(f"→ {self.free}: {escape(typed.strip())}")))
        with self.prevent(OptionList.OptionHighlighted):
            shown.clear_options()
            shown.add_options(options)
            if options:
                shown.highlighted = self._values.index(at) if at in self._values else 0
        more = f", {SHOWN} shown; type more of the name" if len(found) > SHOWN else ""
        self.query_one("#count", Static).update(f"{len(found)} of {len(self.rows)}{more}")
        self._tell()

    _values: list[str]

    def _highlighted(self) -> str | None:
        at = self.query_one("#rows", OptionList).highlighted
        return self._values[at] if at is not None and at < len(self._values) else None

    @on(OptionList.OptionHighlighted, "#rows")
    def _tell(self) -> None:
        value = self._highlighted()
        if self.detail is not None:
            known = value is not None and any(row.value == value for row in self.rows)
            self.query_one("#detail", Static).update(self.detail(value) if value and known else "")

    @on(Input.Submitted, "#filter")
    def _first(self) -> None:
        if (value := self._highlighted()) is not None:
            self.dismiss(value)

    @on(OptionList.OptionSelected, "#rows")
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._values[event.option_index])

    def action_rows(self) -> None:
        """Moves in the list while the field keeps the keyboard."""
        self.query_one("#rows", OptionList).focus()

    def action_leave(self) -> None:
        """Chooses nothing."""
        self.dismiss(None)


class Question(ModalScreen[str | None]):
    """Asks for a short text."""

    DEFAULT_CSS = """
    Question { align: center middle; }
    Question > Vertical { width: 80%; max-width: 80; height: auto; border: round $primary; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "back")]

    def __init__(self, title: str, value: str, refused: Callable[[str], str], said: str = "") -> None:
        """Makes the question.

        Args:
            title: what is asked for.
            value: to begin with.
            refused: what speaks against an answer; "": it is taken.
            said: what spoke against the last one.
        """
        super().__init__()
        self.asked, self.value, self.refused, self.said = title, value, refused, said

    def compose(self) -> ComposeResult:
        """What was said, the question, the field."""
        with Vertical():
            said = Static(self.said, id="said", markup=False)
            said.display = bool(self.said)
            yield said
            yield Label(self.asked, markup=False)
            yield Input(self.value, id="answer", compact=True)
        yield Footer()

    @on(Input.Submitted, "#answer")
    def _answered(self, event: Input.Submitted) -> None:
        answer = event.value.strip()
        if said := self.refused(answer):
            shown = self.query_one("#said", Static)
            shown.update(said)
            shown.display = True
        else:
            self.dismiss(answer)

    def action_leave(self) -> None:
        """Says nothing."""
        self.dismiss(None)


class Notice(ModalScreen[bool]):
    """Shows a text; asked for a yes, Enter gives it and Escape does not."""

    DEFAULT_CSS = """
    Notice { align: center middle; }
    Notice > VerticalScroll { width: 90%; max-width: 90; height: auto; max-height: 90%; }
    Notice > VerticalScroll { border: round $primary; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "answer(True)", "go on"),
        Binding("escape,f1", "answer(False)", "back"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        """The text."""
        with VerticalScroll():
            yield Static(self.text, markup=False)
        yield Footer()

    def action_answer(self, answer: bool) -> None:
        """Leaves with the answer."""
        self.dismiss(answer)

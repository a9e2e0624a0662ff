"""A parameter that varies by place: by component or model, by block as a curve, or pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, OptionList, Static, TabbedContent, TabPane
from textual.widgets.option_list import Option

from runner.errors import KeyPath, RecipeError, escape
from runner.methods import Parameter
from runner.ui.bars import Curve, spark
from runner.ui.draft import Draft
from runner.weighting.blockstring import UnreadableError, is_name, read_numbers
from runner.weighting.presets import PRESETS, preset


@dataclass(frozen=True)
class Place:
    """What a parameter can vary by.

    Attributes:
        parts: components; of a parameter of each model, the models' roles.
        component: that has blocks; "" if none is known.
        blocks: their names in order of depth.
        values: the numbers they have now.
    """

    parts: tuple[str, ...]
    component: str = ""
    blocks: tuple[str, ...] = ()
    values: tuple[float, ...] = ()


def read_number(text: str) -> float | None:
    """A number somebody typed; None if it is none. Whole numbers stay whole."""
    try:
        value = float(text)
    except ValueError:
        return None
    if value - value != 0:  # not finite
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else value


class Numbers(ModalScreen[Draft | None]):
    """Edits one parameter; its result is the changed draft."""

    DEFAULT_CSS = """
    Numbers { align: center middle; }
    Numbers > Vertical { width: 95%; max-width: 100; height: 95%; max-height: 30; }
    Numbers > Vertical { border: round $primary; padding: 0 1; }
    Numbers .part { height: 1; }
    Numbers Curve { height: 1fr; max-height: 20; }
    Numbers TabbedContent, Numbers ContentSwitcher, Numbers TabPane { height: 1fr; }
    Numbers .part Label { width: 20; }
    Numbers .part Input { width: 1fr; height: 1; border: none; padding: 0; background: $surface-lighten-1; }
    Numbers OptionList { height: 1fr; border: none; }
    Numbers TabPane { padding: 0; }
    Numbers #said { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        # Before those of the curve: on a narrow screen the last are not shown.
        Binding("ctrl+s", "take", "take it", priority=True),
        Binding("escape", "leave", "back", priority=True),
        Binding("enter", "take", show=False),
    ]

    def __init__(self, draft: Draft, path: KeyPath, parameter: Parameter, place: Place) -> None:
        super().__init__()
        self.draft, self.path, self.parameter, self.place = draft, path, parameter, place

    def compose(self) -> ComposeResult:
        """A page for each way to say a number."""
        what = "model" if self.parameter.per_model else "component"
        value = self.draft.value(self.path)
        with Vertical():
            yield Label(
                f"{'.'.join(map(str, self.path))}: {self.parameter.range or 'any number'}", markup=False
            )
            with TabbedContent(initial=self._first(value)):
                with TabPane(f"by {what}", id="parts"), VerticalScroll(can_focus=False):
                    for part in ("default", *self.place.parts):
                        with Horizontal(classes="part"):
                            yield Label(part)
                            yield Input(_part(value, part), id=f"part-{part}", placeholder=_held(value, part))
                if self.place.blocks:
                    with TabPane("by block", id="blocks"):
                        yield Curve(self.place.blocks, self.place.values, self.parameter.range, id="curve")
                if not self.parameter.per_model:
                    with TabPane("pasted or preset", id="pasted"):
                        yield Input(
                            _pasted(value),
                            id="mbw",
                            placeholder="0,0.1,... or the name of a preset",
                            compact=True,
                        )
                        yield Input(
                            _base(value),
                            id="base",
                            placeholder="BASE, if the numbers leave it out",
                            compact=True,
                        )
                        yield OptionList(
                            *(
                                Option(_preset_line(name), id=f"preset-{at}")
                                for at, name in enumerate(PRESETS)
                            ),
                            id="presets",
                            markup=False,
                        )
            yield Static("", id="said", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Gives the keyboard to what is shown."""
        page = self.query_one(TabbedContent).active
        self.query_one({"parts": "#part-default", "blocks": "#curve", "pasted": "#mbw"}[page]).focus()

    def _first(self, value: Any) -> str:
        if isinstance(value, Mapping) and "mbw" in value:
            return "pasted"
        return "blocks" if self.place.blocks else "parts"

    @on(OptionList.OptionSelected, "#presets")
    def _preset(self, event: OptionList.OptionSelected) -> None:
        line = self.query_one("#mbw", Input)
        line.value = PRESETS[event.option_index]
        line.focus()  # where Enter takes it

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_take()

    def action_take(self) -> None:
        """Leaves with what the open page says."""
        page = self.query_one(TabbedContent).active
        try:
            changed = {"parts": self._parts, "blocks": self._blocks, "pasted": self._pasted}[page]()
        except RecipeError as error:
            self.query_one("#said", Static).update(f"✗ {error}")
        else:
            self.dismiss(changed)

    def action_leave(self) -> None:
        """Changes nothing."""
        self.dismiss(None)

    def _parts(self) -> Draft:
        draft, said = self.draft, {}
        for part in ("default", *self.place.parts):
            text = self.query_one(f"#part-{part}", Input).value.strip()
            if text == _part(self.draft.value(self.path), part):
                continue
            said[part] = read_number(text) if text else None
            if text and said[part] is None:
                raise RecipeError(f"{part}: {escape(text)} is no number")
        for part, value in said.items():
            draft = draft.with_part(self.path, part, value)
        return draft

    def _blocks(self) -> Draft:
        values = self.query_one("#curve", Curve).values
        if tuple(values) == self.place.values:
            return self.draft
        default = self.parameter.default
        start = float(default) if isinstance(default, (int, float)) else 0.0
        numbers = [read_number(repr(value)) or 0 for value in values]
        return self.draft.with_curve(self.path, self.place.component, self.place.blocks, numbers, start)

    def _pasted(self) -> Draft:
        text, base = self.query_one("#mbw", Input).value, self.query_one("#base", Input).value.strip()
        number = read_number(base) if base else None
        if base and number is None:
            raise RecipeError(f"BASE: {escape(base)} is no number")
        if not text.strip():
            raise RecipeError("there is nothing yet: type numbers, or choose a preset")
        if is_name(text):
            if preset(text) is None:
                raise RecipeError(f"{escape(text)}: there is no such preset")
        else:
            try:
                read_numbers(text)
            except UnreadableError as error:
                raise RecipeError(str(error)) from error
        return self.draft.with_pasted(self.path, text, number)


def summary(value: Any, curve: Sequence[float]) -> str:
    """A parameter that is no plain number, on a line: its curve, and what the recipe says."""
    bars = f"{spark(curve)}  " if curve else ""
    if isinstance(value, Mapping):
        if "mbw" in value:
            return f"{bars}pasted: {escape(str(value['mbw']))}"
        return f"{bars}by {', '.join(map(escape, map(str, value)))}"
    return f"{bars}{escape(str(value))}"


def _preset_line(name: str) -> Text:
    values = preset(name)
    assert values is not None
    return Text(f"{spark(values[1:])}  {name}")


def _part(value: Any, part: str) -> str:
    if isinstance(value, Mapping):
        found = value.get(part)
        return f"{found:g}" if isinstance(found, (int, float)) else ""
    return f"{value:g}" if part == "default" and isinstance(value, (int, float)) else ""


def _held(value: Any, part: str) -> str:
    """What holds for a part that has no number of its own."""
    return "by block" if isinstance(value, Mapping) and isinstance(value.get(part), Mapping) else "as default"


def _pasted(value: Any) -> str:
    found = value.get("mbw") if isinstance(value, Mapping) else None
    return ",".join(map(str, found)) if isinstance(found, list) else str(found or "")


def _base(value: Any) -> str:
    found = value.get("base") if isinstance(value, Mapping) else None
    return f"{found:g}" if isinstance(found, (int, float)) else ""

"""Numbers as bars that keys change: one number on a line, or one for each block as a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import MouseDown, MouseMove
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from runner.methods import Range

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_STEP, _FINE = 0.05, 0.01


def span(limits: Range | None, value: float) -> tuple[float, float]:
    """The numbers a bar runs over: the range, as far as it is finite, and the value itself."""
    low, high = (limits.low, limits.high) if limits else (0.0, 1.0)
    low = low if math.isfinite(low) else min(0.0, value)
    high = high if math.isfinite(high) else max(1.0, low + 1, value)
    return min(low, value), max(high, value)


def spark(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> str:
    """Numbers as small bars."""
    return "".join(_EIGHTHS[1 + round(7 * _share(value, low, high))] for value in values)


def stepped(value: float, by: float, limits: Range | None) -> float:
    """A number one step further, not beyond its range; short, as a person would write it."""
    low, high = (limits.low, limits.high) if limits else (-math.inf, math.inf)
    moved = round(value + by, 6)
    return min(max(moved, min(low, value)), max(high, value)) + 0.0


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0


class Bar(Widget, can_focus=True):
    """A number as a bar: ← and → change it, with shift in small steps."""

    DEFAULT_CSS = """
    Bar { height: 1; width: 1fr; min-width: 10; }
    Bar:focus { text-style: bold; background: $boost; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", f"move({-_STEP})", "less", key_display="←"),
        Binding("right", f"move({_STEP})", "more", key_display="→"),
        Binding("shift+left", f"move({-_FINE})", "finer", show=False),
        Binding("shift+right", f"move({_FINE})", "finer", show=False),
        Binding("home", "end(0)", show=False),
        Binding("end", "end(1)", show=False),
    ]
    value: reactive[float] = reactive(0.0)

    class Changed(Message):
        """Sent when a person changed the number."""

        def __init__(self, bar: Bar, value: float) -> None:
            super().__init__()
            self.bar, self.value = bar, value

        @property
        def control(self) -> Bar:
            """The bar."""
            return self.bar

    def __init__(self, value: float, limits: Range | None, id: str) -> None:
        super().__init__(id=id)
        self.limits = limits
        self.set_reactive(Bar.value, value)

    def render(self) -> Text:
        """The bar: filled to the number, a mark where the keyboard is."""
        low, high = span(self.limits, self.value)
        room = max(1, self.size.width - 2)
        filled = _share(self.value, low, high) * room
        whole = int(filled)
        part = "▏▎▍▌▋▊▉"[int((filled - whole) * 8) - 1] if int((filled - whole) * 8) else ""
        left, right = ("▸", "◂") if self.has_focus else ("▕", "▏")
        return Text(f"{left}{('█' * whole + part).ljust(room, '·')}{right}"[: room + 2], no_wrap=True)

    def action_move(self, by: float) -> None:
        """Changes the number by a step."""
        self._set(stepped(self.value, by, self.limits))

    def action_end(self, end: int) -> None:
        """Goes to an end of the range."""
        self._set(span(self.limits, self.value)[end])

    def on_mouse_down(self, event: MouseDown) -> None:
        """Sets the number that is pointed at, and follows the pointer."""
        self.capture_mouse()
        self._point(event.x)

    def on_mouse_move(self, event: MouseMove) -> None:
        """Follows the pointer while it is held."""
        if self.app.mouse_captured is self:
            self._point(event.x)

    def on_mouse_up(self) -> None:
        """Lets go of it."""
        self.release_mouse()

    def _point(self, x: int) -> None:
        low, high = span(self.limits, self.value)
        share = (x - 1) / max(1, self.size.width - 3)
        self._set(round(low + min(1.0, max(0.0, share)) * (high - low), 2))

    def _set(self, value: float) -> None:
        if value != self.value:
            self.value = value
            self.post_message(self.Changed(self, value))


class Curve(Widget, can_focus=True):
    """A number for each block as bars: ← → choose the block, ↑ ↓ change it."""

    DEFAULT_CSS = """
    Curve { height: 11; width: 1fr; }
    Curve:focus { background: $boost; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "go(-1)", "block", key_display="←→"),
        Binding("right", "go(1)", show=False),
        Binding("up", f"move({_STEP})", "change", key_display="↑↓"),
        Binding("down", f"move({-_STEP})", show=False),
        Binding("shift+up", f"move({_FINE})", "finer", key_display="shift+↑↓"),
        Binding("shift+down", f"move({-_FINE})", show=False),
        Binding("home", "go(-999)", show=False),
        Binding("end", "go(999)", show=False),
        Binding("equals_sign", "onward", "same to the right", key_display="="),
    ]
    at: reactive[int] = reactive(0)

    def __init__(self, blocks: Sequence[str], values: Sequence[float], limits: Range | None, id: str) -> None:
        super().__init__(id=id)
        self.blocks, self.values, self.limits = tuple(blocks), list(values), limits

    @property
    def _bar_width(self) -> int:
        return max(1, min(3, (self.size.width - 2) // max(1, len(self.blocks))))

    def render(self) -> Text:
        """The bars, a mark under the chosen block, its name and number."""
        low = min(span(self.limits, value)[0] for value in self.values)
        high = max(span(self.limits, value)[1] for value in self.values)
        width, rows = self._bar_width, max(1, self.size.height - 3)
        lines = []
        for row in range(rows, 0, -1):
            cells = []
            for value in self.values:
                eighths = round(_share(value, low, high) * rows * 8) - (row - 1) * 8
                cell = _EIGHTHS[min(8, max(0, eighths))]
                cells.append((cell * max(1, width - 1)).ljust(width))
            lines.append("".join(cells).rstrip())
        marks = "".join(("▲" if at == self.at else "·").ljust(width) for at in range(len(self.values)))
        name, value = self.blocks[self.at], self.values[self.at]
        return Text(
            "\n".join([*lines, marks, f"{name} = {value:g}   from {low:g} to {high:g}"]), no_wrap=True
        )

    def action_go(self, by: int) -> None:
        """Chooses another block."""
        self.at = min(len(self.blocks) - 1, max(0, self.at + by))

    def action_move(self, by: float) -> None:
        """Changes the number of the chosen block."""
        self.values[self.at] = stepped(self.values[self.at], by, self.limits)
        self.refresh()

    def action_onward(self) -> None:
        """Gives every block to the right the number of the chosen one."""
        self.values[self.at :] = [self.values[self.at]] * (len(self.values) - self.at)
        self.refresh()

    def on_mouse_down(self, event: MouseDown) -> None:
        """Chooses the block that is pointed at, and draws while the pointer is held."""
        self.capture_mouse()
        self._point(event.x, event.y)

    def on_mouse_move(self, event: MouseMove) -> None:
        """Draws: each block gets the number at the height of the pointer."""
        if self.app.mouse_captured is self:
            self._point(event.x, event.y)

    def on_mouse_up(self) -> None:
        """Ends the drawing."""
        self.release_mouse()

    def _point(self, x: int, y: int) -> None:
        column, rows = x // self._bar_width, max(2, self.size.height - 3)
        if not 0 <= column < len(self.blocks):
            return
        self.at = column
        if y < rows:
            low, high = span(self.limits, self.values[column])
            share = min(1.0, (rows - 1 - y) / (rows - 1))
            self.values[column] = round(low + share * (high - low), 2)
            self.refresh()

"""The text of the recipe, with its mistakes at the ends of their lines."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.geometry import Size
from textual.widgets import TextArea

from runner.errors import escape
from runner.ui.check import Problem


class RecipeText(TextArea):
    """An editor that can show mistakes where they are.

    Attributes:
        told: the text as those who are told of it know it: what was typed since is still on its way to them.
    """

    def __init__(self, text: str, id: str) -> None:
        self._mistakes: dict[int, str] = {}
        self.told = text
        super().__init__(text, id=id, show_line_numbers=True, soft_wrap=False, tab_behavior="focus")

    def show(self, text: str) -> None:
        """Shows a text if it is another; the cursor and the place stay where they are."""
        if text == self.told:
            return
        self.told = text
        cursor, scroll = self.cursor_location, self.scroll_offset
        self.text = text
        self.move_cursor(cursor)
        self.scroll_to(scroll.x, scroll.y, animate=False)

    def mark(self, problems: Iterable[Problem]) -> None:
        """Shows mistakes at their lines, instead of those before."""
        found: dict[int, str] = {}
        for problem in problems:
            if problem.line is not None:
                found.setdefault(problem.line - 1, problem.text)
        if found != self._mistakes:
            self._mistakes = found
            self._line_cache.clear()
            self._refresh_size()
            self.refresh()

    def _refresh_size(self) -> None:
        """Makes room for the mistakes behind the lines, so that they can be scrolled to."""
        if self.cursor_location[0] >= self.document.line_count:  # of a paste that is undone (textual#6686)
            self.move_cursor(self.document.end)
        super()._refresh_size()
        ends = [self.get_line(at).cell_len for at in self._mistakes if at < self.document.line_count]
        width = max([0, *ends]) + self.gutter_width + 1
        if width > self.virtual_size.width:
            self.virtual_size = Size(width, self.virtual_size.height)

    def get_line(self, line_index: int) -> Text:
        """A line, its mistake behind it."""
        line = super().get_line(line_index)
        if line_index in self._mistakes:
            line.append(f"  ✗ {escape(self._mistakes[line_index])}", "bold italic")
        return line

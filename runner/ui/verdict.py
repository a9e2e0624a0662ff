"""What the program says of the recipe: its mistakes and what to do about them, or its plan."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from runner.ui.check import Checked


class Verdict(VerticalScroll):
    """Shows mistakes or a plan."""

    DEFAULT_CSS = """
    Verdict { padding: 0 1; overflow-x: auto; }
    Verdict #planned { width: auto; }
    """

    def compose(self) -> ComposeResult:
        """Both, one of them empty."""
        yield Static("", id="mistakes", markup=False)
        yield Static("checking …", id="planned", markup=False)

    def show(self, checked: Checked) -> None:
        """Shows what was found."""
        lines = [
            f"✗ {'' if one.line is None else f'line {one.line}: '}{one.text}" for one in checked.problems
        ]
        lines += [f"→ {checked.hint}"] if checked.hint else []
        mistakes = self.query_one("#mistakes", Static)
        mistakes.update("\n".join(lines))
        mistakes.display = bool(lines)
        self.query_one("#planned", Static).update("" if lines else f"✓ {checked.plan}")

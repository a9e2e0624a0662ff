"""The panes: form, text and plan beside each other, or one at a time under tabs on a narrow screen."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Tab, Tabs

from runner.ui.check import Checked
from runner.ui.form import Form
from runner.ui.text import RecipeText
from runner.ui.verdict import Verdict


class Panes(Vertical):
    """Holds the panes; shows them all, or the one somebody is at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        """The tabs of a narrow screen, and the panes."""
        yield Tabs(*(Tab(name, id=f"{name}-tab") for name in ("form", "text", "plan")))
        with Horizontal(id="panes", classes="form"):
            yield Form(id="form")
            with Vertical(id="right"):
                yield RecipeText(self.text, id="text")
                yield Verdict(id="plan")

    def tell(self, checked: Checked) -> None:
        """Shows what was found wherever it belongs."""
        self.query_one(RecipeText).mark(checked.problems)
        self.query_one(Verdict).show(checked)
        count = len(checked.problems)
        self.query_one("#plan-tab", Tab).label = f"plan ✗{count}" if count else "plan ✓"

    def go(self, pane: str) -> None:
        """Goes to a pane."""
        self.query_one(Tabs).active = f"{pane}-tab"
        self._show(pane)
        if pane == "form":
            self.query_one(Form).enter()
        else:
            self.screen.set_focus(self.query_one(f"#{pane}"))  # at once: keys are on their way to it

    @on(Tabs.TabActivated)
    def _tab(self) -> None:
        self._show(self.query_one(Tabs).active.removesuffix("-tab"))  # not the event's: that may be old

    def _show(self, pane: str) -> None:
        self.query_one("#panes").set_classes(pane)

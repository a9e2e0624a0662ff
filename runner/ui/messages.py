"""What the widgets of the form tell the composer."""

from __future__ import annotations

from collections.abc import Callable

from textual.message import Message

from runner.errors import KeyPath
from runner.ui.draft import Draft


class Changed(Message):
    """A person changed the recipe."""

    def __init__(self, change: Callable[[Draft], Draft]) -> None:
        super().__init__()
        self.change = change


class Asked(Message):
    """A person wants to choose something.

    Attributes:
        what: a "method", the "model" of a role, the source of a "component", "numbers", one more "role".
        name: of the role, the component or the parameter.
    """

    def __init__(self, what: str, name: str = "") -> None:
        super().__init__()
        self.what, self.name = what, name


class Moved(Message):
    """A person went to another merge of the recipe."""

    def __init__(self, at: KeyPath) -> None:
        super().__init__()
        self.at = at

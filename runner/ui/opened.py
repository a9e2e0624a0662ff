"""The recipe that is open: the file it came from, what it says now, and what it said before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.ui import store
from runner.ui.draft import EMPTY, Draft

_BEFORE = 200  # changes that can be taken back


class Opened:
    """An open recipe.

    Attributes:
        stored: what its file holds; one without a file yet has no sha256.
        draft: what it says now.
    """

    def __init__(self, stored: store.Stored) -> None:
        self.stored = stored
        self.draft = Draft(stored.name, stored.text if stored.text.strip() else EMPTY)
        self._before: list[Draft] = []

    @property
    def is_saved(self) -> bool:
        """Whether the file says what the draft says."""
        return self.draft.text == self.stored.text and bool(self.stored.sha256)

    @property
    def can_be_left(self) -> bool:
        """Whether nothing would be lost."""
        return self.draft.text in (EMPTY, self.stored.text)

    def change(self, change: Callable[[Draft], Draft]) -> bool:
        """Changes the draft; whether it says something else now.

        Raises:
            RunnerError: that cannot be.
        """
        changed = change(self.draft)
        if changed.text == self.draft.text:
            return False
        self._before = [*self._before[1 - _BEFORE :], self.draft]
        self.draft = changed
        return True

    def undo(self) -> bool:
        """Takes the last change back; whether there was one."""
        if self._before:
            self.draft = self._before.pop()
            return True
        return False

    def save(self, path: Path, known: str) -> None:
        """Writes it to a file that has the sha256 known; "": that is not there.

        Raises:
            BusyError: somebody else wrote the file meanwhile.
            OutputError: the device refused.
        """
        self.stored = store.save(path, self.draft.text, known)
        self.draft = Draft(self.stored.name, self.draft.text)

"""The recipe that is open: the file it came from, what it says now, and what it said before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
        self.stored = self._file = stored
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

    def restore(self, sha256: str, text: str) -> bool:
        """Changes the text to one that was not saved; whether it is another.

        Args:
            sha256: of the file it was made from: it is not saved over what that has become since.
            text: that was not saved.
        """
        if not self.change(lambda draft: draft.with_text(text)):
            return False
        self.stored = replace(self.stored, sha256=sha256)
        return True

    def undo(self) -> bool:
        """Takes the last change back; whether there was one."""
        if not self._before:
            return False
        self.draft = self._before.pop()
        if self.draft.text == self._file.text:
            self.stored = self._file
        return True

    def save(self, path: Path, known: str) -> None:
        """Writes it to a file that has the sha256 known; "": that is not there.

        Raises:
            BusyError: somebody else wrote the file meanwhile.
            OutputError: the device refused.
        """
        self.stored = self._file = store.save(path, self.draft.text, known)
        self.draft = Draft(self.stored.name, self.draft.text)

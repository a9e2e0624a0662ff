"""The files that a draft names: whether they are still there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from runner.recipe.structure import NAMED
from runner.ui.draft import Draft


@dataclass
class Watch:
    """Notices files that vanish, or come back.

    Attributes:
        models_dir: where their names start.
        gone: the names of those that were there and are not.
    """

    models_dir: Path
    gone: frozenset[str] = frozenset()
    _there: dict[str, bool] = field(default_factory=dict)

    def look(self, draft: Draft, known: Collection[str]) -> bool:
        """Looks at the files a draft names; whether something changed.

        Args:
            draft: the recipe.
            known: models that have been found: others may be names that lead elsewhere.
        """
        try:
            there = {name: (self.models_dir / name).exists() for name in _names(draft)}
        except (OSError, ValueError):
            return False
        changed = any(self._there.get(name, True) != is_there for name, is_there in there.items())
        missing = (name for name, is_there in there.items() if not is_there)
        self.gone = frozenset(name for name in missing if name in known or name in self.gone)
        self._there = there
        return changed


def _names(draft: Draft) -> list[str]:
    found = []
    places = [*((*merge, "models") for merge in draft.merges()), ("components",)]
    for model in (model for place in places for model in draft.merge(place).values()):
        source = model.get("source") if isinstance(model, dict) else model
        if isinstance(source, str) and not source.startswith(NAMED):
            found.append(source)
    return found

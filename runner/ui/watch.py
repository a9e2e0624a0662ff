"""The files that a draft names: whether they are still there, and still what they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runner.formats.component_files import CONFIG, INDEX
from runner.recipe.structure import NAMED
from runner.ui.draft import Draft

_State = tuple[tuple[int, int, int], ...]  # inode, size and time of change of files; none if there is nothing


@dataclass
class Watch:
    """Notices files that vanish, come back, or change.

    Attributes:
        models_dir: where their names start.
        known: where models lie that have been found: other names may lead elsewhere.
        gone: the names of those that were there and are not.
    """

    models_dir: Path
    known: dict[str, Path] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    _seen: dict[str, _State] = field(default_factory=dict)

    def look(self, draft: Draft) -> bool:
        """Looks at the files a draft names; whether something changed."""
        seen = {name: tuple(_state(self.known.get(name, self.models_dir / name))) for name in _names(draft)}
        changed = any(self._seen.get(name, state) != state for name, state in seen.items())
        missing = (name for name, state in seen.items() if not state)
        gone = frozenset(name for name in missing if name in self.known or name in self.gone)
        changed |= gone != self.gone
        self._seen, self.gone = seen, gone
        return changed


def _state(path: Path) -> Iterator[tuple[int, int, int]]:
    """What tells whether a model is still the same: of a folder of one, its files and its components'."""
    files = [path]
    with suppress(OSError, ValueError):
        if any((path / name).is_file() for name in (INDEX, CONFIG)):  # else it may be any folder, such as /
            files += [*sorted(path.glob("*")), *sorted(path.glob("*/*"))]
    for file in files:
        with suppress(OSError, ValueError):
            status = file.stat()
            yield status.st_ino, status.st_size, status.st_mtime_ns


def _names(draft: Draft) -> list[str]:
    found = []
    places = [*((*merge, "models") for merge in draft.merges()), ("components",)]
    for model in (model for place in places for model in draft.merge(place).values()):
        source = model.get("source") if isinstance(model, dict) else model
        if isinstance(source, str) and not source.startswith(NAMED):
            found.append(source)
    return found

"""Which model a recipe means: by a name that only one has, or by its digest."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from runner.digests import known_digests
from runner.disk.cachefile import DIGESTS, HEADERS
from runner.errors import InputError, escape, nearest, quote
from runner.library.facts import Facts
from runner.library.headers import Entry, entries_of, known_facts, look_at, remembered
from runner.library.hub import cache_folder
from runner.library.roots import Root, roots_of
from runner.library.walk import Found, models_in

_SHOWN = 5  # candidates in a message


@dataclass(frozen=True)
class Library:
    """The places a model is looked for in if its path leads nowhere; what is in them is read once.

    Attributes:
        folders: of models, and roots of programs that keep models; the first is models_dir.
        cache_dir: where digests and headers are remembered.
    """

    folders: Sequence[Path]
    cache_dir: Path

    @cached_property
    def roots(self) -> list[Root]:
        """The places: what the user names, and the hub's cache."""
        hub = cache_folder()
        return roots_of((*self.folders, *([hub] if hub.is_dir() else [])))

    @cached_property
    def found(self) -> list[Found]:
        """Everything in them that looks like a model."""
        return models_in(self.roots)[0]

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digests that are remembered, by Identity.key."""
        return known_digests(self.cache_dir / DIGESTS)

    @cached_property
    def facts(self) -> dict[str, Facts]:
        """The headers that are remembered, by what they are remembered by."""
        return known_facts(self.cache_dir / HEADERS)

    def entries(
        self,
        found: Sequence[Found],
        advance: Callable[[int], None] = lambda count: None,
        processes: int = 1,
    ) -> list[Entry]:
        """What models are, as far as headers and remembered digests tell; what was not known is remembered.

        Args:
            found: the models.
            advance: called with the number of models that were looked at, when some have to be read.
            processes: how many may read; 1 where this one has threads.
        """
        return entries_of(found, self.cache_dir / HEADERS, self.digests, advance, processes)

    def by_name(self, text: str) -> Found | None:
        """The one model of a name; None if there is none.

        Args:
            text: a name with or without its suffix, with the end of its folder or without. Upper and lower
                case count only where both are there.

        Raises:
            InputError: several models have it; lists them.
        """
        wanted = PurePosixPath(text)
        if wanted.is_absolute() or not wanted.parts or ".." in wanted.parts:
            return None
        for spelled in (str, _folded):
            models = {
                os.path.realpath(one.path): one
                for one in reversed(self.found)
                if _is_called(one, wanted, spelled)
            }
            if len(models) > 1:
                raise _ambiguous(text, sorted(models.values(), key=lambda one: str(one.path)))
            if models:
                return next(iter(models.values()))
        return None

    def by_digest(self, sha256: str) -> Found | None:
        """A model of a digest, as far as digests are remembered; None if there is none."""
        files = {key for key, digest in self.digests.items() if digest == sha256}
        for one in self.found if self.digests else ():
            if not one.folder:
                if files and any(identity.key in files for identity in look_at(one).values()):
                    return one
                continue
            entry = remembered(one, self.facts, self.digests)
            if entry is not None and entry.sha256 == sha256:
                return one
        return None

    def nearest(self, text: str, beside: Sequence[str]) -> str:
        """', did you mean "…"?' if a model has a name close to this one, else ''.

        Args:
            text: the name.
            beside: other names it may be close to.
        """
        last = PurePosixPath(text).name
        names = {(one.path.name if PurePosixPath(text).suffix else one.name) for one in self.found}
        if hint := nearest(last, sorted({*names, *beside})):
            return hint
        of_hub = [one.name for one in self.found if one.name.startswith("hf:")]
        same = (
            name for name in of_hub if _folded(name.partition("@")[0].rpartition("/")[2]) == _folded(last)
        )
        return next((f", did you mean {quote(name)}?" for name in sorted(same)), "")


def _is_called(one: Found, wanted: PurePosixPath, spelled: Callable[[str], str]) -> bool:
    """Whether a model has a name, compared as `spelled` makes them."""
    if one.name.startswith("hf:"):
        return False  # these are names that recipes use as they are
    if spelled(one.name) == spelled(str(wanted)):
        return True
    if spelled(wanted.name) not in {spelled(name) for name in (one.name, one.path.name, _stem(one))}:
        return False
    above = [spelled(part) for part in wanted.parts[:-1]]
    return (
        not above
        or [spelled(part) for part in PurePosixPath(one.inside).parts[-1 - len(above) : -1]] == above
    )


def _stem(one: Found) -> str:
    return one.path.name if one.folder else one.path.stem


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _ambiguous(text: str, models: Sequence[Found]) -> InputError:
    shown = ", ".join(escape(str(one.path)) for one in models[:_SHOWN])
    more = f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else ""
    return InputError(
        f"{quote(text)}: {len(models)} models have this name: {shown}{more}",
        tag="AMBIGUOUS",
        hint="give the path of one, its name with its folder or suffix, or its sha256",
    )

"""Sources to models: where each is, and its headers."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from runner.checkpoint import Checkpoint
from runner.demo.models import demo_model
from runner.errors import InputError, KeyPath, escape, quote
from runner.formats import READERS
from runner.library.hub import fetch
from runner.library.lookup import Library
from runner.models.ema import averaged
from runner.models.model import Model, recognised
from runner.recipe.structure import Source

log = logging.getLogger(__name__)


Opened = tuple[tuple[Source, ...], Checkpoint, str | None]  # what names a model, its headers, its commit


def open_sources(
    sources: Iterable[Source], means: Collection[KeyPath], models_dir: Path, library: Library, offline: bool
) -> tuple[list[Opened], list[InputError]]:
    """Opens each distinct source once; returns with the models what could not be opened.

    Args:
        sources: of the recipe.
        means: places of those whose running means are taken in place of the weights.
        models_dir, offline: as of resolve.
        library: of the models there are.
    """
    opened: dict[tuple[Path, str | None, bool], Opened] = {}
    unreadable: dict[tuple[str, str | None], InputError] = {}
    for source in sources:
        try:
            path, revision = source_path(source, models_dir, library, offline)
            file = (path.resolve(), source.variant, source.path in means)
            if file in opened:
                others, checkpoint, revision = opened[file]
                opened[file] = ((*others, source), checkpoint, revision)
                continue
            checkpoint = _open(path, source, models_dir, library)
            opened[file] = ((source,), averaged(checkpoint) if file[-1] else checkpoint, revision)
        except InputError as error:
            unreadable[source.name, source.variant] = error
        except (OSError, RuntimeError) as error:
            unreadable[source.name, source.variant] = _missing(source, error)
    return list(opened.values()), list(unreadable.values())


def open_model(source: Source, models_dir: Path, library: Library, offline: bool) -> Model:
    """A model by itself, without a recipe.

    Args:
        source: names it.
        models_dir: a relative path starts here.
        library: where it is looked for if there is none.
        offline: whether a model of the hub is only looked for in its cache.

    Raises:
        InputError: it is missing or malformed.
    """
    try:
        path, revision = source_path(source, models_dir, library, offline)
        checkpoint = _open(path, source, models_dir, library)
    except (OSError, RuntimeError) as error:
        raise _missing(source, error) from error
    return replace(recognised((source,), checkpoint), revision=revision)


def source_path(source: Source, models_dir: Path, library: Library, offline: bool) -> tuple[Path, str | None]:
    """Where a source is, and the commit of a model of the hub.

    Raises:
        InputError: it names something that is no file here, or several models.
    """
    name = source.name
    if name.startswith("demo:"):
        return demo_model(name.removeprefix("demo:"), library.cache_dir), None
    if name.startswith("hf:"):
        return fetch(name, source.variant, offline)
    if "://" in name:
        raise InputError(f"{quote(name)}: a URL; a source is a path, demo:NAME or hf:ORG/NAME", tag="URL")
    path = models_dir / Path(name).expanduser()
    if os.path.lexists(path):
        return path, None
    wanted = source.sha256 or source.locked
    if wanted and (found := library.by_digest(wanted)):
        log.info("%s: found by its sha256, %s", escape(name), escape(str(found.path)))
        return found.path, None
    if found := library.by_name(name):
        log.info("%s: %s", escape(name), escape(str(found.path)))
        return found.path, None
    return path, None


def _missing(source: Source, error: Exception) -> InputError:
    """The error for a name too long, links in a circle, an unknown ~user."""
    return InputError(f"{quote(source.name)}: {getattr(error, 'strerror', None) or error}", tag="MISSING")


def _open(path: Path, source: Source, models_dir: Path, library: Library) -> Checkpoint:
    reader = next(reader for reader in READERS if reader.accepts(path))
    try:
        return reader.open(path, source.name, source.variant)
    except InputError as error:
        if source.name.startswith("demo:"):
            error.hint = f"remove {path}: the demo model is made anew"
        elif source.name.startswith("hf:"):
            error.hint = error.hint or f"the hub's cache has it in {path}"
        elif error.tag == "MISSING" and not path.exists():
            there = "" if models_dir.is_dir() else ", which is no folder"
            near = library.nearest(source.name, _names_beside(path))
            error.hint = f"paths start at models_dir={models_dir}{there}{near}"
            if source.sha256 or source.locked:
                error.hint += "; if the file has another name: job=find, then sha256 finds it"
        raise


def _names_beside(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def together(errors: list[InputError]) -> InputError:
    """One error that says all of them."""
    if len(errors) == 1:
        return errors[0]
    hint = next((error.hint for error in errors if error.hint), None)
    tags = {error.tag for error in errors}
    tag = tags.pop() if len(tags) == 1 else None  # every line is shown under the one tag
    return InputError("\n".join(error.message for error in errors), tag=tag, hint=hint)

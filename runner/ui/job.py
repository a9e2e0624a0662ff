"""job=compose: the form in this terminal, or served to a browser on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner.config import Settings
from runner.errors import RunnerError, UsageError, quote

_OWN = ("job", "recipe", "source", "progress")  # overrides that are not for the runs


def compose(settings: Settings, overrides: Sequence[str]) -> dict[str, Any]:
    """Opens the form; returns when it is left.

    Args:
        settings: how recipes are run; job.recipe names the one to open.
        overrides: of the command line.

    Raises:
        UsageError: what draws the form is not installed, or there is no terminal.
        InputError: the recipe cannot be read.
    """
    needed = ("textual", "textual_serve") if settings.job.browser else ("textual",)
    if missing := [name for name in needed if find_spec(name) is None]:
        raise UsageError(
            f"job=compose needs {' and '.join(missing).replace('_', '-')}, not installed here",
            hint="pip install 'runner[ui]'",
        )
    os.environ.pop("HYDRA_FULL_ERROR", None)  # the command sets it for itself: runs of the form show none
    if settings.job.browser:
        from runner.ui.server import serve

        return serve(settings, overrides)
    from runner.ui import store
    from runner.ui.app import Compose

    name, confined = settings.job.recipe, settings.job.confined
    stored = store.opened(name, confined) if name else store.fresh()
    if stored is None:
        path = Path(name or "")
        if path.is_absolute() or not store.NAME.fullmatch(path.name):
            raise UsageError(f"job.recipe={quote(name)}: there is no such recipe")
        stored = store.fresh(path.name)
    if not confined and not (sys.stdin.isatty() and sys.stdout.isatty()):
        hint = "job=compose job.browser=true serves it to a browser"
        raise UsageError("job=compose needs a terminal", hint=hint)
    app = Compose(replace(settings, progress="off"), stored, for_runs(overrides), confined)
    app.run()
    if app.return_code:
        hint = "what was not saved is there again when the recipe is next opened"
        raise RunnerError("the form ended by a bug in runner, shown above", hint=hint)
    return {}


def for_runs(overrides: Sequence[str]) -> list[str]:
    """The overrides of the command line that hold for the runs too."""
    return [
        one
        for one in overrides
        if one.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0] not in _OWN
    ]

"""The composer as tests drive it: with keys, in a folder of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Input, Static

from runner.ui import store
from runner.ui.app import Compose
from tests.ui.settings import settings

PATIENCE = 60.0  # seconds; the machine may be busy


def composer(cache: Path, name: str | None = None, models_dir: Path = Path()) -> Compose:
    stored = store.opened(name) if name else store.fresh("new_mix")
    assert stored is not None
    return Compose(settings(cache, models_dir), stored, ["threads=1"])


async def until(pilot: Pilot[None], found: Callable[[], object]) -> None:
    """Waits for the screen to show something."""
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, "it does not come"
        await asyncio.sleep(0.05)


async def checked(pilot: Pilot[None], app: Compose) -> None:
    """Waits until what is shown is said of the draft as it is."""
    await pilot.pause()
    await until(pilot, lambda: app.checked.text == app.draft.text)
    await pilot.pause()


async def choose(pilot: Pilot[None], button: str, typed: str) -> None:
    """Opens a list and takes the first row that has what is typed."""
    pilot.app.query_one(button).focus()
    await pilot.press("enter")
    await until(pilot, lambda: pilot.app.screen.query("#filter"))
    # At once: every key would draw the screen. The first test and that of long lists press them all.
    pilot.app.screen.query_one("#filter", Input).value = typed
    await pilot.pause()
    await pilot.press("enter")
    await pilot.pause()


def says(app: Compose, selector: str) -> str:
    return str(app.query_one(selector, Static).content)

"""The composer as tests drive it: with keys, in a folder of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Static

from runner.config import Job, Settings
from runner.place import Devices
from runner.ui import store
from runner.ui.app import Compose, fresh

PATIENCE = 60.0  # seconds; the machine may be busy


def settings(cache: Path, models_dir: Path = Path()) -> Settings:
    return Settings(
        job=Job("compose"),
        placement=Devices(None, {}),
        models_dir=models_dir,
        output_dir=None,
        cache_dir=cache,
        memory=None,
        threads=0,
        tile_elements=262144,
        digests="remember",
        verify=True,
        progress="off",
        hub="offline",
    )


def composer(cache: Path, name: str | None = None, models_dir: Path = Path()) -> Compose:
    stored = store.opened(name) if name else fresh("new_mix")
    assert stored is not None
    return Compose(settings(cache, models_dir), stored, ["threads=1"])


async def until(pilot: Pilot[None], found: Callable[[], object]) -> None:
    """Waits for the screen to show something."""
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, "it does not come"
        await pilot.pause()
        await asyncio.sleep(0.01)


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
    await pilot.press(*typed)
    await pilot.press("enter")
    await pilot.pause()


def says(app: Compose, selector: str) -> str:
    return str(app.query_one(selector, Static).content)

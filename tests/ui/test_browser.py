"""The form in a real browser: a recipe chosen and saved with its keys, and no request leaves the machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

MISSING = "NOT TESTED: the composer in a browser; pip install "
api = pytest.importorskip("playwright.sync_api", reason=f"{MISSING}playwright")
pytest.importorskip("textual_serve", reason=f"{MISSING}'runner[ui]'")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"{MISSING}chromium")


def test_a_recipe_is_written_in_a_browser(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "runner", "job=compose", "job.browser=true"],
        cwd=tmp_path,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 760})
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            said: list[str] = []

            def hear(frame: str | bytes) -> None:
                said.append(frame.decode("utf-8", "replace") if isinstance(frame, bytes) else frame)

            def wait(words: str) -> None:
                """Waits until the form has shown some words, and forgets what it showed before."""
                end = time.monotonic() + 60
                while words not in "".join(said):
                    assert time.monotonic() < end, f"{words} does not come"
                    page.wait_for_timeout(50)
                said.clear()

            def listen(opened: Any) -> None:
                """Hears the form of another page, and forgets what one before has shown."""
                said.clear()
                opened.on("framereceived", hear)

            page.on("websocket", listen)

            def has_the_keyboard() -> None:
                """Waits until keys go to the form."""
                end = time.monotonic() + 60
                while not page.evaluate("document.activeElement.matches('.xterm-helper-textarea')"):
                    assert time.monotonic() < end, "the form does not get the keyboard"
                    page.wait_for_timeout(50)

            def choose(role: str, name: str) -> None:
                wait(f"model for {role}")
                page.keyboard.type(name)
                wait("2 of 8")
                page.keyboard.press("Enter")
                wait(f"{role}: demo:{name}")

            page.goto(address)
            wait("choose a model")
            has_the_keyboard()
            page.mouse.click(300, 18 * 6 + 9)
            choose("a", "photo")
            page.once("dialog", lambda dialog: dialog.accept())
            page.reload()  # as after a connection that broke: another form, and what was not saved in it
            wait("a: demo:photo")
            has_the_keyboard()
            page.keyboard.press("Enter")
            choose("b", "anime")
            wait("✓ plan of")
            page.keyboard.press("Control+s")
            wait("save the recipe as")
            page.keyboard.press("Enter")
            wait("saved recipes/new_mix.yaml")
            path = tmp_path / "recipes" / "new_mix.yaml"
            if picture := os.environ.get("RUNNER_PICTURE"):  # of the README
                page.wait_for_timeout(20_000)  # what it notifies is gone
                page.screenshot(path=picture)
            with page.expect_event("dialog") as asked_first:  # before the form goes with its page
                page.once("dialog", lambda dialog: dialog.accept())
                page.goto("about:blank")
            assert asked_first.value.type == "beforeunload"
            browser.close()
        assert path.read_text() == "method: weighted_sum\nmodels:\n  a: demo:photo\n  b: demo:anime\n"
        assert asked and all(url.startswith(("data:", address)) for url in asked)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
    end = time.monotonic() + 60
    while (tmp_path / "runs").exists():  # the process of the form ends on its own, soon after the server
        assert time.monotonic() < end, "the form does not end, or leaves its folder"
        time.sleep(0.1)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["recipes"]

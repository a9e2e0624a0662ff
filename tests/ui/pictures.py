"""Draws the README's picture of the form: python -m tests.ui.pictures

The one of a browser is drawn by RUNNER_PICTURE=FILE python -m pytest tests/ui/test_browser.py
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from pathlib import Path

from runner.compose import DATA_ROOT
from runner.config import default_cache
from tests.ui.form import checked, composer

TARGET = DATA_ROOT / "docs" / "images" / "compose.svg"


async def draw() -> None:
    """Opens a recipe and exports what the terminal shows; the picture loads nothing."""
    Path("recipes").mkdir()
    Path("recipes/anime_mix.yaml").write_text((DATA_ROOT / "recipes" / "anime_mix.yaml").read_text())
    app = composer(default_cache(), "anime_mix")
    async with app.run_test(size=(124, 34)) as pilot:
        await checked(pilot, app)
        picture = app.export_screenshot(title="runner job=compose recipe=anime_mix")
    TARGET.write_text(re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        asyncio.run(draw())

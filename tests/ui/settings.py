"""The settings of the composer in tests."""

from __future__ import annotations

from pathlib import Path

from runner.config import Job, Settings
from runner.place import Devices
from tests import runs


def settings(cache: Path, models_dir: Path = Path()) -> Settings:
    return runs.settings(
        models_dir,
        job=Job("compose"),
        placement=Devices(),
        cache_dir=cache,
        threads=0,
        tile_elements=262144,
        digests="remember",
        hub="offline",
    )

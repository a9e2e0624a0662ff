"""Shared places: demo models are made once a session, in a folder of the session."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# A shell starts what it puts in the background with Ctrl-C ignored, and what the tests start inherits
# that: without this the tests of interruptions fail there.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where demo models and digests are kept during the tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache, asks a hub, or knows how wide a terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("RUNNER_CACHE", str(cache))
    monkeypatch.delenv("RUNNER_RECIPES", raising=False)
    monkeypatch.delenv("RUNNER_MODELS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))

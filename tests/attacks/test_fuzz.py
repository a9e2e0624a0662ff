"""Some of the damaged inputs that fuzz.py makes by the thousand, the same ones at every run."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attacks.files import safetensors_file
from tests.attacks.fuzz import TARGETS, fuzz

CASES = {"safetensors": 800, "pickles": 600, "json": 1500, "folders": 100}
CASES |= {"adapters": 200, "recipes": 150, "block strings": 250, "foreign recipes": 200}


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_damaged_is_read_or_refused_in_words_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setenv("RUNNER_FUZZ_SECRET", "")  # fuzz sets it; this has it taken away again
    found = fuzz(target, tmp_path, CASES[target])
    assert found.faults == []
    assert found.executions == 0
    assert 0 < found.accepted < found.cases == CASES[target]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_what_we_read_of_a_damaged_file_the_library_reads(tmp_path: Path, rng: Random) -> None:
    safetensors_file(rng, tmp_path)


def test_the_loop_notices_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(rng: Random, folder: Path) -> bool:
        (folder / "canary").touch()
        return True

    monkeypatch.setitem(TARGETS, "runs", runs)  # type: ignore[arg-type]
    assert fuzz("runs", tmp_path, 3).executions == 3

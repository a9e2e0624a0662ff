"""job=compare: what changed from one run to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.config import Job
from runner.errors import UsageError
from runner.proof.job import compare_job
from tests.build import write_models
from tests.proof.build import NAME, answer_of, by_another_machine, made
from tests.runs import settings


def answer(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    job = Job("compare", a=a, b=b, json=True)
    return answer_of(lambda: compare_job(settings(a.parent, job=job)), capsys)


def told(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    compare_job(settings(a.parent, job=Job("compare", a=a, b=b)))
    return capsys.readouterr().out


def test_equal_runs_have_no_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = made(tmp_path), made(tmp_path, "again")
    found = answer(first, second, capsys)
    assert not any(found[name] for name in ("recipe", "inputs", "environment", "settings"))
    assert found["tensors"] == {"differ": 0, "all": 9, "first": None}
    assert "all 9 are equal" in told(first, second, capsys)


def test_recipe_inputs_and_results_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = made(tmp_path)
    write_models(tmp_path, c=3)
    second = made(tmp_path, "other", alpha=0.5, models={"a": "a.safetensors", "b": "c.safetensors"})
    found = answer(first, second, capsys)
    assert "-alpha: 0.3" in found["recipe"] and "+alpha: 0.5" in found["recipe"]
    assert "-  b: {source: b.safetensors}" in found["recipe"]
    (line,) = found["inputs"]
    assert line.startswith("b: b.safetensors  ") and " → c.safetensors  " in line
    assert found["tensors"]["differ"] == 8  # all but the empty one
    text = told(first / NAME, second / f"{NAME}.intoto.json", capsys)
    assert "distance |b - a| / |a|" in text and "first_stage_model" not in text and "  vae " in text


def test_without_the_models_the_tensors_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = made(tmp_path), made(tmp_path, "other", alpha=0.5)
    (first / NAME).unlink()
    text = told(first, second, capsys)
    assert "8 of 9 differ, first " in text and "distance" not in text


def test_another_machine_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = made(tmp_path), made(tmp_path, "other")
    by_another_machine(second, "model.diffusion_model.linear.weight", 1)
    found = answer(first, second, capsys)
    assert any(line.startswith("torch: ") and line.endswith(" → 1.0.0") for line in found["environment"])
    assert found["tensors"]["first"] == "model.diffusion_model.linear.weight"


def test_two_runs_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"job\.b is missing"):
        compare_job(settings(tmp_path, job=Job("compare", a=tmp_path)))

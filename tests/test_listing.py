"""job=models and job=find: what a person and a program are told."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.config import Job
from runner.demo.models import demo_model
from runner.listing import find_digests, list_models
from tests.build import digest
from tests.command import python, run
from tests.library.trees import write
from tests.runs import settings


@pytest.fixture
def models(tmp_path: Path, cache: Path) -> Path:
    """A folder with a LoRA, a pipeline, a model of no known architecture and a broken file."""
    folder = tmp_path / "models"
    write(folder / "sub" / "Any thing.safetensors")
    shutil.copy(demo_model("lora", cache), folder / "style.safetensors")
    shutil.copytree(demo_model("photo", cache), folder / "photo")
    for path in folder.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (folder / "bad.safetensors").write_bytes(b"")
    return folder


def listed(folder: Path, capsys: pytest.CaptureFixture[str], digests: str = "remember", **job: Any) -> str:
    cache = folder.parent / "cache"
    list_models(settings(folder, job=Job("models", **job), cache_dir=cache, digests=digests))
    return capsys.readouterr().out


def hashed(folder: Path, capsys: pytest.CaptureFixture[str], digests: str = "remember", **job: Any) -> str:
    cache = folder.parent / "cache"
    find_digests(settings(folder, job=Job("find", **job), cache_dir=cache, digests=digests))
    return capsys.readouterr().out


def test_models_are_listed_by_name_with_what_they_are(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert listed(models, capsys).splitlines() == [
        f"folder {models}",
        "  name       kind    architecture          format       dtype    size  sha256  in",
        "  Any thing  other                         safetensors  F16    6.3 kB          sub",
        "  photo      folder  Stable Diffusion 1.x  diffusers    F16    2.1 MB",
        "  style      lora    Stable Diffusion 1.x  safetensors  F16    108 kB",
        "",
        "cannot be read",
        "  bad.safetensors: empty",
    ]


def test_a_narrow_terminal_gets_lines_that_fit(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    hashed(models, capsys)
    lines = listed(models, capsys).splitlines()
    assert max(map(len, lines[1:])) <= 60
    sha256 = digest(models / "sub" / "Any thing.safetensors")
    assert lines[1:5] == [
        "  Any thing",
        "    other  safetensors",
        f"    F16  6.3 kB  {sha256[:10]}",
        "    sub",
    ]


def test_wide_names_fit_the_terminal_by_the_cells_they_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "m" / "写真風.safetensors")
    table = listed(tmp_path / "m", capsys).splitlines()[1:]
    assert table == [
        "  name    kind   architecture  format       dtype    size  sha256  in",
        "  写真風  other                safetensors  F16    6.3 kB",
    ]
    monkeypatch.setenv("COLUMNS", "69")
    assert listed(tmp_path / "m", capsys).splitlines()[1:] == table
    monkeypatch.setenv("COLUMNS", "68")
    assert listed(tmp_path / "m", capsys).splitlines()[1] == "  写真風"


@pytest.mark.parametrize("pattern", ["any*", "*/Any thing.safetensors", "ANY THING", "*.safetensors"])
def test_a_glob_picks_by_name_or_path(pattern: str, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(models, capsys, match=pattern)
    assert "Any thing" in text and "photo" not in text


def test_nothing_that_matches_is_said(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(models, capsys, match="x").startswith(f"no models in folder {models}")


def test_a_program_gets_everything_as_json(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hashed(models, capsys)
    content = json.loads(listed(models, capsys, json=True))
    assert content["problems"] == []
    by_name = {entry["name"]: entry for entry in content["models"]}
    path = models / "sub" / "Any thing.safetensors"
    assert by_name["Any thing"] == {
        "name": "Any thing",
        "path": str(path),
        "place": "folder",
        "kind": "other",
        "architecture": None,
        "variant": None,
        "format": "safetensors",
        "dtypes": ["F16"],
        "bytes": path.stat().st_size,
        "sha256": digest(path),
        "problem": None,
    }
    assert (by_name["style"]["kind"], by_name["style"]["architecture"]) == ("lora", "sd1")
    assert (by_name["bad"]["kind"], by_name["bad"]["problem"]) == ("broken", "bad.safetensors: empty")


def test_hostile_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("\x1b[31mred", "two\nlines", "\u202eright", os.fsdecode(b"\xff")):
        write(tmp_path / "m" / f"{name}.safetensors")
        (tmp_path / "m" / f"{name}.pt").write_bytes(b"broken")
    text = listed(tmp_path / "m", capsys)
    assert all(line.isprintable() for line in text.splitlines()) and len(text.splitlines()) == 12
    assert listed(tmp_path / "m", capsys, json=True).isascii()


# ---- Digests.


def test_files_are_hashed_once_and_what_is_the_same_is_said(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy2(models / "style.safetensors", models / "sub" / "copy.safetensors")
    first = hashed(models, capsys).splitlines()
    assert first[0].startswith("4 models, 6 files: 6 hashed (") and first[0].endswith("), 0 known before")
    copies = [f"    {models}/{name}.safetensors" for name in ("style", "sub/copy")]
    sha256 = digest(models / "style.safetensors")[:10]
    assert first[1:] == ["the same model in several places", f"  {sha256}", *copies]
    assert hashed(models, capsys).splitlines()[0] == "4 models, 6 files: 0 hashed (0 B), 6 known before"
    assert "6 hashed" in hashed(models, capsys, digests="fresh")
    assert "1 hashed" in hashed(models, capsys, digests="fresh", match="any*")


def test_a_list_shows_no_remembered_digest_if_none_is_trusted(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashed(models, capsys)
    sha256 = digest(models / "style.safetensors")
    assert sha256[:10] in listed(models, capsys)
    assert sha256[:10] not in listed(models, capsys, digests="fresh")
    fresh = json.loads(listed(models, capsys, digests="fresh", json=True))
    assert [entry["sha256"] for entry in fresh["models"]] == [None] * 4


def test_the_jobs_run_from_the_command_line_without_torch(models: Path, tmp_path: Path) -> None:
    code = "import sys; from runner.__main__ import run; run(sys.argv[1:]); assert 'torch' not in sys.modules"
    arguments = ["job=models", "job.match='st*'", "job.json=true"]
    done = python(tmp_path, code, *arguments, RUNNER_MODELS=str(models))
    assert done.returncode == 0, done.stderr
    assert [entry["name"] for entry in json.loads(done.stdout)["models"]] == ["style"]
    assert "hashed" in run(models, "job=find").stdout

"""Merges under limits of the system: sizes, descriptors, disks, permissions. Every run is a process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.command import RUNNER, bound_by_permissions
from tests.faults import memory

OWN = ["recipe=weighted_sum", "recipe.models.a=a.safetensors", "recipe.models.b=b.safetensors"]
OWN += ["output_dir=out", "progress=off", "hydra.run.dir=run"]
NAME = "weighted_sum.safetensors"
OLD = b"what was there before"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models of 2 MB, whose merge has 1 MB, and the folder for a third with something under its name."""
    for number, name in enumerate("ab"):
        save_file({"k": torch.full((1 << 19,), float(number))}, tmp_path / f"{name}.safetensors")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_bytes(OLD)
    return tmp_path


def run(
    folder: Path, *arguments: str, limits: dict[int, int] | None = None, prefix: Sequence[str] = ()
) -> tuple[int, str]:
    """Exit code and stderr of a merge, started by what stands before it."""

    def before() -> None:
        for what, most in (limits or {}).items():
            resource.setrlimit(what, (most, most))

    done = subprocess.run(
        [*prefix, *RUNNER, *OWN, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=before,
    )
    return done.returncode, done.stderr


def unchanged(folder: Path, *others: str) -> bool:
    """Whether the output folder is as it was."""
    names = sorted(path.name for path in (folder / "out").iterdir())
    return names == sorted([NAME, *others]) and (folder / "out" / NAME).read_bytes() == OLD


def test_a_limit_on_the_size_of_files_is_7_before_any_work(folder: Path) -> None:
    code, errors = run(folder, limits={resource.RLIMIT_FSIZE: 1 << 20})
    assert (code, errors.count("\n")) == (7, 1) and "File too large" in errors
    assert unchanged(folder)
    assert "execute" not in json.loads((folder / "run" / "run.json").read_text())["run"]["seconds"]


def test_too_few_descriptors_are_7(folder: Path) -> None:
    code, errors = run(folder, "threads=4", limits={resource.RLIMIT_NOFILE: 7})
    assert code == 7, errors
    assert unchanged(folder)
    assert "raise the limit: ulimit -n" in errors or "Too many open files" in errors


def test_a_folder_that_may_not_be_written_to_is_7_before_any_work(folder: Path) -> None:
    prefix = bound_by_permissions()
    (folder / "out").chmod(0o500)
    try:
        code, errors = run(folder, prefix=prefix)
    finally:
        (folder / "out").chmod(0o700)
    assert code == 7 and "Permission denied" in errors
    assert unchanged(folder)


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """The output folder on a disk of its own, of 2 MB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder / "out")]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("SKIPPED: not root, or no mounts: disks that are full or read-only are not tested")
    (folder / "out" / NAME).write_bytes(OLD)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder / "out")], check=True)


def test_a_read_only_disk_is_7_before_any_work(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk / "out")], check=True)
    code, errors = run(disk)
    assert (code, errors.count("\n")) == (7, 1) and "Read-only file system" in errors
    assert unchanged(disk)


def test_what_fills_the_disk_meanwhile_cannot_take_the_room_of_the_output(disk: Path) -> None:
    process = subprocess.Popen(
        [*RUNNER, *OWN],
        cwd=disk,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while process.poll() is None and not any(
        path.stat().st_size > 1 << 20 for path in (disk / "out").glob(".rnr-*")
    ):
        pass
    (disk / "out" / "fill").write_bytes(bytes(900 << 10))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (disk / "out" / NAME).stat().st_size > 1 << 20
    code, errors = run(disk, "rerun=true")  # now there is no room for a second one
    assert code == 7 and "bytes needed" in errors
    assert sorted(path.name for path in (disk / "out").iterdir()) == ["fill", NAME, f"{NAME}.tensors.json"]


def test_a_merge_stays_within_its_memory_whatever_its_models_have(tmp_path: Path) -> None:
    """Models of 160 MB, and 120 MB beyond what torch takes; threads have stacks of 8 MB."""
    memory.write_models(tmp_path, 160 << 20)
    code, errors = memory.merge(tmp_path, memory.own_bytes() + (120 << 20), "memory=16MB", "threads=2")
    assert (code, errors) == (0, "")


def test_a_budget_that_is_too_small_is_8_in_the_plan_with_what_is_needed(folder: Path) -> None:
    code, errors = run(folder, "job=plan", "memory=1MB")
    assert code == 8
    assert "needs" in errors and "the budget is 1000000" in errors and "hint: raise memory=" in errors
    assert unchanged(folder)

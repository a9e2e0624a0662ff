"""Every call on a file goes wrong once: the final name is absent, unchanged, or a complete model."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runner.build import merge
from runner.config import Settings
from runner.disk.files import look
from runner.errors import InputError, OutputError, RunnerError
from runner.formats.safetensors import read_header
from runner.place import place
from runner.planning.plan import Plan
from runner.provenance.record import RunRecord
from tests.build import planned
from tests.faults.disk import REMOVALS, DiedError, Disk
from tests.runs import settings

OLD, OLD_SIDECAR = b"what was there before", b"and its digests"
KEY = "conv_in.weight"


class Place:
    """A recipe, and the folder its output goes to."""

    def __init__(self, folder: Path, kind: str, *, replaces: bool = False, stale: bool = False) -> None:
        self.folder, self.kind, self.replaces, self.stale = folder, kind, replaces, stale
        self.out = folder / "out"
        self.record = RunRecord((), ())
        suffix = "" if kind == "folder" else ".safetensors"
        self.name = f"test{suffix}"
        self.sidecar = f"{self.name}.tensors.json"
        for seed, name in enumerate("ab"):
            tensors = {KEY: torch.full((40,), float(seed)), "conv_out.bias": torch.ones(3) * seed}
            if kind == "folder":
                model = folder / name
                (model / "unet").mkdir(parents=True)
                index = '{"_class_name": "P", "unet": ["diffusers", "UNet2DConditionModel"]}'
                (model / "model_index.json").write_text(index)
                (model / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
                save_file(tensors, model / "unet" / "diffusion_pytorch_model.safetensors")
            else:
                save_file(tensors, folder / f"{name}.safetensors")
        models = {name: f"{name}{suffix}" for name in "ab"}
        self.tree: dict[str, Any] = {"method": "weighted_sum", "models": models, "alpha": 0.5}
        self.settings: Settings = settings(folder)
        self.plan = planned(self.tree, folder)
        self.reset()
        self.run()
        self.whole = content(self.out)
        assert set(self.whole) >= {self.name, self.sidecar}

    def reset(self) -> None:
        """Everything as it is before a run."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        if self.replaces:
            (self.out / self.name).write_bytes(OLD)
            (self.out / self.sidecar).write_bytes(OLD_SIDECAR)
        if self.stale:
            digits = hashlib.sha256(self.name.encode()).hexdigest()[:8]
            for left in (f".rnr-{digits}.part", ".rnr-01234567.part"):
                if self.kind == "folder":
                    (self.out / left / "unet").mkdir(parents=True)
                    (self.out / left / "unet" / "x").touch()
                else:
                    (self.out / left).write_bytes(b"left")
        self.before = content(self.out)

    def run(self, plan: Plan | None = None) -> None:
        """A merge to the final name; from the first header that is read if there is no plan."""
        plan = plan or planned(self.tree, self.folder)
        placement = place(plan, self.settings.placement, None, 1, 32768)
        record = copy.deepcopy(self.record)
        record.resolved(plan.resolved)
        record.planned(plan, placement)
        merge(plan, placement, self.settings, self.out, record)

    def check(self, *, failed: bool, partials: bool) -> None:
        """Nothing but what was there, or the whole model; partials only if something kept them."""
        found = content(self.out)
        if partials:
            found = named(found)
        if not failed:
            assert found == self.whole
            return
        # A model may lack its sidecar: the new one if that could not be written, the old one if it could not
        # be put back. It never has that of the other.
        sidecar = found.pop(self.sidecar, None)
        new, old = dict(self.whole), named(self.before)
        new_sidecar, old_sidecar = new.pop(self.sidecar), old.pop(self.sidecar, None)
        assert (found == new and sidecar in (new_sidecar, None)) or (
            found == old and (sidecar == old_sidecar or (partials and sidecar is None))
        )

    def check_that_it_runs(self) -> None:
        """A second run, without a fault, gives the model and leaves nothing else."""
        if self.kind == "folder":  # which is never replaced
            shutil.rmtree(self.out / self.name, ignore_errors=True)
        self.run(self.plan)
        assert content(self.out) == self.whole


def content(folder: Path) -> dict[str, bytes]:
    """Every entry below a folder, with its bytes; of models only if they can be read."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = b"" if path.is_dir() else path.read_bytes()
        if path.suffix == ".safetensors" and found[name] != OLD and not name.startswith(".rnr-"):
            read_header(look(path, name))
    return found


def named(entries: dict[str, bytes]) -> dict[str, bytes]:
    """Those that are no partials."""
    return {name: data for name, data in entries.items() if not name.startswith(".rnr-")}


PLACES = {
    "file": {"kind": "file", "replaces": True},
    "folder": {"kind": "folder"},
    "file, stale": {"kind": "file", "stale": True},
    "folder, stale": {"kind": "folder", "stale": True},
}
FRESH = ["file", "folder"]


@pytest.fixture
def spot(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place in memory if there is one: each of a thousand runs makes and removes files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Place(Path(folder), **PLACES[request.param])


@pytest.mark.parametrize(
    ("spot", "fault"),
    [*((name, "error") for name in PLACES), *((name, "errors") for name in FRESH)],
    indirect=["spot"],
)
def test_whatever_call_fails_nothing_is_torn_and_nothing_is_left(spot: Place, fault: str) -> None:
    failed = 0
    for number in range(10_000):
        spot.reset()
        error: BaseException | None = None
        with Disk(fault, number).in_place() as disk:
            try:
                spot.run(spot.plan)
            except (RunnerError, OSError) as found:
                error = found
        disk.forget()
        if disk.name is None:
            break
        if isinstance(error, RunnerError):
            assert error.exit_code in (4, 7, 10), (number, disk.name, error)
        failed += error is not None
        # What fails for good fails when the partial is to be removed, too.
        kept = spot.stale or (disk.name in {*REMOVALS, "replace"} and (fault == "errors" or error is None))
        spot.check(failed=error is not None, partials=kept)
        if kept:
            spot.check_that_it_runs()
    assert failed > 30


@pytest.mark.parametrize("spot", FRESH, indirect=True)
def test_whatever_call_fails_while_headers_are_read_it_is_said_in_our_words(spot: Place) -> None:
    failed = 0
    for number in range(10_000):
        with Disk("error", number).in_place() as disk:
            try:
                planned(spot.tree, spot.folder)
            except (InputError, OutputError) as error:
                assert error.message.lstrip('"')[0] in "ab", error  # names the model
                failed += 1
            except OSError:
                assert disk.name == "close"  # of what is only read: said, but not of which file
        if disk.name is None:
            break
    assert failed > 5


@pytest.mark.parametrize("spot", FRESH, indirect=True)
def test_a_short_transfer_changes_nothing(spot: Place) -> None:
    for number in range(10_000):
        spot.reset()
        with Disk("short", number).in_place() as disk:
            spot.run()
        disk.forget()
        spot.check(failed=False, partials=False)
        if disk.name is None:
            break
    assert number > 5


@pytest.mark.parametrize("spot", FRESH, indirect=True)
def test_a_lost_write_is_found_and_leaves_no_output(spot: Place) -> None:
    found = 0
    for number in range(10_000):
        spot.reset()
        failed = False
        with Disk("lost", number).in_place() as disk:
            try:
                spot.run()
            except RunnerError as error:
                failed = True
                in_place = "in place" in error.message  # it is the sidecar that was lost
                assert error.exit_code == (7 if in_place else 10)
        disk.forget()
        spot.check(failed=failed, partials=False)  # a header is written once more: the first may be lost
        found += failed
        if disk.name is None:
            break
    assert found >= 3


@pytest.mark.parametrize("spot", FRESH, indirect=True)
def test_a_process_that_dies_at_any_call_leaves_no_torn_model_even_if_the_power_fails(spot: Place) -> None:
    for number in range(10_000):
        spot.reset()
        with Disk("death", number).in_place() as disk, suppress(DiedError):
            spot.run(spot.plan)
        disk.lose_unsynced()
        disk.forget()
        spot.check(failed=disk.name is not None, partials=disk.name is not None)
        if disk.name is None:
            break
        spot.check_that_it_runs()
    assert number > 50

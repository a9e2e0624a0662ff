"""Devices and memory, planned for machines that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from runner.errors import OutOfMemoryError, UsageError
from runner.methods import METHODS
from runner.methods.registry import Weight, method
from runner.place import Devices, Placement, place, working_bytes
from runner.planning.plan import Plan
from tests.build import planned, random_tensors

GB = 10**9
SHAPES = {f"model.diffusion_model.input_blocks.{block}.weight": (64, 16 + block) for block in range(40)}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        save_file(random_tensors(seed, shapes=SHAPES), tmp_path / f"{name}.safetensors")
    return tmp_path


def plan_of(models: Path, method: str = "weighted_sum", **changes: Any) -> Plan:
    roles = {"a": "a.safetensors", "b": "b.safetensors"}
    return planned({"method": method, "models": roles, **changes}, models)


def placed(plan: Plan, devices: Devices, budget: int | None = None, threads: int = 2) -> Placement:
    return place(plan, devices, budget, threads, 32768)


def test_without_accelerators_all_is_done_on_the_host(models: Path) -> None:
    plan = plan_of(models)
    assert set(placed(plan, Devices(("cpu",))).device_of) == {"cpu"}


def test_several_gpus_share_the_work_by_bytes(models: Path) -> None:
    plan = plan_of(models)
    found = placed(plan, Devices((0, 1), {0: 2 * GB, 1: 2 * GB}))
    work = dict.fromkeys((0, 1, "cpu"), 0)
    for job, device in zip(plan.jobs, found.device_of, strict=True):
        work[device] += working_bytes(plan, job)
    assert work["cpu"] == 0
    assert abs(work[0] - work[1]) < 0.25 * sum(work.values()) / 2


def test_a_larger_gpu_gets_more(models: Path) -> None:
    plan = plan_of(models)
    found = placed(plan, Devices((0, 1), {0: 6 * GB, 1: 2 * GB}))
    counts = found.jobs_by_device
    assert counts[0] > 2 * counts[1] > 0


def test_one_gpu_takes_all_that_gives_the_same_bytes_everywhere(models: Path) -> None:
    assert set(placed(plan_of(models), Devices((0,), {0: GB})).device_of) == {0}
    assert set(placed(plan_of(models, "slerp"), Devices((0,), {0: GB})).device_of) == {"cpu"}
    assert set(placed(plan_of(models, alpha=0), Devices((0,), {0: GB})).device_of) == {"cpu"}


@pytest.fixture
def whole_tensor_methods() -> Iterator[None]:
    """Methods that need their tensors whole, one of each class of determinism, registered for one test."""
    for name in ("exact", "stable", "machine"):
        method(name=f"test_{name}", determinism=name, scope="tensor")(_mean_of)  # type: ignore[arg-type]
    yield
    for name in ("exact", "stable", "machine"):
        del METHODS[f"test_{name}", None]


def _mean_of(a: Weight, b: Weight) -> Weight:
    """a with b's mean."""
    return a - a.mean() + b.mean()


@pytest.mark.usefixtures("whole_tensor_methods")
def test_only_what_is_exact_leaves_the_host(models: Path) -> None:
    devices = Devices((0, 1), {0: GB, 1: GB})
    assert set(placed(plan_of(models, "test_exact"), devices).device_of) == {0, 1}
    for name in ("test_stable", "test_machine"):
        found = placed(plan_of(models, name), devices)
        assert set(found.device_of) == {"cpu"} and not found.notes


@pytest.mark.usefixtures("whole_tensor_methods")
def test_whole_tensors_larger_than_a_gpu_stay_on_the_host_with_a_note(models: Path) -> None:
    plan = plan_of(models, "test_exact")
    sizes = [working_bytes(plan, job) for job in plan.jobs]
    middle = sorted(sizes)[len(sizes) // 2]
    for devices in (Devices((0,), {0: middle}), Devices((0, 1), {0: GB, 1: middle})):
        found = placed(plan, devices)
        on_host = [device == "cpu" for device in found.device_of]
        assert on_host == [size > middle for size in sizes]
        assert found.notes == (f"{sum(on_host)} tensors larger than the GPU's memory stay on the host",)


@pytest.mark.usefixtures("whole_tensor_methods")
def test_a_whole_tensor_that_exceeds_the_budget_is_refused_by_name(models: Path) -> None:
    plan = plan_of(models, "test_stable")
    largest = max(plan.jobs, key=lambda job: working_bytes(plan, job))
    need = working_bytes(plan, largest)
    assert placed(plan, Devices(("cpu",)), need, 8).peak_bytes == need
    with pytest.raises(
        OutOfMemoryError,
        match=rf"tensor {largest.key} needs {need} bytes at a time, the budget is {need - 1}",
    ) as caught:
        placed(plan, Devices(("cpu",)), need - 1, 8)
    assert caught.value.exit_code == 8


def test_tiles_may_be_cut_so_no_tensor_is_too_large_for_a_gpu(models: Path) -> None:
    found = placed(plan_of(models), Devices((0,), {0: 1000}))
    assert set(found.device_of) == {0} and not found.notes


def test_the_memory_stated_for_the_host_is_its_budget(models: Path) -> None:
    assert placed(plan_of(models), Devices(("cpu",), {"cpu": 5 * GB}), 1000).memory == {"cpu": 5 * GB}


def test_only_explicit_memory_is_needed_to_plan_for_gpus_that_are_not_there(models: Path) -> None:
    found = placed(plan_of(models), Devices(None, {0: GB, "cpu": GB}))
    assert set(found.device_of) == {0} and found.memory == {0: GB, "cpu": GB}


def test_a_gpu_that_is_asked_for_and_not_there_is_named(models: Path) -> None:
    with pytest.raises(UsageError, match=r"placement: 7: no such GPU") as caught:
        placed(plan_of(models), Devices((7,)))
    assert caught.value.exit_code == 2


def test_a_small_budget_means_fewer_workers_and_too_small_a_one_is_refused_with_the_need(
    models: Path,
) -> None:
    plan = plan_of(models)
    assert placed(plan, Devices(("cpu",)), None, 8).threads == 8
    assert placed(plan, Devices(("cpu",)), 200_000, 8).threads < 8
    with pytest.raises(OutOfMemoryError, match=r"needs \d+ bytes at a time, the budget is 1000"):
        placed(plan, Devices(("cpu",)), 1000)


def test_the_peak_stays_within_the_budget(models: Path) -> None:
    for budget in (100_000, 1_000_000, GB):
        assert placed(plan_of(models), Devices(("cpu",)), budget, 8).peak_bytes <= budget

"""Which device does which job, within its memory. The only room that asks accelerate."""

from __future__ import annotations

import heapq
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import OutOfMemoryError, UsageError
from runner.tensors import DTYPES

if TYPE_CHECKING:  # settings name devices, and need nothing of plans
    from runner.planning.plan import Job, Plan, Step

CPU = "cpu"
Device = str | int
AUTO_BUDGET_BYTES = 1 << 30  # in flight on the host, if nothing is said
SUMMING_BYTES = 32 << 20  # float64 copies of the pieces that are summed of a tensor
SCALING_BYTES = 5  # an element: a code of fp8 and its scale
RESULTS_PER_WORKER = 3  # tiles computed and waiting for their turn to be hashed
_ACCELERATOR_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class Devices:
    """Which devices may be used.

    Attributes:
        devices: "cpu" and numbers of GPUs; None: all there are.
        max_memory: bytes each may be used for, where not all that is free.
    """

    devices: tuple[Device, ...] | None = None
    max_memory: Mapping[Device, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Where the work is done.

    Attributes:
        device_of: for each job of the plan, "cpu" or the number of a GPU.
        memory: bytes each device may be used for.
        threads: workers on the host.
        tile_elements: elements of a tile of an element-wise job.
        pieces_ahead: how many pieces may be under way or waiting to be hashed.
        peak_bytes: most bytes in flight at a time.
        notes: what did not go as the settings asked, for the record.
    """

    device_of: tuple[Device, ...]
    memory: Mapping[Device, int]
    threads: int
    tile_elements: int
    pieces_ahead: int
    peak_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def jobs_by_device(self) -> Counter[Device]:
        """How many jobs each device has."""
        return Counter(self.device_of)


def place(
    plan: Plan,
    settings: Devices,
    host_budget: int | None,
    threads: int,
    tile_elements: int,
    *,
    imaginary: bool = True,
) -> Placement:
    """Gives each job a device.

    Args:
        plan: the jobs.
        settings: which devices may be used, and how much of their memory.
        host_budget: bytes in flight on the host; None: 1 GiB, or what the largest tensor of a whole-tensor
            method needs, but at most half of what is free.
        threads: workers on the host; 0: one for each processor this process may use.
        tile_elements: elements of a tile.
        imaginary: whether GPUs whose memory is stated need not be there: a plan can be made anywhere.

    Raises:
        OutOfMemoryError: a tensor needs more than the budget of the host.
        UsageError: a device that is not there.
    """
    threads = threads or processors()
    tile = tile_bytes(plan, tile_elements)
    whole = max((working_bytes(plan, job) for job in plan.jobs if job.whole), default=0)
    auto = min(max(AUTO_BUDGET_BYTES, whole), available_bytes() // 2)
    budget = settings.max_memory.get(CPU) or host_budget or auto
    # With a small budget fewer workers run; one tile is the least that works.
    workers = max(1, min(threads, budget // (tile * RESULTS_PER_WORKER) or 1))
    if max(tile, whole) > budget:
        largest = max(plan.jobs, key=lambda job: working_bytes(plan, job) if job.whole else 0)
        what = f"tensor {largest.key}" if whole > tile else f"a tile of {tile_elements} elements"
        raise OutOfMemoryError(
            f"{what} needs {max(tile, whole)} bytes at a time, the budget is {budget}",
            tag="BUDGET",
            hint="raise memory=, or lower tile_elements=",
        )
    memory = _gpu_memory(settings, imaginary)
    device_of, notes = _spread(plan, memory)
    ahead = (workers + len(memory) + 1) * RESULTS_PER_WORKER
    measuring = workers if any(step.over for job in plan.jobs for step in job.steps) else 0
    peak = min(budget, _largest_together(plan, tile_elements, ahead + measuring))
    return Placement(device_of, {**memory, CPU: budget}, workers, tile_elements, ahead, peak, notes)


def _largest_together(plan: Plan, tile_elements: int, count: int) -> int:
    """Bytes of the `count` largest pieces: more are never in flight at a time."""
    costs: list[int] = []
    for job in plan.jobs:
        piece = job.piece_elements(tile_elements)
        pieces = -(-job.spec.elements // piece)
        costs += [working_bytes(plan, job, piece)] * min(pieces, count)
    return sum(heapq.nlargest(count, costs))


def working_bytes(plan: Plan, job: Job, elements: int | None = None) -> int:
    """Bytes a job, or a piece of it, holds at a time: operands as read, cast, results, output."""
    count = job.spec.elements if elements is None else min(elements, job.spec.elements)
    read = sum(
        DTYPES[plan.spec(load).dtype].bits // 8 + (SCALING_BYTES if plan.is_scaled(load) else 0)
        for load in job.loads
    )
    floats = (len(job.loads) + sum(map(_copies, job.steps)) + 1) * (8 if job.compute == "float64" else 4)
    sums = min(SUMMING_BYTES, 32 * count) if job.whole else 0
    size = DTYPES[job.spec.dtype].bits // 8
    if job.rank:  # the factors: as computed, twice, and as written
        return count * (read + floats) + sums + job.written_elements * (16 + size)
    return count * (read + floats + (1 + bool(job.arranged)) * size) + sums


def _copies(step: Step) -> int:
    """Copies of a tensor, or of a tile, that a step holds beside its operands."""
    for_each, beside = step.method.copies
    return for_each * len(step.arguments) + beside


def tile_bytes(plan: Plan, tile_elements: int) -> int:
    """The most bytes a tile of any job that may be cut holds."""
    cut = (job for job in plan.jobs if not job.whole)
    sizes = (working_bytes(plan, job, job.piece_elements(tile_elements)) for job in cut)
    return max(sizes, default=0) or 1


def processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes() -> int:
    """Memory of the host that can still be used, also by the limit of a control group."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit = "".join(_lines("/sys/fs/cgroup/memory.max")).strip()
    used = "".join(_lines("/sys/fs/cgroup/memory.current")).strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines(keepends=True)
    except OSError:
        return []


def _gpu_memory(settings: Devices, imaginary: bool) -> dict[Device, int]:
    """Bytes of each GPU that may be used; empty if the work is done on the host alone."""
    stated = {device: size for device, size in settings.max_memory.items() if device != CPU}
    wanted = list(stated)
    if settings.devices is not None:
        wanted = [device for device in settings.devices if device != CPU]
        if not wanted:
            return {}
    if imaginary and wanted and all(device in stated for device in wanted):
        return {device: stated[device] for device in wanted}
    if not wanted and not any(Path(file).exists() for file in _ACCELERATOR_FILES):
        return {}  # nothing there: torch need not be imported to find that out
    found = _accelerate_memory()
    for device in wanted or found:
        if device not in found:
            there = ", ".join(map(str, found)) or "none"
            raise UsageError(f"placement: {device}: no such GPU (there are: {there})", tag="DEVICE")
    return {device: min(found[device], stated.get(device, found[device])) for device in wanted or found}


def _accelerate_memory() -> dict[Device, int]:
    from accelerate.utils import get_max_memory

    return {device: size for device, size in get_max_memory().items() if isinstance(device, int)}


def _spread(plan: Plan, memory: Mapping[Device, int]) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """The device of each job. GPUs share the work by bytes; what does not fit one stays on the host.

    Only jobs of the exact class leave the host: they alone give the same bytes everywhere.
    """
    device_of: list[Device] = [CPU] * len(plan.jobs)
    if not memory:
        return tuple(device_of), ()
    smallest = min(memory.values())
    movable, too_large = [], 0
    for number, job in enumerate(plan.jobs):
        if not job.steps or job.determinism != "exact":
            continue
        if job.whole and working_bytes(plan, job) > smallest:
            too_large += 1
        else:
            movable.append(number)
    for number, device in _device_map(plan, movable, memory).items():
        device_of[number] = device
    notes = (f"{too_large} tensors larger than the GPU's memory stay on the host",) if too_large else ()
    return tuple(device_of), notes


def _device_map(plan: Plan, jobs: Sequence[int], memory: Mapping[Device, int]) -> dict[int, Device]:
    """accelerate's map for a skeleton with one leaf for each job, as large as its working set.

    Its planner fills devices in order with what stays resident. Jobs come and go, so each device
    is given room for its share of the work instead: the total, divided by the devices' memory.
    """
    if len(memory) == 1 or not jobs:
        return dict.fromkeys(jobs, next(iter(memory)))
    import torch
    from accelerate import infer_auto_device_map

    sizes = {number: working_bytes(plan, plan.jobs[number]) for number in jobs}
    total, largest = sum(sizes.values()), max(sizes.values())
    skeleton = torch.nn.Module()
    for number, size in sizes.items():
        leaf = torch.nn.Module()
        leaf.weight = torch.nn.Parameter(
            torch.empty(size, dtype=torch.int8, device="meta"), requires_grad=False
        )
        skeleton.add_module(str(number), leaf)
    room = {device: total * size // sum(memory.values()) + largest for device, size in memory.items()}
    last = list(memory)[-1]
    room[last] = 2 * total + largest  # the rest always fits: nothing falls to the host or the disk
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it warns of GPUs that are imaginary
    found = infer_auto_device_map(skeleton, max_memory={**room, CPU: 2 * total + largest})
    return {number: found.get(str(number), found.get("", last)) for number in jobs}

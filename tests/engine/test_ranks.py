"""Ranks that follow from the tensors: what numpy's singular values say, bounded by the plan."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import runner.engine.reading
from runner.architectures import ARCHITECTURES
from runner.checkpoint import Layout, OutputFile
from runner.demo.models import demo_model
from runner.describe import describe
from runner.engine.execute import Outcome
from runner.engine.ranks import measure_ranks
from runner.errors import NumericError, OutOfMemoryError, OutputError
from runner.lora.names import name_of
from runner.methods import METHODS
from runner.methods.registry import Weight, method
from runner.methods.tiles import Tile
from runner.place import Devices, place
from runner.planning.factors import dialect_for
from runner.planning.plan import Job
from runner.write import check_room
from tests.build import merge, planned
from tests.stored import as_single_file, read

SD1 = ARCHITECTURES["sd1"]
# Of two blocks, so that a test takes no time: linear layers and convolutions.
SOME = {"default": 0, "M00": 24, "IN04": 5}
RECIPE = {
    "method": "extract_lora",
    "models": {"base": "demo:base", "model": "demo:anime"},
    "rank": SOME,
    "energy": 0.8,
    "output": {"dtype": "float32"},
}


def squares_of(cache: Path, jobs: tuple[Job, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """The squared singular values of what the models differ by, by key."""
    base, model = (read(demo_model(name, cache)) for name in ("base", "anime"))
    changes = {job.key: (model[job.key].double() - base[job.key].double()).flatten(1).numpy() for job in jobs}
    return {key: np.linalg.svd(change, compute_uv=False) ** 2 for key, change in changes.items()}


def ranks_in(path: Path) -> dict[str, int]:
    """The rank of each module of a LoRA, by its name."""
    ends = ".lora_down.weight"
    return {key.removesuffix(ends): len(down) for key, down in load_file(path).items() if key.endswith(ends)}


def share_left(outcome: Outcome) -> float:
    """The share of the squared change that is not in the LoRA."""
    lacking, change = (sum(sums) for sums in zip(*outcome.moved.values(), strict=True))
    return float(lacking / change)


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.999])
def test_each_tensor_has_the_least_rank_that_has_the_energy(
    energy: float, cache: Path, tmp_path: Path
) -> None:
    recipe = RECIPE | {"energy": energy}
    plan = planned(recipe, tmp_path, cache)
    path, outcome = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    ranks, lacking, whole = ranks_in(path), 0.0, 0.0
    assert len(ranks) == len(plan.jobs) > 20
    found = squares_of(cache, plan.jobs)
    for job in plan.jobs:
        squares = found[job.key]
        shares = squares.cumsum() / squares.sum()
        expected = min(int((shares < energy).sum()) + 1, job.rank)
        assert ranks[name_of(SD1, dialect_for(SD1), job.key)] == expected
        lacking, whole = lacking + squares[expected:].sum(), whole + squares.sum()
    assert share_left(outcome) == pytest.approx(lacking / whole, rel=1e-6)


def test_the_residual_of_a_rank_is_that_of_the_singular_values(cache: Path, tmp_path: Path) -> None:
    recipe = RECIPE | {"energy": 1}
    plan = planned(recipe, tmp_path, cache)
    assert not plan.is_bound
    _, outcome = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    squares = squares_of(cache, plan.jobs)
    lacking = sum(float(squares[job.key][job.rank :].sum()) for job in plan.jobs)
    whole = sum(float(one.sum()) for one in squares.values())
    assert share_left(outcome) == pytest.approx(lacking / whole, rel=1e-6)


def test_the_randomized_solver_keeps_the_energy_and_comes_near_the_exact_one(
    cache: Path, tmp_path: Path
) -> None:
    by_rank = {"energy": 1, "rank": {"default": 0, "M00": 4}}
    found = {}
    for solver in ({"solver": "exact"}, {"solver": "randomized"}, {"solver": "randomized", "iterations": 0}):
        _, outcome = merge(RECIPE | by_rank | solver, tmp_path, tmp_path / "out", cache=cache)
        found[str(solver)] = share_left(outcome)
    exact, near, rough = found.values()
    assert exact < near < rough < 1.2 * exact
    assert near < 1.01 * exact
    recipe = RECIPE | {"energy": 0.3, "rank": {"default": 0, "M00": 8}, "solver": "randomized"}
    path, outcome = merge(recipe, tmp_path, tmp_path / "out", cache=cache)
    assert 0.6 < share_left(outcome) <= 0.7
    assert max(ranks_in(path).values()) < 8


def test_the_plan_says_the_most_there_can_be(cache: Path, tmp_path: Path) -> None:
    plan = planned(RECIPE, tmp_path, cache)
    assert plan.is_bound and all(job.bound for job in plan.jobs)
    path, _ = merge(RECIPE, tmp_path, tmp_path / "out", cache=cache)
    assert path.stat().st_size < plan.layout.nbytes
    placement = place(plan, Devices(("cpu",)), None, 1, 32768)
    text = describe(plan, placement, 1 << 40)
    assert f"{len(plan.jobs)} ranks to be measured before anything is written: at most 24 each" in text
    assert "at most" in next(line for line in text.splitlines() if "to write" in line)


def test_the_header_says_the_ranks_that_are_there(cache: Path, tmp_path: Path) -> None:
    from runner.formats.safetensors import SafetensorsFile

    path, _ = merge(RECIPE, tmp_path, tmp_path / "out", cache=cache)
    said = SafetensorsFile().open(path, "lora", None)
    linear = [
        spec.shape[0]
        for key, spec in said.specs.items()
        if key.endswith("lora_down.weight") and set(spec.shape[2:]) <= {1}
    ]
    assert said.metadata["ss_network_dim"] == str(max(linear))


@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_threads_do_not_change_a_byte_of_it(solver: str, cache: Path, tmp_path: Path) -> None:
    recipe = RECIPE | {"solver": solver, "rank": {"default": 0, "M00": 6}}
    digests = {
        merge(recipe, tmp_path, tmp_path / "out", threads=threads, cache=cache)[1].contents[0]
        for threads in (1, 3)
    }
    assert len(digests) == 1


def test_tensors_that_did_not_change_are_left_out(cache: Path, tmp_path: Path) -> None:
    tensors = as_single_file("sd1", read(demo_model("base", cache)))
    changed = {key: tensor.clone() for key, tensor in tensors.items()}
    changed["model.diffusion_model.time_embed.0.weight"][0] += 1
    for name, model in (("base", tensors), ("model", changed)):
        save_file(model, tmp_path / f"{name}.safetensors", {"format": "pt"})
    models = {"base": "base.safetensors", "model": "model.safetensors"}
    path, outcome = merge(RECIPE | {"models": models, "rank": 4}, tmp_path, tmp_path / "out")
    assert ranks_in(path) == {"lora_unet_time_embedding_linear_1": 1}
    assert share_left(outcome) < 1e-12


def test_models_that_must_be_measured_themselves_are(cache: Path, tmp_path: Path) -> None:
    inner = {"method": "slerp", "models": {"a": "demo:photo", "b": "demo:anime"}, "alpha": 0.5}
    few = RECIPE | {"rank": {"default": 0, "M00": 24}}
    saved, _ = merge(inner | {"output": {"dtype": "float32"}}, tmp_path, tmp_path / "out", cache=cache)
    shares = {
        share_left(merge(few | {"models": models}, tmp_path, tmp_path / "out", cache=cache)[1])
        for models in ({"base": "demo:base", "model": inner}, {"base": "demo:base", "model": str(saved)})
    }
    assert max(shares) == pytest.approx(min(shares), rel=1e-3)
    models = {"base": "demo:base", "x": "demo:photo", "y": inner}
    trimmed = {"method": "ties", "models": models, "density": 0.5, "trim": "model"}
    few |= {"models": {"base": "demo:base", "model": trimmed}}
    path, outcome = merge(few, tmp_path, tmp_path / "out", cache=cache)
    assert len(ranks_in(path)) > 10
    assert share_left(outcome) < 0.2 + 1e-6


@pytest.fixture
def surveyed() -> Iterator[list[int]]:
    """The torch threads in each survey of test_survey, a method that measures over the whole model."""
    threads: list[int] = []

    def measure(tiles: Iterable[Tile]) -> float:
        threads.append(torch.get_num_threads())
        if len(threads) > 1:
            raise MemoryError
        return float(sum(tile.operands[0].numel() for tile in tiles) > 0)

    @method(name="test_survey", determinism="exact", scope="element", measure=measure, over="model")
    def test_survey(a: Weight, b: Weight, *, measured: float | None = None) -> Weight:
        """b, once all is measured."""
        return b if measured else a

    yield threads
    del METHODS["test_survey", None]


def test_what_ranks_need_of_the_whole_model_is_measured_as_the_merge_measures_it(
    surveyed: list[int], cache: Path, tmp_path: Path
) -> None:
    inner = {"method": "test_survey", "models": {"a": "demo:base", "b": "demo:anime"}}
    models = {"base": "demo:base", "model": inner}
    plan = planned(RECIPE | {"models": models, "rank": {"default": 0, "M00": 4}}, tmp_path, cache)
    placement = place(plan, Devices(("cpu",)), None, 2, 32768)
    assert set(measure_ranks(plan, placement, lambda count: None, {(): "0" * 64}).values()) <= {1, 2, 3, 4}
    assert surveyed == [1]
    with pytest.raises(OutOfMemoryError, match="what is measured over the model: no memory"):
        measure_ranks(plan, placement, lambda count: None)


def test_an_interruption_ends_what_is_measured_over_the_model(
    surveyed: list[int], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = {"method": "test_survey", "models": {"a": "demo:base", "b": "demo:anime"}}
    models = {"base": "demo:base", "model": inner}
    plan = planned(RECIPE | {"models": models, "rank": {"default": 0, "M00": 4}}, tmp_path, cache)
    real, shutdown = runner.engine.reading.read_into, ThreadPoolExecutor.shutdown
    at_work, leaving = threading.Event(), threading.Event()
    reads: list[int] = []

    def read_into(*arguments: Any) -> None:
        reads.append(1)
        at_work.set()
        assert leaving.wait(20)
        real(*arguments)

    def result(future: Future[None]) -> None:
        assert at_work.wait(20)  # the signal comes while the first tile is read
        raise KeyboardInterrupt

    def joined(pool: ThreadPoolExecutor, *arguments: Any, **named: Any) -> None:
        leaving.set()
        shutdown(pool, *arguments, **named)

    monkeypatch.setattr(runner.engine.reading, "read_into", read_into)
    monkeypatch.setattr(Future, "result", result)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", joined)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        measure_ranks(plan, place(plan, Devices(("cpu",)), None, 2, 32768), lambda count: None)
    assert len(reads) == 1
    assert threading.active_count() == before


def test_nan_is_named_where_it_is_found(cache: Path, tmp_path: Path) -> None:
    tensors = as_single_file("sd1", read(demo_model("base", cache)))
    save_file(tensors, tmp_path / "base.safetensors", {"format": "pt"})
    tensors["model.diffusion_model.time_embed.0.weight"] = torch.full_like(
        tensors["model.diffusion_model.time_embed.0.weight"], torch.nan
    )
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    models = {"base": "base.safetensors", "model": "model.safetensors"}
    with pytest.raises(
        NumericError, match=r"model\.safetensors: tensor .unet/time_embedding.linear_1.weight"
    ):
        merge(RECIPE | {"models": models, "rank": 4}, tmp_path, tmp_path / "out")


def test_room_is_asked_for_the_largest_output_before_anything_is_measured(tmp_path: Path) -> None:
    layout = Layout("lora.safetensors", False, (OutputFile("", b"", {}, 1 << 60, 0),))
    with pytest.raises(OutputError, match=r"No space left on device: \d+ bytes needed, \d+ free"):
        check_room(layout, tmp_path / "lora.safetensors")

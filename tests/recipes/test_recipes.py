"""Every shipped recipe: it teaches, it merges the demo models, and the result is a real pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from runner.architectures import ARCHITECTURES
from runner.compose import ComposedRecipe
from runner.config import Job
from runner.demo.models import demo_model
from runner.formats.diffusers import DiffusersFolder
from runner.formats.safetensors import SafetensorsFile
from runner.lora.adapters import read_adapters
from runner.methods import METHODS
from runner.models.view import view_of
from runner.proof.job import replay_job
from runner.run import run as run_recipe
from tests import command
from tests.build import here
from tests.recipes.build import OF_ARCHITECTURES, RECIPES, methods_of, small_models, with_small_models
from tests.runs import settings

# Merged as they stand, with the demo models; the others, faster, with small models in their place.
AS_THEY_STAND = {
    path
    for path in RECIPES
    if path.stem in OF_ARCHITECTURES
    or path.stem
    in ("diffusers_merge", "invokeai_merge", "dare_ties", "model_stock", "rotate", "slerp", "ties")
}
LORAS = {path for path in RECIPES if path.stem in ("extract_lora", "join_loras")}


def run(folder: Path, *arguments: str) -> command.Done:
    return command.run(folder, *arguments, "progress=off", timeout=600)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with the results of the recipes that are merged as they stand, made by one sweep."""
    folder = tmp_path_factory.mktemp("merged")
    (folder / "models").mkdir()
    names = ",".join(sorted(path.stem for path in AS_THEY_STAND))
    done = run(folder, "-m", f"recipe={names}", f"output_dir={folder / 'models'}", f"cache_dir={cache}")
    assert done.returncode == 0, done.stderr
    return folder


def result(merged: Path, name: str) -> Path:
    (path,) = (merged / "models").glob(f"*/{name}")
    return path


def record(merged: Path, name: str) -> dict[str, Any]:
    (path,) = (merged / "runs" / "sweeps").glob(f"*/*recipe={name}/run.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_starts_with_a_comment_a_newcomer_learns_from(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(head) >= 3 and head[0].endswith((".", ":"))


def test_there_is_a_recipe_for_every_method() -> None:
    named = {method for path in RECIPES for method in methods_of(yaml.safe_load(path.read_text()))}
    assert {name for name, tool in METHODS if tool is None} <= named


@pytest.mark.parametrize("path", sorted(AS_THEY_STAND - LORAS), ids=lambda path: path.stem)
def test_a_recipe_gives_a_pipeline_with_the_keys_of_its_first_model(
    path: Path, merged: Path, cache: Path
) -> None:
    folder = result(merged, path.stem)
    first = next(iter(record(merged, path.stem)["deterministic"]["inputs"]))["source"]
    primary = demo_model(first.removeprefix("demo:"), cache)
    names = {file.relative_to(primary) for file in primary.rglob("*") if file.is_file()} | {Path("README.md")}
    assert {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()} == names
    for file in primary.rglob("*.safetensors"):
        ours, theirs = load_file(folder / file.relative_to(primary)), load_file(file)
        assert {key: tensor.shape for key, tensor in ours.items()} == {
            key: tensor.shape for key, tensor in theirs.items()
        }
        assert all(torch.isfinite(tensor).all() for tensor in ours.values())


@pytest.mark.parametrize("path", sorted(LORAS), ids=lambda path: path.stem)
def test_a_recipe_whose_result_is_a_lora_gives_one_that_fits_its_first_model(
    path: Path, merged: Path, cache: Path
) -> None:
    file = result(merged, f"{path.stem}.safetensors")
    first = next(iter(record(merged, path.stem)["deterministic"]["inputs"]))["source"]
    base = DiffusersFolder().open(demo_model(first.removeprefix("demo:"), cache), first, None)
    specs = view_of(ARCHITECTURES["sd1"], "diffusers", base.specs).specs
    ours = SafetensorsFile().open(file, file.name, None)
    found = read_adapters(ARCHITECTURES["sd1"], specs, ours.specs, ours.metadata)
    found.check(file.name)
    assert {share.key.partition("/")[0] for one in found.adapters for share in one.shares} == {
        "unet",
        "text_encoder",
    }
    assert all(0 <= one["relative"] < 1 for one in record(merged, path.stem)["run"]["residual"].values())


def words(said: str) -> list[str]:
    return [line.partition(":")[0] for line in said.splitlines() if not line.startswith(" ")]


def test_a_recipe_that_needs_the_demo_models_is_replayed_to_the_same_bytes(
    merged: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in sorted(OF_ARCHITECTURES):
        (source,) = (merged / "runs" / "sweeps").glob(f"*/*recipe={name}/run.json")
        job = Job("replay", source=source)
        replay_job(settings(tmp_path, job=job, cache_dir=cache, threads=2, tile_elements=262144), tmp_path)
    assert words(capsys.readouterr().out) == ["IDENTICAL"] * len(OF_ARCHITECTURES)
    assert not list(tmp_path.iterdir())


def test_every_other_recipe_is_replayed_to_the_same_bytes_with_small_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_models(tmp_path)
    (tmp_path / "out").mkdir()
    for path in RECIPES:
        if path.stem in OF_ARCHITECTURES:
            continue
        folder = tmp_path / path.stem
        folder.mkdir()
        recipe = ComposedRecipe(path.stem, with_small_models(path), (), (), here)
        done = run_recipe(recipe, settings(tmp_path), folder)
        assert done.path is not None
        ours = load_file(done.path)
        first = load_file(tmp_path / done.record.deterministic["inputs"][0]["source"])
        assert {key: t.shape for key, t in ours.items()} == {key: t.shape for key, t in first.items()}
        assert all(torch.isfinite(tensor).all() for tensor in ours.values())
        capsys.readouterr()
        replay_job(settings(tmp_path, job=Job("replay", source=folder)), tmp_path / "out")
        assert words(capsys.readouterr().out) == ["IDENTICAL"], path.stem
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["anime_mix", "sdxl_mix"])
def test_the_result_opens_in_diffusers_and_makes_an_image(merged: Path, name: str) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(result(merged, name))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline("a cat", num_inference_steps=2, height=64, width=64, generator=generator).images[0]
    low, high = image.convert("L").getextrema()
    assert image.size == (64, 64) and high > low


def test_the_text_encoder_of_anime_mix_is_the_photo_models_bit_for_bit(merged: Path, cache: Path) -> None:
    name = "text_encoder/model.safetensors"
    ours = load_file(result(merged, "anime_mix") / name)
    theirs = load_file(demo_model("photo", cache) / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_compat_recipes_warn_of_what_they_repeat(merged: Path) -> None:
    for name in ("invokeai_merge", "diffusers_merge"):
        assert any("compat" in warning for warning in record(merged, name)["run"]["warnings"])
        dtypes = {
            t.dtype
            for t in load_file(result(merged, name) / "vae/diffusion_pytorch_model.safetensors").values()
        }
        assert dtypes == {torch.float32}


def test_the_default_recipe_says_that_its_models_are_demos_and_how_to_use_ones_own(
    tmp_path: Path, cache: Path
) -> None:
    done = run(tmp_path, f"cache_dir={cache}")
    assert done.returncode == 0, done.stderr
    assert "demo models" in done.stdout and "recipe.models.a=" in done.stdout
    assert Path(done.stdout.splitlines()[0]).joinpath("model_index.json").is_file()

"""Single files and folders in one recipe, and results in either layout: the same tensors, to the byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.demo.models import demo_model
from runner.errors import IncompatibleError, InputError, NumericError, RecipeError
from runner.methods import METHODS
from runner.planning.plan import MERGED
from runner.recipe.canonical import recipe_digest
from tests.build import merge, planned
from tests.stored import as_single_file, equal, read

KINDS = {"sd1": ("photo", "anime", "base"), "sdxl": ("sdxl_photo", "sdxl_anime", "sdxl_base")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder where every demo model is, as a folder and as a single file."""
    root = tmp_path_factory.mktemp("models")
    for architecture, names in KINDS.items():
        for name in names:
            (root / name).symlink_to(demo_model(name, cache))
            tensors = as_single_file(architecture, read(root / name))
            save_file(tensors, root / f"{name}.safetensors", {"format": "pt"})
    return root


def recipe(method: str, *names: str, **more: Any) -> dict[str, Any]:
    roles = ("base", "x", "y") if method in ("ties", "model_stock") else ("a", "b", "c")
    return {"method": method, "models": dict(zip(roles, names, strict=False)), **more}


RECIPES: dict[str, dict[str, Any]] = {
    "weighted_sum": {"alpha": {"default": 0.3, "M00": 0.7, "*attn2*": 0.1}},
    "slerp": {"alpha": 0.3, "per": "row"},
    "ties": {"density": 0.4},
    "model_stock": {"per": "row"},
}


@pytest.mark.parametrize(
    ("kind", "method"), [*(("sd1", method) for method in RECIPES), ("sdxl", "weighted_sum")]
)
def test_every_mix_of_layouts_gives_the_same_tensors(
    kind: str, method: str, models: Path, tmp_path: Path
) -> None:
    names = KINDS[kind][: 3 if method in ("ties", "model_stock") else 2]
    files = [f"{name}.safetensors" for name in names]
    config = {"config": names[0]}
    mixes = {
        "folders": (names, "diffusers"),
        "files": (files, "diffusers"),
        "mixed": ((files[0], *names[1:]), "diffusers"),
        "files to a file": (files, "checkpoint"),
        "folders to a file": (names, "checkpoint"),
        "mixed to a file": ((names[0], *files[1:]), "checkpoint"),
    }
    results = {}
    for title, (sources, output) in mixes.items():
        tree = recipe(method, *sources, **RECIPES[method])
        tree["output"] = {"format": output, **(config if output == "diffusers" else {})}
        path, _ = merge(tree, models, tmp_path / title)
        results[title] = read(path)
    folder = results["folders"]
    assert all(equal(results[title], folder) for title, (_, output) in mixes.items() if output == "diffusers")
    single = as_single_file(kind, folder)
    assert all(
        equal(results[title], single) for title, (_, output) in mixes.items() if output == "checkpoint"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_same_file(kind: str, models: Path, tmp_path: Path) -> None:
    name = KINDS[kind][0]
    there, _ = merge(
        {"method": "copy", "models": {"a": name}, "output": {"format": "checkpoint"}}, models, tmp_path / "1"
    )
    back_tree = {
        "method": "copy",
        "models": {"a": str(there)},
        "output": {"format": "diffusers", "config": name},
    }
    back, _ = merge(back_tree, models, tmp_path / "2")
    again_tree = {"method": "copy", "models": {"a": str(back)}, "output": {"format": "checkpoint"}}
    again, _ = merge(again_tree, models, tmp_path / "3")
    assert equal(read(back), read(models / name))
    assert equal(read(again), read(there))
    texts = {path.name for path in back.rglob("*.json")}
    assert texts == {path.name for path in (models / name).rglob("*.json")}


def test_a_single_file_keeps_what_only_single_files_have(models: Path, tmp_path: Path) -> None:
    extra = {
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3),
        "alphas_cumprod": torch.ones(5),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    tensors = read(models / "photo.safetensors")
    save_file({**tensors, **extra}, tmp_path / "full.safetensors")
    tree = recipe("weighted_sum", str(tmp_path / "full.safetensors"), "anime", alpha=0.3)
    path, _ = merge(tree, models, tmp_path / "file")
    assert read(path).keys() - tensors.keys() == extra.keys() - {
        "model_ema.diffusion_modelinput_blocks00weight"
    }
    tree["output"] = {"format": "diffusers"}
    path, _ = merge(tree, models, tmp_path / "folder")
    assert read(path).keys() == read(models / "photo").keys()


def test_layouts_of_different_architectures_are_not_mixed(models: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="is a diffusers folder") as caught:
        merge(recipe("weighted_sum", "photo", "sdxl_anime.safetensors"), models, tmp_path / "out")
    assert '"photo" is a diffusers folder (Stable Diffusion 1.x)' in str(caught.value)
    assert "same known architecture" in str(caught.value.hint)


def test_a_folder_of_narrow_models_needs_a_pipeline_for_its_other_files(models: Path, tmp_path: Path) -> None:
    tree = recipe("weighted_sum", "photo.safetensors", "anime.safetensors", output={"format": "diffusers"})
    with pytest.raises(IncompatibleError, match="no built-in configs of Stable Diffusion") as caught:
        merge(tree, models, tmp_path / "out")
    assert "output.config: FOLDER" in str(caught.value.hint)
    tree["output"]["config"] = "sdxl_photo"
    with pytest.raises(IncompatibleError, match=r"is a diffusers folder \(Stable Diffusion XL\)"):
        merge(tree, models, tmp_path / "out")


def test_what_no_single_file_has_a_name_for_is_an_error(models: Path, tmp_path: Path) -> None:
    tensors = {**read(models / "photo.safetensors"), "model.diffusion_model.odd.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "odd.safetensors")
    tree = {
        "method": "copy",
        "models": {"a": str(tmp_path / "odd.safetensors")},
        "output": {"format": "diffusers", "config": "photo"},
    }
    with pytest.raises(IncompatibleError, match=r"odd\.weight"):
        merge(tree, models, tmp_path / "out")
    del tree["output"]
    path, _ = merge(tree, models, tmp_path / "same")
    assert equal(read(path), tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tool", ["a1111", "supermerger"])
def test_the_filters_of_tools_look_at_the_names_in_the_single_file(
    kind: str, tool: str, models: Path
) -> None:
    one, other = (f"{name}.safetensors" for name in KINDS[kind][:2])
    method = METHODS["weighted_sum", tool]
    plan = planned(recipe("weighted_sum", one, other, compat=tool, alpha=0.3), models)
    assert method.merges is not None
    assert {job.stored: job.fate == MERGED for job in plan.jobs} == {
        key: method.merges(key) for key in read(models / one)
    }


@pytest.mark.parametrize(
    "name", ["model.diffusion_model.out.2.bias", "unet/conv_out.bias"], ids=["stored", "canonical"]
)
def test_what_may_be_no_number_is_named_as_in_either_layout(name: str, models: Path, tmp_path: Path) -> None:
    tensors = read(models / "photo.safetensors")
    tensors["model.diffusion_model.out.2.bias"][0] = torch.nan
    save_file(tensors, tmp_path / "odd.safetensors")
    tree = recipe("weighted_sum", str(tmp_path / "odd.safetensors"), "anime.safetensors", nonfinite=[name])
    path, _ = merge(tree, models, tmp_path / "out")
    assert read(path)["model.diffusion_model.out.2.bias"].isnan().sum() == 1


@pytest.mark.parametrize("output", ["diffusers", "checkpoint"])
@pytest.mark.parametrize(
    "names", [("old", "anime.safetensors"), ("anime.safetensors", "old"), ("old", "old.safetensors")]
)
def test_position_ids_of_a_folder_are_not_missed_in_a_single_file(
    names: tuple[str, str], output: str, models: Path, tmp_path: Path
) -> None:
    ids = torch.arange(77)[None]
    shutil.copytree((models / "photo").resolve(), tmp_path / "old")
    encoder = tmp_path / "old/text_encoder/model.safetensors"
    save_file({**load_file(encoder), "text_model.embeddings.position_ids": ids}, encoder)
    key = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    save_file({**read(models / "photo.safetensors"), key: ids}, tmp_path / "old.safetensors")
    sources = [str(tmp_path / name if name.startswith("old") else models / name) for name in names]
    tree = recipe("weighted_sum", *sources, alpha=0.3, output={"format": output})
    path, _ = merge(tree, models, tmp_path / "out")
    plain = read(models / "photo" if output == "diffusers" else models / "photo.safetensors")
    kept = {"text_encoder/text_model.embeddings.position_ids"}
    assert read(path).keys() == plain.keys() | (kept if (names[0], output) == ("old", "diffusers") else set())


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "x" * 300, "missing"])
def test_a_pipeline_that_cannot_be_opened_is_an_error_of_the_input(name: str, models: Path) -> None:
    tree = recipe("weighted_sum", "photo.safetensors", "anime.safetensors")
    tree["output"] = {"format": "diffusers", "config": name}
    with pytest.raises(InputError):
        planned(tree, models)


def test_where_the_other_files_come_from_is_part_of_the_recipe_and_of_folders_alone(models: Path) -> None:
    tree = recipe("weighted_sum", "photo.safetensors", "anime.safetensors")
    digests = set()
    for name in ("photo", "anime"):
        tree["output"] = {"format": "diffusers", "config": name}
        digests.add(recipe_digest(planned(tree, models).resolved.recipe))
    assert len(digests) == 2
    for config in ({"source": "photo", "sha256": "0" * 64}, "photo"):
        tree["output"] = {"format": "checkpoint" if config == "photo" else "diffusers", "config": config}
        with pytest.raises(RecipeError, match="leave it out"):
            planned(tree, models)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_lora_of_what_is_no_number_names_the_tensor(allowed: bool, models: Path, tmp_path: Path) -> None:
    tensors = read(models / "photo.safetensors")
    tensors["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "odd.safetensors")
    sources = {"base": "anime.safetensors", "model": str(tmp_path / "odd.safetensors")}
    tree = {"method": "extract_lora", "models": sources, "nonfinite": ["*"] if allowed else []}
    with pytest.raises(NumericError, match=r"attn1\.to_q\.weight.*NaN or Inf, first at element 0"):
        merge(tree, models, tmp_path / "out")

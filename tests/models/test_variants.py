"""Models made for more than text to image, merged with plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from runner.demo.models import demo_model
from runner.errors import IncompatibleError
from tests.build import merge, planned
from tests.stored import as_single_file, read

FIRST = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """The demo models as single files; and photo as an inpainting model, with five channels more."""
    root = tmp_path_factory.mktemp("models")
    for name in ("photo", "anime", "base"):
        tensors = as_single_file("sd1", read(demo_model(name, cache)))
        save_file(tensors, root / f"{name}.safetensors")
        if name == "photo":
            generator = torch.Generator().manual_seed(1)
            first = tensors[FIRST]
            more = torch.randn(first.shape[0], 5, *first.shape[2:], generator=generator).half()
            tensors[FIRST] = torch.cat([first, more], 1)
            save_file(tensors, root / "inpaint.safetensors")
    return root


def recipe(method: str, *names: str, **more: Any) -> dict[str, Any]:
    models = {role: f"{name}.safetensors" for role, name in zip("abc", names, strict=False)}
    return {"method": method, "models": models, **more}


def first(path: Path) -> Tensor:
    return read(path)[FIRST].float()


def test_an_inpainting_model_and_a_plain_one_are_refused_with_the_reason(models: Path) -> None:
    with pytest.raises(IncompatibleError, match="4 input channels where") as caught:
        planned(recipe("weighted_sum", "inpaint", "anime"), models)
    assert "shapes: channels merges those" in caught.value.message


def test_the_channels_both_have_are_merged_if_the_recipe_says_so(models: Path, tmp_path: Path) -> None:
    tree = recipe("weighted_sum", "inpaint", "anime", alpha=0.3, shapes="channels")
    path, _ = merge(tree, models, tmp_path / "out")
    a, b = (first(models / f"{name}.safetensors") for name in ("inpaint", "anime"))
    result = first(path)
    assert torch.equal(result[:, 4:], a[:, 4:])
    assert torch.equal(result[:, :4], (a[:, :4] * 0.7 + b * 0.3).half().float())
    (reason,) = planned(tree, models).deviations
    assert reason.endswith("only those are merged")


def test_a_difference_of_plain_models_can_be_added_to_an_inpainting_model(
    models: Path, tmp_path: Path
) -> None:
    tree = recipe("add_difference", "inpaint", "anime", "base", alpha=1, shapes="channels")
    path, _ = merge(tree, models, tmp_path / "out")
    a, b, c = (first(models / f"{name}.safetensors") for name in ("inpaint", "anime", "base"))
    assert torch.equal(first(path)[:, 4:], a[:, 4:])
    assert torch.equal(first(path)[:, :4], (a[:, :4] + (b - c)).half().float())


def test_the_other_way_round_is_refused_whatever_the_recipe_says(models: Path) -> None:
    with pytest.raises(IncompatibleError, match="other shapes than in anime"):
        planned(recipe("weighted_sum", "anime", "inpaint", shapes="channels"), models)

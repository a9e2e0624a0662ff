"""Running means of weights: taken in place of the weights, left out, or kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from runner.demo.models import demo_model
from runner.errors import IncompatibleError
from tests.build import merge, merged, planned
from tests.stored import as_single_file, equal, read

Tensors = dict[str, Tensor]
UNET = "model.diffusion_model."
FIRST, FIRST_MEAN = f"{UNET}input_blocks.0.0.weight", "model_ema.diffusion_modelinput_blocks00weight"


def means_of(tensors: Tensors) -> Tensors:
    """The running means in a single file, as the training writes them: the weights of these tensors."""
    named = {key.removeprefix("model."): tensor for key, tensor in tensors.items() if key.startswith(UNET)}
    return {f"model_ema.{key.replace('.', '')}": tensor.float() for key, tensor in named.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """photo and anime as files, and photo with means that are anime's UNet: as a file and as folders."""
    root = tmp_path_factory.mktemp("models")
    photo, anime = (demo_model(name, cache) for name in ("photo", "anime"))
    single = {path.name: as_single_file("sd1", read(path)) for path in (photo, anime)}
    for name, tensors in single.items():
        save_file(tensors, root / f"{name}.safetensors")
    numbers = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
    }
    full = single["photo"] | means_of(single["anime"]) | numbers
    assert FIRST_MEAN in full
    save_file(full, root / "full.safetensors")
    for name in ("beside", "variant", "non_ema", "plain"):
        shutil.copytree(photo, root / name)
    shutil.copytree(anime / "unet", root / "beside" / "unet_ema")
    file = "unet/diffusion_pytorch_model{}.safetensors"
    shutil.copy(anime / file.format(""), root / "variant" / file.format(".ema"))
    shutil.move(root / "non_ema" / file.format(""), root / "non_ema" / file.format(".non_ema"))
    shutil.copy(anime / file.format(""), root / "non_ema" / file.format(""))
    return root


def copy(name: str, **more: Any) -> dict[str, Any]:
    return {"method": "copy", "models": {"a": name}, **more}


def half(one: Tensors, other: Tensors) -> Tensors:
    """The UNet of one model and the rest of the other."""
    return {key: (one if key.startswith((UNET, "unet/")) else other)[key] for key in other}


def test_the_means_of_a_single_file_take_the_place_of_the_weights(models: Path, tmp_path: Path) -> None:
    photo, anime = (read(models / f"{name}.safetensors") for name in ("photo", "anime"))
    result = merged(
        copy("full.safetensors", ema="use", output={"dtype": "float16"}), models, tmp_path / "out"
    )
    assert not equal(result, photo)
    assert equal(result, half(anime, photo))


@pytest.mark.parametrize("name", ["beside", "variant", "non_ema"])
def test_the_means_of_a_folder_take_the_place_of_the_weights(
    name: str, models: Path, tmp_path: Path, cache: Path
) -> None:
    path, _ = merge(copy(name, ema="use"), models, tmp_path / "out")
    photo, anime = (read(demo_model(of, cache)) for of in ("photo", "anime"))
    assert equal(read(path), half(anime, photo))
    assert not list(path.glob("*_ema"))


def test_weights_and_means_of_one_file_are_two_models(models: Path, tmp_path: Path) -> None:
    means = copy("full.safetensors", ema="use")
    tree = {"method": "weighted_sum", "models": {"a": means, "b": "full.safetensors"}, "alpha": 0.25}
    result = merged(tree, models, tmp_path / "out")
    photo, anime = (read(models / f"{name}.safetensors")[FIRST].float() for name in ("photo", "anime"))
    assert torch.equal(result[FIRST], anime * 0.75 + photo * 0.25)
    assert not any(key.startswith("model_ema.") for key in result)


def test_means_in_a_merge_of_two_models_are_of_both(models: Path, tmp_path: Path) -> None:
    tree = {
        "method": "weighted_sum",
        "models": {"a": "full.safetensors", "b": "photo.safetensors"},
        "ema": "use",
    }
    with pytest.raises(
        IncompatibleError, match=r"photo\.safetensors has no running means of the weights \(model_ema"
    ):
        planned({**tree, "alpha": 0.5}, models)


def test_adapters_have_no_means_and_none_are_asked_of_them(models: Path, cache: Path) -> None:
    tree = {"method": "add_lora", "models": {"a": "full.safetensors", "style": "demo:lora"}, "ema": "use"}
    plan = planned(tree, models, cache)
    assert plan.resolved.primary.checkpoint.title == "single file, EMA weights"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: without(tensors, FIRST_MEAN), f"has no running mean of 1 tensor: {FIRST}"),
        (lambda tensors: without(tensors, FIRST), f"has 1 running mean of no tensor: {FIRST_MEAN}"),
        (
            lambda tensors: {k: t for k, t in tensors.items() if k in (FIRST, "model_ema.decay")},
            "has no running means",
        ),
    ],
)
def test_means_that_are_not_of_all_weights_are_refused(
    change: Any, message: str, models: Path, tmp_path: Path
) -> None:
    save_file(change(read(models / "full.safetensors")), tmp_path / "odd.safetensors")
    with pytest.raises(IncompatibleError) as caught:
        planned(copy("odd.safetensors", ema="use"), tmp_path)
    assert message in str(caught.value)
    assert "ema: drop" in str(caught.value.hint)


def test_a_folder_without_means_is_refused_and_says_what_was_looked_for(models: Path) -> None:
    with pytest.raises(
        IncompatibleError, match=r"plain has no running means .*unet_ema, or unet with the variant ema"
    ):
        planned(copy("plain", ema="use"), models)


def without(tensors: Tensors, key: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != key}

"""Single files that diffusers loads: the same tensors as the folder of the same merge, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.build import merge

PIPELINES = {
    "sd1": ("photo", "anime", StableDiffusionPipeline),
    "sdxl": ("sdxl_photo", "sdxl_anime", StableDiffusionXLPipeline),
}
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its tensors as whole numbers."""
    return {key: tensor.view(torch.int32) for key, tensor in module.state_dict().items()}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = bits(one), bits(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", PIPELINES)
def test_diffusers_loads_a_single_file_as_the_folder_of_the_same_merge(
    kind: str, cache: Path, tmp_path: Path
) -> None:
    one, other, pipeline = PIPELINES[kind]
    paths = {}
    for layout in ("checkpoint", "diffusers"):
        tree = {
            "method": "weighted_sum",
            "models": {"a": f"demo:{one}", "b": f"demo:{other}"},
            "alpha": 0.3,
            "output": {"format": layout, "dtype": "float32"},
        }
        paths[layout], _ = merge(tree, tmp_path, tmp_path / layout, cache=cache)
    file, folder = paths["checkpoint"], paths["diffusers"]
    options = {"config": str(folder), "local_files_only": True}
    whole = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    single = pipeline.from_single_file(str(file), **options)
    for name in COMPONENTS:
        if hasattr(whole, name):
            assert same(getattr(single, name), getattr(whole, name)), name
    unet = UNet2DConditionModel.from_single_file(str(file), subfolder="unet", **options)
    vae = AutoencoderKL.from_single_file(str(file), subfolder="vae", **options)
    assert same(unet, whole.unet) and same(vae, whole.vae)

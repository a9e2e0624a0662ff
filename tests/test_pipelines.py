"""Folders that diffusers itself saves, of several families, in one file, shards and variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from runner.demo.models import demo_model
from tests.build import merge


def tiny_flux(seed: int, cache: Path) -> FluxPipeline:
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(demo_model("photo", cache) / "tokenizer")
    clip = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        vocab_size=514,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    t5 = T5Config(vocab_size=64, d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            latent_channels=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.06,
            scaling_factor=1.5,
        ),
        text_encoder=CLIPTextModel(clip),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=None,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=False,
        ),
    )


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[str, Any]:
    """Two Flux pipelines, saved by diffusers in every way it saves."""
    folder = tmp_path_factory.mktemp("flux")
    saved = {"folder": folder}
    for name, seed in (("a", 1), ("b", 2)):
        pipeline = tiny_flux(seed, cache)
        saved[name] = pipeline
        pipeline.save_pretrained(folder / name)
        pipeline.save_pretrained(folder / f"{name}_sharded", max_shard_size="40KB")
        pipeline.save_pretrained(folder / f"{name}_fp16", variant="fp16")
    return saved


def tree(a: str, b: str, **changes: Any) -> dict[str, Any]:
    return {"method": "weighted_sum", "models": {"a": a, "b": b}, "alpha": 0.25, **changes}


@pytest.mark.parametrize("kind", ["", "_sharded", "_fp16"])
def test_whatever_diffusers_saves_is_merged_and_opens_again(
    pipelines: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    target, _ = merge(tree(f"a{kind}", f"b{kind}"), pipelines["folder"], tmp_path)
    merged = DiffusionPipeline.from_pretrained(target, tokenizer_2=None)
    for component in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        ours = getattr(merged, component).state_dict()
        a, b = (getattr(pipelines[name], component).state_dict() for name in ("a", "b"))
        for key in a:
            expected = a[key] * 0.75 + b[key] * 0.25
            assert torch.equal(ours[key], expected), f"{component}/{key}"


def test_one_model_in_shards_and_one_whole_give_the_same(pipelines: dict[str, Any], tmp_path: Path) -> None:
    whole, _ = merge(tree("a", "b"), pipelines["folder"], tmp_path / "whole")
    mixed, _ = merge(tree("a", "b_sharded"), pipelines["folder"], tmp_path / "mixed")
    name = "transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(mixed / name), load_file(whole / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_output_is_split_when_asked(pipelines: dict[str, Any], tmp_path: Path) -> None:
    output = {"name": "split", "max_shard_size": "40KB"}
    target, _ = merge(tree("a", "b", output=output), pipelines["folder"], tmp_path)
    assert len(list((target / "transformer").glob("*.safetensors"))) > 1
    merged = DiffusionPipeline.from_pretrained(target, tokenizer_2=None)
    a, b = (pipelines[name].transformer.state_dict() for name in ("a", "b"))
    ours = merged.transformer.state_dict()
    assert all(torch.equal(ours[key], a[key] * 0.75 + b[key] * 0.25) for key in a)

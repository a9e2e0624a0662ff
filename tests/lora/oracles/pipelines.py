"""Small real pipelines of the architectures LoRAs are written for, the same on every machine.

Stable Diffusion 1.5 and XL are the demo models; SD3 and Flux are made here of diffusers' classes, with
weights from counters: no version of torch draws others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from runner.demo.models import demo_model

# Architecture → the two models, and the modules a LoRA of them is made of: linear layers of every component
# it may have, and of a UNet a convolution.
# (Of kohya's names diffusers knows a text encoder's by its output projections.)
ATTENTION = "encoder.layers.0.self_attn.out_proj.weight"
CASES: dict[str, tuple[tuple[str, str], dict[str, int]]] = {
    "sd1": (
        ("demo:photo", "demo:anime"),
        {
            "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": 3,
            "unet/mid_block.attentions.0.proj_in.weight": 2,
            "unet/down_blocks.1.resnets.0.conv1.weight": 4,
            f"text_encoder/text_model.{ATTENTION}": 2,
        },
    ),
    "sdxl": (
        ("demo:sdxl_base", "demo:sdxl_photo"),
        {
            "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight": 3,
            "unet/up_blocks.0.resnets.0.conv2.weight": 4,
            f"text_encoder/text_model.{ATTENTION}": 2,
            f"text_encoder_2/text_model.{ATTENTION}": 1,
        },
    ),
    "sd3": (
        ("base", "model"),
        {
            "transformer/transformer_blocks.0.attn.to_q.weight": 3,
            "transformer/transformer_blocks.1.ff.net.0.proj.weight": 2,
            f"text_encoder/text_model.{ATTENTION}": 2,
            f"text_encoder_2/text_model.{ATTENTION}": 1,
        },
    ),
    "flux": (
        ("base", "model"),
        {
            "transformer/transformer_blocks.0.attn.to_k.weight": 3,
            "transformer/single_transformer_blocks.0.proj_mlp.weight": 2,
            f"text_encoder/text_model.{ATTENTION}": 2,
        },
    ),
}


def place(case: str, folder: Path, cache: Path) -> None:
    """Makes the models of a case that are no demo models, in a folder."""
    if case not in PIPELINES or (folder / "base").exists():
        return
    tokenizer = CLIPTokenizer.from_pretrained(demo_model("photo", cache) / "tokenizer")
    for seed, name in enumerate(CASES[case][0]):
        pipeline = PIPELINES[case](tokenizer)
        for component, module in sorted(pipeline.components.items()):
            if isinstance(module, nn.Module):
                fill(module, f"{case} {component}", seed)
        pipeline.save_pretrained(folder / name)


def fill(module: nn.Module, name: str, seed: int) -> None:
    """Gives every weight its numbers: a base's, and for other seeds a little more."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            numbers = uniform(f"{name} {key}", parameter.numel())
            if seed:
                numbers = numbers + 0.05 * uniform(f"{name} {key} {seed}", parameter.numel())
            parameter.copy_(torch.from_numpy(numbers).reshape(parameter.shape))


def uniform(text: str, count: int) -> np.ndarray[Any, Any]:
    """Numbers from −0.5 up to 0.5 that follow from a text."""
    stream = np.random.Philox(key=np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u8"))
    words: np.ndarray[Any, Any] = stream.random_raw(count) >> np.uint64(40)
    return words.astype(np.float64) * 2.0**-24 - 0.5


def _clip(width: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        projection_dim=32,
        vocab_size=514,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        norm_num_groups=4,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


def _sd3(tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=24,  # it is known by
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=CLIPTextModelWithProjection(_clip()),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip()),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux(tokenizer: CLIPTokenizer) -> FluxPipeline:
    t5 = T5Config(vocab_size=16, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip()),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=None,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=False,
        ),
    )


PIPELINES: dict[str, Callable[[CLIPTokenizer], Any]] = {"sd3": _sd3, "flux": _flux}

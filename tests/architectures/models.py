"""Headers of whole models, from diffusers' classes on the meta device: no weights are made."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from runner.tensors import TensorSpec
from tests.architectures.ldm import PREFIX, flux_names, ldm_names, sd3_names

Specs = dict[str, TensorSpec]

_CROSS, _PLAIN = "CrossAttn{}Block2D", "{}Block2D"


def _levels(*kinds: str) -> dict[str, tuple[str, ...]]:
    """The encoder's blocks, and the decoder's in reverse."""
    return {
        "down_block_types": tuple(kind.format("Down") for kind in kinds),
        "up_block_types": tuple(kind.format("Up") for kind in reversed(kinds)),
    }


_SIZED = {"use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        **_levels(_CROSS, _CROSS, _CROSS, _PLAIN),
    },
    "sd2": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        **_levels(_CROSS, _CROSS, _CROSS, _PLAIN),
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "projection_class_embeddings_input_dim": 2816,
        **_SIZED,
        **_levels(_PLAIN, _CROSS, _CROSS),
    },
    "sdxl_refiner": {
        "block_out_channels": (384, 768, 1536, 1536),
        "cross_attention_dim": 1280,
        "attention_head_dim": (6, 12, 24, 24),
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
        **_SIZED,
        **_levels(_PLAIN, _CROSS, _CROSS, _PLAIN),
    },
}
_NARROW = {"cross_attention_dim": 32, "attention_head_dim": 4}
TINY: dict[str, dict[str, Any]] = {
    "sd1": {**_NARROW, "block_out_channels": (32, 64, 128, 128)},
    "sd2": {**_NARROW, "block_out_channels": (32, 64, 128, 128)},
    "sdxl": {**_NARROW, "block_out_channels": (32, 64, 128)},
    "sdxl_refiner": {**_NARROW, "block_out_channels": (32, 64, 128, 128), "transformer_layers_per_block": 1},
}
TRANSFORMERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "sd3": (SD3Transformer2DModel, {"num_layers": 24}),
    "sd35_large": (SD3Transformer2DModel, {"num_layers": 38, "qk_norm": "rms_norm"}),
    "flux": (FluxTransformer2DModel, {"guidance_embeds": True}),
}
TRANSFORMER_NAMES: dict[str, list[str]] = {
    "sd3": sd3_names(),
    "sd35_large": sd3_names(blocks=38, norms=True),
    "flux": flux_names(),
}


def specs_of(model: nn.Module) -> Specs:
    """The header a file of this model would have."""
    return {key: TensorSpec("F16", tuple(value.shape)) for key, value in model.state_dict().items()}


@functools.cache
def unet(name: str, *, tiny: bool = False, channels: int = 4) -> Specs:
    """The UNet of an architecture, with the keys of its class."""
    config = {"in_channels": channels, **UNETS[name], **(TINY[name] if tiny else {})}
    with torch.device("meta"):
        return specs_of(UNet2DConditionModel(**config))


@functools.cache
def transformer(name: str) -> Specs:
    """The transformer of an architecture, with the keys of its class."""
    kind, config = TRANSFORMERS[name]
    with torch.device("meta"):
        return specs_of(kind(**config))


@functools.cache
def vae() -> Specs:
    """A VAE, with the keys of its class."""
    with torch.device("meta"):
        return specs_of(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            )
        )


def under(prefix: str, specs: Mapping[str, TensorSpec]) -> Specs:
    """The same tensors, their keys prefixed."""
    return {prefix + key: spec for key, spec in specs.items()}


def main_component(name: str, layout: str, *, tiny: bool = False, channels: int = 4) -> Specs:
    """The UNet or transformer of an architecture as a model of that layout holds it."""
    if name in UNETS:
        own = unet(name, tiny=tiny, channels=channels)
        names = ldm_names(own)
        return under("unet/", own) if layout == "diffusers" else {names[key]: own[key] for key in own}
    if layout == "diffusers":
        return under("transformer/", transformer(name))
    return {PREFIX + key: TensorSpec("F16", (8, 8)) for key in TRANSFORMER_NAMES[name]}


# A key or two of what stands beside the main component, by layout: key → component.
BESIDE: dict[str, dict[str, dict[str, str]]] = {
    "checkpoint": {
        "sd1": {"cond_stage_model.transformer.text_model.final_layer_norm.weight": "text_encoder"},
        "sd2": {"cond_stage_model.model.ln_final.weight": "text_encoder"},
        "sdxl": {
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": "text_encoder",
            "conditioner.embedders.1.model.text_projection": "text_encoder_2",
        },
        "sdxl_refiner": {"conditioner.embedders.0.model.ln_final.weight": "text_encoder_2"},
        "sd3": {
            "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": "text_encoder",
            "text_encoders.clip_g.transformer.text_model.final_layer_norm.weight": "text_encoder_2",
            "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight": "text_encoder_3",
        },
        "flux": {
            "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": "text_encoder",
            "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight": "text_encoder_2",
        },
    },
    "diffusers": {
        "sd1": {"text_encoder/final_layer_norm.weight": "text_encoder"},
        "sd2": {"text_encoder/final_layer_norm.weight": "text_encoder"},
        "sdxl": {
            "text_encoder/final_layer_norm.weight": "text_encoder",
            "text_encoder_2/text_projection.weight": "text_encoder_2",
        },
        "sdxl_refiner": {"text_encoder_2/text_projection.weight": "text_encoder_2"},
        "sd3": {
            "text_encoder/text_projection.weight": "text_encoder",
            "text_encoder_2/text_projection.weight": "text_encoder_2",
            "text_encoder_3/encoder.final_layer_norm.weight": "text_encoder_3",
        },
        "flux": {
            "text_encoder/text_model.final_layer_norm.weight": "text_encoder",
            "text_encoder_2/encoder.final_layer_norm.weight": "text_encoder_2",
        },
    },
}
for _keys in BESIDE.values():
    _keys["sd35_large"] = _keys["sd3"]
_VAE_PREFIX = {"diffusers": "vae/", "checkpoint": "first_stage_model."}


def model(name: str, layout: str, *, tiny: bool = False, channels: int = 4) -> Specs:
    """A whole model: main component, VAE, and a few tensors of the text encoders."""
    beside = {key: TensorSpec("F16", (8,)) for key in BESIDE[layout][name]}
    main = main_component(name, layout, tiny=tiny, channels=channels)
    return {**beside, **main, **under(_VAE_PREFIX[layout], vae())}

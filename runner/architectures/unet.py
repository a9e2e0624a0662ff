"""The UNet family: Stable Diffusion 1.x, 2.x, XL and the XL refiner.

Block i of the encoder holds what the original code calls input_blocks.i. In diffusers' names, with
resolution level i and layer j: down_blocks.i.*.j is IN(3i+j+1), its downsampler IN(3i+3),
up_blocks.i.*.j is OUT(3i+j), its upsampler OUT(3i+2).
Source: CompVis/stable-diffusion, Stability-AI/generative-models (openaimodel.py); diffusers,
unet_2d_condition.py. Block names: sd-webui-supermerger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runner.architectures.base import Architecture, BlockRule, numbered
from runner.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]
_LDM = "model.diffusion_model."

_PREFIXES = {
    "model.diffusion_model.": "unet",
    "model_ema.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text_encoder",
}
_SDXL_PREFIXES = {
    "model.diffusion_model.": "unet",
    "model_ema.": "unet",
    "first_stage_model.": "vae",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
}


def _rules(last: int) -> dict[str, tuple[BlockRule, ...]]:
    """The blocks of each key; the last decoder block also has the head, the first one the embeddings."""
    head = ("HEAD", f"OUT{last:02d}")
    return {
        "checkpoint": (
            (r"input_blocks\.(\d+)\.", lambda match: (f"IN{int(match[1]):02d}",)),
            (r"middle_block\.", lambda match: ("M00",)),
            (r"output_blocks\.(\d+)\.", lambda match: (f"OUT{int(match[1]):02d}",)),
            (r"time_embed\.", lambda match: ("TIME", "IN00")),
            (r"label_emb\.", lambda match: ("LABEL", "IN00")),
            (r"out\.", lambda match: head),
        ),
        "diffusers": (
            (r"conv_in\.", lambda match: ("IN00",)),
            (
                r"down_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)\.",
                lambda match: (f"IN{3 * int(match[1]) + int(match[2]) + 1:02d}",),
            ),
            (r"down_blocks\.(\d+)\.downsamplers\.", lambda match: (f"IN{3 * int(match[1]) + 3:02d}",)),
            (r"mid_block\.", lambda match: ("M00",)),
            (
                r"up_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)\.",
                lambda match: (f"OUT{3 * int(match[1]) + int(match[2]):02d}",),
            ),
            (r"up_blocks\.(\d+)\.upsamplers\.", lambda match: (f"OUT{3 * int(match[1]) + 2:02d}",)),
            (r"time_embedding\.", lambda match: ("TIME", "IN00")),
            (r"(?:add_embedding|class_embedding)\.", lambda match: ("LABEL", "IN00")),
            (r"conv_(?:norm_)?out\.", lambda match: head),
        ),
    }


def _levels(specs: Specs, layout: str) -> int:
    """Resolution levels of the UNet, 3 or 4; 0 if this is no image UNet with this many layers."""
    if layout == "checkpoint":
        first, deepest = f"{_LDM}input_blocks.0.0.weight", f"{_LDM}input_blocks.{{}}.0.in_layers.0.weight"
        tests = {4: deepest.format(11), 3: deepest.format(8)}
        others = [f"{_LDM}input_blocks.1.0.time_stack.in_layers.0.weight"]  # a video model
    else:
        first, deepest = "unet/conv_in.weight", "unet/down_blocks.{}.resnets.1.norm1.weight"
        tests = {4: deepest.format(3), 3: deepest.format(2)}
        others = [
            "unet/down_blocks.4.resnets.0.norm1.weight",
            "unet/down_blocks.0.motion_modules.0.norm.weight",  # AnimateDiff
            "unet/down_blocks.0.temp_convs.0.conv1.0.weight",  # text to video
        ]
    conv = specs.get(first)
    # Layers of three dimensions belong to video models.
    if conv is None or len(conv.shape) != 4 or any(key in specs for key in others):
        return 0
    return next((levels for levels, key in tests.items() if key in specs), 0)


def _added(specs: Specs, layout: str) -> bool:
    """Whether the UNet is told the size of the image: SDXL and its refiner."""
    key = f"{_LDM}label_emb.0.0.weight" if layout == "checkpoint" else "unet/add_embedding.linear_1.weight"
    return key in specs


def _cross_attention(specs: Specs, layout: str) -> tuple[int, int]:
    """Dimensions of the first attention's proj_in (4: a convolution), and width of the text; 0 if none."""
    attentions = (
        [f"{_LDM}input_blocks.{block}.1." for block in (1, 4)]
        if layout == "checkpoint"
        else [f"unet/down_blocks.{level}.attentions.0." for level in (0, 1)]
    )
    for attention in attentions:
        proj = specs.get(f"{attention}proj_in.weight")
        keys = specs.get(f"{attention}transformer_blocks.0.attn2.to_k.weight")
        if proj is not None and keys is not None:
            return len(proj.shape), keys.shape[-1]
    return 0, 0


def _both(test: Callable[[Specs, str], bool]) -> dict[str, Callable[[Specs], bool]]:
    return {
        "checkpoint": lambda specs: test(specs, "checkpoint"),
        "diffusers": lambda specs: test(specs, "diffusers"),
    }


def _is_sd1(specs: Specs, layout: str) -> bool:
    dimensions, width = _cross_attention(specs, layout)
    return (
        _levels(specs, layout) == 4
        and not _added(specs, layout)
        and dimensions == 4
        and width not in (0, 1024)
    )


def _is_sd2(specs: Specs, layout: str) -> bool:
    dimensions, width = _cross_attention(specs, layout)
    # unCLIP variants have the embedding of SDXL, but the text of SD2.
    return (
        _levels(specs, layout) == 4
        and dimensions == 2
        and (width == 1024 or (width != 1280 and not _added(specs, layout)))
    )


def _is_sdxl(specs: Specs, layout: str) -> bool:
    return _levels(specs, layout) == 3 and _added(specs, layout)


def _is_refiner(specs: Specs, layout: str) -> bool:
    dimensions, width = _cross_attention(specs, layout)
    return _levels(specs, layout) == 4 and _added(specs, layout) and dimensions == 2 and width != 1024


_FOUR_LEVELS = ("BASE", *numbered("IN", 0, 12), "M00", *numbered("OUT", 0, 12))
_THREE_LEVELS = ("BASE", *numbered("IN", 0, 9), "M00", *numbered("OUT", 0, 9))

SD1 = Architecture(
    name="sd1",
    title="Stable Diffusion 1.x",
    modelspec="stable-diffusion-v1",
    resolution="512x512",
    main="unet",
    blocks=_FOUR_LEVELS,
    fine=("TIME", "HEAD", "CLIP", "VAE"),
    prefixes=_PREFIXES,
    outside={"text_encoder": "CLIP", "vae": "VAE"},
    rules=_rules(last=11),
    recognise=_both(_is_sd1),
)

SD2 = Architecture(
    name="sd2",
    title="Stable Diffusion 2.x",
    modelspec="stable-diffusion-v2-512",
    resolution="512x512",
    main="unet",
    blocks=_FOUR_LEVELS,
    fine=("TIME", "LABEL", "HEAD", "CLIP", "VAE"),
    prefixes=_PREFIXES,
    outside={"text_encoder": "CLIP", "vae": "VAE"},
    rules=_rules(last=11),
    recognise=_both(_is_sd2),
)

SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    modelspec="stable-diffusion-xl-v1-base",
    resolution="1024x1024",
    main="unet",
    blocks=_THREE_LEVELS,
    fine=("TIME", "LABEL", "HEAD", "CLIPL", "CLIPG", "VAE"),
    prefixes=_SDXL_PREFIXES,
    outside={"text_encoder": "CLIPL", "text_encoder_2": "CLIPG", "vae": "VAE"},
    rules=_rules(last=8),
    recognise=_both(_is_sdxl),
)

SDXL_REFINER = Architecture(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    modelspec="stable-diffusion-xl-v1-refiner",
    resolution="1024x1024",
    main="unet",
    blocks=_FOUR_LEVELS,
    fine=("TIME", "LABEL", "HEAD", "CLIPG", "VAE"),
    # Its only text encoder is the second one of SDXL.
    prefixes={**_SDXL_PREFIXES, "conditioner.embedders.0.": "text_encoder_2"},
    outside={"text_encoder_2": "CLIPG", "vae": "VAE"},
    rules=_rules(last=11),
    recognise=_both(_is_refiner),
)

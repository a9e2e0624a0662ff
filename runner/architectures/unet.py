"""The UNet family: Stable Diffusion 1.x, 2.x, XL and the XL refiner.

Block i of the encoder holds what the original code calls input_blocks.i. In diffusers' names, with
resolution level i and layer j: down_blocks.i.*.j is IN(3i+j+1), its downsampler IN(3i+3),
up_blocks.i.*.j is OUT(3i+j), its upsampler OUT(3i+2).
Source: CompVis/stable-diffusion, Stability-AI/generative-models (openaimodel.py); diffusers,
unet_2d_condition.py. Block names: sd-webui-supermerger.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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


_FIRST = {"checkpoint": "input_blocks.0.0.weight", "diffusers": "conv_in.weight"}
# Beside the 4 channels of the image: 4 of the masked image and the mask, 4 of an image, 1 of depth.
_VARIANTS = {9: "inpainting", 8: "pix2pix", 5: "depth"}


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


@dataclass(frozen=True, slots=True)
class _Traits:
    """What tells the UNets of the family apart.

    Attributes:
        levels: resolutions of the encoder, each of two layers.
        attentive: levels with attention.
        projection: dimensions of an attention's proj_in: 4 if it is a convolution, 2 if linear.
        text_width: width of the text the attention reads; None in UNets narrower than any real one.
        sized: whether it is told the size of the image.
    """

    levels: int
    attentive: tuple[int, ...]
    projection: int
    text_width: int | None
    sized: bool


_NARROWEST = 320  # channels after the first convolution of the narrowest real model

# Keys of models that have such a UNet inside and are something else.
_OTHERS = {
    "checkpoint": (
        "input_blocks.1.0.time_stack.in_layers.0.weight",  # Stable Video Diffusion
        "encoder_hid_proj.weight",  # Kolors
    ),
    "diffusers": (
        "down_blocks.0.motion_modules.0.norm.weight",  # AnimateDiff
        "down_blocks.0.temp_convs.0.conv1.0.weight",  # text to video
        "encoder_hid_proj.weight",  # Kolors
    ),
}


def _traits(specs: Specs, layout: str) -> _Traits | None:
    """What UNet this is; None if it has not the structure of the family."""
    ldm = layout == "checkpoint"
    prefix = "unet/" if not ldm else _LDM if f"{_LDM}input_blocks.0.0.weight" in specs else ""

    def layer(half: str, level: int, number: int, part: int) -> str:
        """Where a resnet (part 0) or an attention (part 1) begins."""
        if not ldm:
            return f"{prefix}{half}_blocks.{level}.{('resnets', 'attentions')[part]}.{number}."
        if half == "down":
            return f"{prefix}input_blocks.{3 * level + number + 1}.{part}."
        return f"{prefix}output_blocks.{3 * level + number}.{part}."

    def resnet(half: str, level: int, number: int) -> bool:
        return layer(half, level, number, 0) + ("in_layers.0.weight" if ldm else "norm1.weight") in specs

    def attention(level: int) -> TensorSpec | None:
        return specs.get(layer("down", level, 0, 1) + "transformer_blocks.0.attn2.to_k.weight")

    levels = next(level for level in itertools.count() if not resnet("down", level, 1))
    last = levels - 1
    first = specs.get(prefix + ("input_blocks.0.0.weight" if ldm else "conv_in.weight"))
    if (
        levels == 0
        or resnet("down", last, 2)
        or not resnet("up", last, 2)
        or resnet("up", last, 3)
        or any(prefix + key in specs for key in _OTHERS[layout])
        or first is None
        or len(first.shape) != 4  # video models have a dimension more
    ):
        return None
    texts = {level: spec for level in range(levels) if (spec := attention(level)) and len(spec.shape) == 2}
    if not texts:
        return None
    level, text = next(iter(texts.items()))
    projection = specs.get(layer("down", level, 0, 1) + "proj_in.weight")
    return _Traits(
        levels=levels,
        attentive=tuple(texts),
        projection=len(projection.shape) if projection else 0,
        text_width=text.shape[-1] if first.shape[0] >= _NARROWEST else None,
        sized=prefix + ("label_emb.0.0.weight" if ldm else "add_embedding.linear_1.weight") in specs,
    )


def _is(*traits: _Traits) -> dict[str, Callable[[Specs], bool]]:
    """Whether a UNet has one of the traits, or has them but is a narrow one."""
    known = {*traits, *(replace(each, text_width=None) for each in traits)}
    return {
        "checkpoint": lambda specs: _traits(specs, "checkpoint") in known,
        "diffusers": lambda specs: _traits(specs, "diffusers") in known,
    }


_FOUR_LEVELS = ("BASE", *numbered("IN", 0, 12), "M00", *numbered("OUT", 0, 12))
_THREE_LEVELS = ("BASE", *numbered("IN", 0, 9), "M00", *numbered("OUT", 0, 9))

SD1 = Architecture(
    name="sd1",
    title="Stable Diffusion 1.x",
    modelspec="stable-diffusion-v1",
    resolution="512x512",
    main="unet",
    first=_FIRST,
    variants=_VARIANTS,
    blocks=_FOUR_LEVELS,
    fine=("TIME", "HEAD", "CLIP", "VAE"),
    prefixes=_PREFIXES,
    outside={"text_encoder": "CLIP", "vae": "VAE"},
    rules=_rules(last=11),
    recognise=_is(_Traits(4, (0, 1, 2), projection=4, text_width=768, sized=False)),
)

SD2 = Architecture(
    name="sd2",
    title="Stable Diffusion 2.x",
    modelspec="stable-diffusion-v2-512",
    resolution="512x512",
    main="unet",
    first=_FIRST,
    variants=_VARIANTS,
    blocks=_FOUR_LEVELS,
    fine=("TIME", "LABEL", "HEAD", "CLIP", "VAE"),
    prefixes=_PREFIXES,
    outside={"text_encoder": "CLIP", "vae": "VAE"},
    rules=_rules(last=11),
    # unCLIP is told of an image where SDXL is told of sizes; only the names of diffusers tell them apart.
    recognise=_is(
        _Traits(4, (0, 1, 2), projection=2, text_width=1024, sized=False),
        _Traits(4, (0, 1, 2), projection=2, text_width=1024, sized=True),
    ),
)

SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    modelspec="stable-diffusion-xl-v1-base",
    resolution="1024x1024",
    main="unet",
    first=_FIRST,
    variants=_VARIANTS,
    blocks=_THREE_LEVELS,
    fine=("TIME", "LABEL", "HEAD", "CLIPL", "CLIPG", "VAE"),
    prefixes=_SDXL_PREFIXES,
    outside={"text_encoder": "CLIPL", "text_encoder_2": "CLIPG", "vae": "VAE"},
    rules=_rules(last=8),
    recognise=_is(_Traits(3, (1, 2), projection=2, text_width=2048, sized=True)),
)

SDXL_REFINER = Architecture(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    modelspec="stable-diffusion-xl-v1-refiner",
    resolution="1024x1024",
    main="unet",
    first=_FIRST,
    variants=_VARIANTS,
    blocks=_FOUR_LEVELS,
    fine=("TIME", "LABEL", "HEAD", "CLIPG", "VAE"),
    # Its only text encoder is the second one of SDXL.
    prefixes={**_SDXL_PREFIXES, "conditioner.embedders.0.": "text_encoder_2"},
    outside={"text_encoder_2": "CLIPG", "vae": "VAE"},
    rules=_rules(last=11),
    recognise=_is(_Traits(4, (1, 2), projection=2, text_width=1280, sized=True)),
)

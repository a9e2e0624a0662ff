"""The UNet family: Stable Diffusion 1.x, 2.x, XL and the XL refiner.

Block i of the encoder holds what the original code calls input_blocks.i. In diffusers' names, with
resolution level i and layer j: down_blocks.i.*.j is IN(3i+j+1), its downsampler IN(3i+3),
up_blocks.i.*.j is OUT(3i+j), its upsampler OUT(3i+2).
Source: CompVis/stable-diffusion, Stability-AI/generative-models (openaimodel.py); diffusers,
unet_2d_condition.py. Block names: sd-webui-supermerger.

SDXL's blocks are deep, so their modules have names too: half, block, module in it (0 the residual layer,
1 the attention), and layer of the attention: middle_block.1.transformer_blocks.3 is MID103. MID10 is
the attention without its layers. Two of these names are those of blocks: the modules of the first
decoder block, OUT00 and OUT01, are OUT00_0 and OUT00_1 here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
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
_MODULES = {"resnet": 0, "attention": 1}
# Modules whose names are those of whole blocks, and what they are called here.
MODULE_NAMES = {"OUT00": "OUT00_0", "OUT01": "OUT00_1"}
# Beside the 4 channels of the image: 4 of the masked image and the mask, 4 of an image, 1 of depth.
_VARIANTS = {9: "inpainting", 8: "pix2pix", 5: "depth"}


_LAYER = r"(?:transformer_blocks\.(\d+)\.)?"


def _rules(last: int, parts: Sequence[str] = ()) -> dict[str, tuple[BlockRule, ...]]:
    """The blocks of each key; the last decoder block also has the head, the first one the embeddings."""
    head = ("HEAD", f"OUT{last:02d}")
    known = frozenset(parts)

    def encoder(block: int, module: int, layer: str | None) -> tuple[str, ...]:
        return named(f"IN{block}{module}{layer or ''}", f"IN{block:02d}")

    def decoder(block: int, module: int, layer: str | None) -> tuple[str, ...]:
        name = f"OUT{block}{module}{layer or ''}"
        return named(MODULE_NAMES.get(name, name), f"OUT{block:02d}")

    def middle(module: int, layer: str | None) -> tuple[str, ...]:
        return named(f"MID{module}0" if layer is None else f"MID{module}0{layer}", "M00")

    def named(module: str, block: str) -> tuple[str, ...]:
        return (module, block) if module in known and module != block else (block,)

    return {
        "checkpoint": (
            (
                rf"input_blocks\.(\d+)\.(\d+)\.{_LAYER}",
                lambda match: encoder(int(match[1]), int(match[2]), match[3]),
            ),
            (rf"middle_block\.(\d+)\.{_LAYER}", lambda match: middle(int(match[1]), match[2])),
            (
                rf"output_blocks\.(\d+)\.(\d+)\.{_LAYER}",
                lambda match: decoder(int(match[1]), int(match[2]), match[3]),
            ),
            (r"time_embed\.", lambda match: ("TIME", "IN00")),
            (r"label_emb\.", lambda match: ("LABEL", "IN00")),
            (r"out\.", lambda match: head),
        ),
        "diffusers": (
            (r"conv_in\.", lambda match: ("IN00",)),
            (
                rf"down_blocks\.(\d+)\.(resnet|attention)s\.(\d+)\.{_LAYER}",
                lambda match: encoder(3 * int(match[1]) + int(match[3]) + 1, _MODULES[match[2]], match[4]),
            ),
            (r"down_blocks\.(\d+)\.downsamplers\.", lambda match: encoder(3 * int(match[1]) + 3, 0, None)),
            (
                rf"mid_block\.(resnet|attention)s\.(\d+)\.{_LAYER}",
                lambda match: middle(2 * int(match[2]) + _MODULES[match[1]], match[3]),
            ),
            (
                rf"up_blocks\.(\d+)\.(resnet|attention)s\.(\d+)\.{_LAYER}",
                lambda match: decoder(3 * int(match[1]) + int(match[3]), _MODULES[match[2]], match[4]),
            ),
            # Where modules have names, every level with an upsampler has attention before it.
            (r"up_blocks\.(\d+)\.upsamplers\.", lambda match: decoder(3 * int(match[1]) + 2, 2, None)),
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
    modelspec="stable-diffusion-v2",
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

# The 110 of supermerger, in its order; the third one, IN0, is never looked up there.
_SDXL_PARTS = (
    *("CLIPL", "CLIPG", ""),
    *("IN00", "IN10", "IN20", "IN30", "IN40", "IN41", "IN410", "IN411", "IN50", "IN51", "IN510", "IN511"),
    *(
        "IN60",
        "IN70",
        "IN71",
        *(f"IN71{n}" for n in range(10)),
        "IN80",
        "IN81",
        *(f"IN81{n}" for n in range(10)),
    ),
    *("MID00", "MID10", *(f"MID10{n}" for n in range(10)), "MID20"),
    *("OUT00_0", "OUT00_1", *(f"OUT01{n}" for n in range(10))),
    *("OUT10", "OUT11", *(f"OUT11{n}" for n in range(10))),
    *("OUT20", "OUT21", *(f"OUT21{n}" for n in range(10)), "OUT22"),
    *("OUT30", "OUT31", "OUT310", "OUT311", "OUT40", "OUT41", "OUT410", "OUT411"),
    *("OUT50", "OUT51", "OUT510", "OUT511", "OUT52", "OUT60", "OUT70", "OUT80", "HEAD"),
    *("TIME", "LABEL", "VAE"),
)
_SDXL_FINE = ("TIME", "LABEL", "HEAD", "CLIPL", "CLIPG", "VAE")

SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    modelspec="stable-diffusion-xl-v1-base",
    resolution="1024x1024",
    main="unet",
    first=_FIRST,
    variants=_VARIANTS,
    blocks=_THREE_LEVELS,
    fine=(*_SDXL_FINE, *(part for part in _SDXL_PARTS if part not in ("", *_SDXL_FINE, *_THREE_LEVELS))),
    parts=_SDXL_PARTS,
    prefixes=_SDXL_PREFIXES,
    outside={"text_encoder": "CLIPL", "text_encoder_2": "CLIPG", "vae": "VAE"},
    rules=_rules(last=8, parts=_SDXL_PARTS),
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

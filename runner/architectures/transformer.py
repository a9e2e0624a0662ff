"""The transformer family: Stable Diffusion 3 and 3.5, and Flux.1.

Source: Stability-AI/sd3.5 (mmditx.py), black-forest-labs/flux (model.py); diffusers,
transformer_sd3.py and transformer_flux.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runner.architectures.base import Architecture, BlockRule, numbered
from runner.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]
_PREFIX = "model.diffusion_model."

_SD3_RULES: dict[str, tuple[BlockRule, ...]] = {
    "checkpoint": (
        (r"joint_blocks\.(\d+)\.", lambda match: (f"J{int(match[1]):02d}",)),
        (r"(?:x_embedder|context_embedder|t_embedder|y_embedder)\.|pos_embed", lambda match: ("IN",)),
        (r"final_layer\.", lambda match: ("OUT",)),
    ),
    "diffusers": (
        (r"transformer_blocks\.(\d+)\.", lambda match: (f"J{int(match[1]):02d}",)),
        (r"(?:pos_embed|context_embedder|time_text_embed)\.", lambda match: ("IN",)),
        (r"(?:norm_out|proj_out)\.", lambda match: ("OUT",)),
    ),
}

_FLUX_RULES: dict[str, tuple[BlockRule, ...]] = {
    "checkpoint": (
        (r"double_blocks\.(\d+)\.", lambda match: (f"D{int(match[1]):02d}",)),
        (r"single_blocks\.(\d+)\.", lambda match: (f"S{int(match[1]):02d}",)),
        (r"(?:img|txt|time|vector|guidance)_in\.", lambda match: ("IN",)),
        (r"final_layer\.", lambda match: ("OUT",)),
    ),
    "diffusers": (
        (r"transformer_blocks\.(\d+)\.", lambda match: (f"D{int(match[1]):02d}",)),
        (r"single_transformer_blocks\.(\d+)\.", lambda match: (f"S{int(match[1]):02d}",)),
        (r"(?:x_embedder|context_embedder|time_text_embed)\.", lambda match: ("IN",)),
        (r"(?:norm_out|proj_out)\.", lambda match: ("OUT",)),
    ),
}


def _count(specs: Specs, block: str) -> int:
    """How many blocks there are: the numbers after "...block." run from 0."""
    return len({key[len(block) :].partition(".")[0] for key in specs if key.startswith(block)})


def _is_sd3(blocks: int) -> dict[str, Callable[[Specs], bool]]:
    def checkpoint(specs: Specs) -> bool:
        prefix = _PREFIX if f"{_PREFIX}joint_blocks.0.x_block.attn.qkv.weight" in specs else ""
        return (
            f"{prefix}y_embedder.mlp.0.weight" in specs and _count(specs, f"{prefix}joint_blocks.") == blocks
        )

    def diffusers(specs: Specs) -> bool:
        return (
            "transformer/pos_embed.proj.weight" in specs
            and "transformer/transformer_blocks.0.attn.add_q_proj.weight" in specs
            and "transformer/time_text_embed.text_embedder.linear_1.weight" in specs
            and _count(specs, "transformer/transformer_blocks.") == blocks
        )

    return {"checkpoint": checkpoint, "diffusers": diffusers}


def _flux_checkpoint(specs: Specs) -> bool:
    prefix = _PREFIX if f"{_PREFIX}img_in.weight" in specs else ""
    needed = (
        *("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight"),
        *("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
    )
    return all(f"{prefix}{key}" in specs for key in needed)


def _flux_diffusers(specs: Specs) -> bool:
    needed = (
        *("x_embedder.weight", "context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"),
        *("transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.proj_mlp.weight"),
    )
    return all(f"transformer/{key}" in specs for key in needed)


def _sd3(name: str, title: str, modelspec: str, blocks: int) -> Architecture:
    return Architecture(
        name=name,
        title=title,
        modelspec=modelspec,
        resolution="1024x1024",
        main="transformer",
        first={"checkpoint": "x_embedder.proj.weight", "diffusers": "pos_embed.proj.weight"},
        variants={},
        blocks=("CLIPL", "CLIPG", "T5", "IN", *numbered("J", 0, blocks), "OUT", "VAE"),
        fine=(),
        prefixes={
            "model.diffusion_model.": "transformer",
            "text_encoders.clip_l.": "text_encoder",
            "text_encoders.clip_g.": "text_encoder_2",
            "text_encoders.t5xxl.": "text_encoder_3",
            "first_stage_model.": "vae",
        },
        outside={"text_encoder": "CLIPL", "text_encoder_2": "CLIPG", "text_encoder_3": "T5", "vae": "VAE"},
        rules=_SD3_RULES,
        recognise=_is_sd3(blocks),
    )


SD3 = _sd3("sd3", "Stable Diffusion 3", "stable-diffusion-v3-medium", 24)
SD35_LARGE = _sd3("sd35_large", "Stable Diffusion 3.5 Large", "stable-diffusion-3-5-large", 38)

FLUX = Architecture(
    name="flux",
    title="Flux.1",
    modelspec="flux-1-dev",
    resolution="1024x1024",
    main="transformer",
    first={"checkpoint": "img_in.weight", "diffusers": "x_embedder.weight"},
    variants={384: "inpainting"},  # 64 of the image, 64 of the masked image, 256 of the mask
    blocks=("CLIP", "T5", "IN", *numbered("D", 0, 19), *numbered("S", 0, 38), "OUT"),
    fine=("VAE",),
    prefixes={
        "model.diffusion_model.": "transformer",
        "text_encoders.clip_l.": "text_encoder",
        "text_encoders.t5xxl.": "text_encoder_2",
        "vae.": "vae",
        "first_stage_model.": "vae",
    },
    outside={"text_encoder": "CLIP", "text_encoder_2": "T5", "vae": "VAE"},
    rules=_FLUX_RULES,
    recognise={"checkpoint": _flux_checkpoint, "diffusers": _flux_diffusers},
)

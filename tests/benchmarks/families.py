"""The model families of the benchmarks: which real classes, with which configs, under which names in a file.

Source: the public configs of stable-diffusion-v1-5 and stable-diffusion-xl-base-1.0; the tensor counts in
`test_checkpoints.py` hold them to the real models.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Component:
    """One component of a pipeline.

    Attributes:
        library: Package of the class, `diffusers` or `transformers`.
        kind: Name of the class.
        config: Its config; whatever is absent is the class's default.
        prefix: What its keys begin with in a single file.
        scheme: Table of `layouts.py` that gives its names in a single file.
    """

    library: str
    kind: str
    config: dict[str, Any]
    prefix: str
    scheme: str


@dataclass(frozen=True)
class Family:
    """A pipeline and everything its folder holds beside the weights."""

    pipeline: str
    components: dict[str, Component]
    scheduler: tuple[str, dict[str, Any]]
    tokenizers: tuple[str, ...]
    index: dict[str, Any]
    schedule_buffers: bool  # whether single files carry the training schedule, as those of SD1.5 do


VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 512,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
OPEN_CLIP_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}

SD15 = Family(
    pipeline="StableDiffusionPipeline",
    components={
        "unet": Component(
            "diffusers",
            "UNet2DConditionModel",
            {
                "sample_size": 64,
                "in_channels": 4,
                "out_channels": 4,
                "layers_per_block": 2,
                "block_out_channels": [320, 640, 1280, 1280],
                "cross_attention_dim": 768,
                "attention_head_dim": 8,
                "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
                "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            },
            "model.diffusion_model.",
            "unet",
        ),
        "vae": Component(
            "diffusers", "AutoencoderKL", VAE | {"scaling_factor": 0.18215}, "first_stage_model.", "vae"
        ),
        "text_encoder": Component(
            "transformers", "CLIPTextModel", CLIP_L, "cond_stage_model.transformer.", "clip"
        ),
    },
    scheduler=("PNDMScheduler", BETAS | {"skip_prk_steps": True, "set_alpha_to_one": False}),
    tokenizers=("tokenizer",),
    index={
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    },
    schedule_buffers=True,
)

SDXL = Family(
    pipeline="StableDiffusionXLPipeline",
    components={
        "unet": Component(
            "diffusers",
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "in_channels": 4,
                "out_channels": 4,
                "layers_per_block": 2,
                "block_out_channels": [320, 640, 1280],
                "cross_attention_dim": 2048,
                "attention_head_dim": [5, 10, 20],
                "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
                "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
                "use_linear_projection": True,
                "transformer_layers_per_block": [1, 2, 10],
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            "model.diffusion_model.",
            "unet",
        ),
        "vae": Component(
            "diffusers",
            "AutoencoderKL",
            VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
            "first_stage_model.",
            "vae",
        ),
        "text_encoder": Component(
            "transformers", "CLIPTextModel", CLIP_L, "conditioner.embedders.0.transformer.", "clip"
        ),
        "text_encoder_2": Component(
            "transformers",
            "CLIPTextModelWithProjection",
            OPEN_CLIP_G,
            "conditioner.embedders.1.model.",
            "open_clip",
        ),
    },
    scheduler=("EulerDiscreteScheduler", BETAS | {"timestep_spacing": "leading"}),
    tokenizers=("tokenizer", "tokenizer_2"),
    index={
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "force_zeros_for_empty_prompt": True,
    },
    schedule_buffers=False,
)

FAMILIES = {"sd15": SD15, "sdxl": SDXL}

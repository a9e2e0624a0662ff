"""The configs of the demo models' components: the structure of Stable Diffusion 1.5 and of SDXL base.

A config is what its component's JSON file holds. Anything not said is the class's default, which is also
what the real models have. UNets are a fortieth as wide as theirs, VAEs a sixteenth.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Configs: TypeAlias = dict[str, dict[str, Any]]

POSITIONS = 77
VOCABULARY = 514  # every byte, every byte that ends a word, start and end of the text

_VERSION = {"_diffusers_version": "0.35.0"}


def _clip(class_name: str, width: int, layers: int, activation: str) -> dict[str, Any]:
    return {
        "architectures": [class_name],
        "model_type": "clip_text_model",
        "torch_dtype": "float32",  # else transformers 5 loads float16, diffusers float32
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "hidden_act": activation,
        "max_position_embeddings": POSITIONS,
        "vocab_size": VOCABULARY,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
    }


_UNET = {
    "_class_name": "UNet2DConditionModel",
    **_VERSION,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    **_VERSION,
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [8, 16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 4,
}
_SCHEDULER = {
    **_VERSION,
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}

SD: Configs = {
    "model_index": {
        "_class_name": "StableDiffusionPipeline",
        **_VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "scheduler": {
        "_class_name": "DDIMScheduler",
        **_SCHEDULER,
        "clip_sample": False,
        "set_alpha_to_one": False,
    },
    "text_encoder": _clip("CLIPTextModel", 32, 12, "quick_gelu"),
    "unet": {
        **_UNET,
        "block_out_channels": [8, 16, 32, 32],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "transformer_layers_per_block": [1, 1, 1, 1],
        "use_linear_projection": False,
        "addition_embed_type": None,
    },
    "vae": _VAE | {"scaling_factor": 0.18215},
}

SDXL: Configs = {
    "model_index": {
        "_class_name": "StableDiffusionXLPipeline",
        **_VERSION,
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "scheduler": {
        "_class_name": "EulerDiscreteScheduler",
        **_SCHEDULER,
        "timestep_spacing": "leading",
    },
    "text_encoder": _clip("CLIPTextModel", 32, 12, "quick_gelu"),
    "text_encoder_2": _clip("CLIPTextModelWithProjection", 48, 32, "gelu"),
    "unet": {
        **_UNET,
        "block_out_channels": [8, 16, 32],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        "cross_attention_dim": 32 + 48,  # both text encoders side by side
        "attention_head_dim": [1, 2, 4],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 48,  # six sizes, and the pooled second text encoder
    },
    "vae": _VAE | {"scaling_factor": 0.13025},
}

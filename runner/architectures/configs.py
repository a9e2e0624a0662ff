"""The configs of the pipelines an architecture comes in, for folders that no other pipeline lends its files.

A config is what its component's JSON file holds; anything not said is the class's default, which is also
what the real models have. What differs among models of an architecture is read from their headers.
Values: the pipelines that the makers of the models published; the classes of diffusers and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from runner.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]
Config: TypeAlias = dict[str, Any]
Shape = tuple[int | None, ...]

VERSION = {"_diffusers_version": "0.35.0"}  # the oldest that is supported


@dataclass(frozen=True)
class Component:
    """A component of a pipeline.

    Attributes:
        kind: its library and class.
        config: what its models have in common.
        tensors: how many it can have.
        sizes: tensor → shape; None for a size that may differ. Narrower or deeper models have others.
        read: the rest of the config, from the header of the component and what the model predicts.
    """

    kind: tuple[str, str]
    config: Config
    tensors: tuple[int, ...]
    sizes: Mapping[str, Shape]
    read: Callable[[Specs, str], Config] = lambda specs, prediction: {}


@dataclass(frozen=True)
class Pipeline:
    """The pipelines of an architecture.

    Attributes:
        classes: by variant, the class of the pipeline; None: the plain model.
        components: by name.
        tokenizers: name → class, of the library transformers.
        scheduler: its config, from what the model predicts ("epsilon", "v", "flow"), whether its noise
            ends at a signal of zero, and the header of the folder; None if there is none for that.
        index: what else stands in model_index.json.
    """

    classes: Mapping[str | None, str]
    components: Mapping[str, Component]
    tokenizers: Mapping[str, str]
    scheduler: Callable[[str, bool, Specs], Config | None]
    index: Config = field(default_factory=dict)


# ---- Text encoders.


def _clip(width: int, layers: int, heads: int, activation: str, projection: int | None) -> Component:
    """A text encoder of CLIP's kind; with a projection of its result if one is given."""
    name = "CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"
    config = {
        "architectures": [name],
        "model_type": "clip_text_model",
        "torch_dtype": "float32",  # what diffusers loads without being told, so that components agree
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "projection_dim": projection or {1024: 512}.get(width, width),
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }
    sizes: dict[str, Shape] = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        f"text_model.encoder.layers.{layers - 1}.mlp.fc1.weight": (4 * width, width),
    }
    if projection is not None:
        sizes["text_projection.weight"] = (projection, width)
    count = 16 * layers + 4 + (projection is not None)
    return Component(("transformers", name), config, (count,), sizes)


_CLIP_L = _clip(768, 12, 12, "quick_gelu", None)
_CLIP_L_PROJECTED = _clip(768, 12, 12, "quick_gelu", 768)
_CLIP_H = _clip(1024, 23, 16, "gelu", None)
_CLIP_G = _clip(1280, 32, 20, "gelu", 1280)
_T5 = Component(
    ("transformers", "T5EncoderModel"),
    {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "torch_dtype": "float32",
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 32128,
        "tie_word_embeddings": False,
    },
    (219,),
    {"shared.weight": (32128, 4096), "encoder.block.23.layer.1.DenseReluDense.wi_0.weight": (10240, 4096)},
)

# ---- VAEs.


def _vae(latent: int, sample: int, more: Config) -> Component:
    config = {
        "_class_name": "AutoencoderKL",
        **VERSION,
        "sample_size": sample,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latent,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        **more,
    }
    sizes: dict[str, Shape] = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.conv_out.weight": (2 * latent, 512, 3, 3),
        "decoder.conv_in.weight": (512, latent, 3, 3),
    }
    return Component(("diffusers", "AutoencoderKL"), config, (248 if latent == 4 else 244,), sizes)


_WIDE_RANGE = {"force_upcast": True}  # in float16 they overflow
_NO_CONVOLUTIONS = {"use_quant_conv": False, "use_post_quant_conv": False}
_VAE = _vae(4, 512, {"scaling_factor": 0.18215})
_VAE_SD2 = _vae(4, 768, {"scaling_factor": 0.18215})
_VAE_XL = _vae(4, 1024, {"scaling_factor": 0.13025, **_WIDE_RANGE})
_VAE_SD3 = _vae(
    *(16, 1024), {"scaling_factor": 1.5305, "shift_factor": 0.0609, **_WIDE_RANGE, **_NO_CONVOLUTIONS}
)
_VAE_FLUX = _vae(
    *(16, 1024), {"scaling_factor": 0.3611, "shift_factor": 0.1159, **_WIDE_RANGE, **_NO_CONVOLUTIONS}
)

# ---- UNets and transformers.


def _unet(
    tensors: int, widths: list[int], attentive: list[int], text: int, sample: int, more: Config
) -> Component:
    """A UNet.

    Args:
        tensors: how many it has.
        widths: channels of its levels.
        attentive: the levels with attention.
        text: width of the text it reads.
        sample: of the latent image.
        more: of its config.
    """
    cross = [level in attentive for level in range(len(widths))]
    config = {
        "_class_name": "UNet2DConditionModel",
        **VERSION,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": widths,
        "cross_attention_dim": text,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(cross)],
        **more,
    }
    last = max(attentive)
    to_k = f"down_blocks.{last}.attentions.1.transformer_blocks.0.attn2.to_k.weight"
    sizes: dict[str, Shape] = {
        "conv_in.weight": (widths[0], None, 3, 3),
        to_k: (widths[last], text),
        f"down_blocks.{len(widths) - 1}.resnets.1.conv2.weight": (widths[-1], widths[-1], 3, 3),
        "conv_out.weight": (4, widths[0], 3, 3),
    }

    def channels(specs: Specs, prediction: str) -> Config:
        size = sample if prediction == "v" or text != 1024 else 64  # Stable Diffusion 2 comes in two sizes
        return {"in_channels": specs["conv_in.weight"].shape[1], "sample_size": size}

    return Component(("diffusers", "UNet2DConditionModel"), config, (tensors,), sizes, channels)


_FOUR = [320, 640, 1280, 1280]
_SIZED: Config = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}


def _sd3_transformer(blocks: int) -> Component:
    width = 64 * blocks  # as many heads as blocks
    return Component(
        ("diffusers", "SD3Transformer2DModel"),
        {
            "_class_name": "SD3Transformer2DModel",
            **VERSION,
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": blocks,
            "attention_head_dim": 64,
            "num_attention_heads": blocks,
            "joint_attention_dim": 4096,
            "caption_projection_dim": width,
            "pooled_projection_dim": 2048,
        },
        (683, 909) if blocks == 24 else (1227,),
        {
            "pos_embed.proj.weight": (width, 16, 2, 2),
            "pos_embed.pos_embed": (1, None, width),
            f"transformer_blocks.{blocks - 1}.attn.to_q.weight": (width, width),
            "context_embedder.weight": (width, 4096),
        },
        _sd3_header,
    )


def _sd3_header(specs: Specs, prediction: str) -> Config:
    """3.5 normalises queries and keys; its medium size has second attentions and more positions."""
    double = (re.fullmatch(r"transformer_blocks\.(\d+)\.attn2\.to_q\.weight", key) for key in specs)
    config: Config = {
        "pos_embed_max_size": round(specs["pos_embed.pos_embed"].shape[1] ** 0.5),
        "dual_attention_layers": sorted(int(match[1]) for match in double if match),
    }
    if "transformer_blocks.0.attn.norm_q.weight" in specs:
        config["qk_norm"] = "rms_norm"
    return config


def _flux_header(specs: Specs, prediction: str) -> Config:
    return {
        "in_channels": specs["x_embedder.weight"].shape[1],
        "guidance_embeds": _GUIDANCE in specs,
    }


_GUIDANCE = "time_text_embed.guidance_embedder.linear_1.weight"
_FLUX = Component(
    ("diffusers", "FluxTransformer2DModel"),
    {
        "_class_name": "FluxTransformer2DModel",
        **VERSION,
        "patch_size": 1,
        "out_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": [16, 56, 56],
    },
    (1160, 1156),
    {
        "x_embedder.weight": (3072, None),
        "transformer_blocks.18.attn.to_q.weight": (3072, 3072),
        "single_transformer_blocks.37.attn.to_q.weight": (3072, 3072),
        "proj_out.weight": (64, 3072),
    },
    _flux_header,
)

# ---- Schedulers.

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


# What a model predicts → how configs of schedulers say it.
PREDICTION_WORDS = {"epsilon": "epsilon", "v": "v_prediction"}


def _sd_scheduler(prediction: str, zero: bool, specs: Specs) -> Config | None:
    common = {**VERSION, **_BETAS, "set_alpha_to_one": False}
    if prediction == "epsilon" and not zero:
        return {
            "_class_name": "PNDMScheduler",
            **common,
            "skip_prk_steps": True,
            "prediction_type": "epsilon",
        }
    if prediction not in PREDICTION_WORDS:
        return None
    word = PREDICTION_WORDS[prediction]
    config = {"_class_name": "DDIMScheduler", **common, "clip_sample": False, "prediction_type": word}
    return config | (ZERO_SNR if zero else {})


def _xl_scheduler(prediction: str, zero: bool, specs: Specs) -> Config | None:
    if prediction not in PREDICTION_WORDS:
        return None
    word = PREDICTION_WORDS[prediction]
    config = {"_class_name": "EulerDiscreteScheduler", **VERSION, **_BETAS, "prediction_type": word}
    return config | (ZERO_SNR if zero else {"timestep_spacing": "leading"})


# Models with zero terminal SNR begin at a step that is noise alone.
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
# The classes of diffusers that take it; the others pass over it without a word.
TAKE_ZERO_SNR = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMInverse", "DDIMParallel", "CogVideoXDDIM", "DDPM", "DDPMParallel"),
        *("DPMSolverMultistep", "CogVideoXDPM", "EulerDiscrete", "EulerAncestralDiscrete"),
        *("UniPCMultistep", "LCM", "TCD"),
    )
)


def _flow_scheduler(prediction: str, zero: bool, specs: Specs) -> Config | None:
    """Flux that is told its guidance shifts by the size of the image, Flux for few steps does not."""
    if prediction != "flow" or zero:
        return None
    config: Config = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        **VERSION,
        "num_train_timesteps": 1000,
        "shift": 3.0,
    }
    if "transformer/x_embedder.weight" not in specs:  # Stable Diffusion 3
        return config
    if f"transformer/{_GUIDANCE}" not in specs:
        return config | {"shift": 1.0, "use_dynamic_shifting": False}
    image = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    return config | {"use_dynamic_shifting": True, **image}


# ---- Pipelines.

_CHECKED = {
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}
_XL_INDEX = {"feature_extractor": [None, None], "image_encoder": [None, None]}
_ONE, _TWO = {"tokenizer": "CLIPTokenizer"}, {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}


def _sd3(blocks: int) -> Pipeline:
    return Pipeline(
        {None: "StableDiffusion3Pipeline"},
        {
            "transformer": _sd3_transformer(blocks),
            "text_encoder": _CLIP_L_PROJECTED,
            "text_encoder_2": _CLIP_G,
            "text_encoder_3": _T5,
            "vae": _VAE_SD3,
        },
        {**_TWO, "tokenizer_3": "T5TokenizerFast"},
        _flow_scheduler,
        _XL_INDEX,
    )


PIPELINES: dict[str, Pipeline] = {
    "sd1": Pipeline(
        {
            None: "StableDiffusionPipeline",
            "inpainting": "StableDiffusionInpaintPipeline",
            "pix2pix": "StableDiffusionInstructPix2PixPipeline",
        },
        {
            "unet": _unet(686, _FOUR, [0, 1, 2], 768, 64, {"attention_head_dim": 8}),
            "text_encoder": _CLIP_L,
            "vae": _VAE,
        },
        _ONE,
        _sd_scheduler,
        _CHECKED,
    ),
    "sd2": Pipeline(
        {None: "StableDiffusionPipeline", "inpainting": "StableDiffusionInpaintPipeline"},
        {
            "unet": _unet(
                *(686, _FOUR, [0, 1, 2], 1024, 96),
                {
                    "attention_head_dim": [5, 10, 20, 20],
                    "use_linear_projection": True,
                },
            ),
            "text_encoder": _CLIP_H,
            "vae": _VAE_SD2,
        },
        _ONE,
        _sd_scheduler,
        _CHECKED,
    ),
    "sdxl": Pipeline(
        {None: "StableDiffusionXLPipeline", "inpainting": "StableDiffusionXLInpaintPipeline"},
        {
            "unet": _unet(
                *(1680, [320, 640, 1280], [1, 2], 2048, 128),
                {
                    "attention_head_dim": [5, 10, 20],
                    "transformer_layers_per_block": [1, 2, 10],
                    "projection_class_embeddings_input_dim": 2816,
                    **_SIZED,
                },
            ),
            "text_encoder": _CLIP_L,
            "text_encoder_2": _CLIP_G,
            "vae": _VAE_XL,
        },
        _TWO,
        _xl_scheduler,
        {**_XL_INDEX, "force_zeros_for_empty_prompt": True},
    ),
    "sdxl_refiner": Pipeline(
        {None: "StableDiffusionXLImg2ImgPipeline"},
        {
            "unet": _unet(
                *(1220, [384, 768, 1536, 1536], [1, 2], 1280, 128),
                {
                    "attention_head_dim": [6, 12, 24, 24],
                    "transformer_layers_per_block": 4,
                    "projection_class_embeddings_input_dim": 2560,
                    **_SIZED,
                },
            ),
            "text_encoder_2": _CLIP_G,
            "vae": _VAE_XL,
        },
        {"tokenizer_2": "CLIPTokenizer"},
        _xl_scheduler,
        {
            **_XL_INDEX,
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
        },
    ),
    "sd3": _sd3(24),
    "sd35_large": _sd3(38),
    "flux": Pipeline(
        {None: "FluxPipeline", "inpainting": "FluxFillPipeline"},
        {"transformer": _FLUX, "text_encoder": _CLIP_L, "text_encoder_2": _T5, "vae": _VAE_FLUX},
        {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"},
        _flow_scheduler,
    ),
}

"""The contract of every architecture, held to the keys of the real classes in both layouts."""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.architectures import ARCHITECTURES, Architecture, Place, detect, expand_block, place
from runner.architectures.base import numbered
from runner.demo.models import DEMO_MODELS, demo_model
from runner.formats import FORMATS
from runner.tensors import TensorSpec

Specs = dict[str, TensorSpec]

# Source: the public configs of the models; what is not said is the class's default.
_SD = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
_SD21 = _SD | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
_SDXL = _SD | {
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
}
_REFINER = _SDXL | {
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}
_SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_SD35_LARGE = _SD3 | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}

# Architecture → class of its main component, and its config.
MAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("UNet2DConditionModel", _SD),
    "sd2": ("UNet2DConditionModel", _SD21),
    "sdxl": ("UNet2DConditionModel", _SDXL),
    "sdxl_refiner": ("UNet2DConditionModel", _REFINER),
    "sd3": ("SD3Transformer2DModel", _SD3),
    "sd35_large": ("SD3Transformer2DModel", _SD35_LARGE),
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
}
UNETS = [name for name, (kind, _) in MAIN.items() if kind == "UNet2DConditionModel"]


def _in_order(prefix: str, *counts: int) -> dict[str, int]:
    return {f"{prefix}{number:02d}": count for number, count in enumerate(counts)}


_SD_TENSORS = {
    **_in_order("IN", 2, 36, 36, 2, 38, 36, 2, 38, 36, 2, 10, 10),
    "M00": 46,
    **_in_order("OUT", 12, 12, 14, 38, 38, 40, 38, 38, 40, 38, 38, 38),
    "TIME": 4,
    "HEAD": 4,
}
# How many tensors each block has; what has a fine name is counted there.
TENSORS: dict[str, dict[str, int]] = {
    "sd1": _SD_TENSORS,
    "sd2": _SD_TENSORS,
    "sdxl": {
        **_in_order("IN", 2, 10, 10, 2, 58, 56, 2, 218, 216),
        "M00": 226,
        **_in_order("OUT", 218, 218, 220, 58, 58, 60, 12, 12, 12),
        "TIME": 4,
        "LABEL": 4,
        "HEAD": 4,
    },
    # A residual layer has 10 tensors, 12 if it changes the width; attention of depth n 6 + 20·n.
    "sdxl_refiner": {
        **_in_order("IN", 2, 10, 10, 2, 98, 96, 2, 98, 96, 2, 10, 10),
        "M00": 106,
        **_in_order("OUT", 12, 12, 14, 98, 98, 100, 98, 98, 100, 12, 12, 12),
        "TIME": 4,
        "LABEL": 4,
        "HEAD": 4,
    },
    # The last joint block has no way out for the text: 6 tensors fewer.
    "sd3": {"IN": 13, **_in_order("J", *[28] * 23, 22), "OUT": 4},
    # As before, and in each block norms of queries and keys, of the image and of the text.
    "sd35_large": {"IN": 13, **_in_order("J", *[32] * 37, 26), "OUT": 4},
    "flux": {"IN": 16, **_in_order("D", *[32] * 19), **_in_order("S", *[14] * 38), "OUT": 4},
}

# Keys of transformers in a single file, without its prefix, and what they are called in diffusers.
# Fused tensors stand for the first of their parts.
SD3_PAIRS = {
    "x_embedder.proj.weight": "pos_embed.proj.weight",
    "pos_embed": "pos_embed.pos_embed",
    "context_embedder.bias": "context_embedder.bias",
    "t_embedder.mlp.0.weight": "time_text_embed.timestep_embedder.linear_1.weight",
    "y_embedder.mlp.0.weight": "time_text_embed.text_embedder.linear_1.weight",
    "joint_blocks.0.x_block.attn.qkv.weight": "transformer_blocks.0.attn.to_q.weight",
    "joint_blocks.9.context_block.attn.qkv.bias": "transformer_blocks.9.attn.add_q_proj.bias",
    "joint_blocks.10.x_block.mlp.fc1.weight": "transformer_blocks.10.ff.net.0.proj.weight",
    "joint_blocks.23.context_block.adaLN_modulation.1.weight": (
        "transformer_blocks.23.norm1_context.linear.weight"
    ),
    "final_layer.adaLN_modulation.1.weight": "norm_out.linear.weight",
    "final_layer.linear.bias": "proj_out.bias",
}
FLUX_PAIRS = {
    "img_in.weight": "x_embedder.weight",
    "txt_in.weight": "context_embedder.weight",
    "time_in.in_layer.weight": "time_text_embed.timestep_embedder.linear_1.weight",
    "vector_in.in_layer.weight": "time_text_embed.text_embedder.linear_1.weight",
    "guidance_in.out_layer.bias": "time_text_embed.guidance_embedder.linear_2.bias",
    "double_blocks.0.img_attn.qkv.weight": "transformer_blocks.0.attn.to_q.weight",
    "double_blocks.9.txt_mlp.2.bias": "transformer_blocks.9.ff_context.net.2.bias",
    "double_blocks.18.img_mod.lin.weight": "transformer_blocks.18.norm1.linear.weight",
    "single_blocks.0.linear1.weight": "single_transformer_blocks.0.attn.to_q.weight",
    "single_blocks.10.modulation.lin.weight": "single_transformer_blocks.10.norm.linear.weight",
    "single_blocks.37.linear2.bias": "single_transformer_blocks.37.proj_out.bias",
    "final_layer.adaLN_modulation.1.bias": "norm_out.linear.bias",
    "final_layer.linear.weight": "proj_out.weight",
}
PAIRS = {"sd3": SD3_PAIRS, "sd35_large": SD3_PAIRS, "flux": FLUX_PAIRS}


def real(kind: str, component: str, **config: Any) -> Specs:
    """Tensors of a class of diffusers, as a component of a folder."""
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    return {f"{component}/{key}": TensorSpec("F16", shape) for key, shape in shapes.items()}


@functools.cache
def main_specs(name: str) -> Specs:
    """Tensors of the main component of an architecture, in a diffusers folder."""
    kind, config = MAIN[name]
    return real(kind, ARCHITECTURES[name].main, **config)


def benchmarks(module: str) -> Any:
    """A module of the benchmarks, which are scripts and import each other as such."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        return importlib.import_module(module)


@functools.cache
def pipeline(name: str) -> tuple[Any, ...]:
    """Every weight of SD1.5 (sd15) or SDXL (sdxl), with its keys in both layouts."""
    return tuple(benchmarks("layouts").weights(benchmarks("families").FAMILIES[name]))


def folder(name: str, *components: str) -> Specs:
    """Tensors of the diffusers folder of SD1.5 or SDXL; of the given components, or of all."""
    return {
        f"{weight.component}/{weight.key}": TensorSpec("F16", weight.shape)
        for weight in pipeline(name)
        if not components or weight.component in components
    }


def single_file(name: str, *components: str) -> Specs:
    """Tensors of the single file of SD1.5 or SDXL; of the given components, or of all."""
    return {
        weight.single_key: TensorSpec("F16", weight.single_shape)
        for weight in pipeline(name)
        if not components or weight.component in components
    }


def unet_in_a_single_file(name: str) -> dict[str, str]:
    """Key in a single file → key in a diffusers folder, for the UNet of an architecture."""
    _, config = MAIN[name]
    component = benchmarks("families").Component("diffusers", "UNet2DConditionModel", config, "", "unet")
    unet_name = benchmarks("layouts").unet_name
    keys = (key.removeprefix("unet/") for key in main_specs(name))
    return {f"model.diffusion_model.{unet_name(key, component)}": f"unet/{key}" for key in keys}


def single_specs(name: str, prefix: str = "model.diffusion_model.") -> Specs:
    """Tensors of the main component in a single file; of transformers only representative ones."""
    if name in UNETS:
        return {key: main_specs(name)[other] for key, other in unet_in_a_single_file(name).items()}
    keys = list(PAIRS[name])
    if name != "flux":
        keys += [f"joint_blocks.{at}.x_block.attn.proj.weight" for at in range(MAIN[name][1]["num_layers"])]
    return {prefix + key: TensorSpec("F16", (8, 8)) for key in keys}


def found(layout: str, specs: Mapping[str, TensorSpec]) -> str | None:
    """The name of what is detected; no two architectures may claim a model."""
    claims = [name for name, entry in ARCHITECTURES.items() if entry.recognise[layout](specs)]
    architecture = detect(layout, specs)
    assert claims == ([architecture.name] if architecture else [])
    return architecture.name if architecture else None


def with_shape(specs: Specs, key: str, *shape: int) -> Specs:
    return specs | {key: TensorSpec("F16", shape)}


def without(specs: Specs, text: str) -> Specs:
    return {key: spec for key, spec in specs.items() if text not in key}


# ---- The contract.


def test_these_tests_know_every_architecture() -> None:
    assert MAIN.keys() == TENSORS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_of_diffusers_is_recognised(name: str) -> None:
    assert found("diffusers", main_specs(name)) == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_single_file_is_recognised(name: str) -> None:
    assert found("checkpoint", single_specs(name)) == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_keys_of_the_main_component_are_divided_into_the_blocks_of_the_table(name: str) -> None:
    architecture = ARCHITECTURES[name]
    places = {key: place(architecture, "diffusers", key) for key in main_specs(name)}
    assert {at.component for at in places.values()} == {architecture.main}
    assert [key for key, at in places.items() if not at.blocks] == []
    counted = Counter(next(block for block in at.blocks if block in TENSORS[name]) for at in places.values())
    assert counted == TENSORS[name]
    known = {*architecture.blocks, *architecture.fine}
    assert {block for at in places.values() for block in at.blocks} <= known


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_fine_block_is_part_of_a_block(name: str) -> None:
    """Whoever gives no value for it gets that of the block."""
    architecture = ARCHITECTURES[name]
    for key in main_specs(name):
        blocks = place(architecture, "diffusers", key).blocks
        assert blocks[-1] in architecture.blocks
        assert all(block in architecture.fine for block in blocks[:-1])


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_has_the_same_blocks_in_both_layouts(name: str) -> None:
    architecture = ARCHITECTURES[name]
    for key, other in unet_in_a_single_file(name).items():
        assert place(architecture, "checkpoint", key) == place(architecture, "diffusers", other), key


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_every_weight_of_a_pipeline_has_the_same_place_in_both_layouts(name: str) -> None:
    architecture = detect("diffusers", folder(name))
    assert architecture is not None
    assert architecture is detect("checkpoint", single_file(name))
    for weight in pipeline(name):
        at = place(architecture, "checkpoint", weight.single_key)
        assert at == place(architecture, "diffusers", f"{weight.component}/{weight.key}"), weight.single_key
        assert at.component == weight.component
        assert at.blocks


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
@pytest.mark.parametrize("name", PAIRS)
def test_a_transformer_has_the_same_blocks_in_both_layouts_with_or_without_prefix(
    name: str, prefix: str
) -> None:
    architecture = ARCHITECTURES[name]
    for key, other in PAIRS[name].items():
        at = place(architecture, "checkpoint", prefix + key)
        assert f"transformer/{other}" in main_specs(name)
        assert at == place(architecture, "diffusers", f"transformer/{other}"), key
        assert len(at.blocks) == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_stands_for_itself_and_the_order_is_one_range(name: str) -> None:
    architecture = ARCHITECTURES[name]
    names = (*architecture.blocks, *architecture.fine)
    assert len(set(names)) == len(names)
    assert [expand_block(architecture, text) for text in names] == [(text,) for text in names]
    whole = f"{architecture.blocks[0]}-{architecture.blocks[-1]}"
    assert expand_block(architecture, whole) == architecture.blocks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_outside_the_main_component_are_names_of_the_architecture(name: str) -> None:
    architecture = ARCHITECTURES[name]
    names = {*architecture.blocks, *architecture.fine}
    assert set(architecture.outside.values()) <= names
    assert set(architecture.outside) < set(architecture.prefixes.values())
    assert architecture.main in architecture.prefixes.values()
    assert architecture.main not in architecture.outside


@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
@given(key=st.text(max_size=40))
def test_any_text_is_a_key_somewhere(layout: str, key: str) -> None:
    for architecture in (None, *ARCHITECTURES.values()):
        at = place(architecture, layout, key)
        assert isinstance(at, Place)
        assert all(at.blocks)


# ---- Names of blocks.


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd1", ("BASE", *numbered("IN", 0, 12), "M00", *numbered("OUT", 0, 12))),
        ("sd2", ("BASE", *numbered("IN", 0, 12), "M00", *numbered("OUT", 0, 12))),
        ("sdxl_refiner", ("BASE", *numbered("IN", 0, 12), "M00", *numbered("OUT", 0, 12))),
        ("sdxl", ("BASE", *numbered("IN", 0, 9), "M00", *numbered("OUT", 0, 9))),
        ("flux", ("CLIP", "T5", "IN", *numbered("D", 0, 19), *numbered("S", 0, 38), "OUT")),
        ("sd3", ("CLIPL", "CLIPG", "T5", "IN", *numbered("J", 0, 24), "OUT", "VAE")),
        ("sd35_large", ("CLIPL", "CLIPG", "T5", "IN", *numbered("J", 0, 38), "OUT", "VAE")),
    ],
)
def test_the_order_of_blocks_is_that_of_other_tools(name: str, blocks: tuple[str, ...]) -> None:
    assert ARCHITECTURES[name].blocks == blocks
    assert (
        len(blocks)
        == {
            **dict.fromkeys(("sd1", "sd2", "sdxl_refiner"), 26),
            "sdxl": 20,
            "flux": 61,
            "sd3": 30,
            "sd35_large": 44,
        }[name]
    )


@pytest.mark.parametrize(
    ("name", "text", "blocks"),
    [
        ("sd1", "IN04", ("IN04",)),
        ("sd1", "IN4", ("IN04",)),
        ("sd1", "OUT0", ("OUT00",)),
        ("sd1", "OUT11", ("OUT11",)),
        ("sd1", "M", ("M00",)),
        ("sd1", "MID", ("M00",)),
        ("sd1", "TIME", ("TIME",)),
        ("sd1", "CLIP", ("CLIP",)),
        ("sdxl", "CLIPG", ("CLIPG",)),
        ("sdxl", "LABEL", ("LABEL",)),
        ("sd1", "IN00-IN03", ("IN00", "IN01", "IN02", "IN03")),
        ("sd1", "IN11-OUT0", ("IN11", "M00", "OUT00")),
        ("sd1", "IN04-IN04", ("IN04",)),
        ("sdxl", "IN8-MID", ("IN08", "M00")),
        ("sd1", "BASE-IN1", ("BASE", "IN00", "IN01")),
        ("flux", "IN", ("IN",)),
        ("flux", "D3", ("D03",)),
        ("flux", "D18-S1", ("D18", "S00", "S01")),
        ("flux", "VAE", ("VAE",)),
        ("sd3", "J3", ("J03",)),
        ("sd3", "J22-VAE", ("J22", "J23", "OUT", "VAE")),
    ],
)
def test_a_name_of_blocks_stands_for(name: str, text: str, blocks: tuple[str, ...]) -> None:
    assert expand_block(ARCHITECTURES[name], text) == blocks


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sd1", ""),
        ("sd1", "-"),
        ("sd1", "IN"),
        ("sd1", "in04"),
        ("sd1", " IN04"),
        ("sd1", "IN004"),
        ("sd1", "IN12"),
        ("sd1", "M1"),
        ("sd1", "M01"),
        ("sd1", "LABEL"),
        ("sd1", "CLIPL"),
        ("sd1", "unet"),
        ("sd1", "IN05-IN04"),
        ("sd1", "IN04-"),
        ("sd1", "-IN04"),
        ("sd1", "IN00-IN01-IN02"),
        ("sd1", "IN00-IN12"),
        ("sd1", "TIME-IN03"),
        ("sd1", "IN00-TIME"),
        ("sdxl", "IN9"),
        ("sdxl", "CLIP"),
        ("flux", "M00"),
        ("flux", "MID"),
        ("flux", "D19"),
        ("flux", "BASE"),
        ("sd3", "J24"),
    ],
)
def test_a_name_of_no_block_stands_for_nothing(name: str, text: str) -> None:
    assert expand_block(ARCHITECTURES[name], text) is None


# ---- What is recognised, and what is not.


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_a_demo_model_is_what_it_stands_for(name: str, cache: Path) -> None:
    opened = FORMATS["diffusers"].open(demo_model(name, cache), name, None)
    assert found("diffusers", opened.specs) == ("sdxl" if name.startswith("sdxl") else "sd1")


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("specs_in", [folder, single_file])
@pytest.mark.parametrize("parts", [(), ("unet",), ("unet", "vae"), ("unet", "text_encoder")])
def test_a_model_is_recognised_whatever_stands_beside_its_unet(
    name: str, specs_in: Any, parts: tuple[str, ...]
) -> None:
    layout = "diffusers" if specs_in is folder else "checkpoint"
    assert found(layout, specs_in(name, *parts)) == {"sd15": "sd1", "sdxl": "sdxl"}[name]


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_for_inpainting_is_of_the_same_architecture(name: str) -> None:
    width = MAIN[name][1]["block_out_channels"][0]
    specs = with_shape(main_specs(name), "unet/conv_in.weight", width, 9, 3, 3)
    assert found("diffusers", specs) == name
    key = "model.diffusion_model.input_blocks.0.0.weight"
    assert found("checkpoint", with_shape(single_specs(name), key, width, 9, 3, 3)) == name


@pytest.mark.parametrize("name", PAIRS)
def test_a_transformer_without_its_prefix_is_recognised(name: str) -> None:
    assert found("checkpoint", single_specs(name, prefix="")) == name


def test_flux_schnell_which_takes_no_guidance_is_flux() -> None:
    assert found("diffusers", without(main_specs("flux"), "guidance_embedder")) == "flux"
    assert found("checkpoint", without(single_specs("flux"), "guidance_in")) == "flux"


def test_a_narrow_sd2_as_made_for_tests_is_sd2() -> None:
    narrow = {"block_out_channels": [32] * 4, "cross_attention_dim": 32, "attention_head_dim": 4}
    assert found("diffusers", real("UNet2DConditionModel", "unet", **_SD21 | narrow)) == "sd2"


def test_an_image_variation_of_sd2_is_sd2() -> None:
    """It is told the image through a class embedding, where SDXL is told sizes."""
    specs = real(
        *("UNet2DConditionModel", "unet"),
        **_SD21,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2048,
    )
    assert found("diffusers", specs) == "sd2"
    label = {"model.diffusion_model.label_emb.0.0.weight": TensorSpec("F16", (1280, 2048))}
    assert found("checkpoint", single_specs("sd2") | label) == "sd2"
    assert place(ARCHITECTURES["sd2"], "checkpoint", next(iter(label))).blocks == ("LABEL", "IN00")


_KANDINSKY = {
    "block_out_channels": [384, 768, 1152, 1536],
    "layers_per_block": 3,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "cross_attention_dim": 768,
    "attention_head_dim": 64,
    "addition_embed_type": "image",
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "resnet_time_scale_shift": "scale_shift",
}
# Models of diffusers of other architectures, some of them near relatives.
STRANGERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AnimateDiff": ("UNetMotionModel", "unet", {}),
    "AnimateDiff of SDXL": (
        *("UNetMotionModel", "unet"),
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlockMotion", *("CrossAttnDownBlockMotion",) * 2),
            "up_block_types": (*("CrossAttnUpBlockMotion",) * 2, "UpBlockMotion"),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
            "cross_attention_dim": 2048,
        },
    ),
    "text to video": ("UNet3DConditionModel", "unet", {"attention_head_dim": 64}),
    "I2VGen-XL": ("I2VGenXLUNet", "unet", {}),
    "Stable Video Diffusion": ("UNetSpatioTemporalConditionModel", "unet", {}),
    "Kandinsky 2.2": ("UNet2DConditionModel", "unet", _KANDINSKY),
    "unconditional": ("UNet2DModel", "unet", {}),
    "four levels, one layer each": ("UNet2DConditionModel", "unet", _SD | {"layers_per_block": 1}),
    "SD1 with the text of SD2": ("UNet2DConditionModel", "unet", _SD | {"cross_attention_dim": 1024}),
    "SD1 that is told sizes": (
        *("UNet2DConditionModel", "unet"),
        {**_SD, **{key: value for key, value in _SDXL.items() if "addition" in key or "class_emb" in key}},
    ),
    "SD1 of five levels": (
        *("UNet2DConditionModel", "unet"),
        {
            **_SD,
            "block_out_channels": [320, 640, 1280, 1280, 1280],
            "down_block_types": ["CrossAttnDownBlock2D"] * 4 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 4,
        },
    ),
    "SD1 of three layers a level": ("UNet2DConditionModel", "unet", _SD | {"layers_per_block": 3}),
    "PixArt": ("PixArtTransformer2DModel", "transformer", {"num_layers": 2}),
    "AuraFlow": (
        *("AuraFlowTransformer2DModel", "transformer"),
        {"num_mmdit_layers": 1, "num_single_dit_layers": 1},
    ),
    "Chroma": ("ChromaTransformer2DModel", "transformer", {"num_layers": 2, "num_single_layers": 2}),
    "SD3 of another depth": ("SD3Transformer2DModel", "transformer", _SD3 | {"num_layers": 12}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", STRANGERS)
def test_a_model_of_another_architecture_is_unknown(name: str) -> None:
    kind, component, config = STRANGERS[name]
    assert found("diffusers", real(kind, component, **config)) is None


LORA = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
)
TIME_STACK = "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight"


@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
def test_what_is_no_model_of_a_known_architecture_is_unknown(layout: str) -> None:
    spec = TensorSpec("F16", (8, 8))
    assert found(layout, {}) is None
    assert found(layout, dict.fromkeys(("a", "b.weight", "unet/x", "model.diffusion_model.0"), spec)) is None
    assert found(layout, dict.fromkeys(LORA, spec)) is None
    assert found(layout, folder("sd15", "vae")) is None
    assert found(layout, folder("sdxl", "text_encoder", "text_encoder_2")) is None
    assert found(layout, single_file("sd15", "vae")) is None
    assert found(layout, single_file("sdxl", "text_encoder", "text_encoder_2")) is None


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_keys_of_one_layout_mean_nothing_in_the_other(name: str) -> None:
    assert found("checkpoint", main_specs(name)) is None
    assert found("diffusers", single_specs(name)) is None


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_over_time_is_unknown(name: str) -> None:
    key = "unet/conv_in.weight"
    assert found("diffusers", with_shape(main_specs(name), key, 320, 4, 3, 3, 3)) is None
    assert found("checkpoint", with_shape(single_specs(name), TIME_STACK, 320)) is None


def test_kolors_is_no_sdxl_though_it_has_its_unet() -> None:
    key = "encoder_hid_proj.weight"
    assert found("diffusers", with_shape(main_specs("sdxl"), f"unet/{key}", 2048, 4096)) is None
    assert (
        found("checkpoint", with_shape(single_specs("sdxl"), f"model.diffusion_model.{key}", 2048, 4096))
        is None
    )


def test_a_unet_of_three_levels_that_is_told_no_sizes_is_unknown() -> None:
    assert found("diffusers", without(main_specs("sdxl"), "add_embedding")) is None
    assert found("checkpoint", without(single_specs("sdxl"), "label_emb")) is None


def test_a_refiner_that_is_told_no_sizes_is_unknown() -> None:
    assert found("diffusers", without(main_specs("sdxl_refiner"), "add_embedding")) is None
    assert found("checkpoint", without(single_specs("sdxl_refiner"), "label_emb")) is None


# ---- Places outside the main component.

PLACES: list[tuple[str | None, str, str, Place]] = [
    # Text encoders and VAE have a name of their own and are part of BASE.
    ("sd1", "diffusers", "text_encoder/text_model.x", Place("text_encoder", ("CLIP", "BASE"))),
    ("sd1", "diffusers", "vae/decoder.conv_in.weight", Place("vae", ("VAE", "BASE"))),
    ("sd1", "diffusers", "safety_checker/x", Place("safety_checker", ("BASE",))),
    ("sd1", "checkpoint", "cond_stage_model.transformer.x", Place("text_encoder", ("CLIP", "BASE"))),
    ("sd2", "checkpoint", "cond_stage_model.model.ln_final.bias", Place("text_encoder", ("CLIP", "BASE"))),
    ("sd1", "checkpoint", "first_stage_model.decoder.x", Place("vae", ("VAE", "BASE"))),
    ("sd1", "checkpoint", "alphas_cumprod", Place("other", ("BASE",))),
    # A running mean of the UNet is not the UNet.
    ("sd1", "checkpoint", "model_ema.decay", Place("unet", ("BASE",))),
    ("sd1", "checkpoint", "model_ema.diffusion_modelinput_blocks00weight", Place("unet", ("BASE",))),
    ("sdxl", "checkpoint", "conditioner.embedders.0.transformer.x", Place("text_encoder", ("CLIPL", "BASE"))),
    ("sdxl", "checkpoint", "conditioner.embedders.1.model.x", Place("text_encoder_2", ("CLIPG", "BASE"))),
    (
        "sdxl",
        "diffusers",
        "text_encoder_2/text_projection.weight",
        Place("text_encoder_2", ("CLIPG", "BASE")),
    ),
    (
        "sdxl_refiner",
        "checkpoint",
        "conditioner.embedders.0.model.x",
        Place("text_encoder_2", ("CLIPG", "BASE")),
    ),
    ("sdxl_refiner", "diffusers", "text_encoder_2/x", Place("text_encoder_2", ("CLIPG", "BASE"))),
    # Transformers have no BASE.
    ("sd3", "checkpoint", "text_encoders.clip_l.transformer.x", Place("text_encoder", ("CLIPL",))),
    ("sd3", "checkpoint", "text_encoders.clip_g.transformer.x", Place("text_encoder_2", ("CLIPG",))),
    ("sd3", "checkpoint", "text_encoders.t5xxl.transformer.x", Place("text_encoder_3", ("T5",))),
    ("sd3", "diffusers", "text_encoder_3/shared.weight", Place("text_encoder_3", ("T5",))),
    ("sd3", "checkpoint", "first_stage_model.decoder.x", Place("vae", ("VAE",))),
    ("sd3", "checkpoint", "what", Place("other")),
    ("flux", "checkpoint", "text_encoders.clip_l.transformer.x", Place("text_encoder", ("CLIP",))),
    ("flux", "checkpoint", "text_encoders.t5xxl.transformer.x", Place("text_encoder_2", ("T5",))),
    ("flux", "diffusers", "text_encoder_2/shared.weight", Place("text_encoder_2", ("T5",))),
    ("flux", "checkpoint", "vae.decoder.x", Place("vae", ("VAE",))),
    # A key of the main component that nobody tabled belongs to no block.
    ("sd1", "diffusers", "unet/encoder_hid_proj.weight", Place("unet")),
    ("flux", "checkpoint", "model.diffusion_model.scaled_fp8", Place("transformer")),
    # What precedes a name must be all of it.
    ("sd1", "diffusers", "unet/my.conv_in.weight", Place("unet")),
    ("sd1", "checkpoint", "my.model.diffusion_model.out.0.weight", Place("other", ("BASE",))),
    # Unknown architectures: components by prefix or folder, blocks by number.
    (None, "checkpoint", "model.diffusion_model.layers.3.mlp.0.weight", Place("model", ("layers.3",))),
    (None, "checkpoint", "first_stage_model.decoder.up.2.x", Place("vae", ("up.2",))),
    (None, "checkpoint", "conditioner.embedders.1.model.x", Place("text_encoder_2")),
    (None, "checkpoint", "model_ema.decay", Place("model")),
    (None, "checkpoint", "blocks.10.norm.weight", Place("other", ("blocks.10",))),
    (None, "checkpoint", "logit_scale", Place("other")),
    (None, "diffusers", "prior/transformer_blocks.7.norm1.bias", Place("prior", ("transformer_blocks.7",))),
    (None, "diffusers", "prior/down.0.block.1.x", Place("prior", ("down.0",))),
    (None, "diffusers", "prior/proj.weight", Place("prior")),
    (None, "diffusers", "prior/layers.3", Place("prior")),
]


@pytest.mark.parametrize(("name", "layout", "key", "expected"), PLACES)
def test_a_key_stands_at(name: str | None, layout: str, key: str, expected: Place) -> None:
    architecture: Architecture | None = ARCHITECTURES[name] if name else None
    assert place(architecture, layout, key) == expected

"""Where each tensor of a model lives in its two layouts: a diffusers folder and a single file.

Keys and shapes come from the real classes, built on the meta device; single-file names follow from them in
closed form. `differences` takes the way back with diffusers' own converters: neither side is trusted alone.
"""

import importlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from families import Component, Family

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """One tensor of a component, and the piece of a single-file tensor it is.

    Attributes:
        component: Name of the folder, `unet`.
        key: Key in the folder's file.
        shape: Its shape there.
        single_key: Key in the single file.
        single_shape: Shape of that whole tensor.
        start: First element of the piece in it; not 0 only for k and v of a fused `in_proj`.
        transposed: Whether the single file holds the transpose.
    """

    component: str
    key: str
    shape: Shape
    single_key: str
    single_shape: Shape
    start: int = 0
    transposed: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(key: str, component: Component) -> str:
    """Returns the LDM name of a UNet key: layer j of block i is input 3i+j+1 or output 3i+j."""
    stem, leaf = key.rsplit(".", 1)
    if stem in UNET_TOP:
        return f"{UNET_TOP[stem]}.{leaf}"
    layers = component.config["layers_per_block"]
    side, *rest = key.split(".")
    if side == "mid_block":
        kind, index, *inner = rest
        block = "middle_block"
        part = "1" if kind == "attentions" else str(2 * int(index))
    else:
        block_index, kind, layer, *inner = rest
        i, j = int(block_index), int(layer)
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            part = "2" if component.config["up_block_types"][i].startswith("CrossAttn") else "1"
            return f"output_blocks.{(layers + 1) * i + layers}.{part}.conv.{leaf}"
        number = (layers + 1) * i + j + (side == "down_blocks")
        block = f"{'input' if side == 'down_blocks' else 'output'}_blocks.{number}"
        part = "0" if kind == "resnets" else "1"
    if kind == "resnets":
        inner[0] = RESNET[inner[0]]
    return ".".join([block, part, *inner])


def vae_name(key: str, component: Component) -> str:
    """Returns the LDM name of a VAE key: decoder blocks count from the other end."""
    last = len(component.config["block_out_channels"]) - 1
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{last - int(m[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    if attention := re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)$", key):
        return f"{attention[1]}mid.attn_1.{VAE_ATTENTION[attention[2]]}.{attention[3]}"
    return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def unet_weight(name: str, key: str, shape: Shape, component: Component) -> Weight:
    """Returns a UNet tensor: the same in both layouts but for its name."""
    return Weight(name, key, shape, component.prefix + unet_name(key, component), shape)


def vae_weight(name: str, key: str, shape: Shape, component: Component) -> Weight:
    """Returns a VAE tensor: the matrices of its attention are 1×1 convolutions in a single file."""
    single_shape = (*shape, 1, 1) if ".attentions." in key and len(shape) == 2 else shape
    return Weight(name, key, shape, component.prefix + vae_name(key, component), single_shape)


def clip_weight(name: str, key: str, shape: Shape, component: Component) -> Weight:
    """Returns a tensor of CLIP-L, under the prefix that published files have and transformers 5.6 dropped."""
    key = "text_model." + key.removeprefix("text_model.")
    return Weight(name, key, shape, component.prefix + key, shape)


def open_clip_weight(name: str, key: str, shape: Shape, component: Component) -> Weight:
    """Returns a tensor of OpenCLIP, where q, k, v are rows of one tensor and the projection is transposed."""
    if key in OPEN_CLIP_TOP:
        transposed = key == "text_projection.weight"
        single_shape = shape[::-1] if transposed else shape
        return Weight(
            name, key, shape, component.prefix + OPEN_CLIP_TOP[key], single_shape, transposed=transposed
        )
    layer, inner, leaf = re.fullmatch(
        r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", key
    ).groups()
    stem = f"{component.prefix}transformer.resblocks.{layer}."
    if fused := re.fullmatch(r"self_attn\.([qkv])_proj", inner):
        start = "qkv".index(fused[1]) * math.prod(shape)
        return Weight(name, key, shape, f"{stem}attn.in_proj_{leaf}", (3 * shape[0], *shape[1:]), start)
    return Weight(name, key, shape, f"{stem}{OPEN_CLIP_LAYER[inner]}.{leaf}", shape)


SCHEMES: dict[str, Callable[[str, str, Shape, Component], Weight]] = {
    "unet": unet_weight,
    "vae": vae_weight,
    "clip": clip_weight,
    "open_clip": open_clip_weight,
}


def build(component: Component) -> Any:
    """Returns the real model on the meta device."""
    kind = getattr(importlib.import_module(component.library), component.kind)
    with torch.device("meta"):
        if component.library == "transformers":
            return kind(kind.config_class(**component.config))
        return kind.from_config(component.config)


def weights(family: Family) -> list[Weight]:
    """Returns every weight of a family, component by component, in the order of the classes."""
    return [
        SCHEMES[component.scheme](name, key, tuple(tensor.shape), component)
        for name, component in family.components.items()
        for key, tensor in build(component).state_dict().items()
    ]


def single_shapes(listed: Iterable[Weight]) -> dict[str, Shape]:
    """Returns key and shape of every weight of the single file."""
    return {weight.single_key: weight.single_shape for weight in listed}


def schedule() -> dict[str, np.ndarray]:
    """Returns the buffers of the training schedule at the top of SD1.5 files: twelve of 1000 float32.

    Source: CompVis/stable-diffusion, ldm/models/diffusion/ddpm.py, `register_schedule`.
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    product = np.cumprod(1 - betas)
    before = np.append(1.0, product[:-1])
    variance = betas * (1 - before) / (1 - product)
    buffers = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(product),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - product),
        "log_one_minus_alphas_cumprod": np.log(1 - product),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / product),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / product - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - product),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - product),
    }
    return {name: values.astype(np.float32) for name, values in buffers.items()}


def extras(family: Family) -> dict[str, np.ndarray]:
    """Returns what a single file holds beside weights, equal in every model: ids, logit scale, schedule."""
    found: dict[str, np.ndarray] = {}
    for component in family.components.values():
        if component.scheme == "clip":
            positions = np.arange(component.config["max_position_embeddings"], dtype=np.int64)[None]
            found[f"{component.prefix}text_model.embeddings.position_ids"] = positions
        if component.scheme == "open_clip":
            found[f"{component.prefix}logit_scale"] = np.array(math.log(100), np.float16)
    return found | (schedule() if family.schedule_buffers else {})


def convert(tensors: dict[str, torch.Tensor], name: str, component: Component) -> dict[str, torch.Tensor]:
    """Returns one component of a single file as diffusers' converters make it."""
    from diffusers.loaders import single_file_utils as diffusers

    tensors = dict(tensors)
    if component.scheme == "unet":
        config = build(component).config
        return diffusers.convert_ldm_unet_checkpoint(tensors, config)
    if component.scheme == "vae":
        return diffusers.convert_ldm_vae_checkpoint(tensors, component.config)
    if component.scheme == "clip":
        return diffusers.convert_ldm_clip_checkpoint(tensors, component.prefix)
    width = SimpleNamespace(config=SimpleNamespace(hidden_size=component.config["hidden_size"]))
    return diffusers.convert_open_clip_checkpoint(width, tensors, prefix=component.prefix)


def differences(shapes: dict[str, Shape], family: Family) -> list[str]:
    """Returns how a single file, through diffusers' converters, differs from the real classes."""
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found: list[str] = []
    for name, component in family.components.items():
        made = {key: tuple(t.shape) for key, t in convert(tensors, name, component).items()}
        made = {key: shape for key, shape in made.items() if not key.endswith("position_ids")}
        found += [f"{name}: {line}" for line in unlike(made, model_shapes(component))]
    return found


def model_shapes(component: Component) -> dict[str, Shape]:
    """Returns key and shape of the class's state dict, CLIP-L under its published prefix."""
    prefix = "text_model." if component.scheme == "clip" else ""
    return {
        prefix + key.removeprefix(prefix): tuple(t.shape) for key, t in build(component).state_dict().items()
    }


def unlike(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Returns a line for each key that is missing, extra or of another value."""
    return [
        f"{key}: found {found.get(key)}, expected {expected.get(key)}"
        for key in sorted(found.keys() | expected.keys())
        if found.get(key) != expected.get(key)
    ]

"""The names single files give the tensors that diffusers' classes hold.

The UNets are in closed form: with resolution level i and layer j, down_blocks.i.*.j is
input_blocks.(3i+j+1), up_blocks.i.*.j is output_blocks.(3i+j); inside, the resnet is part 0.
test_single_file_keys.py compares all of it with diffusers' converters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIX = "model.diffusion_model."

_OUTSIDE_BLOCKS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_IN_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.")
_SAMPLER = re.compile(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv\.")


def ldm_names(keys: Iterable[str]) -> dict[str, str]:
    """The single-file name of each tensor of a UNet, prefix included.

    Args:
        keys: all keys of UNet2DConditionModel, without the component.
    """
    keys = list(keys)
    return {key: PREFIX + _unet_name(key, keys) for key in keys}


def _unet_name(key: str, keys: list[str]) -> str:
    for theirs, ours in _OUTSIDE_BLOCKS.items():
        if key.startswith(theirs):
            return ours + _inside(key.removeprefix(theirs), resnet=".resnets." in key)
    if match := _LAYER.match(key):
        half, level, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        block = (
            f"input_blocks.{3 * level + layer + 1}."
            if half == "down"
            else f"output_blocks.{3 * level + layer}."
        )
        resnet = kind == "resnets"
        return f"{block}{0 if resnet else 1}.{_inside(key[match.end() :], resnet)}"
    match = _SAMPLER.match(key)
    assert match, key
    half, level, rest = match[1], int(match[2]), key[match.end() :]
    if half == "down":
        return f"input_blocks.{3 * level + 3}.0.op.{rest}"
    part = 2 if any(other.startswith(f"up_blocks.{level}.attentions.") for other in keys) else 1
    return f"output_blocks.{3 * level + 2}.{part}.conv.{rest}"


def _inside(rest: str, resnet: bool) -> str:
    for theirs, ours in _IN_RESNET.items() if resnet else ():
        if rest.startswith(theirs):
            return ours + rest.removeprefix(theirs)
    return rest


def _linear(*modules: str) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def flux_names(guided: bool = True, double: int = 19, single: int = 38) -> list[str]:
    """The keys of a Flux transformer in a single file, without prefix."""
    embedders = ["time_in", "vector_in", *(["guidance_in"] if guided else [])]
    keys = _linear(
        "img_in", "txt_in", *(f"{name}.{end}_layer" for name in embedders for end in ("in", "out"))
    )
    for block in (f"double_blocks.{number}." for number in range(double)):
        for stream in ("img", "txt"):
            parts = ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")
            keys += _linear(*(f"{block}{stream}_{part}" for part in parts))
            keys += [f"{block}{stream}_attn.norm.{of}_norm.scale" for of in ("query", "key")]
    for block in (f"single_blocks.{number}." for number in range(single)):
        keys += _linear(*(f"{block}{part}" for part in ("modulation.lin", "linear1", "linear2")))
        keys += [f"{block}norm.{of}_norm.scale" for of in ("query", "key")]
    return keys + _linear("final_layer.linear", "final_layer.adaLN_modulation.1")


def sd3_names(blocks: int = 24, norms: bool = False) -> list[str]:
    """The keys of a Stable Diffusion 3 transformer in a single file, without prefix.

    Args:
        blocks: how many joint blocks.
        norms: whether queries and keys are normalised, as in 3.5.
    """
    embedders = (f"{name}_embedder.mlp.{layer}" for name in "ty" for layer in (0, 2))
    keys = ["pos_embed", *_linear("x_embedder.proj", "context_embedder", *embedders)]
    for number in range(blocks):
        for stream in ("x", "context"):
            block = f"joint_blocks.{number}.{stream}_block."
            last = stream == "context" and number == blocks - 1  # nothing reads its output
            keys += _linear(block + "attn.qkv", block + "adaLN_modulation.1")
            keys += [] if last else _linear(block + "attn.proj", block + "mlp.fc1", block + "mlp.fc2")
            keys += [f"{block}attn.ln_{of}.weight" for of in "qk"] if norms else []
    return keys + _linear("final_layer.linear", "final_layer.adaLN_modulation.1")

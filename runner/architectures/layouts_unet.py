"""The two layouts of UNets of the family of Stable Diffusion.

With resolution level i and layer j, down_blocks.i.*.j is input_blocks.(3i+j+1) and up_blocks.i.*.j is
output_blocks.(3i+j). Inside, part 0 is the resnet, part 1 the attention; up- and downsamplers come last.
Source: CompVis/stable-diffusion and Stability-AI/generative-models, openaimodel.py; diffusers,
unet_2d_condition.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from runner.architectures.ties import Tie, tied

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
# Inside an attention both layouts use the same names.
_ATTENTION = ("norm", "proj_in", "proj_out")
_LAYER = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
_UNBIASED = tuple(f"attn{number}.to_{of}" for number in (1, 2) for of in "qkv")
_DEPTH = 10  # transformer layers of the deepest attention of the family


def unet(levels: int, attentive: Collection[int], embedding: str | None = None) -> Iterator[Tie]:
    """Ties of a UNet.

    Args:
        levels: resolutions of the encoder.
        attentive: levels with attention.
        embedding: what diffusers calls the embedding of what else it is told; None if that is nothing.
    """
    label = {f"label_emb.0.{number}": f"{embedding}.linear_{1 + number // 2}" for number in (0, 2)}
    yield from tied(_TOP | (label if embedding else {}))
    for level in range(levels):
        for layer in range(2):
            ours, theirs = f"input_blocks.{3 * level + layer + 1}", f"down_blocks.{level}"
            yield from _resnet(f"{ours}.0", f"{theirs}.resnets.{layer}")
            if level in attentive:
                yield from _attention(f"{ours}.1", f"{theirs}.attentions.{layer}")
        if level < levels - 1:
            yield from tied(
                {f"input_blocks.{3 * level + 3}.0.op": f"down_blocks.{level}.downsamplers.0.conv"}
            )
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _resnet("middle_block.2", "mid_block.resnets.1")
    for level in range(levels):
        attends = levels - 1 - level in attentive
        for layer in range(3):
            ours, theirs = f"output_blocks.{3 * level + layer}", f"up_blocks.{level}"
            yield from _resnet(f"{ours}.0", f"{theirs}.resnets.{layer}")
            if attends:
                yield from _attention(f"{ours}.1", f"{theirs}.attentions.{layer}")
        if level < levels - 1:
            part = 2 if attends else 1
            yield from tied(
                {f"output_blocks.{3 * level + 2}.{part}.conv": f"up_blocks.{level}.upsamplers.0.conv"}
            )


def _resnet(ours: str, theirs: str) -> list[Tie]:
    return tied({f"{ours}.{single}": f"{theirs}.{part}" for single, part in _RESNET.items()})


def _attention(ours: str, theirs: str) -> Iterator[Tie]:
    layers = [f"transformer_blocks.{number}." for number in range(_DEPTH)]
    names = [*_ATTENTION, *(layer + name for layer in layers for name in _LAYER)]
    yield from tied({f"{ours}.{name}": f"{theirs}.{name}" for name in names})
    names = [layer + name for layer in layers for name in _UNBIASED]
    yield from tied({f"{ours}.{name}": f"{theirs}.{name}" for name in names}, ends=(".weight",))

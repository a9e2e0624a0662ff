"""The two layouts of the VAE.

The decoder's blocks are counted from the other end, and the matrices of its attention are 1x1 convolutions
in single files. Source: CompVis/stable-diffusion, model.py; diffusers, autoencoder_kl.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.architectures.ties import Tie, tied

_LEVELS = 4
_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

# What diffusers before 0.17 called the matrices of the attention.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def vae() -> Iterator[Tie]:
    """Ties of a VAE, with or without the convolutions next to the latent image."""
    yield from tied({name: name for name in ("quant_conv", "post_quant_conv")})
    for half in ("encoder", "decoder"):
        yield from tied({f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")})
        yield from tied({f"{half}.norm_out": f"{half}.conv_norm_out"})
        for number in (0, 1):
            yield from _resnet(f"{half}.mid.block_{number + 1}", f"{half}.mid_block.resnets.{number}")
        yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
    for level in range(_LEVELS):
        down, down_blocks = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        up, up_blocks = f"decoder.up.{_LEVELS - 1 - level}", f"decoder.up_blocks.{level}"
        for layer in range(2):
            yield from _resnet(f"{down}.block.{layer}", f"{down_blocks}.resnets.{layer}")
        for layer in range(3):
            yield from _resnet(f"{up}.block.{layer}", f"{up_blocks}.resnets.{layer}")
        if level < _LEVELS - 1:
            yield from tied({f"{down}.downsample.conv": f"{down_blocks}.downsamplers.0.conv"})
            yield from tied({f"{up}.upsample.conv": f"{up_blocks}.upsamplers.0.conv"})


def _resnet(ours: str, theirs: str) -> list[Tie]:
    return tied({f"{ours}.{single}": f"{theirs}.{part}" for single, part in _RESNET.items()})


def _attention(ours: str, theirs: str) -> Iterator[Tie]:
    yield from tied({f"{ours}.norm": f"{theirs}.group_norm"})
    for single, part in _ATTENTION.items():
        yield Tie(f"{ours}.{single}.weight", (f"{theirs}.{part}.weight",), form="pointwise")
        yield from tied({f"{ours}.{single}": f"{theirs}.{part}"}, ends=(".bias",))

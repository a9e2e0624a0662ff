"""Keys and shapes of the weights of a component, from its config.json.

What diffusers and transformers would build, without the seconds their import takes. It covers what the
demo models use; a test compares it with the classes themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Config: TypeAlias = Mapping[str, Any]
Shapes: TypeAlias = dict[str, tuple[int, ...]]


def unet_shapes(config: Config) -> Shapes:
    """Key → shape of a UNet2DConditionModel."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    depths = config["transformer_layers_per_block"]
    time = 4 * widths[0]

    def attention(name: str, width: int, depth: int) -> Shapes:
        return _transformer(
            name, width, depth, config["cross_attention_dim"], config["use_linear_projection"]
        )

    shapes = _conv("conv_in", config["in_channels"], widths[0])
    shapes |= _two_linears("time_embedding", widths[0], time)
    if config["addition_embed_type"] == "text_time":
        shapes |= _two_linears("add_embedding", config["projection_class_embeddings_input_dim"], time)

    width = widths[0]
    skips = [width]  # channels of each tensor handed from the way down to the way up
    for level, kind in enumerate(config["down_block_types"]):
        block = f"down_blocks.{level}"
        for i in range(layers):
            shapes |= _resnet(f"{block}.resnets.{i}", width, widths[level], time)
            width = widths[level]
            skips.append(width)
            if kind == "CrossAttnDownBlock2D":
                shapes |= attention(f"{block}.attentions.{i}", width, depths[level])
        if level < len(widths) - 1:
            shapes |= _conv(f"{block}.downsamplers.0.conv", width, width)
            skips.append(width)

    shapes |= _resnet("mid_block.resnets.0", width, width, time)
    shapes |= attention("mid_block.attentions.0", width, depths[-1])
    shapes |= _resnet("mid_block.resnets.1", width, width, time)

    for step, kind in enumerate(config["up_block_types"]):
        block, level = f"up_blocks.{step}", len(widths) - 1 - step
        for i in range(layers + 1):
            shapes |= _resnet(f"{block}.resnets.{i}", width + skips.pop(), widths[level], time)
            width = widths[level]
            if kind == "CrossAttnUpBlock2D":
                shapes |= attention(f"{block}.attentions.{i}", width, depths[level])
        if level > 0:
            shapes |= _conv(f"{block}.upsamplers.0.conv", width, width)
    return shapes | _norm("conv_norm_out", width) | _conv("conv_out", width, config["out_channels"])


def vae_shapes(config: Config) -> Shapes:
    """Key → shape of an AutoencoderKL."""
    widths, layers, latent = (
        config["block_out_channels"],
        config["layers_per_block"],
        config["latent_channels"],
    )
    shapes = _conv("quant_conv", 2 * latent, 2 * latent, size=1) | _conv(
        "post_quant_conv", latent, latent, size=1
    )

    shapes |= _conv("encoder.conv_in", config["in_channels"], widths[0])
    shapes |= _vae_blocks("encoder.down_blocks", widths, layers, "downsamplers")
    shapes |= _vae_ends("encoder", widths[-1], widths[-1], 2 * latent)

    shapes |= _conv("decoder.conv_in", latent, widths[-1])
    shapes |= _vae_blocks("decoder.up_blocks", widths[::-1], layers + 1, "upsamplers")
    return shapes | _vae_ends("decoder", widths[-1], widths[0], config["out_channels"])


def clip_shapes(config: Config) -> Shapes:
    """Key → shape of a CLIPTextModel, or of a CLIPTextModelWithProjection if its config says so."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (config["vocab_size"], hidden),
        "text_model.embeddings.position_embedding.weight": (config["max_position_embeddings"], hidden),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{part}", hidden, hidden)
        shapes |= _linear(f"{layer}.mlp.fc1", hidden, inner) | _linear(f"{layer}.mlp.fc2", inner, hidden)
        shapes |= _norm(f"{layer}.layer_norm1", hidden) | _norm(f"{layer}.layer_norm2", hidden)
    shapes |= _norm("text_model.final_layer_norm", hidden)
    if config["architectures"] == ["CLIPTextModelWithProjection"]:
        shapes |= _linear("text_projection", hidden, config["projection_dim"], bias=False)
    return shapes


def _resnet(name: str, inputs: int, width: int, time: int | None = None) -> Shapes:
    shapes = _norm(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", inputs, width)
    shapes |= _norm(f"{name}.norm2", width) | _conv(f"{name}.conv2", width, width)
    if time is not None:
        shapes |= _linear(f"{name}.time_emb_proj", time, width)
    if inputs != width:
        shapes |= _conv(f"{name}.conv_shortcut", inputs, width, size=1)
    return shapes


def _transformer(name: str, width: int, depth: int, context: int, linear_projection: bool) -> Shapes:
    shapes = _norm(f"{name}.norm", width)
    for part in ("proj_in", "proj_out"):
        projection = f"{name}.{part}"
        shapes |= (
            _linear(projection, width, width)
            if linear_projection
            else _conv(projection, width, width, size=1)
        )
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, source in (("attn1", width), ("attn2", context)):
            shapes |= _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_k", source, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_v", source, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
        for part in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{block}.{part}", width)
        # The gated activation halves what its projection gives: 2 × 4 × width in, 4 × width out.
        shapes |= _linear(f"{block}.ff.net.0.proj", width, 8 * width)
        shapes |= _linear(f"{block}.ff.net.2", 4 * width, width)
    return shapes


def _vae_blocks(name: str, widths: Sequence[int], layers: int, resamplers: str) -> Shapes:
    shapes: Shapes = {}
    width = widths[0]
    for level, out in enumerate(widths):
        for i in range(layers):
            shapes |= _resnet(f"{name}.{level}.resnets.{i}", width, out)
            width = out
        if level < len(widths) - 1:
            shapes |= _conv(f"{name}.{level}.{resamplers}.0.conv", width, width)
    return shapes


def _vae_ends(name: str, middle: int, width: int, out: int) -> Shapes:
    """The middle block of an encoder or decoder, and what follows its last block."""
    shapes = _resnet(f"{name}.mid_block.resnets.0", middle, middle)
    shapes |= _resnet(f"{name}.mid_block.resnets.1", middle, middle)
    shapes |= _norm(f"{name}.mid_block.attentions.0.group_norm", middle)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= _linear(f"{name}.mid_block.attentions.0.{part}", middle, middle)
    return shapes | _norm(f"{name}.conv_norm_out", width) | _conv(f"{name}.conv_out", width, out)


def _two_linears(name: str, inputs: int, width: int) -> Shapes:
    return _linear(f"{name}.linear_1", inputs, width) | _linear(f"{name}.linear_2", width, width)


def _conv(name: str, inputs: int, width: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (width, inputs, size, size), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, width: int, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (width, inputs)}
    return shapes | {f"{name}.bias": (width,)} if bias else shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

"""The two layouts of text encoders: CLIP as OpenAI's and as OpenCLIP's code names it, and T5.

Source: transformers, modeling_clip.py and modeling_t5.py; mlfoundations/open_clip, transformer.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.architectures.ties import Tie, fused, tied

_CLIP = "text_model."
_ATTENTION = tuple(f"self_attn.{of}_proj" for of in ("q", "k", "v"))
_LAYER = (*_ATTENTION, "self_attn.out_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
_OPEN_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def clip(layers: int, *, projection: bool = False) -> Iterator[Tie]:
    """Ties of a CLIP text encoder that single files hold as transformers names it.

    Args:
        layers: of its encoder.
        projection: whether the folder's class has the projection of the text.
    """
    names = [f"encoder.layers.{number}.{name}" for number in range(layers) for name in _LAYER]
    names = [_CLIP + name for name in (*names, "final_layer_norm")]
    yield from tied({f"transformer.{name}": name for name in names})
    names = [f"{_CLIP}embeddings.{of}_embedding" for of in ("token", "position")]
    names += ["text_projection"] if projection else []
    yield from tied({f"transformer.{name}": name for name in names}, ends=(".weight",))


def open_clip(layers: int, *, projection: bool = True) -> Iterator[Tie]:
    """Ties of a CLIP text encoder that single files hold as OpenCLIP names it.

    Args:
        layers: of the folder's class; the single file may have one more that nobody reads.
        projection: whether the folder's class has the projection of the text.
    """
    yield from tied({"model.ln_final": f"{_CLIP}final_layer_norm"})
    yield Tie("model.token_embedding.weight", (f"{_CLIP}embeddings.token_embedding.weight",))
    yield Tie("model.positional_embedding", (f"{_CLIP}embeddings.position_embedding.weight",))
    if projection:
        yield Tie("model.text_projection", ("text_projection.weight",), form="transposed")
    for number in range(layers):
        ours, theirs = f"model.transformer.resblocks.{number}.", f"{_CLIP}encoder.layers.{number}."
        yield from tied({ours + single: theirs + part for single, part in _OPEN_LAYER.items()})
        yield from fused(f"{ours}attn.in_proj", [theirs + name for name in _ATTENTION], sep="_")


def t5(layers: int = 24) -> Iterator[Tie]:
    """Ties of the encoder of a T5 of version 1.1: the same names, under a prefix in single files."""
    names = [
        "shared",
        "encoder.final_layer_norm",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    ]
    for block in (f"encoder.block.{number}.layer." for number in range(layers)):
        names += [f"{block}0.SelfAttention.{of}" for of in "qkvo"] + [f"{block}0.layer_norm"]
        names += [f"{block}1.DenseReluDense.{of}" for of in ("wi_0", "wi_1", "wo")] + [f"{block}1.layer_norm"]
    yield from tied({f"transformer.{name}": name for name in names}, ends=(".weight",))

"""The two layouts of transformers: Stable Diffusion 3 and 3.5, and Flux.1.

Single files hold query, key and value as one layer. Where only scale and shift are made, the original code
takes shift first and diffusers scale. Source: Stability-AI/sd3.5, mmditx.py; black-forest-labs/flux,
model.py and layers.py; diffusers, transformer_sd3.py and transformer_flux.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from runner.architectures.ties import Tie, fused, swapped, tied

_IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def sd3(blocks: int) -> Iterator[Tie]:
    """Ties of a transformer of Stable Diffusion 3 or 3.5 of so many blocks."""
    yield Tie("pos_embed", ("pos_embed.pos_embed",))
    yield from tied({"x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder"})
    for letter, of in {"t": "timestep", "y": "text"}.items():
        theirs = f"time_text_embed.{of}_embedder.linear_"
        yield from tied({f"{letter}_embedder.mlp.0": f"{theirs}1", f"{letter}_embedder.mlp.2": f"{theirs}2"})
    for number in range(blocks):
        yield from _sd3_block(
            f"joint_blocks.{number}.", f"transformer_blocks.{number}.", number == blocks - 1
        )
    yield from tied({"final_layer.linear": "proj_out"})
    yield from swapped("final_layer.adaLN_modulation.1", "norm_out.linear")


def _sd3_block(block: str, theirs: str, last: bool) -> Iterator[Tie]:
    ours, text = f"{block}x_block.", f"{block}context_block."
    # The second attention is that of 3.5 medium, in its first blocks; the norms are those of 3.5.
    for attention in ("attn", "attn2"):
        parts = [f"{theirs}{attention}.to_{of}" for of in "qkv"]
        yield from fused(f"{ours}{attention}.qkv", parts)
        yield from tied({f"{ours}{attention}.proj": f"{theirs}{attention}.to_out.0"})
        for of in "qk":
            yield Tie(f"{ours}{attention}.ln_{of}.weight", (f"{theirs}{attention}.norm_{of}.weight",))
    yield from fused(f"{text}attn.qkv", [theirs + part for part in _TEXT])
    for of in "qk":
        yield Tie(f"{text}attn.ln_{of}.weight", (f"{theirs}attn.norm_added_{of}.weight",))
    yield from tied(
        {
            f"{ours}adaLN_modulation.1": f"{theirs}norm1.linear",
            f"{ours}mlp.fc1": f"{theirs}ff.net.0.proj",
            f"{ours}mlp.fc2": f"{theirs}ff.net.2",
        }
    )
    if last:  # nothing reads what it would say of the text
        yield from swapped(f"{text}adaLN_modulation.1", f"{theirs}norm1_context.linear")
        return
    yield from tied(
        {
            f"{text}adaLN_modulation.1": f"{theirs}norm1_context.linear",
            f"{text}attn.proj": f"{theirs}attn.to_add_out",
            f"{text}mlp.fc1": f"{theirs}ff_context.net.0.proj",
            f"{text}mlp.fc2": f"{theirs}ff_context.net.2",
        }
    )


def flux(double: int = 19, single: int = 38) -> Iterator[Tie]:
    """Ties of a Flux.1 transformer; schnell has none of the guidance."""
    yield from tied({"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"})
    yield from swapped("final_layer.adaLN_modulation.1", "norm_out.linear")
    for name, of in {"time": "timestep", "vector": "text", "guidance": "guidance"}.items():
        theirs = f"time_text_embed.{of}_embedder.linear_"
        yield from tied({f"{name}_in.in_layer": f"{theirs}1", f"{name}_in.out_layer": f"{theirs}2"})
    for number in range(double):
        ours, theirs = f"double_blocks.{number}.", f"transformer_blocks.{number}."
        yield from _flux_stream(f"{ours}img_", theirs, "", _IMAGE, "to_out.0", "norm_")
        yield from _flux_stream(f"{ours}txt_", theirs, "_context", _TEXT, "to_add_out", "norm_added_")
    for number in range(single):
        ours, theirs = f"single_blocks.{number}.", f"single_transformer_blocks.{number}."
        yield from tied(
            {f"{ours}modulation.lin": f"{theirs}norm.linear", f"{ours}linear2": f"{theirs}proj_out"}
        )
        parts = [theirs + part for part in (*_IMAGE, "proj_mlp")]
        yield from fused(f"{ours}linear1", parts, shares=(1, 1, 1, 4))
        yield from _flux_norms(f"{ours}norm.", f"{theirs}attn.norm_")


def _flux_stream(
    ours: str, theirs: str, suffix: str, qkv: tuple[str, ...], out: str, norm: str
) -> Iterator[Tie]:
    """Ties of the image's or the text's half of a double block."""
    yield from fused(f"{ours}attn.qkv", [theirs + part for part in qkv])
    yield from _flux_norms(f"{ours}attn.norm.", f"{theirs}attn.{norm}")
    yield from tied(
        {
            f"{ours}mod.lin": f"{theirs}norm1{suffix}.linear",
            f"{ours}attn.proj": f"{theirs}attn.{out}",
            f"{ours}mlp.0": f"{theirs}ff{suffix}.net.0.proj",
            f"{ours}mlp.2": f"{theirs}ff{suffix}.net.2",
        }
    )


def _flux_norms(ours: str, theirs: str) -> Iterator[Tie]:
    for of in ("query", "key"):
        yield Tie(f"{ours}{of}_norm.scale", (f"{theirs}{of[0]}.weight",))

"""The architectures a model can be recognised as: one table each, and one line in ARCHITECTURES.

A layout is "checkpoint" (one file, keys as the original code names them) or "diffusers" (keys are
component/name). Models of architectures nobody tabled merge by key all the same; their blocks are
the numbered modules their keys show.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from runner.architectures.base import Architecture as Architecture
from runner.architectures.base import BlocksOf
from runner.architectures.base import Place as Place
from runner.architectures.transformer import FLUX, SD3, SD35_LARGE
from runner.architectures.unet import SD1, SD2, SDXL, SDXL_REFINER
from runner.tensors import TensorSpec

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (SD1, SD2, SDXL, SDXL_REFINER, SD3, SD35_LARGE, FLUX)
}

# In a single file of an unknown architecture, what keys of well-known components begin with.
WELL_KNOWN = {
    "first_stage_model.": "vae",
    "vae.": "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
    "text_encoders.": "text_encoder",
    "model.diffusion_model.": "model",
    "model_ema.": "model",
}
_NUMBERED = re.compile(r"[A-Za-z_]\w*\.\d+(?=\.)")


def detect(layout: str, specs: Mapping[str, TensorSpec]) -> Architecture | None:
    """The architecture of a model, from the keys and shapes of its tensors; None if it is none we know."""
    return next((found for found in ARCHITECTURES.values() if found.recognise[layout](specs)), None)


def variant(architecture: Architecture, layout: str, specs: Mapping[str, TensorSpec]) -> str | None:
    """What else than the plain model it is, by the channels it takes in: "inpainting"; None if plain."""
    main, first = architecture.main, architecture.first[layout]
    begins = [f"{main}/"] if layout == "diffusers" else ["model.diffusion_model.", ""]
    spec = next((spec for begin in begins if (spec := specs.get(begin + first))), None)
    return architecture.variants.get(spec.shape[1]) if spec and len(spec.shape) > 1 else None


def place(architecture: Architecture | None, layout: str, key: str) -> Place:
    """The component and the blocks of a key.

    Args:
        architecture: None for an unknown one.
        layout: "checkpoint" or "diffusers".
        key: as the layout names it.
    """
    component, inner = _split(architecture, layout, key)
    if architecture is None:
        match = _NUMBERED.search(inner)
        return Place(component, (match[0],) if match else ())
    if component != architecture.main or key.startswith("model_ema."):
        name = architecture.outside.get(component)
        blocks = [name] if name else []
        return Place(component, (*blocks, "BASE") if "BASE" in architecture.blocks else tuple(blocks))
    for pattern, blocks_of in _compiled(architecture.name, layout):
        if found := pattern.match(inner):
            return Place(component, blocks_of(found))
    return Place(component)


def _split(architecture: Architecture | None, layout: str, key: str) -> tuple[str, str]:
    """The component of a key, and the key inside it."""
    if layout == "diffusers":
        component, _, inner = key.partition("/")
        return component, inner
    prefixes = architecture.prefixes if architecture else WELL_KNOWN
    for prefix, component in prefixes.items():
        if key.startswith(prefix):
            return component, key[len(prefix) :]
    # A file that holds only the main component often leaves its prefix out.
    if architecture and any(re.match(pattern, key) for pattern, _ in architecture.rules[layout]):
        return architecture.main, key
    return "other", key


@functools.cache
def _compiled(name: str, layout: str) -> list[tuple[re.Pattern[str], BlocksOf]]:
    return [(re.compile(pattern), blocks) for pattern, blocks in ARCHITECTURES[name].rules[layout]]


def expand_block(architecture: Architecture, text: str) -> tuple[str, ...] | None:
    """The blocks a name stands for; None if it is none.

    Args:
        architecture: whose names are meant.
        text: a block (IN04), a fine name (TIME), a part (IN411), an alias (MID, M, IN4), or a range of
            blocks (IN00-IN05) or of parts (IN410-IN511) in order of depth.
    """
    first, dash, last = text.partition("-")
    begin = _block(architecture, first)
    if not dash or begin is None:
        return (begin,) if begin and not dash else None
    end = _block(architecture, last)
    for order in (architecture.blocks, architecture.parts):
        if begin in order and end in order and order.index(begin) <= order.index(end):
            return tuple(filter(None, order[order.index(begin) : order.index(end) + 1]))
    return None


def _block(architecture: Architecture, name: str) -> str | None:
    if name in ("M", "MID"):
        name = "M00"
    elif name == "OUT9" and architecture.parts:
        name = "HEAD"  # the part behind the last block
    elif re.fullmatch(r"(IN|OUT|D|S|J)\d", name):
        name = f"{name[:-1]}0{name[-1]}"
    return name if name in architecture.blocks or name in architecture.fine else None

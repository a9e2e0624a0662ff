"""How each tool lays block weights on a model: what its numbers stand for, and where the rest falls.

Source: sd-webui-supermerger (2025-11), sd-meh 0.9.5, sd-mecha 1.1.8, Chattiori-Model-Merger (2024-10),
ComfyUI (nodes_model_merging.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.architectures import ARCHITECTURES, Architecture, Place

# What stands in the place of a block where a tool leaves a tensor as it is in the first model.
LEFT = "LEFT"
# sd-meh has 25 numbers for every UNet, and the head takes the last of them even where no block does.
_SLOT = "SLOT25"
_OTHER = ""  # a tensor of the main component in no block
_LAST = "LAST"  # the last block, whatever its number

_FAMILIES = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sdxl_refiner": "sdxl", "flux": "flux"}
_LORA = (12, 17)  # how many numbers block weights of LoRAs have


@dataclass(frozen=True, slots=True)
class Dialect:
    """The habits of a tool.

    Attributes:
        falls: by family, fine names and where they fall if nothing is given for them.
        nameless: families in which tensors with neither "weight" nor "bias" in their name are left.
        copies: whether the time embedding in EMA copies falls where that of the model does.
        sliders: whether numbers are given by prefix, and are the share of the first model.
        skips: ends of names of tensors that are left.
    """

    falls: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nameless: frozenset[str] = frozenset()
    copies: bool = True
    sliders: bool = False
    skips: tuple[str, ...] = ()


_VAE_LEFT = {"VAE": LEFT}
_TEXT_LEFT = {"CLIP": LEFT, "CLIPL": LEFT, "CLIPG": LEFT, "T5": LEFT, **_VAE_LEFT}

DIALECTS: dict[str, Dialect] = {
    "runner": Dialect({"flux": _VAE_LEFT}),
    "supermerger": Dialect({"flux": _VAE_LEFT}, nameless=frozenset({"sd", "sdxl", "flux", "other"})),
    "sd-meh": Dialect(
        {"sd": {"LABEL": "BASE", _OTHER: "BASE"}, "sdxl": {"LABEL": "BASE", "HEAD": _SLOT, _OTHER: "BASE"}},
        copies=False,
    ),
    "sd-mecha": Dialect(
        {
            "sd": {"TIME": "BASE", "LABEL": "BASE", _OTHER: _LAST},
            "sdxl": {"TIME": "BASE", "LABEL": "BASE", "VAE": "VAE", _OTHER: _LAST},
        },
        copies=False,
    ),
    "chattiori": Dialect(
        {
            "sd": {"TIME": "OUT11", "LABEL": "OUT11", **_VAE_LEFT},
            "sdxl": {"TIME": LEFT, "LABEL": LEFT, **_VAE_LEFT},
            "flux": _VAE_LEFT,
        },
        nameless=frozenset({"sdxl"}),
    ),
    "comfyui": Dialect(
        dict.fromkeys(("sd", "sdxl", "flux", "other"), _TEXT_LEFT),
        sliders=True,
        skips=(".position_ids", ".logit_scale"),
    ),
}


def fall(dialect: Dialect, architecture: Architecture | None, key: str, name: str | None, at: Place) -> Place:
    """Where a dialect looks for the number of a key.

    Args:
        dialect: of DIALECTS.
        architecture: of the model; None if unknown.
        key: as the model names it.
        name: as a single file names it; None if that is not known.
        at: where the key stands.

    Returns:
        The place with other blocks; LEFT among them if the dialect does not merge the key.
    """
    if architecture is None:
        return at
    family = _FAMILIES.get(architecture.name, "other")
    nameless = family in dialect.nameless and _nameless(architecture, key, name)
    if nameless or (name or key).endswith(dialect.skips or ("\n",)):
        return Place(at.component, (LEFT,))
    falls = dialect.falls.get(family, {})
    if key.startswith("model_ema."):
        if "time_embed" not in key or not dialect.copies:
            return at
        return Place(at.component, (falls.get("TIME", "IN00"),))
    fine = at.blocks[0] if at.blocks else _OTHER
    if fine not in falls or (fine == _OTHER and at.component != architecture.main):
        return at
    block = falls[fine]
    if block == _LAST or (block == _SLOT and len(architecture.blocks) == len(ARCHITECTURES["sd1"].blocks)):
        block = architecture.blocks[-1]
    return Place(at.component, tuple(dict.fromkeys((fine, block))) if fine else (block,))


def _nameless(architecture: Architecture, key: str, name: str | None) -> bool:
    if name is None:
        # The two tensors that only diffusers calls weights: modules there, parameters in OpenCLIP's code.
        clip = "text_encoder/" if architecture.name == "sd2" else "text_encoder_2/"
        parameters = (".position_embedding.weight", "text_projection.weight")
        return key.startswith(clip) and key.endswith(parameters)
    return "weight" not in name and "bias" not in name


def layouts(dialect: str, architecture: Architecture) -> dict[int, tuple[str, ...]]:
    """What the numbers of a list stand for, by how many there are.

    Args:
        dialect: in DIALECTS.
        architecture: of the model.

    Returns:
        Names of blocks in the order of the list; "" for a number that is not used. A list without BASE
        needs one beside it if the architecture has it.
    """
    blocks = architecture.blocks
    if architecture.name != "sdxl":
        return {len(blocks): blocks, **({len(blocks) - 1: blocks[1:]} if blocks[0] == "BASE" else {})}
    four = [block if block in blocks else "" for block in ARCHITECTURES["sd1"].blocks]
    if dialect == "sd-meh":
        four[-1] = _SLOT
        return {26: tuple(four), 25: tuple(four[1:])}
    own = {20: blocks, 19: blocks[1:]}
    if dialect == "sd-mecha":
        return {21: (*blocks, "VAE"), **own}
    last = "VAE" if dialect == "runner" else ""
    found = {26: tuple(four), 25: tuple(four[1:]), 21: (*blocks, last), **own}
    return found if dialect == "chattiori" else {**found, 110: architecture.parts}


def misfit(dialect: str, architecture: Architecture, count: int, decimal: bool) -> str:
    """Why a list of so many numbers does not fit, with what would.

    Args:
        dialect: in DIALECTS.
        architecture: of the model.
        count: how many numbers there are.
        decimal: whether any of them has a decimal point.
    """
    fitting = layouts(dialect, architecture)
    expected = " or ".join(
        f"{length}{' with base:' if wants_base(architecture, names) else ''}"
        for length, names in sorted(fitting.items(), reverse=True)
    )
    hint = ""
    others = [other.title for other in ARCHITECTURES.values() if count in layouts(dialect, other)]
    if count in _LORA:
        hint = "; block weights of a LoRA?"
    elif others:
        hint = f"; a string for {others[0]}?"
    elif not decimal and count % 2 == 0 and count // 2 in fitting:
        hint = "; decimal commas? write decimal points"
    return f"{count} numbers do not fit {architecture.title}: expected {expected}{hint}"


def wants_base(architecture: Architecture, names: tuple[str, ...]) -> bool:
    """Whether a list for these names needs a number for BASE beside it."""
    return "BASE" in architecture.blocks and "BASE" not in names and names != architecture.parts

"""From one layout of a model to the other, tensor by tensor.

The layouts are "checkpoint" (a single file, names of the original code) and "diffusers" (component/name);
whatever needs rows or matrices as the model computes with them takes them in the second. Names that older
and newer software gives the same tensor are read, and one of them is written. What a map does not know it
reports and never guesses. Only headers are needed: a result says which rows of which sources it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from runner.architectures import ARCHITECTURES
from runner.architectures.base import Architecture
from runner.architectures.layouts_text import clip, open_clip, t5
from runner.architectures.layouts_transformer import flux, sd3
from runner.architectures.layouts_unet import unet
from runner.architectures.layouts_vae import OLD_ATTENTION, vae
from runner.architectures.left import Kind, Left, reason
from runner.architectures.ties import Made, MisfitError, Tie
from runner.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Conversion:
    """A model's tensors as made of those of its other layout.

    Attributes:
        made: key in the layout it is converted to → what it is made of.
        left: key in the layout it is converted from → why it has no part in that. Every other key of the
            source has: each of its elements is in one of the results, once.
    """

    made: dict[str, Made]
    left: dict[str, Left]


Ties = Callable[[], Iterable[Tie]]
_SD3_TEXTS: dict[str, Ties] = {
    "text_encoder": lambda: clip(12, projection=True),
    "text_encoder_2": lambda: clip(32, projection=True),
    "text_encoder_3": t5,
    "vae": vae,
}

# Architecture → component → ties of its tensors.
COMPONENTS: dict[str, dict[str, Ties]] = {
    "sd1": {
        "unet": lambda: unet(4, (0, 1, 2)),
        "text_encoder": lambda: clip(12),
        "vae": vae,
    },
    "sd2": {
        "unet": lambda: unet(4, (0, 1, 2), "class_embedding"),
        "text_encoder": lambda: open_clip(23, projection=False),
        "vae": vae,
    },
    "sdxl": {
        "unet": lambda: unet(3, (1, 2), "add_embedding"),
        "text_encoder": lambda: clip(12),
        "text_encoder_2": lambda: open_clip(32),
        "vae": vae,
    },
    "sdxl_refiner": {
        "unet": lambda: unet(4, (1, 2), "add_embedding"),
        "text_encoder_2": lambda: open_clip(32),
        "vae": vae,
    },
    "sd3": {"transformer": lambda: sd3(24), **_SD3_TEXTS},
    "sd35_large": {"transformer": lambda: sd3(38), **_SD3_TEXTS},
    "flux": {
        "transformer": flux,
        "text_encoder": lambda: clip(12),
        "text_encoder_2": t5,
        "vae": vae,
    },
}

# By layout, what is written → how else software has written it.
_SPELLINGS: dict[str, dict[str, str]] = {
    "checkpoint": {
        ".transformer.text_model.": ".transformer.",
        ".transformer.shared.": ".transformer.encoder.embed_tokens.",
    },
    "diffusers": {
        "/text_model.": "/",
        "/shared.": "/encoder.embed_tokens.",
        **{f".attentions.0.{new}.": f".attentions.0.{old}." for new, old in OLD_ATTENTION.items()},
    },
}


@dataclass(frozen=True)
class _Table:
    """The ties of an architecture by whole keys, and by layout every spelling of a key → the one written."""

    ties: tuple[Tie, ...]
    by_single: dict[str, Tie]
    single_of: dict[str, str]
    spellings: dict[str, dict[str, str]]


def to_diffusers(architecture: Architecture, specs: Specs) -> Conversion:
    """The tensors of a folder as made of those of a single file.

    Args:
        architecture: of the model.
        specs: of the tensors of the single file.
    """
    table = _table(architecture.name)
    names, left = _named(architecture, "checkpoint", specs)
    made: dict[str, Made] = {}
    for tie in table.ties:
        if (key := names.get(tie.single)) is None:
            continue
        try:
            made |= tie.split(key, specs[key])
        except MisfitError as misfit:
            left[key] = Left(Kind.MISFIT, str(misfit))
    return Conversion(made, left)


def to_checkpoint(architecture: Architecture, specs: Specs) -> Conversion:
    """The tensors of a single file as made of those of a folder.

    Args:
        architecture: of the model.
        specs: of the tensors of the folder, keys component/name.
    """
    table = _table(architecture.name)
    names, left = _named(architecture, "diffusers", specs)
    made: dict[str, Made] = {}
    for tie in table.ties:
        keys = [names[part] for part in tie.parts if part in names]
        if not keys:
            continue
        if missing := [part for part in tie.parts if part not in names]:
            why = f"{tie.single} cannot be made without {', '.join(missing)}"
            left |= dict.fromkeys(keys, Left(Kind.INCOMPLETE, why))
            continue
        try:
            made[tie.single] = tie.join(keys, [specs[key] for key in keys])
        except MisfitError as misfit:
            left |= dict.fromkeys(keys, Left(Kind.MISFIT, str(misfit)))
    return Conversion(made, left)


def canonical(architecture: Architecture, layout: str, key: str) -> tuple[str, ...]:
    """The keys in a folder, spelled as they are written, of the tensors a tensor is; () if there are none.

    Args:
        architecture: of the model.
        layout: "checkpoint" or "diffusers".
        key: as the layout names it, in any spelling.
    """
    table = _table(architecture.name)
    found = table.spellings[layout].get(key)
    if found is None:
        return ()
    return table.by_single[found].parts if layout == "checkpoint" else (found,)


def single_file_name(architecture: Architecture, key: str) -> str | None:
    """What single files call the tensor that has a folder's tensor in it; None if they have none.

    Args:
        architecture: of the model.
        key: in the folder, component/name, in any spelling.
    """
    table = _table(architecture.name)
    return table.single_of.get(table.spellings["diffusers"].get(key, key))


def _named(architecture: Architecture, layout: str, specs: Specs) -> tuple[dict[str, str], dict[str, Left]]:
    """Which keys are there, as written → as spelled; and the rest, with the reason."""
    names: dict[str, str] = {}
    left: dict[str, Left] = {}
    spellings = _table(architecture.name).spellings[layout]
    for spelling, written in spellings.items():
        if spelling not in specs:
            continue
        if written in names:
            left[spelling] = Left(Kind.TWICE, f"another name of {names[written]}, which is there")
        else:
            names[written] = spelling
    for key in specs:
        if key not in spellings:
            left[key] = reason(architecture, layout, key)
    return names, left


@functools.cache
def _table(name: str) -> _Table:
    ties: list[Tie] = []
    others: dict[str, str] = {}
    for component, component_ties in COMPONENTS[name].items():
        prefix, *other_prefixes = _prefixes(ARCHITECTURES[name], component)
        for tie in component_ties():
            parts = tuple(f"{component}/{part}" for part in tie.parts)
            ties.append(replace(tie, single=prefix + tie.single, parts=parts))
            others |= {other + tie.single: prefix + tie.single for other in other_prefixes}
    singles = {tie.single: tie for tie in ties}
    parts_of = {part: tie.single for tie in ties for part in tie.parts}
    # What is written comes first, so that it is taken where a file holds a tensor under several names.
    return _Table(
        ties=tuple(ties),
        by_single=singles,
        single_of=parts_of,
        spellings={
            "checkpoint": {key: key for key in singles} | others | _older("checkpoint", singles),
            "diffusers": {key: key for key in parts_of} | _older("diffusers", parts_of),
        },
    )


def _prefixes(architecture: Architecture, component: str) -> list[str]:
    """What keys of a component begin with in a single file: as written, then what else is read."""
    found = [
        prefix for prefix, of in architecture.prefixes.items() if of == component and prefix != "model_ema."
    ]
    # A file that holds only the main component often leaves its prefix out.
    return [*found, ""] if component == architecture.main else found


def _older(layout: str, keys: Iterable[str]) -> dict[str, str]:
    """Other spellings of keys → the keys."""
    return {
        key.replace(new, old): key for key in keys for new, old in _SPELLINGS[layout].items() if new in key
    }

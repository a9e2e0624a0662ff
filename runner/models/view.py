"""A model's tensors under the names merges know them by, whatever layout they are stored in.

Of a known architecture these are the names of a diffusers folder, as they are written today; a tensor
that has none there, and every tensor of an unknown architecture, keeps its own. What a model stores
fused is several tensors here, and rows are rows as the model computes with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.architectures import Architecture
from runner.architectures.layouts import canonical, to_diffusers
from runner.architectures.left import Kind, Left, reason
from runner.architectures.ties import Made, Piece
from runner.models.quantised import Quantised
from runner.tensors import TensorSpec

# What belongs to a layout and not to the model: it is not missed where it is not, and not carried over.
INCIDENTAL = frozenset(
    {Kind.EMA, Kind.POSITION_IDS, Kind.SCHEDULE, Kind.LOGIT_SCALE, Kind.MARKER, Kind.UNUSED, Kind.TWICE}
)


@dataclass(frozen=True)
class View:
    """A model by the names of its tensors.

    Attributes:
        tensors: name → what it is made of: pieces of stored tensors.
        left: stored tensors that keep their own names, since the other layout has none → why.
        quantised: which stored tensors are scaled where they are read, and which are no tensors of the model;
            where it is the source of components alone, of the latter only what is of those.
    """

    tensors: Mapping[str, Made]
    left: Mapping[str, Left]
    quantised: Quantised = field(default_factory=Quantised)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Dtype and shape of each tensor."""
        return {key: made.spec for key, made in self.tensors.items()}

    def is_scaled(self, key: str) -> bool:
        """Whether a tensor is stored as fp8 codes that are multiplied by a scale."""
        return any(piece.key in self.quantised.scales for piece in self.tensors[key].pieces)

    def is_fp8(self, key: str) -> bool:
        """Whether a tensor is stored in fp8, scaled or not."""
        return self.tensors[key].spec.is_fp8 or self.is_scaled(key)


def view_of(
    architecture: Architecture | None,
    layout: str,
    stored: Mapping[str, TensorSpec],
    quantised: Quantised | None = None,
) -> View:
    """The view of a model.

    Args:
        architecture: of the model; None if unknown.
        layout: it is stored in, "checkpoint" or "diffusers".
        stored: specs of its tensors as stored.
        quantised: what of them is quantised; None: nothing.
    """
    quantised = quantised or Quantised()
    specs = quantised.tensors(stored)
    if architecture is None:
        return View({key: whole(key, spec) for key, spec in specs.items()}, {}, quantised)
    if layout == "checkpoint":
        conversion = to_diffusers(architecture, specs)
        left = {key: conversion.left[key] for key in specs if key in conversion.left}
        return View({**conversion.made, **{key: whole(key, specs[key]) for key in left}}, left, quantised)
    tensors: dict[str, Made] = {}
    left = {}
    for key, spec in specs.items():
        name = next(iter(canonical(architecture, layout, key)), None)
        if name is None:
            name = key
            if (why := reason(architecture, layout, key)).kind in INCIDENTAL:
                left[key] = why
        elif name in tensors:
            left[key] = Left(Kind.TWICE, f"another name of {name}, which is there")
            name = key
        tensors[name] = whole(key, spec)
    return View(tensors, left, quantised)


def whole(key: str, spec: TensorSpec) -> Made:
    """A tensor as it is stored."""
    rows = spec.shape[0] if spec.shape else 1
    return Made((Piece(key, 0, rows, spec.shape, False, spec.shape),), spec)

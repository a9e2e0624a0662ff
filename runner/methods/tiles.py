"""How the tensors of a merge come to a method: in parts, and which parts they are.

A method that must look at a whole tensor, or at a whole model, before it can compute the first
element has a second function, `measure`. It is given the operands tile by tile, as often as it
walks over them, so that no tensor need be in memory whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.methods.random import Random

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of which tensor the operands are.

    Attributes:
        key: name of the tensor.
        component: of the model it belongs to.
        shape: of the whole tensor.
        start: first element, in the row-major order of the whole tensor.
    """

    key: str = ""
    component: str = ""
    shape: tuple[int, ...] = ()
    start: int = 0


WHOLE = Part()  # of a tensor that is not cut


@dataclass(frozen=True, slots=True)
class Tile:
    """The operands of a method for part of a tensor. They are overwritten when the next tile is asked for.

    Attributes:
        operands: as the method gets them: differences where it takes differences.
        base: the model of the optional role, if the recipe has it.
        part: which part it is.
        random: the streams, if the method draws.
    """

    operands: tuple[Tensor, ...]
    base: Tensor | None = None
    part: Part = WHOLE
    random: Random | None = None


Tiles = Iterable[Tile]


def whole(*operands: Tensor, base: Tensor | None = None, part: Part = WHOLE) -> Tiles:
    """Whole tensors as the one tile there is: for a method that is called without an engine."""
    return (Tile(operands, base, part),)

"""Where the tensors of a merge go in its output: under which names, fused or not, in which order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.architectures.layouts import to_checkpoint
from runner.architectures.left import Kind, Left
from runner.architectures.ties import Made, inverse
from runner.models.view import INCIDENTAL, whole
from runner.resolve.resolved import Resolved
from runner.tensors import TensorSpec

_LOST = INCIDENTAL | {Kind.COMPONENT}  # what an output in the other layout does without


@dataclass
class Arrangement:
    """The output's tensors.

    Attributes:
        made: key in the output → what it is made of: pieces of the merge's tensors.
        dropped: tensors of the merge that have no place in it, by reason.
        unfit: those that should have one and can not, by reason.
    """

    made: dict[str, Made] = field(default_factory=dict)
    dropped: dict[str, dict[str, None]] = field(default_factory=dict)
    unfit: dict[str, dict[str, None]] = field(default_factory=dict)


def arrange(resolved: Resolved, specs: Mapping[str, TensorSpec]) -> Arrangement:
    """The tensors of the output: as the primary names and stores them, or in the layout the recipe asks for.

    Args:
        resolved: the recipe.
        specs: of the merge's tensors, by the names of views.
    """
    primary, layout = resolved.primary, resolved.output_format
    found = Arrangement()
    rest = dict(specs)
    if layout == primary.checkpoint.format:
        stored = inverse(primary.view.tensors, primary.checkpoint.specs)
        for key, made in stored.items():
            _add(found, key, made, specs)
            for piece in made.pieces:
                rest.pop(piece.key, None)
    left: dict[str, Left] = {}
    for model in resolved.models:
        left |= {key: why for key, why in model.view.left.items() if key in rest}
    if layout != primary.checkpoint.format:
        for key, why in left.items():
            _leave(found, key, why)
            del rest[key]
    if layout == "diffusers" or primary.architecture is None:
        for key, spec in rest.items():
            found.made[key] = whole(key, spec)
        return found
    known = {key: spec for key, spec in rest.items() if key not in left}
    conversion = to_checkpoint(primary.architecture, known)
    for key, made in conversion.made.items():
        _add(found, key, made, specs)
    for key in rest:
        if key in left:  # kept from another single file, under its own name
            found.made[key] = whole(key, rest[key])
        elif key in conversion.left:
            _leave(found, key, conversion.left[key])
    return found


def _add(found: Arrangement, key: str, made: Made, specs: Mapping[str, TensorSpec]) -> None:
    """Takes a tensor of the output, if the tensors it is made of are there and of one dtype."""
    there = [piece.key for piece in made.pieces if piece.key in specs]
    if not there:
        return
    lacking = [piece.key for piece in made.pieces if piece.key not in specs]
    dtypes = {specs[part].dtype for part in there}
    if lacking or len(dtypes) > 1:
        why = (
            f"{key} cannot be made without {lacking[0]}" if lacking else f"the dtypes of {key}'s parts differ"
        )
        found.unfit.setdefault(why, {}).update(dict.fromkeys(there))
        return
    found.made[key] = Made(made.pieces, TensorSpec(dtypes.pop(), made.spec.shape))


def _leave(found: Arrangement, key: str, left: Left) -> None:
    if left.kind in _LOST:
        found.dropped.setdefault(f"left out: {left.why}", {})[key] = None
    else:
        found.unfit.setdefault(f"no counterpart in the other layout: {left.why}", {})[key] = None

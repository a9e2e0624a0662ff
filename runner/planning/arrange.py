"""Where the tensors of a merge go in its output: under which names, fused or not, in which order of rows."""

from __future__ import annotations

from collections.abc import Mapping

from runner.architectures.layouts import to_checkpoint
from runner.architectures.left import Kind, Left
from runner.architectures.ties import Made, inverse
from runner.models.view import INCIDENTAL, whole
from runner.planning.noted import Noted
from runner.resolve.resolved import Resolved
from runner.tensors import TensorSpec

_LOST = INCIDENTAL | {Kind.COMPONENT}  # what an output in the other layout does without


def arrange(resolved: Resolved, specs: Mapping[str, TensorSpec], noted: Noted) -> dict[str, Made]:
    """The tensors of the output: as the primary names and stores them, or in the layout the recipe asks for.

    Args:
        resolved: the recipe.
        specs: of the merge's tensors, by the names of views.
        noted: is told which of them have no place in it.

    Returns:
        Key in the output → what it is made of: pieces of the merge's tensors.
    """
    primary, layout = resolved.primary, resolved.output_format
    found: dict[str, Made] = {}
    rest = dict(specs)
    if layout == primary.checkpoint.format:
        stored = inverse(primary.view.tensors, primary.checkpoint.specs)
        for key, made in stored.items():
            _add(found, key, made, specs, noted)
            for piece in made.pieces:
                rest.pop(piece.key, None)
    left: dict[str, Left] = {}
    for model in resolved.models:
        left |= {key: why for key, why in model.view.left.items() if key in rest}
    if layout != primary.checkpoint.format:
        for key, why in left.items():
            _leave(noted, key, why)
            del rest[key]
    if layout == "diffusers" or primary.architecture is None:
        for key, spec in rest.items():
            found[key] = whole(key, spec)
        return found
    known = {key: spec for key, spec in rest.items() if key not in left}
    conversion = to_checkpoint(primary.architecture, known)
    for key, made in conversion.made.items():
        _add(found, key, made, specs, noted)
    for key in rest:
        if key in left:  # kept from another single file, under its own name
            found[key] = whole(key, rest[key])
        elif key in conversion.left:
            _leave(noted, key, conversion.left[key])
    return found


def _add(found: dict[str, Made], key: str, made: Made, specs: Mapping[str, TensorSpec], noted: Noted) -> None:
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
        noted.misfit(why, *there)
        return
    found[key] = Made(made.pieces, TensorSpec(dtypes.pop(), made.spec.shape))


def _leave(noted: Noted, key: str, left: Left) -> None:
    if left.kind in _LOST:
        noted.drop(f"left out: {left.why}", key)
    else:
        noted.misfit(f"no counterpart in the other layout: {left.why}", key)

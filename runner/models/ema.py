"""Running means of weights (EMA), which training keeps beside the weights: taken in their place.

A single file calls them model_ema. and the name inside the model without its dots, beside two numbers of
the training. A folder has a second one, unet_ema, or a variant of the weight files.
Source: CompVis/latent-diffusion, ldm/modules/ema.py (LitEma); diffusers, training_utils.py (EMAModel).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from runner.checkpoint import Checkpoint
from runner.errors import IncompatibleError, KeyPath, counted, escape
from runner.formats import FORMATS
from runner.formats.diffusers import MAIN_COMPONENTS, ema_weights
from runner.lora.summary import detect_lora
from runner.recipe.structure import Merge, Source

PREFIX, _MODEL = "model_ema.", "model."
_NUMBERS = (f"{PREFIX}decay", f"{PREFIX}num_updates")
_HINT = (
    "ema: drop takes the weights themselves; a merge inside, {method: copy, ema: use}, is of one model alone"
)


def users(merge: Merge) -> Iterator[KeyPath]:
    """The places in a recipe of the sources whose running means are taken."""
    for model in merge.models.values():
        if isinstance(model, Source):
            if merge.policies.ema == "use":
                yield model.path
        else:
            yield from users(model)


def averaged(checkpoint: Checkpoint) -> Checkpoint:
    """A model whose main component is the running mean of its weights; a file of adapters as it is.

    Raises:
        IncompatibleError: it has none, or not of every tensor.
    """
    if detect_lora(checkpoint.specs) is not None:
        return checkpoint
    found = _in_folder(checkpoint) if checkpoint.format == "diffusers" else _in_file(checkpoint)
    title = checkpoint.title or FORMATS[checkpoint.format].title
    return replace(found, title=f"{title}, EMA weights")


def _in_file(checkpoint: Checkpoint) -> Checkpoint:
    tensors = dict(checkpoint.tensors)
    copies = {key: tensors.pop(key) for key in checkpoint.tensors if key.startswith(PREFIX)}
    for key in _NUMBERS:
        copies.pop(key, None)
    if not copies:
        raise _refused(checkpoint, f"no running means of the weights ({PREFIX}*)")
    missing = []
    for key in tensors:
        if key.startswith(f"{_MODEL}diffusion_model."):
            name = PREFIX + key.removeprefix(_MODEL).replace(".", "")
            if name not in copies:
                missing.append(key)
            else:
                tensors[key] = copies.pop(name)
    _check(checkpoint, missing, list(copies))
    return replace(checkpoint, tensors=tensors)


def _in_folder(checkpoint: Checkpoint) -> Checkpoint:
    there = {key.partition("/")[0] for key in checkpoint.tensors}
    main = next((name for name in MAIN_COMPONENTS if name in there), None)
    means = ema_weights(checkpoint.root, checkpoint.label, main) if main else None
    if means is None:
        looked = f" ({main}_ema, or {main} with the variant ema)" if main else ""
        raise _refused(checkpoint, f"no running means of the weights{looked}")
    kept = {key: stored for key, stored in checkpoint.tensors.items() if not key.startswith(f"{main}/")}
    own = [key for key in checkpoint.tensors if key.startswith(f"{main}/")]
    missing = [key for key in own if key not in means.tensors]
    _check(checkpoint, missing, [key for key in means.tensors if key not in checkpoint.tensors])
    files = [checkpoint.files[at] for at in dict.fromkeys(stored.file for stored in kept.values())]
    at = {file.label: number for number, file in enumerate((*files, *means.files))}
    moved = {
        key: replace(stored, file=at[of.files[stored.file].label])
        for of, tensors in ((checkpoint, kept), (means, means.tensors))
        for key, stored in tensors.items()
    }
    return replace(checkpoint, files=(*files, *means.files), tensors=moved)


def _check(checkpoint: Checkpoint, missing: list[str], unknown: list[str]) -> None:
    """Raises: IncompatibleError if the running means are not of the model's tensors."""
    if missing:
        first = escape(missing[0])
        raise _refused(checkpoint, f"no running mean of {counted(len(missing), 'tensor')}: {first}")
    if unknown:
        what = f"{counted(len(unknown), 'running mean')} of no tensor: {escape(sorted(unknown)[0])}"
        raise _refused(checkpoint, what)


def _refused(checkpoint: Checkpoint, what: str) -> IncompatibleError:
    return IncompatibleError(f"ema: use: {escape(checkpoint.label)} has {what}", tag="EMA", hint=_HINT)

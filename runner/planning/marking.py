"""How the output says what it predicts: marker tensors, the config of the scheduler, the header.

Programs look at what a file says and at nothing else: a model that says the wrong thing gives noise.

Single files of models with a UNet say v-prediction by the empty tensors `v_pred` and `ztsnr` (zero terminal
SNR), and epsilon by having none. Only for Stable Diffusion XL do many programs look for them; in the others
they keep what is known for those that do, and for the next merge. EDM's markers hold numbers, and are only
copied from the primary.

A single file of Stable Diffusion 2 without `global_step` is taken for v-prediction by diffusers and InvokeAI;
diffusers takes one with 875000 for epsilon. That number is written where the result predicts epsilon: it
helps diffusers and harms nobody, while InvokeAI's own number, 220000, means v-prediction to diffusers. A1111
and ComfyUI look at the weights.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from runner.architectures import Place
from runner.architectures.configs import PREDICTION_WORDS, TAKE_ZERO_SNR, ZERO_SNR
from runner.architectures.left import MARKERS
from runner.checkpoint import Layout
from runner.errors import IncompatibleError, escape, quote
from runner.formats.strict_json import parse_object
from runner.models.model import Model
from runner.planning.plan import BUFFER, Job
from runner.planning.prediction import (
    EDM,
    EPSILON,
    FLOW,
    GLOBAL_STEP,
    SCHEDULER,
    SPEC_IDS,
    Prediction,
    V,
    markers,
    scheduler,
    trained,
)
from runner.resolve.resolved import Resolved
from runner.tensors import TensorSpec

_MARKERS = re.compile(MARKERS)
_EMPTY = TensorSpec("F32", (0,))
_EPSILON_STEPS = 875000
_RESOLUTIONS = {EPSILON: "512x512", V: "768x768"}  # of Stable Diffusion 2
_FITTING = "output.config: FOLDER names a pipeline of the same architecture whose scheduler fits"
_MAIN = ("unet", "transformer", "model")  # components of unknown architectures that predict


@dataclass(frozen=True)
class Marks:
    """How the tensors of a single file are changed so that they say what the result predicts.

    Attributes:
        removed: tensors of the primary that would say something else.
        added: tensors that say it, with their content.
    """

    removed: tuple[str, ...] = ()
    added: tuple[Job, ...] = ()


def predicting(resolved: Resolved, jobs: Iterable[Job]) -> list[Model]:
    """The models that what the result predicts depends on, the primary first.

    Args:
        resolved: the recipe.
        jobs: of the output. A model that only gives the VAE, or whose share of the UNet is 0, does not count.
    """
    architecture, jobs = resolved.primary.architecture, list(jobs)
    main = (architecture.main,) if architecture else _MAIN
    counting = [job for job in jobs if job.place.component in main]
    if architecture is None:
        counting = counting or jobs
    first = resolved.merge.primary()
    numbers = {load.model for job in counting for load in job.loads}
    return [resolved.models[number] for number in sorted(numbers, key=lambda at: (at != first, at))]


def marks(resolved: Resolved, result: Prediction | None) -> Marks:
    """What says in a single file what the result predicts.

    Raises:
        IncompatibleError: that takes numbers which the primary does not have.
    """
    architecture, checkpoint = resolved.primary.architecture, resolved.primary.checkpoint
    single = architecture is None or architecture.main == "unet"
    if result is None or resolved.output_format != "checkpoint" or not single:
        return Marks()
    there = dict(checkpoint.tensors) if checkpoint.format == "checkpoint" else {}
    own = {key for key in there if _MARKERS.fullmatch(key)}
    if result.edm:
        if not any(one.edm and one.kind == result.kind for one in markers(own)):
            raise IncompatibleError(
                f"{result.place}: {result.title} is said by tensors in a single file, which are only copied "
                f"from the first model, and {escape(checkpoint.label)} has none",
                tag="PREDICTION",
                hint="give the model that has them first, or write a folder: output.format: diffusers",
            )
        return Marks()
    if result.kind not in (EPSILON, V):
        return Marks()
    wanted = set()
    if result.kind == V:
        kept_zero = result.zero_snr is None and "ztsnr" in own
        wanted = {"v_pred", "ztsnr"} if result.zero_snr or kept_zero else {"v_pred"}
    removed, added = own - wanted, [_job(key, _EMPTY, b"") for key in sorted(wanted - own)]
    if architecture is not None and architecture.name == "sd2":
        steps = next(trained(checkpoint), None)
        epsilon = steps is not None and steps.kind == EPSILON
        if GLOBAL_STEP in there and epsilon != (result.kind == EPSILON):
            removed.add(GLOBAL_STEP)
        if result.kind == EPSILON and not (epsilon and GLOBAL_STEP in there):
            added.append(_job(GLOBAL_STEP, TensorSpec("I64", ()), struct.pack("<q", _EPSILON_STEPS)))
    return Marks(tuple(sorted(removed)), tuple(added))


def _job(key: str, spec: TensorSpec, content: bytes) -> Job:
    return Job(key, Place("other"), BUFFER, spec, (), content=content)


def with_scheduler(layout: Layout, resolved: Resolved, result: Prediction | None) -> Layout:
    """A layout whose scheduler says what the result predicts; one that does already is left to the byte.

    Raises:
        IncompatibleError: the scheduler is of a class made for something else, or of one that does not take
            the end of the noise schedule that the recipe states.
    """
    if result is None or SCHEDULER not in layout.texts or result.kind not in (*PREDICTION_WORDS, EDM):
        return layout
    label = f"{resolved.carrier.label if resolved.carrier else resolved.recipe.output.name}/{SCHEDULER}"
    config = parse_object(layout.texts[SCHEDULER], label)
    says = scheduler(config)
    if (says.edm, says.kind == FLOW) != (result.edm, False) or (result.edm and says.kind != result.kind):
        raise IncompatibleError(
            f"the result predicts {result}, and {escape(label)} is made for {says.title}",
            tag="PREDICTION",
            hint=_FITTING,
        )
    stated = resolved.recipe.zero_terminal_snr
    if stated and (name := str(config.get("_class_name", ""))) not in TAKE_ZERO_SNR:
        raise IncompatibleError(
            f"zero_terminal_snr: true: {escape(label)} is of class {quote(name)}, which does not take it",
            tag="PREDICTION",
            hint=_FITTING,
        )
    zero = says.zero_snr if result.zero_snr is None and says.kind == result.kind else bool(result.zero_snr)
    if result.edm or (says.kind, bool(says.zero_snr)) == (result.kind, bool(zero)):
        return layout
    changed = {**config, "prediction_type": PREDICTION_WORDS[result.kind]}
    if stated:
        changed |= ZERO_SNR
    elif zero or "rescale_betas_zero_snr" in config:
        changed["rescale_betas_zero_snr"] = bool(zero)
    # Sorted and indented, as diffusers writes it.
    text = json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return replace(layout, texts={**layout.texts, SCHEDULER: text.encode()})


def with_header(
    metadata: Mapping[str, str], resolved: Resolved, result: Prediction | None
) -> Mapping[str, str]:
    """The header's text with ModelSpec's entries for what the result predicts.

    Source: Stability-AI ModelSpec 1.0.1 (prediction_type); ComfyUI calls the same predict_key.
    """
    primary = resolved.primary
    if (
        result is None
        or result.edm
        or result.kind not in PREDICTION_WORDS
        or "modelspec.architecture" not in metadata
    ):
        return metadata
    said = {"modelspec.prediction_type": result.kind, "modelspec.predict_key": result.kind}
    if primary.architecture is not None and primary.architecture.name == "sd2":
        (name,) = (name for name, kind in SPEC_IDS.items() if kind == result.kind)
        _, slash, suffix = metadata["modelspec.architecture"].partition("/")
        said["modelspec.architecture"] = f"{name}{slash}{suffix}"
        if "modelspec.resolution" not in primary.checkpoint.metadata:
            said["modelspec.resolution"] = _RESOLUTIONS[result.kind]
    return {**metadata, **said}

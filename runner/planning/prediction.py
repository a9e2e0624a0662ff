"""What a model predicts, as far as its files say, and what a mix of models predicts."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runner.checkpoint import Checkpoint
from runner.disk.files import read_file, read_into
from runner.errors import IncompatibleError, InputError, escape, quote
from runner.formats.strict_json import parse_object
from runner.models.model import Model

SCHEDULER = "scheduler/scheduler_config.json"
EPSILON, V, EDM, FLOW, SAMPLE = "epsilon", "v", "EDM", "flow", "sample"
# Ids of ModelSpec that say it: Stable Diffusion 2 comes in both kinds.
SPEC_IDS = {"stable-diffusion-v2-512": EPSILON, "stable-diffusion-v2-768-v": V}
GLOBAL_STEP = "global_step"
# Steps of training by which programs tell the published models of Stable Diffusion 2 apart.
# Source: diffusers, loaders/single_file_utils.py (875000); InvokeAI, model probing (220000, 110000).
STEPS = {875000: EPSILON, 220000: EPSILON, 110000: V}

_WORDS = {"eps": EPSILON, "v_prediction": V, "v-prediction": V, "flow_prediction": FLOW}
_KINDS = (EPSILON, V, EDM, FLOW, SAMPLE)
_ONLY_FLOW = ("sd3", "sd35_large", "flux")  # architectures trained on nothing else
_NUMBERS = {"I64": "<q", "U64": "<Q", "I32": "<i", "U32": "<I", "F32": "<f", "F64": "<d"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one place says.

    Attributes:
        kind: "epsilon", "v", "flow", "sample", "EDM" (as Playground 2.5), or what a stranger wrote, quoted.
        place: who says so.
        zero_snr: whether the noise schedule ends in pure noise (zero terminal SNR); None: it is not said.
        edm: whether the noise levels are EDM's.
    """

    kind: str
    place: str
    zero_snr: bool | None = None
    edm: bool = False

    @property
    def title(self) -> str:
        """What is predicted, for people."""
        sigmas = " with EDM's sigmas" if self.edm and self.kind != EDM else ""
        return f"{self.kind}{sigmas}{', zero terminal SNR' if self.zero_snr else ''}"

    def __str__(self) -> str:
        return f"{self.title} ({self.place})"


def predictions(model: Model) -> list[Prediction]:
    """What each place in a model says it predicts, the one that programs follow first; [] if unknown."""
    architecture, checkpoint = model.architecture, model.checkpoint
    found: list[Prediction] = []
    if checkpoint.format == "checkpoint":
        found += markers(checkpoint.tensors.keys())
        if architecture is not None and architecture.name == "sd2":
            found += trained(checkpoint)
    if file := checkpoint.others.get(SCHEDULER):
        try:
            found.append(scheduler(parse_object(read_file(file), file.label)))
        except InputError as error:
            found.append(Prediction("unknown", f"{SCHEDULER} cannot be read: {error}"))
    if not found and architecture is not None and architecture.name in _ONLY_FLOW:
        found.append(Prediction(FLOW, f"as every {architecture.title}"))
    found += _metadata(checkpoint.metadata)
    if not found and _would_be_marked(model):
        found.append(Prediction(EPSILON, "no tensor v_pred"))
    return found


def summary(found: Sequence[Prediction]) -> str:
    """What a model predicts, and where that stands; what disagrees is named."""
    if not found:
        return "unknown"
    first, *others = found
    against = [f"{one.place} says {one.kind}" for one in others if one.kind != first.kind]
    return "; but ".join([str(first), *against])


def known(model: Model) -> Prediction | None:
    """What programs take a model for; None if nothing in it says."""
    first = next(iter(predictions(model)), None)
    return first if first is not None and first.kind in _KINDS else None


def said_by(models: Iterable[Model]) -> list[tuple[Model, Prediction]]:
    """What programs take each of some models for, of those that say; adapters fit models of either kind."""
    return [(model, found) for model in models if not model.adapters and (found := known(model))]


def agreed(
    said: Sequence[tuple[Model, Prediction]], stated: str | None = None, zero_snr: bool | None = None
) -> Prediction | None:
    """What a mix of models predicts; None if none of them says and the recipe does not either.

    Models that predict different things have no mix that predicts either, so their mix is an error unless
    the recipe says what the result is. That holds for models of which only a difference is used too: of b − c
    nobody can tell whether it turns one kind into the other (b is the v-prediction fine-tune of the epsilon
    model c, and added to an epsilon model gives a v model) or leaves the kind as it is (both are epsilon,
    and the style between them is added to a v model). Both are done on purpose, and the recipe says which.
    A model of which nothing is known is taken to be as the others are.

    Args:
        said: by the models whose weights the UNet or transformer of the result is made of, the primary first.
        stated: "epsilon" or "v_prediction" if the recipe says so. The noise schedule is then that of the
            first model of this kind.
        zero_snr: whether the noise schedule ends in pure noise, if the recipe says so.

    Raises:
        IncompatibleError: they predict different things, or what no recipe changes.
    """
    result = _mixed(said, stated)
    if zero_snr is None:
        return result
    if result is None:
        raise IncompatibleError(
            "zero_terminal_snr: no model says what it predicts",
            tag="PREDICTION",
            hint="prediction_type: v_prediction at the top of the recipe says it",
        )
    if zero_snr and (result.kind != V or result.edm):
        raise IncompatibleError(
            f"zero_terminal_snr: true: the result predicts {result}; only what predicts v can begin at "
            "noise alone",
            tag="PREDICTION",
            hint="leave it out, or state prediction_type: v_prediction if that is what the result predicts",
        )
    return replace(result, place=f"{result.place}; zero_terminal_snr in the recipe", zero_snr=zero_snr)


def _mixed(said: Sequence[tuple[Model, Prediction]], stated: str | None) -> Prediction | None:
    """What a mix predicts if the recipe does not say how the noise schedule ends."""
    if stated is not None:
        for model, found in said:
            if found.kind == FLOW:
                raise IncompatibleError(
                    f"prediction_type: {_says(model, found)}, and no recipe changes that; leave it out",
                    tag="PREDICTION",
                )
        kind = _WORDS.get(stated, stated)
        alike = [found for _, found in said if found.kind == kind]
        edm = bool(alike) and alike[0].edm
        return Prediction(kind, "prediction_type in the recipe", _zero_snr(alike), edm)
    if not said:
        return None
    (primary, first), *others = said
    for model, found in others:
        if (found.kind, found.edm) != (first.kind, first.edm):
            raise IncompatibleError(
                f"{_says(primary, first)}, {_says(model, found)}: a mix of both predicts neither. "
                "prediction_type: epsilon or v_prediction in the recipe says what the result is",
                tag="PREDICTION",
                hint="job=inspect shows all that a model says about itself; one that says something wrong is "
                "put right by a recipe of method copy that states prediction_type",
            )
    place = f"{escape(primary.checkpoint.label)}: {first.place}"
    return replace(first, place=place, zero_snr=_zero_snr([found for _, found in said]))


def disagreeing(said: Iterable[tuple[Model, Prediction]], result: Prediction) -> Iterator[str]:
    """A line for each model that says something else than what the result is taken for."""
    for model, found in said:
        if found.kind != result.kind:
            yield f"{_says(model, found)}; the result is taken for {result}"
        elif found.zero_snr is not None and found.zero_snr != result.zero_snr:
            yield f"{_says(model, found)}{_without(found)}; the result is {result.title}{_without(result)}"


def _zero_snr(found: Sequence[Prediction]) -> bool | None:
    return next((one.zero_snr for one in found if one.zero_snr is not None), None)


def _without(one: Prediction) -> str:
    return "" if one.zero_snr else " without zero terminal SNR"


def _says(model: Model, found: Prediction) -> str:
    return f"{escape(model.checkpoint.label)} predicts {found}"


def markers(keys: Collection[str]) -> Iterator[Prediction]:
    """What marker tensors say: at most one thing. Source: ComfyUI, supported_models.py, SDXL.model_type."""
    if "edm_mean" in keys and "edm_std" in keys:
        yield Prediction(EDM, "tensors edm_mean, edm_std", edm=True)
    elif "edm_vpred.sigma_max" in keys:
        yield Prediction(V, "tensor edm_vpred.sigma_max", edm=True)
    elif "v_pred" in keys:
        zero = "ztsnr" in keys
        yield Prediction(V, "tensors v_pred, ztsnr" if zero else "tensor v_pred", zero_snr=zero)


def trained(checkpoint: Checkpoint) -> Iterator[Prediction]:
    """What the number of training steps in a single file of Stable Diffusion 2 says."""
    steps = _steps(checkpoint)
    if steps in STEPS:
        yield Prediction(STEPS[steps], f"{GLOBAL_STEP} {steps}")


def _steps(checkpoint: Checkpoint) -> int | None:
    stored = checkpoint.tensors.get(GLOBAL_STEP)
    if stored is None:  # a pickle has it as a plain number
        text = checkpoint.metadata.get(GLOBAL_STEP, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
    if stored.spec.elements != 1 or stored.spec.dtype not in _NUMBERS:
        return None
    file, content = checkpoint.files[stored.file], bytearray(stored.spec.nbytes)
    descriptor = file.open()
    try:
        read_into(descriptor, memoryview(content), stored.offset, file.label)
    finally:
        os.close(descriptor)
    (number,) = struct.unpack(_NUMBERS[stored.spec.dtype], content)
    return int(number) if number in STEPS else None


def scheduler(config: Mapping[str, Any]) -> Prediction:
    """What the config of a scheduler says. One that says nothing is read as epsilon."""
    kind, name = config.get("prediction_type"), str(config.get("_class_name", ""))
    zero = config.get("rescale_betas_zero_snr") is True
    if "FlowMatch" in name:
        return Prediction(FLOW, f"{SCHEDULER}: {quote(name)}")
    if name.startswith("EDM"):
        word = V if _word(kind) == V else EDM
        return Prediction(word, f"{SCHEDULER}: {quote(name)}", edm=True)
    if kind is None:
        return Prediction(EPSILON, f"{SCHEDULER} says nothing else", zero)
    return Prediction(_word(kind), SCHEDULER, zero)


def _metadata(metadata: Mapping[str, str]) -> Iterator[Prediction]:
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if text := metadata.get(key):
            yield Prediction(_word(text), key)
    name = metadata.get("modelspec.architecture", "").partition("/")[0]
    if name in SPEC_IDS:
        yield Prediction(SPEC_IDS[name], "modelspec.architecture")
    flag = metadata.get("ss_v_parameterization", "").lower()
    if flag in ("true", "false"):
        zero = metadata.get("ss_zero_terminal_snr", "").lower() == "true"
        yield Prediction(V if flag == "true" else EPSILON, "ss_v_parameterization", zero or None)


def _would_be_marked(model: Model) -> bool:
    """Whether a model would have a marker tensor if it did not predict epsilon.

    That is the rule for single files of Stable Diffusion XL. A file with a folder's names may have been
    part of one, where the scheduler said it.
    """
    if model.architecture is None or model.architecture.name != "sdxl":
        return False
    return any(key.startswith("model.diffusion_model.") for key in model.checkpoint.tensors)


def _word(value: object) -> str:
    text = str(value).lower()
    text = _WORDS.get(text, text)
    return text if text in (EPSILON, V, FLOW, SAMPLE) else quote(value)

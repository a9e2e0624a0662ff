"""What a model predicts, as far as its files say: marker tensors, the scheduler's config, metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import InputError, quote
from runner.files import read_file
from runner.formats.strict_json import parse_object
from runner.models import Model

_SCHEDULER = "scheduler/scheduler_config.json"
_WORDS = {"eps": "epsilon", "v_prediction": "v", "v-prediction": "v", "flow_prediction": "flow"}
# Ids of ModelSpec that say it. That of Stable Diffusion 2 in general, v2-512, stands in files of both kinds.
_SPEC_IDS = {"stable-diffusion-v2-768-v": "v"}
_FLOW = ("sd3", "sd35_large", "flux")  # architectures trained on nothing else
ZERO = ", zero terminal SNR"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one place says.

    Attributes:
        kind: "epsilon", "v", "flow", ...
        place: who says so.
        more: what else it says of the noise schedule.
    """

    kind: str
    place: str
    more: str = ""


def predictions(model: Model) -> list[Prediction]:
    """What each place in a model says it predicts, the one that programs follow first; [] if unknown."""
    architecture, checkpoint = model.architecture, model.checkpoint
    found = list(_markers(checkpoint.tensors.keys())) if checkpoint.format == "checkpoint" else []
    if file := checkpoint.others.get(_SCHEDULER):
        try:
            found += _scheduler(parse_object(read_file(file), file.label))
        except InputError as error:
            found.append(Prediction("unknown", f"{_SCHEDULER} cannot be read: {error}"))
    if not found and architecture is not None and architecture.name in _FLOW:
        found.append(Prediction("flow", f"as every {architecture.title}"))
    return [*found, *_metadata(checkpoint.metadata)]


def summary(found: list[Prediction]) -> str:
    """What a model predicts, and where that stands; what disagrees is named."""
    if not found:
        return "unknown"
    first, *others = found
    against = [f"{one.place} says {one.kind}" for one in others if one.kind != first.kind]
    return "; but ".join([f"{first.kind}{first.more} ({first.place})", *against])


def _markers(keys: Any) -> Iterator[Prediction]:
    """Tensors that tell programs. Source: ComfyUI, comfy/supported_models.py, SDXL.model_type."""
    if {"edm_mean", "edm_std"} <= keys:
        yield Prediction("EDM", "tensors edm_mean, edm_std")
    elif "edm_vpred.sigma_max" in keys:
        yield Prediction("v", "tensor edm_vpred.sigma_max", " with EDM's sigmas")
    elif "v_pred" in keys:
        zero = "ztsnr" in keys
        yield Prediction("v", "tensors v_pred, ztsnr" if zero else "tensor v_pred", ZERO if zero else "")


def _scheduler(config: Mapping[str, Any]) -> Iterator[Prediction]:
    """What the config of a scheduler says. One that says nothing is read as epsilon."""
    kind, name = config.get("prediction_type"), str(config.get("_class_name", ""))
    zero = ZERO if config.get("rescale_betas_zero_snr") is True else ""
    if "FlowMatch" in name:
        yield Prediction("flow", f"{_SCHEDULER}: {quote(name)}")
    elif kind is None:
        yield Prediction("epsilon", f"{_SCHEDULER} says nothing else", zero)
    else:
        yield Prediction(_word(kind), _SCHEDULER, zero)


def _metadata(metadata: Mapping[str, str]) -> Iterator[Prediction]:
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if text := metadata.get(key):
            yield Prediction(_word(text), key)
    name = metadata.get("modelspec.architecture", "").partition("/")[0]
    if name in _SPEC_IDS:
        yield Prediction(_SPEC_IDS[name], "modelspec.architecture")
    flag = metadata.get("ss_v_parameterization", "").lower()
    if flag in ("true", "false"):
        zero = metadata.get("ss_zero_terminal_snr", "").lower() == "true"
        yield Prediction("v" if flag == "true" else "epsilon", "ss_v_parameterization", ZERO if zero else "")


def _word(value: object) -> str:
    text = str(value).lower()
    text = _WORDS.get(text, text)
    return text if text in ("epsilon", "v", "flow", "sample") else quote(value)

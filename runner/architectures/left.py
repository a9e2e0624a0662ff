"""Tensors that have no counterpart in a model's other layout, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from runner.architectures.base import Architecture


class Kind(StrEnum):
    """Why a tensor has no counterpart in the other layout."""

    EMA = "ema"  # a running mean of the weights
    POSITION_IDS = "position_ids"  # 0, 1, 2, ...
    SCHEDULE = "schedule"  # of the training; what software computes from a few numbers
    LOGIT_SCALE = "logit_scale"  # of CLIP's training
    MARKER = "marker"  # tells a program what the model predicts
    UNUSED = "unused"  # a layer of a text encoder that this architecture does not read
    COMPONENT = "component"  # of a component that single files do not have
    TWICE = "twice"  # another name of a tensor that is there
    INCOMPLETE = "incomplete"  # a part of a fused tensor whose other parts are missing
    MISFIT = "misfit"  # a shape or dtype the map cannot be applied to
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Left:
    """Why a tensor was not converted, as a kind and in words."""

    kind: Kind
    why: str


# Empty tensors of single files that say what the model predicts.
MARKERS = r"v_pred|ztsnr|edm_(mean|std)|edm_vpred\.sigma_(min|max)"
_SCHEDULE = (
    r"(betas|alphas_cumprod(_prev)?|(sqrt|sqrt_one_minus|log_one_minus|sqrt_recip|sqrt_recipm1)_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|denoiser\.sigmas)"
)
_TEXT = r"(cond_stage_model|conditioner\.embedders\.[01]|text_encoders\.\w+)\."
_FOLDER = r"text_encoder(_[23])?/"
# Stable Diffusion 2 takes the last layer of its text encoder but one.
_LAST_OF_SD2 = (
    r"cond_stage_model\.model\.(transformer\.resblocks\.23\.(ln_[12]|attn|mlp)\..*|text_projection)"
)

_WHY = {
    Kind.EMA: "a running mean of the weights, which folders hold as a variant",
    Kind.POSITION_IDS: "position ids, which software counts itself",
    Kind.SCHEDULE: "a training schedule, which folders hold as numbers in a config",
    Kind.LOGIT_SCALE: "used in the training of CLIP only",
    Kind.MARKER: "says what the model predicts, which folders hold in the config of the scheduler",
    Kind.UNUSED: "a layer of the text encoder that is not read",
}
# By layout, patterns of whole keys.
_PATTERNS: dict[str, tuple[tuple[Kind, str], ...]] = {
    "checkpoint": (
        (Kind.EMA, r"model_ema\..*"),
        (Kind.SCHEDULE, _SCHEDULE),
        (Kind.POSITION_IDS, rf"{_TEXT}transformer\.(text_model\.)?embeddings\.position_ids"),
        (Kind.LOGIT_SCALE, rf"{_TEXT}((model|transformer)\.)?logit_scale"),
        (Kind.MARKER, rf"{MARKERS}|global_step"),
        (Kind.UNUSED, _LAST_OF_SD2),
        (Kind.UNUSED, rf"{_TEXT}transformer\.text_projection(\.weight)?"),
    ),
    "diffusers": (
        (Kind.POSITION_IDS, rf"{_FOLDER}(text_model\.)?embeddings\.position_ids"),
        (Kind.LOGIT_SCALE, rf"{_FOLDER}logit_scale"),
        (Kind.UNUSED, rf"{_FOLDER}text_projection\.weight"),
    ),
}


def reason(architecture: Architecture, layout: str, key: str) -> Left:
    """Why a tensor that no tie has is left.

    Args:
        architecture: of the model.
        layout: "checkpoint" or "diffusers".
        key: as the layout names it.
    """
    component, slash, _ = key.partition("/")
    if layout == "diffusers" and slash and component not in architecture.components:
        return Left(Kind.COMPONENT, f"single files of {architecture.title} have no such component")
    for kind, pattern in _PATTERNS[layout]:
        if re.fullmatch(pattern, key):
            return Left(kind, _WHY[kind])
    return Left(Kind.UNKNOWN, f"no tensor of {architecture.title} has this name")

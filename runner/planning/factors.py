"""The tensors of a LoRA file: which modules it has, under which names, and what its header says of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.architectures import Architecture
from runner.architectures.layouts import COMPONENTS
from runner.lora.names import Dialect, Slot, find_module, name_of
from runner.methods.subspace import is_excluded
from runner.tensors import TensorSpec

# How the keys of a module end, in the order of the file: the down factor, the up factor.
_ENDS = {
    Dialect.KOHYA: ("lora_down.weight", "lora_up.weight"),
    Dialect.DIFFUSERS: ("lora_A.weight", "lora_B.weight"),
}
# What readers of kohya's files know the base model by.
_BASE_VERSIONS = {
    "sd1": {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
    "sd2": {"ss_base_model_version": "sd_v2", "ss_v2": "True"},
    "sdxl": {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"},
}


@dataclass(frozen=True, slots=True)
class Module:
    """A module of a LoRA.

    Attributes:
        name: in the file.
        dialect: of the name.
        shape: of the weight it changes.
        rank: of its factors.
        dtype: of what is written, in DTYPES.
    """

    name: str
    dialect: Dialect
    shape: tuple[int, ...]
    rank: int
    dtype: str

    @property
    def alpha(self) -> bool:
        """Whether it has an alpha: diffusers' names have none, then the scale is 1."""
        return self.dialect is Dialect.KOHYA

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Its tensors by their keys, in the order of the file, where nothing comes between them."""
        down, up = _ENDS[self.dialect]
        ones = (1,) * len(self.shape[2:])
        alpha = {f"{self.name}.alpha": TensorSpec(self.dtype, ())} if self.alpha else {}
        return alpha | {
            f"{self.name}.{down}": TensorSpec(self.dtype, (self.rank, *self.shape[1:])),
            f"{self.name}.{up}": TensorSpec(self.dtype, (self.shape[0], self.rank, *ones)),
        }


def dialect_for(architecture: Architecture) -> Dialect:
    """Whose names a LoRA of an architecture has: kohya's, or diffusers' where kohya's are of fused layers."""
    return Dialect.KOHYA if architecture.main == "unet" else Dialect.DIFFUSERS


def module_name(architecture: Architecture, key: str, spec: TensorSpec) -> str | None:
    """What a LoRA calls the module of a weight; None if it is no linear layer or convolution of one.

    Args:
        architecture: of the model.
        key: of the tensor, as views name it.
        spec: of the tensor.
    """
    component = key.partition("/")[0]
    if component not in COMPONENTS[architecture.name] or component == "vae":
        return None
    if not key.endswith(".weight") or len(spec.shape) < 2 or not spec.elements or not spec.is_float:
        return None
    if is_excluded(key, "embeddings"):
        return None
    name = name_of(architecture, dialect_for(architecture), key)
    module = find_module(architecture, name)
    return name if module is not None and module.weight == (Slot(key),) else None


def network_metadata(architecture: Architecture, modules: Iterable[Module]) -> Mapping[str, str]:
    """What the header of a LoRA says of its ranks, as kohya's tools do; the largest ones stand for all.

    Source: kohya-ss/sd-scripts, networks/extract_lora_from_models.py.
    """
    found = list(modules)
    kernels = [module.rank for module in found if set(module.shape[2:]) - {1}]
    dim = max([module.rank for module in found if not set(module.shape[2:]) - {1}] or kernels)
    said = {"ss_network_module": "networks.lora", "ss_network_dim": str(dim), "ss_network_alpha": str(dim)}
    if kernels:
        conv = str(max(kernels))
        said["ss_network_args"] = json.dumps({"conv_dim": conv, "conv_alpha": conv}, sort_keys=True)
    return said | _BASE_VERSIONS.get(architecture.name, {})

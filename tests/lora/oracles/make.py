"""Writes expected.safetensors: adapters as LyCORIS and PEFT write them, and what these make of a base.

Not run by the tests, which only read the file. To make it again, from the root of the repository, with an
environment that has torch, safetensors, peft 0.21.2 and lycoris-lora 4.1.3 (with einops and toml):

    python tests/lora/oracles/make.py

The libraries' own modules are built around small layers in float64, filled with seeded numbers, saved by
their own code, and asked for the changed weight: PEFT by merge_and_unload, LyCORIS by the functions its
forward pass calls. (Where LyCORIS 4.1.3 merges LoHa and LoKr it scales twice; where it trains, once.)
For each case the file has CASE:base and CASE:changed, the weight, and CASE:adapter:KEY, the adapter's file.
Its metadata hold `cases`: case → the key of the weight, and of PEFT's config what says scales, or null.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

EXPECTED = Path(__file__).with_name("expected.safetensors")
LINEAR, CONV = "time_embedding.linear_1", "conv_in"  # names that the UNet of Stable Diffusion has


class Tiny(nn.Module):
    """Two layers under the names of a UNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(6, 12)
        self.conv_in = nn.Conv2d(4, 6, 3, padding=1)


def tiny(seed: int) -> Tiny:
    """The layers, filled with seeded numbers."""
    model = Tiny().double()
    fill(model, seed)
    return model


def fill(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def main() -> None:
    """Writes the file."""
    torch.set_default_dtype(torch.float64)
    tensors: dict[str, Tensor] = {}
    cases: dict[str, Any] = {}

    def note(
        case: str, name: str, base: Tensor, changed: Tensor, file: dict[str, Tensor], config: Any
    ) -> None:
        cases[case] = {"key": f"unet/{name}.weight", "config": config}
        tensors[f"{case}:base"], tensors[f"{case}:changed"] = base, changed
        tensors.update({f"{case}:adapter:{key}": tensor for key, tensor in file.items()})

    for seed, (case, arguments) in enumerate(peft_cases().items()):
        note(case, *with_peft(seed, **arguments))
    for seed, (case, arguments) in enumerate(lycoris_cases().items()):
        note(case, *with_lycoris(100 + seed, **arguments))
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    save_file(tensors, EXPECTED, metadata={"cases": json.dumps(cases, indent=1)})


def peft_cases() -> dict[str, dict[str, Any]]:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    def lora(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "config": LoraConfig(r=2, lora_alpha=3, target_modules=[name], **more)}

    return {
        "peft lora of a matrix": lora(LINEAR),
        "peft lora of a convolution": lora(CONV),
        "peft lora stabilised": lora(LINEAR, use_rslora=True),
        "peft lora with patterns": lora(LINEAR, rank_pattern={"linear_1": 3}, alpha_pattern={"linear_1": 5}),
        "peft dora of a matrix": lora(LINEAR, use_dora=True),
        "peft dora of a convolution": lora(CONV, use_dora=True),
        "peft loha": {"name": LINEAR, "config": LoHaConfig(r=2, alpha=3, target_modules=[LINEAR])},
        "peft loha with cores": {
            "name": CONV,
            "config": LoHaConfig(r=2, alpha=3, target_modules=[CONV], use_effective_conv2d=True),
        },
        "peft lokr": {"name": LINEAR, "config": LoKrConfig(r=1, alpha=3, target_modules=[LINEAR])},
        "peft lokr of two whole matrices": {
            "name": LINEAR,
            "config": LoKrConfig(r=8, alpha=3, target_modules=[LINEAR]),
        },
        "peft lokr with a core": {
            "name": CONV,
            "config": LoKrConfig(r=1, alpha=3, target_modules=[CONV], use_effective_conv2d=True),
        },
    }


def with_peft(seed: int, name: str, config: Any) -> tuple[Any, ...]:
    from peft import get_peft_model, get_peft_model_state_dict

    base = tiny(seed)
    original = base.get_submodule(name).weight.detach().clone()
    model = get_peft_model(base, config)
    fill_trained(model, seed)
    file = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(model).items()}
    said = {
        key: value
        for key, value in config.to_dict().items()
        if key in ("r", "lora_alpha", "alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    }
    changed = model.merge_and_unload().get_submodule(name).weight
    return name, original, changed, file, said


def fill_trained(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.25)


def lycoris_cases() -> dict[str, dict[str, Any]]:
    from lycoris.modules.full import FullModule
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    def case(kind: Any, name: str, **more: Any) -> dict[str, Any]:
        return {"kind": kind, "name": name, "arguments": {"lora_dim": 2, "alpha": 3, **more}}

    return {
        "lycoris lora of a matrix": case(LoConModule, LINEAR),
        "lycoris lora of a convolution": case(LoConModule, CONV),
        "lycoris lora with a core": case(LoConModule, CONV, use_tucker=True),
        "lycoris lora stabilised": case(LoConModule, LINEAR, rs_lora=True),
        "lycoris dora of rows": case(LoConModule, LINEAR, weight_decompose=True),
        "lycoris dora of inputs": case(LoConModule, LINEAR, weight_decompose=True, wd_on_out=False),
        "lycoris dora of a convolution's rows": case(LoConModule, CONV, weight_decompose=True),
        "lycoris dora of a convolution's inputs": case(
            LoConModule, CONV, weight_decompose=True, wd_on_out=False
        ),
        "lycoris loha": case(LohaModule, LINEAR),
        "lycoris loha of a convolution": case(LohaModule, CONV),
        "lycoris loha with cores": case(LohaModule, CONV, use_tucker=True),
        "lycoris loha with lengths": case(LohaModule, LINEAR, weight_decompose=True),
        "lycoris lokr": case(LokrModule, LINEAR, lora_dim=1),
        "lycoris lokr of two products": case(LokrModule, LINEAR, lora_dim=1, factor=4, decompose_both=True),
        "lycoris lokr of two whole matrices": case(LokrModule, LINEAR, full_matrix=True),
        "lycoris lokr of a convolution": case(LokrModule, CONV, lora_dim=1),
        "lycoris lokr with a core": case(LokrModule, CONV, lora_dim=1, use_tucker=True),
        "lycoris full": case(FullModule, CONV),
    }


def with_lycoris(seed: int, kind: Any, name: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    from lycoris.functional.general import weight_decompose

    base = tiny(seed)
    layer = base.get_submodule(name)
    original = layer.weight.detach().clone()
    module = kind(f"lora_unet_{name.replace('.', '_')}", layer, **arguments).double()
    fill_trained(module, seed)
    if kind.name == "full":
        module.apply_to()  # its weight is now the changed one
    file = {f"{module.lora_name}.{key}": tensor for key, tensor in module.state_dict().items()}
    if kind.name == "full":
        change = module.weight - original
    elif kind.name == "locon":
        change = module.make_weight() * module.scale
    else:
        change = module.get_weight(module.shape)
    changed = original + change
    if getattr(module, "wd", False):
        changed = weight_decompose(changed, module.dora_scale, 1, module.wd_on_out)
    return name, original, changed, file, None


if __name__ == "__main__":
    sys.exit(main())

"""From the names of modules, as software that trains adapters writes them, to the tensors they mean.

A module may be named as the original code or as diffusers names it, with dots or underscores, after one of
many prefixes. Names are looked up among those the architecture has and never taken apart by guess: with
underscores "to_q" could be anything. Sources: kohya-ss/sd-scripts, networks/lora.py, lora_sd3.py and
lora_flux.py (prefixes, and which text encoder te1 to te3 are); diffusers, loaders/lora_conversion_utils.py
(older spellings, X-Labs' names); ComfyUI, comfy/lora.py (names of whole checkpoints).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from runner.architectures.base import Architecture
from runner.architectures.layouts import COMPONENTS
from runner.architectures.ties import Tie


class Dialect(StrEnum):
    """Whose way of naming modules it is."""

    KOHYA = "kohya"  # lora_unet_down_blocks_0_…
    DIFFUSERS = "diffusers"  # unet.down_blocks.0.…
    PEFT = "peft"  # base_model.model.down_blocks.0.…
    SINGLE_FILE = "single_file"  # diffusion_model.double_blocks.0.…
    XLABS = "xlabs"  # double_blocks.0.processor.…


@dataclass(frozen=True, slots=True)
class Slot:
    """Rows of a tensor, in equal parts of all its rows.

    Attributes:
        key: of the tensor in a folder, spelled as it is written.
        first, units: where they begin, and how many they are.
        of: how many the tensor has.
    """

    key: str
    first: int = 0
    units: int = 1
    of: int = 1


@dataclass(frozen=True, slots=True)
class Module:
    """What a name means: the rows of its weight and its bias, in order."""

    weight: tuple[Slot, ...] = ()
    bias: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class _Names:
    """Of one architecture, component and name → the module.

    Attributes:
        own: by the names the two layouts have for it.
        dotted: by these and by older ones.
        underscored: by the same with underscores for dots.
    """

    own: dict[tuple[str, str], Module]
    dotted: dict[tuple[str, str], Module]
    underscored: dict[tuple[str, str], Module]


_UNDERSCORED = re.compile(r"(?:lora_(unet|transformer|te[123]?)|(lycoris))_(.+)", re.DOTALL)
_XLABS = re.compile(r"(diffusion_model\.)?(double|single)_blocks\.\d+\.processor\.")
_ORIGINAL = re.compile(
    r"(model\.)?diffusion_model\.|(double|single|joint|input|output)_blocks?\.\d|middle_block\.\d"
)
_PEFT = "base_model.model."
# How the tensors of a module end → whether that one is its bias.
_ENDS = {".weight": False, "_weight": False, ".scale": False, ".bias": True, "_bias": True}
# What diffusers called layers before it named adapters after them.
_OLDER = {".to_out.0": ".to_out"} | {
    f".self_attn.{new}_proj": f".self_attn.to_{new}" for new in ("q", "k", "v", "out")
}
_TEXT_MODEL = "text_model."


@functools.lru_cache(maxsize=1 << 14)  # the same names stand in file after file
def dialect_of(name: str) -> Dialect:
    """Whose way of naming modules this is, from the name alone."""
    if _UNDERSCORED.fullmatch(name):
        return Dialect.KOHYA
    if _XLABS.match(name):
        return Dialect.XLABS
    if _PEFT in name:
        return Dialect.PEFT
    return Dialect.SINGLE_FILE if _ORIGINAL.match(name) else Dialect.DIFFUSERS


def find_module(architecture: Architecture, name: str) -> Module | None:
    """The module a name means; None if it means none, or more than one.

    Args:
        architecture: of the model it is a part of.
        name: as an adapter's file has it, without the end that says which factor it is.
    """
    names = _names(architecture.name)
    if match := _UNDERSCORED.fullmatch(name):
        rest = match[3].replace(".", "_")
        return names.underscored.get((_kohya_component(architecture, match[1] or "unet"), rest))
    name = name.replace(_PEFT, "", 1).replace(".processor.", ".", 1)
    found = [
        names.dotted.get((component, name.removeprefix(prefix)))
        for prefix, component in _dotted_prefixes(architecture)
        if name.startswith(prefix)
    ]
    # PEFT's own files do not say whose they are: the main component's, or some text encoder's.
    texts = [component for component in COMPONENTS[architecture.name] if component != architecture.main]
    return _only(found) or _only(names.dotted.get((component, name)) for component in texts)


def module_names(architecture: Architecture) -> dict[str, Module]:
    """Every name kohya's tools could give a module, of the original code or of diffusers → the module."""
    return {
        f"{kohya_prefix(architecture, component)}_{inner.replace('.', '_')}": module
        for (component, inner), module in _names(architecture.name).own.items()
    }


def kohya_prefix(architecture: Architecture, component: str) -> str:
    """What kohya's tools begin the names of a component's modules with: "lora_te1"."""
    if component == architecture.main:
        return "lora_unet"
    if architecture.name in ("sd1", "sd2"):
        return "lora_te"
    numbers = {"text_encoder": 1, "text_encoder_2": 2, "text_encoder_3": 3}
    if architecture.name == "flux":  # T5 is the third of SD3
        numbers["text_encoder_2"] = 3
    return f"lora_te{numbers[component]}"


def _kohya_component(architecture: Architecture, word: str) -> str:
    """The component a word of kohya's stands for: te2."""
    if word in ("unet", "transformer"):
        return architecture.main
    texts = [component for component in COMPONENTS[architecture.name] if component.startswith("text_encoder")]
    third = "text_encoder_2" if architecture.name == "flux" else "text_encoder_3"
    return {"te": texts[0], "te1": texts[0], "te2": "text_encoder_2", "te3": third}[word]


def _dotted_prefixes(architecture: Architecture) -> tuple[tuple[str, str], ...]:
    """What a name with dots may begin with, and the component that is."""
    name = architecture.name
    components = [(f"{component}.", component) for component in COMPONENTS[name]]
    whole = [
        (prefix, component) for prefix, component in architecture.prefixes.items() if prefix != "model_ema."
    ]
    main = [("diffusion_model.", architecture.main), ("", architecture.main)]
    return (*components, *whole, *main)


def _only(found: Iterable[Module | None]) -> Module | None:
    """The module that was found, if it is one."""
    modules = {module for module in found if module}
    return modules.pop() if len(modules) == 1 else None


@functools.cache
def _names(name: str) -> _Names:
    """All names of an architecture's modules."""
    own: dict[tuple[str, str], Module] = {}
    for component, ties in COMPONENTS[name].items():
        if component == "vae":
            continue
        for tie in ties():
            for module_name, end, slots in _tensors(component, tie):
                at = component, module_name
                module = own.get(at, Module())
                own[at] = replace(module, **{"bias" if _ENDS[end] else "weight": slots})
    older = {(of, other): module for (of, inner), module in own.items() for other in _other(inner)}
    dotted = older | own
    underscored = {(of, inner.replace(".", "_")): module for (of, inner), module in dotted.items()}
    return _Names(own, dotted | _xlabs(own), underscored)


def _tensors(component: str, tie: Tie) -> Iterator[tuple[str, str, tuple[Slot, ...]]]:
    """Names of modules, the ends of their tensors' keys, and which rows those tensors are."""
    keys = [f"{component}/{part}" for part in tie.parts]
    for part, key in zip(tie.parts, keys, strict=True):
        yield from ((name, end, (Slot(key),)) for name, end in _split(part))
    if tie.form != "rows":
        return
    parts = [sum(run.units for run in tie.runs if run.part == part) for part in range(len(keys))]
    slots = tuple(Slot(keys[run.part], run.first, run.units, parts[run.part]) for run in tie.runs)
    # A tensor that is whole is the same under both names.
    slots = tuple(Slot(slot.key) if slot.units == slot.of else slot for slot in slots)
    for name, end in _split(tie.single):
        yield name, end, slots


def _split(key: str) -> Iterator[tuple[str, str]]:
    """A tensor's key as the name of its module and the end; nothing for a tensor outside any module."""
    for end in _ENDS:
        if key.endswith(end):
            yield key.removesuffix(end), end


def _other(name: str) -> Iterator[str]:
    """Other spellings of a name with dots."""
    if name.startswith(_TEXT_MODEL):  # transformers 5.6 writes none
        yield name.removeprefix(_TEXT_MODEL)
    for new, old in _OLDER.items():
        if name.endswith(new):
            yield name.removesuffix(new) + old


def _xlabs(dotted: dict[tuple[str, str], Module]) -> dict[tuple[str, str], Module]:
    """X-Labs' names of Flux' modules: by stream, not by layer; in single blocks without the MLP's rows."""
    names: dict[tuple[str, str], Module] = {}
    for (component, inner), module in dotted.items():
        if match := re.fullmatch(r"(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)", inner):
            names[component, f"{match[1]}.{match[3]}{1 if match[2] == 'img' else 2}"] = module
        elif match := re.fullmatch(r"(single_blocks\.\d+)\.linear([12])", inner):
            queries = Module(module.weight[:3], module.bias[:3])
            names[component, f"{match[1]}.{'qkv' if match[2] == '1' else 'proj'}"] = (
                queries if match[2] == "1" else module
            )
    return names


def name_of(architecture: Architecture, dialect: Dialect, key: str) -> str:
    """What an adapter's file calls the module of a tensor, after diffusers' name for it.

    Args:
        architecture: of the model.
        dialect: KOHYA, DIFFUSERS or PEFT.
        key: of the module's weight or bias in a folder, spelled as it is written.
    """
    component, _, inner = key.partition("/")
    inner = next(name for name, _ in _split(inner))
    if dialect is Dialect.KOHYA:
        return f"{kohya_prefix(architecture, component)}_{inner.replace('.', '_')}"
    return f"{component}.{_PEFT if dialect is Dialect.PEFT else ''}{inner}"

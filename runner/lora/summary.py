"""What a file of adapters is, from its header alone: no base is needed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from runner.architectures import ARCHITECTURES
from runner.architectures.base import Architecture
from runner.lora.algebra import BIASES, MAGNITUDES, Kind, MisfitError, is_factor, product, role_of
from runner.lora.names import Dialect, dialect_of, find_module
from runner.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Summary:
    """What job=inspect says of a file of adapters.

    Attributes:
        dialect: whose way of naming modules most of its names are.
        architectures: names of those it may be for, those that have most of its modules.
        kinds: algebra → how many modules have it.
        ranks: rank → how many modules have it.
        components: of the first architecture, component → how many of its tensors are changed.
        alphas: keys of alphas.
        dora: how many modules have lengths.
        unmatched: keys of no adapter, or of no module of the first architecture.
        misfits: module → why its factors make no change.
        settings: what the trainer says of the network in the metadata.
    """

    dialect: Dialect
    architectures: tuple[str, ...]
    kinds: Mapping[Kind, int]
    ranks: Mapping[int, int]
    components: Mapping[str, int]
    alphas: tuple[str, ...]
    dora: int
    unmatched: tuple[str, ...]
    misfits: Mapping[str, str]
    settings: Mapping[str, str]


# Metadata of kohya's tools, LyCORIS and diffusers that say what network it is.
_SETTINGS = (
    *("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_base_model_version"),
    *("modelspec.architecture", "lora_adapter_metadata"),
)


_ENOUGH = 24  # modules, from all parts of the model


def detect_lora(specs: Specs) -> Dialect | None:
    """Whose dialect a file of adapters is in; None if it is none, as a model is.

    A file is one if at least half of its keys are an adapter's, and factors are among them.
    """
    names: Counter[Dialect] = Counter()
    keys = 0
    for key in specs:
        if (split := role_of(key)) and split[1] != "other":
            keys += 1
            names[dialect_of(split[0])] += is_factor(split[1])
    if 2 * keys < len(specs) or not names.total():
        return None
    return names.most_common(1)[0][0]


def describe(specs: Specs, metadata: Mapping[str, str] | None = None) -> Summary | None:
    """What a file of adapters is; None if it is none.

    Args:
        specs: of its tensors.
        metadata: of its header.
    """
    dialect = detect_lora(specs)
    if dialect is None:
        return None
    modules: dict[tuple[str, bool], dict[str, str]] = {}
    unmatched = []
    for key in specs:
        if split := role_of(key):
            modules.setdefault((split[0], split[1] in BIASES), {})[split[1]] = key
        else:
            unmatched.append(key)
    architectures = _architectures({name for name, _ in modules}, specs)
    first = ARCHITECTURES[architectures[0]] if architectures else None
    kinds: Counter[Kind] = Counter()
    ranks: Counter[int] = Counter()
    components: Counter[str] = Counter()
    misfits: dict[str, str] = {}
    for (name, bias), roles in modules.items():
        keys = _changed(first, name, bias)
        components.update(key.partition("/")[0] for key in keys)
        if not keys:
            unmatched += roles.values()
        try:
            if "other" in roles:
                raise MisfitError(f"{roles['other']} is of an algebra that is not implemented")
            if not any(map(is_factor, roles)):
                raise MisfitError("no factors")
            made = product({role: specs[key].shape for role, key in roles.items() if is_factor(role)})
        except MisfitError as misfit:
            misfits[name] = str(misfit)
            continue
        kinds[made.kind] += 1
        if made.rank:
            ranks[made.rank] += 1
    return Summary(
        dialect=dialect,
        architectures=architectures,
        kinds=dict(kinds),
        ranks=dict(sorted(ranks.items())),
        components=dict(components),
        alphas=tuple(roles["alpha"] for roles in modules.values() if "alpha" in roles),
        dora=sum(any(role in roles for role in MAGNITUDES) for roles in modules.values()),
        unmatched=tuple(unmatched),
        misfits=misfits,
        settings={key: (metadata or {})[key] for key in _SETTINGS if key in (metadata or {})},
    )


def likely_architectures(specs: Specs) -> tuple[str, ...]:
    """Names of the architectures a file of adapters may be for, from some of its modules alone.

    For lists of many files: all modules of a large one take a third of a second.
    """
    names = sorted({split[0] for key in specs if (split := role_of(key))})
    return _architectures(set(names[:: max(1, len(names) // _ENOUGH)]), specs)


def _changed(architecture: Architecture | None, name: str, bias: bool) -> tuple[str, ...]:
    """Keys of the tensors that a module is made of, or those it has rows of."""
    module = find_module(architecture, name) if architecture else None
    slots = (module.bias if bias else module.weight) if module else ()
    return tuple(dict.fromkeys(slot.key for slot in slots))


def _architectures(names: set[str], specs: Specs) -> tuple[str, ...]:
    """The architectures that have most of the modules, the likelier first."""
    found = dict.fromkeys(ARCHITECTURES, 0)
    for name in names:
        for having in _having(name):
            found[having] += 1
    most = max(found.values())
    if not most:
        return ()
    best = [name for name, count in found.items() if count == most]
    width = _text_width(specs)
    fitting = [name for name in best if _WIDTHS.get(name) in (None, width)]
    return tuple(fitting if width and fitting else best)


@functools.lru_cache(maxsize=1 << 14)  # the same names stand in file after file
def _having(name: str) -> tuple[str, ...]:
    """Names of the architectures that have a module of this name."""
    return tuple(found.name for found in ARCHITECTURES.values() if find_module(found, name) is not None)


# How wide the text is that attention reads.
_WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048, "sdxl_refiner": 1280}


def _text_width(specs: Specs) -> int | None:
    """The inputs of an attention that reads the text, by its LoRA; None if there is none."""
    for key, spec in specs.items():
        split = role_of(key)
        if split and split[1] == "down" and split[0].endswith(("attn2_to_k", "attn2.to_k")):
            return spec.shape[1] if len(spec.shape) > 1 else None
    return None

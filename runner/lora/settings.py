"""What is said of an adapter's scales outside its tensors: by diffusers in the header, by PEFT in a config.

Source: huggingface/peft, tuners/lora/config.py and utils/other.py (get_pattern_key); diffusers,
loaders/lora_base.py (lora_adapter_metadata).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from runner.errors import InputError, quote
from runner.formats.strict_json import parse_object
from runner.lora.algebra import MisfitError, Product

LARGEST_NUMBER = 1e15
_METADATA = "lora_adapter_metadata"


class Settings:
    """What metadata or PEFT's config say of scales: by component, or "" for all."""

    def __init__(self, by_component: Mapping[str, Mapping[str, Any]]) -> None:
        self._by_component = by_component
        self._patterns = {
            (component, which): _patterns(which, settings.get(which))
            for component, settings in by_component.items()
            for which in ("alpha_pattern", "rank_pattern")
        }

    def scale(self, name: str, made: Product) -> float | None:
        """The scale of a module without an alpha of its own; None if nothing is said.

        Raises:
            MisfitError: what is said is no scale.
        """
        inner = name.replace("base_model.model.", "", 1)
        component, _, rest = inner.partition(".")
        if component not in self._by_component:
            component, rest = "", inner
        settings = self._by_component.get(component, {})
        alpha = self._of(component, "alpha_pattern", rest, settings.get("lora_alpha", settings.get("alpha")))
        if alpha is None:
            return None
        rank = made.rank or self._of(component, "rank_pattern", rest, settings.get("r"))
        if not _is_number(alpha) or not _is_number(rank) or rank <= 0:
            raise MisfitError(f"alpha {quote(alpha)} and rank {quote(rank)} in its settings are no scale")
        return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") is True else rank)

    def _of(self, component: str, which: str, name: str, otherwise: Any) -> Any:
        """What the first pattern says that is the end of a name, as PEFT takes it."""
        patterns = self._patterns.get((component, which), {})
        parts = name.split(".")
        ends = (".".join(parts[first:]) for first in range(len(parts)))
        return min((patterns[end] for end in ends if end in patterns), default=(0, otherwise))[1]


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < LARGEST_NUMBER  # neither NaN nor Inf is, nor an integer that no float holds


def _patterns(which: str, value: Any) -> dict[str, tuple[int, Any]]:
    """Pattern → its number and what it says. PEFT reads them as regular expressions; names are read here."""
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{which}: expected a mapping, found {quote(value)}", tag="ADAPTER")
    for pattern in value:
        if not re.fullmatch(r"[\w.-]+", pattern):
            raise InputError(f"{which}: {quote(pattern)} is no name but a regular expression", tag="ADAPTER")
    return {pattern: (number, each) for number, (pattern, each) in enumerate(value.items())}


def read_settings(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> Settings:
    """What is said of scales.

    Args:
        metadata: of the file's header, where diffusers puts PEFT's config of each component, prefixed.
        config: PEFT's adapter_config.json; then the metadata are not asked.

    Raises:
        InputError: it is said in a way that cannot be read.
    """
    if config is not None:
        return Settings({"": config})
    text = metadata.get(_METADATA)
    if text is None:
        return Settings({})
    found: dict[str, dict[str, Any]] = {}
    for key, value in parse_object(text.encode(), _METADATA).items():
        component, dot, name = key.partition(".")
        found.setdefault(component if dot else "", {})[name if dot else key] = value
    return Settings(found)

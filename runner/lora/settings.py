"""What is said of an adapter's scales outside its tensors: by diffusers in the header, by PEFT in a config.

Source: huggingface/peft, tuners/lora/config.py and utils/other.py (get_pattern_key); diffusers,
loaders/lora_base.py (lora_adapter_metadata).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from runner.errors import quote
from runner.lora.algebra import MisfitError, Product


class Settings:
    """What metadata or PEFT's config say of scales: by component "", or of one component."""

    def __init__(self, by_component: Mapping[str, Mapping[str, Any]], notes: tuple[str, ...]) -> None:
        self._by_component = by_component
        self.notes = notes

    def scale(self, name: str, made: Product) -> float | None:
        """The scale of a module without an alpha of its own; None if nothing is said."""
        inner = name.replace("base_model.model.", "", 1)
        component, _, rest = inner.partition(".")
        settings = self._by_component.get(component)
        if settings is None:
            settings, rest = self._by_component.get("", {}), inner
        alpha = _pattern(settings, "alpha_pattern", rest, settings.get("lora_alpha", settings.get("alpha")))
        if alpha is None:
            return None
        rank = made.rank or _pattern(settings, "rank_pattern", rest, settings.get("r"))
        if not _is_number(alpha) or not _is_number(rank) or rank <= 0:
            raise MisfitError(f"alpha {quote(alpha)} and rank {quote(rank)} in its settings are no scale")
        return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") is True else rank)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pattern(settings: Mapping[str, Any], which: str, name: str, otherwise: Any) -> Any:
    """What PEFT's patterns say of a module whose name ends in one; patterns that are more are refused."""
    patterns = settings.get(which) or {}
    if not isinstance(patterns, Mapping):
        raise MisfitError(f"{which} in its settings is no mapping")
    for pattern, value in patterns.items():
        if not re.fullmatch(r"[\w.-]+", pattern):
            raise MisfitError(f"{which} {quote(pattern)} is a regular expression, which is not read")
        if name == pattern or name.endswith(f".{pattern}"):
            return value
    return otherwise


def read_settings(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> Settings:
    """What is said of scales.

    Args:
        metadata: of the file's header, where diffusers puts PEFT's config of each component, prefixed.
        config: PEFT's adapter_config.json; then the metadata are not asked.
    """
    if config is not None:
        return Settings({"": config}, ())
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return Settings({}, ())
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        return Settings({}, ("lora_adapter_metadata is no JSON object: alphas are taken to be the ranks",))
    found: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        component, dot, name = key.partition(".")
        found.setdefault(component if dot else "", {})[name if dot else key] = value
    return Settings(found, ())

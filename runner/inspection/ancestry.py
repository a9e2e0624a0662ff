"""sd_merge_recipe and sd_merge_models as a tree: how a model was merged, from what, and those from what.

Source: metadata written by AUTOMATIC1111 stable-diffusion-webui, modules/extras.py, and by tools after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.errors import escape, quote
from runner.imports.history import mapping

MAX_LINES = 60  # a record can name its ancestors again and again
MAX_DEPTH = 10

# Fields that say how, and those that say with what; tools differ in the names.
_METHOD = ("interp_method", "merge_method", "mode", "method")
_NUMBERS = ("multiplier", "base_alpha", "base_beta", "alpha_info", "beta_info", "calcmode", "calculation")
_ROLES = (
    ("A", ("primary_model_hash", "model_a")),
    ("B", ("secondary_model_hash", "model_b")),
    ("C", ("tertiary_model_hash", "model_c")),
)


@dataclass
class _Tree:
    models: Mapping[str, Any]
    lines: list[str] = field(default_factory=list)
    above: list[str] = field(default_factory=list)

    def merge(self, record: Mapping[str, Any], indent: str) -> None:
        """A line for how, and one or more for each model."""
        self.lines.append(f"{indent}{_how(record)}")
        roles = [(role, digest) for role, digest in _models(record) if isinstance(digest, str) and digest]
        for role, digest in roles:
            if len(self.lines) >= MAX_LINES:
                return
            entry = self.models.get(digest)
            entry = entry if isinstance(entry, Mapping) else {}
            name = entry.get("name")
            label = escape(name) if isinstance(name, str) and name else "(no name)"
            own = mapping(entry.get("sd_merge_recipe"))
            line = f"{indent}  {role}  {label}  {escape(digest[:10])}"
            if own is None:
                self.lines.append(line)
            elif digest in self.above or len(self.above) >= MAX_DEPTH:
                self.lines.append(f"{line}  (and so on)")
            else:
                self.lines.append(f"{line}, itself merged:")
                self.above.append(digest)
                self.merge(own, f"{indent}     ")
                self.above.pop()


def ancestry(metadata: Mapping[str, str]) -> list[str]:
    """The tree, indented; [] if the metadata has none."""
    if "sd_merge_recipe" not in metadata:
        return []
    record = mapping(metadata["sd_merge_recipe"])
    if record is None:
        return [f"  sd_merge_recipe cannot be read: {quote(metadata['sd_merge_recipe'])}"]
    tree = _Tree(mapping(metadata.get("sd_merge_models")) or {})
    tree.merge(record, "  ")
    return tree.lines if len(tree.lines) < MAX_LINES else [*tree.lines[:MAX_LINES], "  ..."]


def _how(record: Mapping[str, Any]) -> str:
    method = next((record[name] for name in _METHOD if isinstance(record.get(name), str)), "merge")
    values = [f"{name} {_short(record[name])}" for name in _NUMBERS if record.get(name) not in (None, "")]
    if record.get("mbw") or record.get("block_weights"):
        values.append("by block")
    if (vae := record.get("bake_in_vae")) not in (None, "", "None"):
        values.append(f"VAE {_short(vae)}")
    kind = record.get("type")
    return f"{escape(method)}{', ' if values else ''}{', '.join(values)}  [{escape(str(kind))}]"


def _short(value: object) -> str:
    return escape(value) if isinstance(value, str) else quote(value)


def _models(record: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for role, names in _ROLES:
        yield role, next((record[name] for name in names if name in record), None)

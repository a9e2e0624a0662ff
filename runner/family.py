"""The family tree in the header of a model: how it was merged, from what, and those from what.

It is drawn from sd_merge_recipe and sd_merge_models, ours or those of A1111 and the tools after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.errors import escape, quote
from runner.stated import RUNNER, SLOTS, Record, descent, mapping

MAX_LINES = 60  # a record can name its ancestors again and again
MAX_DEPTH = 10
LOST = "runner.ancestors_lost"

# Fields that say how, and those that say with what; tools differ in the names.
_METHOD = ("interp_method", "merge_method", "mode", "method")
_NUMBERS = ("multiplier", "base_alpha", "base_beta", "alpha_info", "beta_info", "calcmode", "calculation")
# Fields of a recipe that are no numbers of its method.
_NOT_NUMBERS = ("method", "models", "components", "output", "seed", "compute_dtype", "compat")


@dataclass
class _Tree:
    models: Mapping[str, Any]
    lines: list[str] = field(default_factory=list)
    above: list[str] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)

    def merge(self, record: Record, indent: str) -> None:
        """A line for how, and one or more for each model."""
        steps = mapping(record.get("steps")) if record.get("type") == RUNNER else None
        if steps is not None:
            self.lines.append(f"{indent}{_step(steps, record.get('method'))}  [{RUNNER}]")
            self.steps(steps, mapping(record.get("models")) or {}, "", f"{indent}  ", 0)
            return
        self.lines.append(f"{indent}{_how(record)}")
        for role, digest in _models(record):
            if isinstance(digest, str) and digest:
                self.model(role, digest, indent, None)

    def steps(self, steps: Record, digests: Record, at: str, indent: str, depth: int) -> None:
        """The models of a recipe of ours; merges among them with their own."""
        for role, model in _named(steps):
            if len(self.lines) >= MAX_LINES:
                return
            path = f"{at}.{role}" if at else role
            digest = digests.get(path)
            if "method" in model and depth < MAX_DEPTH:
                self.lines.append(f"{indent}{escape(role)}  {_step(model, None)}")
                self.steps(model, digests, path, f"{indent}   ", depth + 1)
            else:
                known = digest if isinstance(digest, str) else ""
                self.model(escape(role), known, indent[:-2], model.get("source"))
        components = mapping(steps.get("components")) if not at else None
        for name, model in (components or {}).items():
            digest = digests.get(f"components.{name}")
            named = model.get("source") if isinstance(model, Mapping) else None
            self.model(escape(name), digest if isinstance(digest, str) else "", indent[:-2], named)

    def model(self, role: str, digest: str, indent: str, named: object) -> None:
        """A line for a model, and its own making below it, the first time that it comes."""
        if len(self.lines) >= MAX_LINES:
            return
        entry = self.models.get(digest)
        entry = entry if isinstance(entry, Mapping) else {}
        name = entry.get("name") or named
        label = escape(name) if isinstance(name, str) and name else "(no name)"
        parts = [f"{indent}  {role}", label, escape(digest[:10])]
        if isinstance(terms := entry.get("license"), str) and terms:
            parts.append(f"({escape(terms)})")
        line = "  ".join(part for part in parts if part)
        own = mapping(entry.get("sd_merge_recipe"))
        if own is None:
            self.lines.append(line)
        elif digest in self.above or len(self.above) >= MAX_DEPTH:
            self.lines.append(f"{line}  (and so on)")
        elif digest in self.drawn:
            self.lines.append(f"{line}, itself merged, see above")
        else:
            self.lines.append(f"{line}, itself merged:")
            self.drawn.add(digest)
            self.above.append(digest)
            self.merge(own, f"{indent}     ")
            self.above.pop()


def family_tree(metadata: Mapping[str, str]) -> list[str]:
    """The tree, indented; [] if the metadata has none."""
    models: Mapping[str, Any] = mapping(metadata.get("sd_merge_models")) or {}
    if "sd_merge_recipe" in metadata:
        record = mapping(metadata["sd_merge_recipe"])
        if record is None:
            return [f"  sd_merge_recipe cannot be read: {quote(metadata['sd_merge_recipe'])}"]
    else:  # a merge of ours from before it wrote that, or nothing
        found = descent(metadata)
        record = found.record
        models = {digest: {"name": one.name} for digest, one in found.models.items()}
    if record is None:
        return []
    tree = _Tree(models)
    tree.merge(record, "  ")
    lines = tree.lines if len(tree.lines) < MAX_LINES else [*tree.lines[:MAX_LINES], "  ..."]
    if lost := metadata.get(LOST):
        lines.append(f"  older ancestors that are not in it: {escape(lost)}")
    return lines


def _step(recipe: Record, label: object) -> str:
    """The method of a recipe of ours, and its numbers in short."""
    method = label if isinstance(label, str) and label else recipe.get("method")
    numbers = []
    for name, value in recipe.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in _NOT_NUMBERS:
            numbers.append(f"{escape(name)} {value:g}" if abs(value) < 1e9 else escape(name))
        elif isinstance(value, list) and value and name not in (*_NOT_NUMBERS, "nonfinite"):
            numbers.append(f"{escape(name)} by place")
    return ", ".join([escape(str(method)), *numbers[:4]])


def _named(steps: Record) -> Iterator[tuple[str, Record]]:
    """The models of a recipe of ours by role."""
    listed = steps.get("models")
    for model in listed if isinstance(listed, list) else []:
        if isinstance(model, Mapping) and isinstance(role := model.get("role"), str):
            yield role, model


def _how(record: Record) -> str:
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


def _models(record: Record) -> Iterator[tuple[str, object]]:
    for role, names in SLOTS:
        yield role.upper(), next((record[name] for name in names if name in record), None)

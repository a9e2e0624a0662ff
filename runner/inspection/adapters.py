"""Files that hold what is added to a model: LoRA and its relatives."""

from __future__ import annotations

from collections.abc import Mapping

from runner.errors import counted, escape
from runner.lora.summary import describe
from runner.tables import table
from runner.tensors import TensorSpec


def adapter_lines(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> list[str]:
    """What a file of adapters changes of which model, as lines; [] if it is none."""
    found = describe(specs, metadata)
    if found is None:
        return []
    kinds = ", ".join(f"{kind} ({count})" for kind, count in found.kinds.items())
    ranks = ", ".join(f"{rank} ({count})" for rank, count in found.ranks.items()) or "none"
    rows = [
        ["names", found.dialect],
        ["for", ", ".join(found.architectures) or "unknown"],
        ["kinds", f"{kinds}{f', {found.dora} with lengths (DoRA)' if found.dora else ''}"],
        ["ranks", ranks],
        ["changes", ", ".join(f"{name} {count}" for name, count in found.components.items()) or "nothing"],
        ["alphas", str(len(found.alphas))],
        *([name, escape(text)] for name, text in found.settings.items()),
    ]
    lines = table([["", ""], *([str(cell) for cell in row] for row in rows)])[1:]
    if found.unmatched:
        first = ", ".join(map(escape, found.unmatched[:3]))
        lines.append(f"  {counted(len(found.unmatched), 'key')} of no module: {first}")
    lines += [f"  {escape(name)}: {why}" for name, why in list(found.misfits.items())[:5]]
    return lines

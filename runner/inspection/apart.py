"""How far two models are apart, as tables: by component and block, and by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from runner.config import Settings
from runner.errors import escape
from runner.inspection.comparison import Comparison
from runner.progress import progress
from runner.tables import table

if TYPE_CHECKING:
    from runner.engine.compute import Moved


def distance_lines(found: Comparison, settings: Settings) -> list[tuple[str, list[str]]]:
    """Reads both models; returns sections of a report.

    Raises:
        InputError: a file ended early, or changed meanwhile.
    """
    from runner.engine.distance import distances

    specs = [view.specs for view in found.views]
    keys = [key for key in found.alike if all(one[key].is_float and one[key].elements for one in specs)]
    models = [(model.checkpoint, view) for model, view in zip(found.models, found.views, strict=True)]
    total = sum(one[key].nbytes for key in keys for one in specs)
    with progress(total, "distances", settings.progress) as advance:
        moved = distances(models, keys, settings.threads, settings.tile_elements, advance)
    sections = [("distance |b - a| / |a|", _table(found, moved))]
    if (skipped := len(found.alike) - len(keys)) and keys:
        sections[0][1].append(f"  not compared: {skipped} without floating-point numbers")
    if settings.job.keys == "all":
        rows = [("key", "blocks", "distance")]
        rows += [(escape(key), " ".join(found.places[key].blocks), _shown([moved[key]])) for key in keys]
        sections.append(("distance of each tensor", table(rows, right=(2,))))
    return sections


def _table(found: Comparison, moved: Mapping[str, Moved]) -> list[str]:
    """A line for each component, and below it one for each block in order of depth."""
    architecture = found.models[0].architecture
    order = {name: at for at, name in enumerate(architecture.blocks)} if architecture else {}
    parts: dict[str, dict[str, list[Moved]]] = {}
    for key, one in moved.items():
        place = found.places[key]
        block = place.blocks[-1] if place.blocks else ""
        parts.setdefault(place.component, {}).setdefault(block, []).append(one)
    rows = [["component", "block", "tensors", "equal", "distance"]]
    for component in sorted(parts):
        blocks = parts[component]
        rows.append([escape(component), "", *_cells([one for block in blocks.values() for one in block])])
        if len(blocks) > 1:
            named = sorted(blocks, key=lambda name: (order.get(name, len(order)), name))
            rows += [["", escape(name) or "–", *_cells(blocks[name])] for name in named]
    if len(parts) > 1:
        rows.append(["all", "", *_cells(moved.values())])
    return table(rows, right=(2, 3, 4))


def _cells(moved: Iterable[Moved]) -> list[str]:
    moved = list(moved)
    equal = sum(not any(one.difference) for one in moved)
    return [str(len(moved)), str(equal), _shown(moved)]


def _shown(moved: Iterable[Moved]) -> str:
    from runner.engine.distance import relative

    found = relative(moved)
    return "not finite" if found is None else f"{100 * found:.4g} %"

"""Where two models differ, by their headers. Layouts may differ: tensors have the names of the view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.architectures import Place, place
from runner.errors import counted, escape
from runner.models.model import Model
from runner.models.view import INCIDENTAL, View, view_of
from runner.tables import table

EXAMPLES = 5


@dataclass(frozen=True)
class Comparison:
    """Two models, tensor by tensor.

    Attributes:
        models: the first and the second.
        views: their tensors, under the same names if their architecture is the same.
        places: where each tensor of either stands.
        only: keys that only the first has, and only the second.
        incidental: of these, what belongs to a layout or to training.
        shapes, dtypes: keys in both that differ so.
        alike: keys in both of the same shape.
    """

    models: tuple[Model, Model]
    views: tuple[View, View]
    places: Mapping[str, Place]
    only: tuple[list[str], list[str]]
    incidental: tuple[list[str], list[str]]
    shapes: list[str]
    dtypes: list[str]
    alike: list[str]


def compare(first: Model, second: Model) -> Comparison:
    """Compares two models by their headers."""
    models = (first, second)
    if first.architecture == second.architecture:
        views = (first.view, second.view)
    else:  # with names of one layout here and of the other there nothing would be equal
        views = (_as_stored(first), _as_stored(second))
    places: dict[str, Place] = {}
    for model, view in zip(models, views, strict=True):
        for key in view.tensors:
            stored = key in view.left or view is not model.view
            layout = model.checkpoint.format if stored or model.architecture is None else "diffusers"
            places.setdefault(key, place(model.architecture, layout, key))
    ours, theirs = (view.specs for view in views)
    only = ([key for key in ours if key not in theirs], [key for key in theirs if key not in ours])
    both = [key for key in ours if key in theirs]
    return Comparison(
        models,
        views,
        places,
        (_own(only[0], views[0]), _own(only[1], views[1])),
        (_incidental(only[0], views[0]), _incidental(only[1], views[1])),
        shapes=[key for key in both if ours[key].shape != theirs[key].shape],
        dtypes=[key for key in both if ours[key].dtype != theirs[key].dtype],
        alike=[key for key in both if ours[key].shape == theirs[key].shape],
    )


def _as_stored(model: Model) -> View:
    return view_of(None, model.checkpoint.format, model.checkpoint.specs, model.view.quantised)


def _incidental(keys: Sequence[str], view: View) -> list[str]:
    return [key for key in keys if key in view.left and view.left[key].kind in INCIDENTAL]


def _own(keys: Sequence[str], view: View) -> list[str]:
    left = set(_incidental(keys, view))
    return [key for key in keys if key not in left]


def comparison_lines(found: Comparison, *, all_keys: bool) -> list[tuple[str, list[str]]]:
    """Sections of a report: counts by component, then examples of each kind or all of them."""
    sections = [("tensors by component", _counts(found))]
    if found.models[0].architecture != found.models[1].architecture:
        note = "  of different architectures: compared by the names in the files"
        sections[0][1].append(note)
    ours, theirs = (view.specs for view in found.views)
    kinds = (
        ("only in a", [(key, str(ours[key])) for key in found.only[0]]),
        ("only in b", [(key, str(theirs[key])) for key in found.only[1]]),
        ("other shape", [(key, f"{ours[key]} → {theirs[key]}") for key in found.shapes]),
        (
            "other dtype",
            [(key, f"{ours[key].dtype} → {theirs[key].dtype}") for key in found.dtypes],
        ),
    )
    sections += [(head, _listed(rows, found, all_keys)) for head, rows in kinds if rows]
    for role, keys, view in zip("ab", found.incidental, found.views, strict=True):
        if keys:
            counts = Counter(view.left[key].kind for key in keys).most_common()
            text = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts)
            sections.append((f"only in {role}, of its layout or training", [f"  {text}"]))
    return sections


def _counts(found: Comparison) -> list[str]:
    both = [*found.alike, *found.shapes]
    columns = (both, *found.only, found.shapes, found.dtypes)
    counts = [Counter(found.places[key].component for key in keys) for keys in columns]
    components = sorted(set().union(*counts))
    rows = [["component", "in both", "only in a", "only in b", "other shape", "other dtype"]]
    rows += [[escape(name), *(str(count[name]) for count in counts)] for name in components]
    if len(components) > 1:
        rows.append(["all", *(str(count.total()) for count in counts)])
    return table(rows, right=range(1, 6))


def _listed(rows: Sequence[tuple[str, str]], found: Comparison, all_keys: bool) -> list[str]:
    shown = rows if all_keys else rows[:EXAMPLES]
    lines = table([(escape(key), " ".join(found.places[key].blocks), text) for key, text in shown])
    if len(rows) > len(shown):
        lines.append(f"  and {counted(len(rows) - len(shown), 'tensor')} more (job.keys=all)")
    return lines

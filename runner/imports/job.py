"""job=import: a recipe of another tool, from a file to a YAML beside the user."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from runner.errors import UsageError, clip, counted, escape, quote
from runner.imports import import_file
from runner.imports.imported import Note, file_name, title
from runner.imports.recipe_text import recipe_text, unknown_names
from runner.progress import say
from runner.tables import padded, width_of
from runner.write import write_file

log = logging.getLogger(__name__)
_ORDER = ("refused", "approximate", "exact")


def import_recipe(source: Path, output: Path | None, overwrite: bool, models_dir: Path) -> Path:
    """Writes the recipe that another tool left in a file, and says what became of each part.

    Args:
        source: a model, or a text.
        output: of the recipe; None: a name taken from what was imported, in the current folder.
        overwrite: whether a file of that name may be replaced.
        models_dir: where models are; an ancestor that is not there is expanded to its own merge.

    Returns:
        The path of the recipe.

    Raises:
        InputError: nothing that can be translated.
        UsageError: the output is there already, or is no .yaml.
    """
    imported = import_file(source, lambda name: (models_dir / file_name(name)).exists())
    text = recipe_text(imported, escape(source.name))
    name = (imported.tree.get("output") or {}).get("name") or title(source.stem) or "imported"
    target = output or Path(f"{name}.yaml")
    if target.suffix not in (".yaml", ".yml"):
        raise UsageError(f"job.output: expected the name of a .yaml file, found {quote(target)}")
    if target.exists() and not overwrite:
        hint = "give job.output=NAME.yaml, or job.overwrite=true"
        raise UsageError(f"{quote(target)} is there already", tag="EXISTS", hint=hint)
    write_file(target, text.encode())
    notes = [*imported.notes, *unknown_names(imported.tree)]
    say("\n".join([f"{target}: imported from {escape(source.name)} ({imported.dialect})", *_table(notes)]))
    found = Counter(note.kind for note in notes)
    if refused := found["refused"]:
        log.warning("runner: warning[W-IMPORT]: %s not translated; see the list", counted(refused, "part"))
    return target


def _table(notes: Sequence[Note]) -> list[str]:
    """A line for each note, what was refused first."""
    ordered = sorted(notes, key=lambda note: _ORDER.index(note.kind))
    parts = [escape(note.part) for note in ordered]
    width = min(24, max(map(width_of, parts), default=0))
    return [
        clip(f"  {note.kind:<11}  {padded(part, width)}  {note.text}")
        for note, part in zip(ordered, parts, strict=True)
    ]

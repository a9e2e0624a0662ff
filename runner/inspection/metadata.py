"""What the header of a model says beside its tensors. Written by strangers: escaped, cut, never believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from runner.errors import QUOTE_CHARACTERS, InputError, clip, escape
from runner.family import LOST, family_tree
from runner.imports import MAX_METADATA, import_metadata
from runner.imports.recipe_text import recipe_text
from runner.stated import mapping
from runner.tables import table

MAX_ENTRIES = 40
MAX_RECIPE_LINES = 80
MAX_TAGS = 12
_SPEC = "modelspec."
_RECIPE = "runner.recipe"
_CLAIMS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# Of the hundred entries that kohya's trainer leaves, those that tell a person what was trained and how.
_TRAINING = (
    *("output_name", "base_model_version", "sd_model_name", "new_sd_model_hash", "sd_model_hash"),
    *("network_module", "network_dim", "network_alpha", "network_args", "resolution", "v_parameterization"),
    *("num_train_images", "num_epochs", "epoch", "steps", "max_train_steps", "learning_rate", "unet_lr"),
    *("text_encoder_lr", "optimizer", "lr_scheduler", "noise_offset", "mixed_precision", "clip_skip"),
    "training_comment",
)


def metadata_lines(metadata: Mapping[str, str], label: str) -> list[tuple[str, list[str]]]:
    """Sections of a report: a head and its lines.

    Args:
        metadata: of the header.
        label: of the file, for a recipe read from it.
    """
    # What is too long to be read as JSON is shown only.
    read = {key: text for key, text in metadata.items() if len(text) <= MAX_METADATA}
    spec = {key.removeprefix(_SPEC): text for key, text in metadata.items() if key.startswith(_SPEC)}
    sections = [("ModelSpec", _entries(spec)), ("merge history", family_tree(read))]
    imported = {"sd_merge_recipe", "mecha_recipe"} & read.keys()
    if _RECIPE in read:
        sections.append(("recipe", _recipe(read[_RECIPE], label)))
    elif imported:
        hint = f"  {', '.join(sorted(imported))}: job=import writes it as a recipe"
        sections.append(("recipe", [hint]))
    sections.append(("training", _training(read)))
    known = {"sd_merge_recipe", "sd_merge_models", "runner.inputs", LOST, _RECIPE}
    shown = {"format", *_CLAIMS, *(read.keys() & known)}
    others = {
        key: text
        for key, text in metadata.items()
        if key not in shown and not key.startswith(_SPEC) and not (key.startswith("ss_") and key in read)
    }
    sections.append(("other metadata", _entries(others)))
    return [(head, lines) for head, lines in sections if lines]


def claimed_hashes(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """The hashes that the header states, by the names of their entries."""
    return [(name, metadata[name]) for name in _CLAIMS if name in metadata]


def _entries(entries: Mapping[str, str]) -> list[str]:
    """A line for each entry, the first of them by name."""
    found = sorted(entries.items())
    return _pairs([(escape(key), _cut(text)) for key, text in found[:MAX_ENTRIES]], len(found))


def _pairs(rows: Sequence[tuple[str, str]], there_are: int) -> list[str]:
    """Rows as a table, and how many more there are."""
    if not rows:
        return []
    rest = there_are - len(rows)
    return [*table(rows), *([f"  and {rest} more"] if rest else [])]


def _cut(text: str) -> str:
    """The beginning of a text, and its length if that is not all of it."""
    shown = escape(text)
    return shown if len(text) <= QUOTE_CHARACTERS else f"{shown} ({len(text)} characters)"


def _recipe(text: str, label: str) -> list[str]:
    """The recipe in the header as the YAML it would be imported as."""
    try:
        written = recipe_text(import_metadata({_RECIPE: text}, label), label)
    except InputError as error:
        return [clip(f"  {_RECIPE} cannot be read: {error}")]
    lines = [clip(f"  {line}") for line in written.splitlines() if line and not line.startswith("#")]
    if len(lines) > MAX_RECIPE_LINES:
        return [*lines[:MAX_RECIPE_LINES], "  ... (all of it: job=import)"]
    return lines


def _training(metadata: Mapping[str, str]) -> list[str]:
    """What kohya's trainer says of itself, the most telling part."""
    found = {name: metadata.get(f"ss_{name}", "") for name in _TRAINING}
    rows = [(name, _cut(text)) for name, text in found.items() if text]
    if tags := _tags(mapping(metadata.get("ss_tag_frequency"))):
        rows.append(("tags", tags))
    return _pairs(rows, sum(key.startswith("ss_") for key in metadata))


def _tags(folders: Mapping[str, Any] | None) -> str:
    """The most frequent words of the captions."""
    counts: Counter[str] = Counter()
    for tags in (folders or {}).values():
        for tag, count in tags.items() if isinstance(tags, Mapping) else ():
            if type(count) is int:
                counts[tag] += count
    return ", ".join(f"{escape(tag)} {count}" for tag, count in counts.most_common(MAX_TAGS))

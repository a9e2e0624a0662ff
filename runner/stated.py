"""What the header of a model states of where it came from, read under limits and cleaned.

Written by strangers: nothing of it is believed or followed, and what is carried on to an output is text
without control characters, records of a few kilobytes, and links that are SHA-256.
Source: metadata written by AUTOMATIC1111 stable-diffusion-webui, modules/extras.py, and by tools after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from runner.errors import InputError, is_unprintable
from runner.formats.strict_json import parse_object
from runner.recipe.canonical import canonical_json
from runner.recipe.structure import MAX_TEXT_BYTES, NAMED, SHA256

Record: TypeAlias = Mapping[str, Any]

RUNNER = "runner"  # the `type` of our own records
MAX_READ = 4 << 20  # characters of an entry of a header
MAX_RECORD_BYTES = 64 << 10  # of how one model was merged
MAX_RECORD_DEPTH = 12
MAX_NAME = 240  # characters of the name of a file
_LEGACY = re.compile(r"[0-9a-f]{8}", re.ASCII)
# The models of a merge by other tools, by role: what the fields with their digests are called.
SLOTS = (
    ("a", ("primary_model_hash", "model_a")),
    ("b", ("secondary_model_hash", "model_b")),
    ("c", ("tertiary_model_hash", "model_c")),
)


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A model that another was merged from, as a header states it.

    Attributes:
        name: of its file or folder; "" if that is not stated.
        legacy_hash: A1111's; None for a folder, or if it is not stated.
        license: "" if none is stated.
        kind: "diffusers" for a folder.
        record: how it was merged itself; None if that is not stated.
    """

    name: str = ""
    legacy_hash: str | None = None
    license: str = ""
    kind: str = ""
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Descent:
    """What a header states of the making of its model.

    Attributes:
        record: how it was merged; None if nothing is stated.
        models: those it was merged from and their ancestors, by SHA-256.
        unread: what of it could not be read, and why.
    """

    record: Record | None = None
    models: Mapping[str, Ancestor] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def descent(metadata: Mapping[str, str]) -> Descent:
    """What the metadata of a model states of where it came from."""
    unread: list[str] = []
    read = {key: _entry(metadata, key, unread) for key in ("sd_merge_recipe", "sd_merge_models")}
    inputs = list(_inputs(metadata, unread))
    record = clean_record(read["sd_merge_recipe"])
    if record is None and read["sd_merge_recipe"]:
        unread.append("sd_merge_recipe: too large or too deep")
    if record is None and (recipe := _entry(metadata, "runner.recipe", unread)):
        models = {role: digest for digest, roles, _ in inputs for role in roles}
        method = metadata.get("runner.method") or recipe.get("method")
        steps = canonical_json(recipe)
        record = clean_record({"type": RUNNER, "method": method, "models": models, "steps": steps})
    found: dict[str, Ancestor] = {digest: ancestor for digest, _, ancestor in inputs}
    for digest, entry in (read["sd_merge_models"] or {}).items():
        if SHA256.fullmatch(digest.lower()) and isinstance(entry, Mapping):
            one = _ancestor(entry)
            if one.record is None and entry.get("sd_merge_recipe"):
                unread.append(f"how {digest[:10].lower()} was merged")
            found[digest.lower()] = one
    return Descent(record, found, tuple(unread))


def links(record: Record) -> Iterator[tuple[str, str]]:
    """The models a record names: (role, SHA-256)."""
    ours = record.get("models")
    if record.get("type") == RUNNER and isinstance(ours, Mapping):
        for role, digest in ours.items():
            if isinstance(digest, str) and SHA256.fullmatch(digest):
                yield role, digest
        return
    for role, names in SLOTS:
        digest = next((record[name] for name in names if name in record), None)
        if isinstance(digest, str) and SHA256.fullmatch(digest.lower()):
            yield role, digest.lower()


def clean_text(value: object, limit: int = MAX_TEXT_BYTES) -> str:
    """A text without control characters; "" if it is none, or longer than a limit of bytes."""
    if not isinstance(value, str) or len(value) > limit:
        return ""
    text = "".join(char if char in "\n\t" or not is_unprintable(char) else "\ufffd" for char in value)
    return text if len(text.encode()) <= limit else ""


def clean_name(value: object) -> str:
    """The name of a file without its folders, or of a model of the hub; "" if it is none."""
    text = clean_text(value).replace("\n", " ").replace("\t", " ").strip()
    if not text.startswith(NAMED):
        text = re.split(r"[\\/]", text)[-1]
    return text[:MAX_NAME]


def clean_record(value: object) -> Record | None:
    """A record with clean texts; None if it is none, too large or too deep."""
    record = mapping(value)
    if record is None:
        return None
    try:
        cleaned = {key: _clean_steps(one) if key == "steps" else one for key, one in record.items()}
        result: dict[str, Any] = _clean(cleaned, 0)
    except ValueError:
        return None
    return result if len(canonical_json(result).encode()) <= MAX_RECORD_BYTES else None


def mapping(value: object) -> Record | None:
    """An object, from an object or from its JSON text; None if it is neither."""
    if isinstance(value, str):
        try:
            return parse_object(value.encode("utf-8", "replace"), "recipe")
        except InputError:
            return None
    return value if isinstance(value, Mapping) else None


@dataclass(frozen=True, slots=True)
class _Steps:
    """A recipe as text in a record: it may be longer than other texts."""

    text: str


def _clean_steps(value: object) -> object:
    """Our recipe, whose text keeps it from nesting deeper with every merge."""
    recipe = mapping(value)
    return None if recipe is None else _Steps(canonical_json(_clean(recipe, -MAX_RECORD_DEPTH * 2)))


def _clean(value: Any, depth: int) -> Any:
    """A value of JSON with clean texts.

    Raises:
        ValueError: a text is too long, or it nests too deep.
    """
    if depth > MAX_RECORD_DEPTH:
        raise ValueError("too deep")
    if isinstance(value, _Steps):
        return value.text
    if isinstance(value, Mapping):
        return {_clean(key, depth): _clean(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one, depth + 1) for one in value]
    if isinstance(value, str):
        text = clean_text(value)
        if value and not text:
            raise ValueError("too long")
        return text
    return value


def _entry(metadata: Mapping[str, str], key: str, unread: list[str]) -> Record | None:
    """An entry that is JSON; what cannot be read is noted."""
    text = metadata.get(key)
    if text is None:
        return None
    if len(text) > MAX_READ:
        unread.append(f"{key}: {len(text)} characters, at most {MAX_READ} are read")
        return None
    try:
        return parse_object(text.encode("utf-8", "replace"), key)
    except InputError as error:
        unread.append(error.message)
        return None


def _inputs(metadata: Mapping[str, str], unread: list[str]) -> Iterator[tuple[str, list[str], Ancestor]]:
    """The entries of runner.inputs: SHA-256, roles, and what is stated of the model."""
    text = metadata.get("runner.inputs")
    if text is None:
        return
    wrapped = _entry({"runner.inputs": f'{{"inputs":{text}}}'}, "runner.inputs", unread)
    listed = wrapped["inputs"] if wrapped else []
    for one in listed if isinstance(listed, list) else []:
        digest = one.get("sha256") if isinstance(one, Mapping) else None
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            continue
        roles = one.get("roles")
        kind = "diffusers" if one.get("layout") == "diffusers" else ""
        yield (
            digest,
            [clean_name(role) for role in roles if isinstance(role, str)] if isinstance(roles, list) else [],
            Ancestor(clean_name(one.get("name")), None, clean_text(one.get("license")), kind),
        )


def _ancestor(entry: Record) -> Ancestor:
    legacy = entry.get("legacy_hash")
    return Ancestor(
        clean_name(entry.get("name")),
        legacy if isinstance(legacy, str) and _LEGACY.fullmatch(legacy) else None,
        clean_text(entry.get("license")),
        "diffusers" if entry.get("kind") == "diffusers" else "",
        clean_record(entry.get("sd_merge_recipe")),
    )

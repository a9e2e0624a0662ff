"""What a result says of where it came from: its inputs, how they were merged, and their ancestors.

The digests of the inputs are known last, so entries are made twice: for the plan with numbers of the same
length in their place, and again when all is hashed. The final ones are never longer: a model that turns out
to be its own ancestor stands in them once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from runner.digests import legacy_hash, model_digest
from runner.disk.files import InputFile
from runner.errors import counted, escape, quote
from runner.family import LOST
from runner.models.model import Model
from runner.provenance.parts import roles
from runner.recipe.canonical import canonical_json, canonical_recipe, canonical_source
from runner.recipe.structure import Source
from runner.resolve.resolved import Resolved
from runner.stated import RUNNER, Ancestor, Descent, Record, clean_text, descent, links

MAX_ANCESTRY_BYTES = 256 << 10  # of what is carried on from the inputs
_WEBUI = {"weighted_sum": "Weighted sum", "add_difference": "Add difference", "copy": "No interpolation"}
_SLOTS = {"a": "primary_model_hash", "b": "secondary_model_hash", "c": "tertiary_model_hash"}
# Texts in the records of other tools that name files.
_NAMES = ("custom_name", "output_name", "bake_in_vae", "discard_weights", "steps")


@dataclass(frozen=True)
class Ancestry:
    """What the headers of the inputs state, as far as it is carried on.

    Attributes:
        resolved: the recipe and its models.
        records: of each model, how it was merged itself; None if that is not stated, or left out.
        ancestors: of the models, by SHA-256, the nearest first.
        lost: how many ancestors there was no room for.
        warnings: what a person should know, a line each.
    """

    resolved: Resolved
    records: tuple[Record | None, ...]
    ancestors: Mapping[str, Ancestor]
    lost: int
    warnings: tuple[str, ...]


def trace(resolved: Resolved) -> Ancestry:
    """Reads what the headers of the inputs state of where they came from.

    What is carried on is limited: the nearest come first, so the oldest are left out.
    """
    found = [descent(model.checkpoint.metadata) for model in resolved.models]
    if resolved.recipe.output.hide_names:
        found = [_nameless(one) for one in found]
    room = MAX_ANCESTRY_BYTES
    lost = 0
    records: list[Record | None] = []
    for one in found:
        size = len(canonical_json(one.record).encode()) if one.record else 0
        records.append(one.record if size <= room else None)
        lost += size > room
        room -= size if size <= room else 0
    kept: dict[str, Ancestor] = {}
    ordered = _by_distance(found)
    for at, (digest, ancestor) in enumerate(ordered.items()):
        room -= len(canonical_json({digest: _entry(ancestor)}).encode())
        if room < 0:
            lost += len(ordered) - at
            break
        kept[digest] = ancestor
    warnings = [
        f"{quote(model.checkpoint.label)}: where it came from is read in part only: {escape(reason)}"
        for model, one in zip(resolved.models, found, strict=True)
        for reason in one.unread[:3]
    ]
    if lost:
        warnings.append(f"the header has no room for {counted(lost, 'older ancestor')} of the inputs")
    return Ancestry(resolved, tuple(records), kept, lost, (*_licences(resolved), *warnings))


def header_entries(ancestry: Ancestry, digests: Mapping[InputFile, str] | None = None) -> dict[str, str]:
    """The entries of the output's header.

    Args:
        ancestry: of its inputs.
        digests: of the weight files; None: they are not known yet, and the entries as long as they can be.
    """
    known = input_digests(ancestry.resolved, digests)
    models = {digest: _entry(ancestor) for digest, ancestor in ancestry.ancestors.items()}
    for model, digest, record in zip(ancestry.resolved.models, known, ancestry.records, strict=True):
        models[digest] = _entry(_ancestor(model, record, digests is not None))
    entries = {
        "runner.inputs": canonical_json(inputs(ancestry.resolved, known)),
        "sd_merge_recipe": canonical_json(_record(ancestry.resolved, known)),
        "sd_merge_models": canonical_json(models),
    }
    return {**entries, LOST: str(ancestry.lost)} if ancestry.lost else entries


def input_digests(resolved: Resolved, digests: Mapping[InputFile, str] | None) -> list[str]:
    """The digest of each model; if they are not known yet, texts of that length that no ancestor has."""
    if digests is None:
        return [f"{number:x>64}" for number in range(len(resolved.models))]
    return [model_digest(model.checkpoint, digests) for model in resolved.models]


def inputs(resolved: Resolved, digests: list[str]) -> list[dict[str, Any]]:
    """What a result says of each of its inputs."""
    found = []
    for model, digest, stands in zip(resolved.models, digests, roles(resolved), strict=True):
        stated = {
            "license": licence_of(model),
            "author": clean_text(model.checkpoint.metadata.get("modelspec.author")),
            "variant": model.sources[0].variant,
            "revision": None if resolved.recipe.output.hide_names else model.revision,
            "adapters": model.adapters,
        }
        entry = {
            "roles": stands,
            "name": canonical_source(model.sources[0])["source"],
            "sha256": digest,
            "bytes": model.checkpoint.nbytes,
            "layout": model.checkpoint.format,
            "architecture": model.architecture.modelspec if model.architecture else None,
        }
        found.append({**entry, **{name: value for name, value in stated.items() if value}})
    return found


def licence_of(model: Model) -> str:
    """The licence that the header of a model states; "" if it states none."""
    return clean_text(model.checkpoint.metadata.get("modelspec.license"))


def result_license(resolved: Resolved) -> str:
    """The licence of the result: the recipe's, else that of the first model; "" if neither has one."""
    return resolved.recipe.license or licence_of(resolved.primary)


def _licences(resolved: Resolved) -> list[str]:
    """The warning that the inputs do not all have the same licence, if they have not."""
    said: dict[str, list[str]] = {}
    for model in resolved.models:
        if licence := licence_of(model):
            said.setdefault(licence, []).append(escape(model.checkpoint.label))
    if len(said) < 2:
        return []
    each = "; ".join(f"{quote(licence)} ({', '.join(labels)})" for licence, labels in said.items())
    result = result_license(resolved)
    who = "the recipe says" if resolved.recipe.license else "the result says, as the first model,"
    return [f"the licences of the inputs differ: {each}; {who} {quote(result) if result else 'none'}"]


def _ancestor(model: Model, record: Record | None, read: bool) -> Ancestor:
    """An input as an ancestor; A1111's hash of a single file is read from it."""
    name = canonical_source(model.sources[0])["source"]
    legacy = "0" * 8 if model.checkpoint.is_file else None
    if legacy and read:
        legacy = legacy_hash(model.checkpoint.files[0])
    return Ancestor(name, legacy, licence_of(model), "" if model.checkpoint.is_file else "diffusers", record)


def _entry(ancestor: Ancestor) -> dict[str, Any]:
    """An ancestor as sd_merge_models has it."""
    entry = {
        "name": ancestor.name,
        "legacy_hash": ancestor.legacy_hash,
        "sd_merge_recipe": ancestor.record,
    }
    more = {"license": ancestor.license, "kind": ancestor.kind}
    return {**entry, **{name: value for name, value in more.items() if value}}


def _record(resolved: Resolved, digests: list[str]) -> dict[str, Any]:
    """The merge as sd_merge_recipe has it: in A1111's fields if it can be said in them, and whole."""
    recipe = resolved.recipe
    by_role = {
        role: digest for digest, stands in zip(digests, roles(resolved), strict=True) for role in stands
    }
    name, merge = _WEBUI.get(recipe.merge.method), recipe.merge
    alpha = resolved.merge.weightings.get("alpha")
    sources = all(isinstance(model, Source) for model in merge.models.values())
    plain = sources and not recipe.components and set(merge.parameters) <= {"alpha"}
    if alpha is not None:
        plain = plain and not isinstance(alpha, tuple) and not alpha.values
    if merge.compat not in (None, "a1111") or not set(merge.models) <= set(_SLOTS):
        plain = False
    said = name is not None and plain
    variant = resolved.primary.variant
    return {
        "type": RUNNER,
        **{field: by_role.get(role) if said else None for role, field in _SLOTS.items()},
        "interp_method": name if said else None,
        "multiplier": alpha.default if said and alpha is not None and not isinstance(alpha, tuple) else None,
        "save_as_half": dict(recipe.output.dtype) == {"default": "float16"} if said else None,
        "custom_name": recipe.output.name,
        "config_source": None,
        "bake_in_vae": "None" if said else None,
        "discard_weights": "" if said else None,
        "is_inpainting": variant == "inpainting" if said else None,
        "is_instruct_pix2pix": variant == "pix2pix" if said else None,
        "method": resolved.merge.method.label,
        "models": by_role,
        "steps": canonical_json(canonical_recipe(recipe)),
    }


def _by_distance(found: list[Descent]) -> dict[str, Ancestor]:
    """The ancestors of all inputs, the nearest first; equally near ones by digest.

    Of what two headers state of one model, the one that says how it was merged counts.
    """
    stated: dict[str, Ancestor] = {}
    for one in found:
        for digest, ancestor in one.models.items():
            if digest not in stated or (stated[digest].record is None and ancestor.record is not None):
                stated[digest] = ancestor
    order: dict[str, Ancestor] = {}
    generation = {digest for one in found if one.record for _, digest in links(one.record)}
    while generation:
        following: set[str] = set()
        for digest in sorted(generation):
            if digest in stated and digest not in order:
                order[digest] = stated[digest]
                if record := stated[digest].record:
                    following |= {parent for _, parent in links(record)}
        generation = following - order.keys()
    return order | {digest: stated[digest] for digest in sorted(stated.keys() - order.keys())}


def _nameless(found: Descent) -> Descent:
    """What a header states without the names of files."""

    def bare(record: Record | None) -> Record | None:
        return record and {name: value for name, value in record.items() if name not in _NAMES}

    models = {
        digest: replace(ancestor, name=digest[:10], record=bare(ancestor.record))
        for digest, ancestor in found.models.items()
    }
    return Descent(bare(found.record), models, found.unread)

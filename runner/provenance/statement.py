"""NAME.intoto.json: what was made of what, in the form that tools for provenance read.

An in-toto Statement, version 1, with a SLSA Provenance predicate, version 1. It is not signed, and no level
of SLSA is claimed. What it is about and how that was made are the same for equal runs; runDetails is not.
Source: in-toto/attestation, spec/v1/statement.md, resource_descriptor.md and digest_set.md; SLSA v1.0,
Provenance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runner import __version__
from runner.checkpoint import RECORD, SIDECAR, Layout
from runner.digests import model_digest
from runner.disk.files import InputFile
from runner.provenance.parts import roles
from runner.provenance.record import RunRecord
from runner.recipe.canonical import canonical_recipe, canonical_source, readable_json
from runner.resolve.resolved import Resolved

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
# Names, not addresses: nothing is there to be fetched. README, "The statement", says what they stand for.
BUILD_TYPE = "urn:runner-merge:recipe:v1"
BUILDER = "urn:runner-merge:local"


def statement_of(
    resolved: Resolved,
    layout: Layout,
    outputs: Sequence[str],
    inputs: Mapping[InputFile, str],
    record: RunRecord,
    record_text: bytes,
    sidecar: bytes,
) -> bytes:
    """The statement as JSON.

    Args:
        resolved: the recipe and its models.
        layout: of the output, as it was written.
        outputs: SHA-256 of its weight files.
        inputs: SHA-256 of the weight files of the models.
        record: of the run.
        record_text: run.json, as it was written.
        sidecar: the digests of the tensors, as they were written.
    """
    build = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"recipe": canonical_recipe(resolved.recipe)},
        "resolvedDependencies": [*_models(resolved, inputs), *_recipes(record)],
    }
    details = {
        "builder": {"id": BUILDER, "version": {"runner": __version__}},
        "metadata": {
            "invocationId": record.run["id"],
            "startedOn": record.run["started"],
            "finishedOn": record.run["finished"],
        },
        "byproducts": [
            {"name": name, "digest": {"sha256": hashlib.sha256(text).hexdigest()}}
            for name, text in ((layout.name + SIDECAR, sidecar), (RECORD, record_text))
        ],
    }
    content = {
        "_type": STATEMENT,
        "subject": list(_subject(layout, outputs)),
        "predicateType": PREDICATE,
        "predicate": {"buildDefinition": build, "runDetails": details},
    }
    return readable_json(content).encode()


def _subject(layout: Layout, outputs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every file of the output."""
    files = [(file.name or layout.name, digest) for file, digest in zip(layout.files, outputs, strict=True)]
    texts = [(name, hashlib.sha256(text).hexdigest()) for name, text in layout.texts.items()]
    prefix = f"{layout.name}/" if layout.folder else ""
    for name, digest in sorted([*files, *(texts if layout.folder else [])]):
        yield {"name": prefix + name, "digest": {"sha256": digest}}


def _models(resolved: Resolved, inputs: Mapping[InputFile, str]) -> Iterator[dict[str, Any]]:
    """The models by where they stand in the recipe; a folder by its weight files, and by their list."""
    for model, stands in zip(resolved.models, roles(resolved), strict=True):
        checkpoint = model.checkpoint
        about: dict[str, Any] = {**canonical_source(model.sources[0]), "roles": stands}
        if model.revision and not resolved.recipe.output.hide_names:
            about["revision"] = model.revision
        algorithm = "sha256" if checkpoint.is_file else "dirHash"
        digest = model_digest(checkpoint, inputs)
        yield {"name": f"model:{stands[0]}", "digest": {algorithm: digest}, "annotations": about}
        for file in () if checkpoint.is_file else checkpoint.files:
            name = checkpoint.inside(file)
            yield {"name": f"model:{stands[0]}/{name}", "digest": {"sha256": inputs[file]}}


def _recipes(record: RunRecord) -> Iterator[dict[str, Any]]:
    for file in record.deterministic["recipe_files"]:
        yield {"name": f"recipe:{file['name']}", "digest": {"sha256": file["sha256"]}}

"""What a result was made of and what it is, as plain data: equal for equal runs, without folders or times."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.checkpoint import SIDECAR
from runner.digests import folder_digest, model_digest
from runner.disk.files import InputFile
from runner.disk.hashes import FileHashes
from runner.engine.tensor_digests import tensor_list, tensor_root, tensors_file
from runner.errors import KeyPath, escape
from runner.formats.safetensors import CONTENT_HASH
from runner.models.model import Model
from runner.planning.plan import BUFFER, Plan, weakest
from runner.recipe.canonical import canonical_digest, canonical_source
from runner.recipe.structure import roles_at
from runner.resolve.resolved import BoundMerge, Resolved
from runner.weighting.parameter import Weighting

_STATED_HASH = re.compile(r"0x([0-9a-f]{64})", re.ASCII)
ALLOWED = "NaN and Inf let pass if there are any"
INTEGERS = "integers, not merged"


def merge_identities(resolved: Resolved, digests: Mapping[InputFile, str]) -> dict[KeyPath, str]:
    """The identity of every merge of a recipe, by its place in the recipe.

    It is the digest of the method and of the models by role, a source by its digest; numbers are left
    out, so that the random numbers of a sweep over them are the same.
    """
    found: dict[KeyPath, str] = {}

    def identity(merge: BoundMerge) -> str:
        models = {
            role: identity(model)
            if isinstance(model, BoundMerge)
            else model_digest(resolved.models[model].checkpoint, digests)
            for role, model in merge.models.items()
        }
        found[merge.path] = canonical_digest({"method": merge.method.label, "models": models})
        return found[merge.path]

    identity(resolved.merge)
    return found


def roles(resolved: Resolved) -> list[list[str]]:
    """Where in the recipe each of its models stands: "a", "b.c", "components.vae", ..."""
    found: list[list[str]] = [[] for _ in resolved.models]
    for merge in resolved.merge.merges():
        for role, part in merge.models.items():
            if isinstance(part, int):
                found[part].append(roles_at((*merge.path, "models", role)))
    for component, number in resolved.components.items():
        found[number].append(roles_at(("components", component)))
    return found


def methods(plan: Plan) -> list[dict[str, Any]]:
    """Every merge of the recipe: where it stands, its method, that one's class, and its numbers.

    A number that varies by place is given by its default and its range; the recipe says where what is.
    """
    steps = [step for job in plan.jobs for step in job.steps]
    found = []
    for merge in plan.resolved.merge.merges():
        method = merge.method
        numbers = {name: _numbers(weighting) for name, weighting in merge.weightings.items()}
        entry: dict[str, Any] = {
            "at": roles_at(merge.path),
            "method": method.label,
            "compat": method.compat,
            "class": weakest(step.determinism for step in steps if step.method is method),
            "parameters": {**numbers, **merge.choices},
        }
        found.append({**entry, "seed": merge.seed} if method.draws else entry)
    return found


def _numbers(weighting: Weighting | tuple[Weighting, ...]) -> Any:
    if isinstance(weighting, tuple):
        return [_numbers(one) for one in weighting]
    values = {weighting.default, *weighting.values.values()}
    if len(values) == 1:
        return weighting.default
    return {"default": weighting.default, "least": min(values), "most": max(values)}


def dtypes(plan: Plan) -> dict[str, Any]:
    """How many tensors are computed in which dtype, and in which each component is written."""
    written: dict[str, Counter[str]] = {}
    for job in plan.jobs:
        written.setdefault(job.place.component, Counter())[job.spec.dtype] += 1
    computed = Counter(job.compute for job in plan.jobs if job.steps)
    return {
        "computed": dict(sorted(computed.items())),
        "written": {name: dict(sorted(counts.items())) for name, counts in sorted(written.items())},
    }


def deviations(plan: Plan) -> dict[str, list[str]]:
    """What is not computed as the method says, or odd and not refused, with the tensors concerned."""
    found = by_reason(plan.deviations, plan.resolved)
    if allowed := sorted(job.key for job in plan.jobs if job.nonfinite):
        found[ALLOWED] = allowed
    if integers := sorted(job.key for job in plan.jobs if job.fate == BUFFER and not job.spec.is_float):
        found[INTEGERS] = integers
    return found


def by_reason(reasons: Mapping[str, Iterable[str]], resolved: Resolved) -> dict[str, list[str]]:
    """Keys by reason, the reasons without the folders of the models they name."""
    labels = {model.checkpoint.label: canonical_source(model.sources[0]) for model in resolved.models}
    found: dict[str, set[str]] = {}
    for reason, keys in reasons.items():
        for label in sorted(labels, key=len, reverse=True):  # one can be the end of another
            reason = reason.replace(escape(label), escape(labels[label]["source"]))
        found.setdefault(reason, set()).update(keys)
    return {reason: sorted(found[reason]) for reason in found}


def components(resolved: Resolved) -> dict[str, str]:
    """The components that were taken whole, with the source of each."""
    return {
        name: canonical_source(resolved.models[number].sources[0])["source"]
        for name, number in sorted(resolved.components.items())
    }


def inputs(resolved: Resolved, digests: Mapping[InputFile, str]) -> list[dict[str, Any]]:
    """Every model that was read, by its digests."""
    return [
        _input(model, stands, digests) for model, stands in zip(resolved.models, roles(resolved), strict=True)
    ]


def _input(model: Model, stands: list[str], digests: Mapping[InputFile, str]) -> dict[str, Any]:
    checkpoint = model.checkpoint
    found: dict[str, Any] = {
        **canonical_source(model.sources[0]),
        "roles": stands,
        "format": checkpoint.format,
        "architecture": model.architecture.name if model.architecture else None,
        "bytes": checkpoint.nbytes,
        "sha256": model_digest(checkpoint, digests),
    }
    if model.revision:
        found["revision"] = model.revision
    if not checkpoint.is_file:
        found["files"] = [
            {
                "name": checkpoint.inside(file),
                "bytes": file.identity.size,
                "sha256": digests[file],
            }
            for file in checkpoint.files
        ]
    elif stated := _STATED_HASH.fullmatch(checkpoint.metadata.get(CONTENT_HASH, "").lower()):
        found["claimed"] = {"content_sha256": stated[1]}
    return found


def output(
    plan: Plan, tensor_digests: Mapping[str, str], hashes: Sequence[FileHashes]
) -> tuple[dict[str, Any], bytes]:
    """What was written, by all its hashes; and the content of the sidecar, whose digest is among them."""
    layout = plan.layout
    tensors = tensor_list(layout, tensor_digests)
    sidecar = tensors_file(layout, tensors)
    files = [
        {
            "name": file.name or layout.name,
            "bytes": file.nbytes,
            "sha256": one.sha256,
            "content_sha256": one.content,
            "blake3": one.blake3,
            "auto_v1": one.auto_v1,
            "auto_v2": one.auto_v2,
            "auto_v3": one.auto_v3,
        }
        for file, one in zip(layout.files, hashes, strict=True)
    ]
    digests = [(str(one.sha256), file.name) for file, one in zip(layout.files, hashes, strict=True)]
    found = {
        "name": layout.name,
        "format": plan.resolved.output_format,
        "bytes": layout.nbytes,
        "sha256": folder_digest(digests) if layout.folder else digests[0][0],
        "files": files,
        "tensor_root": tensor_root(tensors),
        "tensors": {"name": layout.name + SIDECAR, "sha256": hashlib.sha256(sidecar).hexdigest()},
    }
    return found, sidecar

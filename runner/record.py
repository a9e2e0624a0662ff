"""What a run leaves behind: the text in the output's header, and run.json.

run.json has two parts: `deterministic` is equal for every run of the same recipe on the same
inputs, byte for byte; `run` tells of this one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from runner import __version__
from runner.digests import folder_digest, model_digest
from runner.errors import KeyPath
from runner.files import InputFile
from runner.recipe import MAX_TEXT_BYTES, Merge, Policies, Recipe, Source
from runner.resolve import BoundMerge, Resolved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.execute import Outcome
    from runner.place import Placement
    from runner.plan import Plan

log = logging.getLogger(__name__)
SCHEMA = 1
PACKAGES = ("torch", "safetensors", "diffusers", "transformers", "accelerate", "hydra-core", "omegaconf")
_RESOLUTION = re.compile(r"\d{1,5}x\d{1,5}", re.ASCII)
_FROM_PRIMARY = ("author", "license", "description", "usage_hint", "trigger_phrase")


def canonical_json(value: Any) -> str:
    """JSON that is equal for equal values: sorted, compact, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_recipe(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the bytes, with names of files but no folders."""
    output = {
        "name": recipe.output.name,
        "format": recipe.output.format,
        "dtype": dict(recipe.output.dtype),
        "max_shard_bytes": recipe.output.max_shard_bytes,
        "config": _canonical_source(recipe.output.config) if recipe.output.config else None,
    }
    components = {name: _canonical_source(source) for name, source in recipe.components.items()}
    texts = {"description": recipe.description, "author": recipe.author, "license": recipe.license}
    return {
        **_canonical_merge(recipe.merge),
        **({"components": components} if components else {}),
        "compute_dtype": recipe.compute_dtype,
        "output": {name: value for name, value in output.items() if value},
        **{name: text for name, text in texts.items() if text},
    }


def _canonical_merge(merge: Merge) -> dict[str, Any]:
    defaults = asdict(Policies())
    policies = {name: value for name, value in asdict(merge.policies).items() if value != defaults[name]}
    # Lists, since the order of models and of selectors can decide bytes, and JSON objects have none.
    models = [
        {"role": role, **(_canonical_source(model) if isinstance(model, Source) else _canonical_merge(model))}
        for role, model in merge.models.items()
    ]
    parameters = {name: _ordered(value) for name, value in merge.parameters.items()}
    result: dict[str, Any] = {"method": merge.method, "models": models, **policies, **parameters}
    if merge.compat:
        result["compat"] = merge.compat
    if merge.seed:
        result["seed"] = merge.seed
    return result


def _ordered(value: Any) -> Any:
    """A parameter's value with mappings as lists of pairs and numbers as floats."""
    if isinstance(value, Mapping):
        return [[str(name), _ordered(part)] for name, part in value.items()]
    if isinstance(value, list):
        return [_ordered(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _canonical_source(source: Source) -> dict[str, str]:
    named = source.name.startswith(("demo:", "hf:"))
    name = source.name if named else PurePath(source.name).name
    result = {"source": name}
    if source.variant:
        result["variant"] = source.variant
    return result


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of the canonical recipe."""
    return hashlib.sha256(canonical_json(canonical_recipe(recipe)).encode()).hexdigest()


def header_metadata(resolved: Resolved) -> dict[str, str]:
    """What the output's header says: how it was made, and the ModelSpec entries that are known.

    Only what follows from the recipe and the inputs: no time, host, path or version of a library.
    Source: Stability-AI ModelSpec 1.0.1.
    """
    recipe = resolved.recipe
    metadata = {
        "runner.recipe": canonical_json(canonical_recipe(recipe)),
        "runner.recipe_sha256": recipe_digest(recipe),
        "runner.method": resolved.merge.method.label,
    }
    primary = resolved.primary
    if primary.architecture is None:
        return metadata
    theirs = primary.checkpoint.metadata
    resolution = theirs.get("modelspec.resolution", "")
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": primary.architecture.modelspec
        + ("/lora" if resolved.output_format == "lora" else ""),
        "implementation": "sgm" if resolved.output_format == "checkpoint" else "diffusers",
        "title": recipe.output.name,
        "resolution": resolution if _RESOLUTION.fullmatch(resolution) else primary.architecture.resolution,
        "merged_from": ", ".join(
            dict.fromkeys(_canonical_source(model.sources[0])["source"] for model in resolved.models)
        ),
    }
    for name in _FROM_PRIMARY:
        text = getattr(recipe, name, "") or theirs.get(f"modelspec.{name}", "")
        if text and len(text.encode()) <= MAX_TEXT_BYTES:
            spec[name] = text
    return {**metadata, **{f"modelspec.{name}": text for name, text in spec.items()}}


@dataclass
class RunRecord:
    """run.json in the making; every stage adds what it knows, and it is written even if a stage fails.

    Attributes:
        recipe_files: (name, SHA-256) of the files the recipe was composed from.
        overrides: of the command line.
        deterministic, run: the two parts of the file.
    """

    recipe_files: Sequence[tuple[str, str]]
    overrides: Sequence[str]
    deterministic: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.run |= {
            "id": os.urandom(8).hex(),
            "started": _now(),
            "overrides": list(self.overrides),
            "machine": _machine(),
            "versions": _versions(),
            "seconds": {},
            "warnings": [],
            "error": None,
        }

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; an error in it is noted on its way."""
        started = time.monotonic()
        try:
            yield
        except BaseException as error:
            self.failed(error, name)
            raise
        finally:
            self.run["seconds"][name] = seconds = round(time.monotonic() - started, 3)
            log.debug("%s: %.3f s", name, seconds)

    def failed(self, error: BaseException, stage: str | None = None) -> None:
        """Notes what ended the run, where it was noticed first."""
        if self.run["error"] is not None:
            return
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
        message = "interrupted" if code > 128 else str(error) or type(error).__name__
        self.run["error"] = {"stage": stage, "exit_code": code, "message": message}

    def resolved(self, resolved: Resolved) -> None:
        """Notes the recipe and its methods."""
        self.deterministic |= {
            "recipe": canonical_recipe(resolved.recipe),
            "recipe_sha256": recipe_digest(resolved.recipe),
            "recipe_files": [{"name": name, "sha256": digest} for name, digest in self.recipe_files],
            "methods": _methods(resolved.merge),
        }

    def planned(self, plan: Plan, placement: Placement) -> None:
        """Notes the fate of the keys and where the work is done."""
        self.deterministic |= {
            "keys": dict(sorted(plan.fates.items())),
            "determinism": plan.determinism,
            "dropped": {reason: list(keys) for reason, keys in plan.dropped.items()},
            "deviations": {reason: list(keys) for reason, keys in plan.deviations.items()},
        }
        self.run["placement"] = {
            "jobs": {str(device): count for device, count in placement.jobs_by_device.items()},
            "memory_bytes": {str(device): size for device, size in placement.memory.items()},
            "threads": placement.threads,
            "tile_elements": placement.tile_elements,
            "notes": list(placement.notes),
        }

    def warn(self, message: str) -> None:
        """Says a warning on stderr and notes it."""
        log.warning("runner: warning[W-MERGE]: %s", message)
        self.run["warnings"].append(message)

    def read(self, resolved: Resolved, digests: Mapping[InputFile, str]) -> None:
        """Notes the inputs by their digests."""
        self.deterministic["inputs"] = [
            {
                **_canonical_source(model.sources[0]),
                "roles": roles_of(resolved, number),
                "format": model.checkpoint.format,
                "architecture": model.architecture.name if model.architecture else None,
                "bytes": model.checkpoint.nbytes,
                "sha256": model_digest(model.checkpoint, digests),
                **({"revision": model.revision} if model.revision else {}),
            }
            for number, model in enumerate(resolved.models)
        ]

    def written(self, plan: Plan, outcome: Outcome) -> None:
        """Notes the output, and how far it is from the primary."""
        files = [
            {"name": file.name or plan.layout.name, "bytes": file.nbytes, "sha256": digest}
            for file, digest in zip(plan.layout.files, outcome.digests, strict=True)
        ]
        self.deterministic["output"] = {
            "name": plan.layout.name,
            "format": plan.resolved.output_format,
            "bytes": plan.layout.nbytes,
            "sha256": output_digest(plan, outcome.digests),
            "files": files,
        }
        self.run["fallbacks"] = dict(outcome.fallbacks)
        self.run["notes"] = outcome.notes
        lora = plan.resolved.output_format == "lora"
        moved = dict(outcome.moved)
        if lora:
            self.deterministic["ranks"] = _ranks(plan)
            lacking, change = (math.fsum(sums) for sums in zip(*moved.values(), strict=True))
            moved["all"] = lacking, change
        self.run["residual" if lora else "moved"] = {
            component: {"relative": relative(difference, original), "norm": _rounded(math.sqrt(difference))}
            for component, (difference, original) in moved.items()
        }

    def text(self) -> str:
        """The content of run.json, as known by now."""
        self.run["finished"] = _now()
        self.run["seconds"]["total"] = round(time.monotonic() - self._started, 3)
        self.run["peak_memory_bytes"] = _peak_bytes()
        content = {"schema": SCHEMA, "deterministic": self.deterministic, "run": self.run}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _ranks(plan: Plan) -> dict[str, dict[str, int]]:
    """By component, rank → how many modules of the LoRA have it."""
    found: dict[str, Counter[int]] = {}
    for job in plan.jobs:
        found.setdefault(job.place.component, Counter())[job.rank] += 1
    return {
        component: {str(rank): count for rank, count in sorted(found[component].items())}
        for component in sorted(found)
    }


def output_digest(plan: Plan, digests: Sequence[str]) -> str:
    """The digest of the output: of its file, or of the list of its weight files."""
    if not plan.layout.folder:
        return digests[0]
    return folder_digest(
        [(digest, file.name) for file, digest in zip(plan.layout.files, digests, strict=True)]
    )


def relative(difference: float, original: float) -> float | None:
    """‖result − a‖ / ‖a‖ from sums of squares; 0 if nothing moved, None if it is no finite number."""
    if difference == 0:
        return 0.0
    return _rounded(math.sqrt(difference / original)) if original else None


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


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
        text = canonical_json({"method": merge.method.label, "models": models})
        found[merge.path] = hashlib.sha256(text.encode()).hexdigest()
        return found[merge.path]

    identity(resolved.merge)
    return found


def roles_of(resolved: Resolved, model: int) -> list[str]:
    """Where in the recipe a model stands: "a", "b.c", "components.vae", ..."""
    components = [f"components.{name}" for name, number in resolved.components.items() if number == model]
    return [*_roles_in(resolved.merge, model, ""), *components]


def _roles_in(merge: BoundMerge, model: int, prefix: str) -> list[str]:
    roles = []
    for role, part in merge.models.items():
        if isinstance(part, BoundMerge):
            roles += _roles_in(part, model, f"{prefix}{role}.")
        elif part == model:
            roles.append(prefix + role)
    return roles


def _methods(merge: BoundMerge) -> list[dict[str, Any]]:
    method = merge.method
    entry = {"method": method.label}
    below = [_methods(model) for model in merge.models.values() if isinstance(model, BoundMerge)]
    found = [entry, *(entry for entries in below for entry in entries)]
    return [one for at, one in enumerate(found) if one not in found[:at]]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "processors": os.cpu_count(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _versions() -> dict[str, str]:
    versions = {"runner": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

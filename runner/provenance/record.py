"""What a run leaves behind: the text in the output's header, and run.json.

run.json has two parts: `deterministic` is equal for every run of the same recipe on the same
inputs, byte for byte; `run` tells of this one. schemas/run.json describes both.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from runner.disk.files import InputFile
from runner.disk.hashes import FileHashes
from runner.provenance.machine import arithmetic, code_digests, machine, peak_bytes, versions
from runner.provenance.masking import all_masked
from runner.provenance.parts import by_reason, components, deviations, dtypes, inputs, methods, output
from runner.provenance.repository import committed
from runner.recipe.canonical import (
    canonical_json,
    canonical_recipe,
    canonical_source,
    readable_json,
    recipe_digest,
)
from runner.recipe.guard import RecipeFile
from runner.resolve.resolved import Resolved
from runner.stated import clean_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.engine.execute import Outcome
    from runner.place import Placement
    from runner.planning.plan import Plan

log = logging.getLogger(__name__)
SCHEMA = 2
MAX_RECORD_BYTES = 64 << 20  # deviations list tensors by name
_RESOLUTION = re.compile(r"\d{1,5}x\d{1,5}", re.ASCII)
_FROM_PRIMARY = ("author", "license", "description", "usage_hint", "trigger_phrase")


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
            dict.fromkeys(canonical_source(model.sources[0])["source"] for model in resolved.models)
        ),
    }
    for name in _FROM_PRIMARY:
        if text := getattr(recipe, name, "") or clean_text(theirs.get(f"modelspec.{name}")):
            spec[name] = text
    return {**metadata, **{f"modelspec.{name}": text for name, text in spec.items()}}


@dataclass
class RunRecord:
    """run.json in the making; every stage adds what it knows, and it is written even if a stage fails.

    Attributes:
        recipe_files: the files the recipe was composed from.
        overrides: of the command line.
        log: the file the run logs to, if there is one.
        deterministic, run: the two parts of the file.
    """

    recipe_files: Sequence[RecipeFile]
    overrides: Sequence[str]
    log: Path | None = None
    deterministic: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.run |= {
            "id": os.urandom(8).hex(),
            "started": _now(),
            "command": ["runner", *sys.argv[1:]],
            "overrides": list(self.overrides),
            "machine": machine(),
            "versions": versions(),
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
        """Notes the recipe."""
        self.deterministic |= {
            "recipe": canonical_recipe(resolved.recipe),
            "recipe_sha256": recipe_digest(resolved.recipe),
            "recipe_files": [{"name": _name(file), "sha256": file.sha256} for file in self.recipe_files],
        }

    def planned(self, plan: Plan, placement: Placement) -> None:
        """Notes the methods, the fate of the keys and where the work is done."""
        self.deterministic |= {
            "methods": methods(plan),
            "dtypes": dtypes(plan),
            "components": components(plan.resolved),
            "keys": dict(sorted(plan.fates.items())),
            "determinism": plan.determinism,
            "dropped": by_reason(plan.dropped, plan.resolved),
            "deviations": deviations(plan),
            "predicts": plan.prediction.title if plan.prediction else None,
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
        self.deterministic["inputs"] = inputs(resolved, digests)

    def written(self, plan: Plan, outcome: Outcome, hashes: Sequence[FileHashes]) -> bytes:
        """Notes the output, what methods fell back to, and how far the result is from the primary.

        Args:
            plan: what was done.
            outcome: what was found on the way.
            hashes: of the output's files.

        Returns:
            The content of the sidecar with the digests of the tensors.
        """
        self.deterministic["deviations"] |= outcome.notes
        self.deterministic["output"], sidecar = output(plan, outcome.tensors, hashes)
        self.run["fallbacks"] = dict(outcome.fallbacks)
        used = self.run["placement"]["jobs"]
        self.run["arithmetic"] = arithmetic(int(device) for device in used if device.isdecimal())
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
        return sidecar

    def text(self) -> str:
        """The content of run.json, as known by now."""
        self.run |= {
            "finished": _now(),
            "peak_memory_bytes": peak_bytes(),
            "code": code_digests(),
            "recipe_commits": [
                {"name": _name(file), "commit": found[0], "differs": found[1]}
                for file in self.recipe_files
                if (found := committed(Path(file.label)))
            ],
            "log": _log_digest(self.log) if self.log else None,
        }
        self.run["seconds"]["total"] = round(time.monotonic() - self._started, 3)
        content = {"schema": SCHEMA, "deterministic": self.deterministic, "run": all_masked(self.run)}
        return readable_json(content)


def _name(file: RecipeFile) -> str:
    """What a file of the recipe is called: as recipes name it, or its name alone if it was given by path."""
    name = PurePath(file.name)
    return name.name if name.is_absolute() else name.as_posix()


def _log_digest(path: Path) -> dict[str, Any] | None:
    """The log as it is so far; more may follow."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _ranks(plan: Plan) -> dict[str, dict[str, int]]:
    """By component, rank → how many modules of the LoRA have it."""
    found: dict[str, Counter[int]] = {}
    for job in plan.jobs:
        found.setdefault(job.place.component, Counter())[job.rank] += 1
    return {
        component: {str(rank): count for rank, count in sorted(found[component].items())}
        for component in sorted(found)
    }


def relative(difference: float, original: float) -> float | None:
    """‖result − a‖ / ‖a‖ from sums of squares; 0 if nothing moved, None if it is no finite number."""
    if difference == 0:
        return 0.0
    return _rounded(math.sqrt(difference / original)) if original else None


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

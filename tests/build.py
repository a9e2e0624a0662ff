"""Small real checkpoints, and the straight line from a recipe to tensors without Hydra."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.digests import InputDigests
from runner.engine.execute import Outcome, execute
from runner.engine.ranks import measure_ranks
from runner.errors import KeyPath, Location
from runner.formats.safetensors import output_file
from runner.place import Devices, place
from runner.planning.plan import Plan
from runner.provenance.origins import layout_with_origins, plan_with_origins
from runner.provenance.parts import merge_identities
from runner.recipe.parse import parse_recipe
from runner.resolve.resolve import resolve
from runner.resolve.resolved import Resolved
from runner.tensors import TensorSpec
from runner.write import Staging, check_place

# Shapes that occur in real checkpoints, the awkward ones too.
SHAPES: dict[str, tuple[int, ...]] = {
    "model.diffusion_model.conv.weight": (8, 4, 3, 3),
    "model.diffusion_model.linear.weight": (64, 33),
    "model.diffusion_model.norm.bias": (7,),
    "model.diffusion_model.column.weight": (5, 1),
    "model.diffusion_model.scalar": (),
    "model.diffusion_model.one": (1,),
    "model.diffusion_model.empty": (0, 4),
    "first_stage_model.decoder.conv.weight": (3, 3),
    "cond_stage_model.transformer.weight": (16, 16),
}


def random_tensors(
    seed: int, dtype: torch.dtype = torch.float16, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, Tensor]:
    """Seeded normal tensors of the given shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def write_models(
    folder: Path, dtype: torch.dtype = torch.float16, **models: int
) -> dict[str, dict[str, Tensor]]:
    """Writes NAME.safetensors for each name=seed; returns the tensors by name."""
    written = {name: random_tensors(seed, dtype) for name, seed in models.items()}
    for name, tensors in written.items():
        save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})
    return written


def write_in_order(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file of half precision, its data in the order of the mapping; the library would sort it."""
    entries: dict[str, Any] = {}
    data = b""
    for key, tensor in tensors.items():
        content = tensor.numpy().tobytes()
        entries[key] = {"dtype": "F16", "shape": list(tensor.shape)}
        entries[key]["data_offsets"] = [len(data), len(data) + len(content)]
        data += content
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def header_only(path: Path, specs: Mapping[str, TensorSpec], **metadata: str) -> Path:
    """A file with a header and a hole for the data."""
    planned = output_file("", specs, {name.replace("__", "."): text for name, text in metadata.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(planned.header)
    os.truncate(path, planned.nbytes)
    return path


def data_of(path: Path) -> bytes:
    """What stands behind the header of a safetensors file."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metadata_of(path: Path) -> dict[str, str]:
    """What a header says besides tensors, as the safetensors library reads it."""
    with safe_open(path, "pt") as opened:
        return dict(opened.metadata())


def flip(path: Path, offset: int) -> None:
    """Changes one bit of a file, counted from its end if the offset is negative."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(bytes(content))


def here(path: KeyPath) -> Location:
    """Every value of a test's recipe stands in line 1 of test.yaml."""
    return Location("test.yaml", 1)


def resolved(tree: Mapping[str, Any], models_dir: Path, cache: Path | None = None) -> Resolved:
    """A recipe, resolved."""
    return resolve(parse_recipe("test", tree, here), here, models_dir, cache or models_dir)


def planned(tree: Mapping[str, Any], models_dir: Path, cache: Path | None = None) -> Plan:
    """A recipe, planned."""
    bound = resolved(tree, models_dir, cache)
    return plan_with_origins(bound)


def merge(
    tree: Mapping[str, Any],
    models_dir: Path,
    out: Path,
    *,
    threads: int = 2,
    tile_elements: int = 32768,
    host_budget: int | None = None,
    cache: Path | None = None,
) -> tuple[Path, Outcome]:
    """Merges by a recipe into a folder, which is made."""
    out.mkdir(exist_ok=True)
    plan = planned(tree, models_dir, cache)
    placement = place(plan, Devices(("cpu",)), host_budget, threads, tile_elements)
    with InputDigests(plan.resolved.files, None, threads) as digests:
        known = digests.wait()
        identities = merge_identities(plan.resolved, known)
    if plan.is_bound:
        ranks = measure_ranks(plan, placement, lambda count: None, identities)
        plan = plan_with_origins(plan.resolved, ranks)
        placement = place(plan, Devices(("cpu",)), host_budget, threads, tile_elements)
    target = check_place(plan.layout, out, set())
    with Staging(plan.layout, target) as staging:
        outcome = execute(plan, placement, staging, lambda count: None, identities)
        layout, _ = layout_with_origins(plan, known)
        staging.fill(layout)
        staging.stamp(outcome.contents)
        staging.sync()
        staging.read_back(outcome.written, threads)
        staging.publish()
    return target, outcome


def merged(tree: Mapping[str, Any], models_dir: Path, out: Path, **settings: Any) -> dict[str, Tensor]:
    """The tensors of a merge to a single file."""
    target, _ = merge(tree, models_dir, out, **settings)
    return load_file(target)

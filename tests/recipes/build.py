"""The shipped recipes, and small models to merge by them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from runner.compose import DATA_ROOT
from runner.demo.models import DEMO_MODELS
from tests.build import SHAPES, random_tensors, write_in_order

RECIPES = sorted((DATA_ROOT / "recipes").rglob("*.yaml"))
# Those that name a LoRA, or blocks and components that only a known architecture has.
OF_ARCHITECTURES = (
    *("add_lora", "extract_lora", "join_loras"),
    *("anime_mix", "block_mix", "preset_sweep", "sdxl_mix", "three_steps"),
)
_LARGE = {"model.diffusion_model.large.weight": (300, 257)}  # more than one piece of a sum


def methods_of(tree: Any) -> Iterator[str]:
    """The methods of a recipe and of the merges in it."""
    if isinstance(tree, dict):
        if isinstance(method := tree.get("method"), str):
            yield method
        for value in tree.values():
            yield from methods_of(value)


def small_models(folder: Path, *, backwards: bool = False) -> None:
    """Writes a small file for every demo model that recipes name.

    Args:
        folder: where; it is made.
        backwards: with the tensors in the other order.
    """
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(DEMO_MODELS):
        tensors = list(random_tensors(seed, shapes=SHAPES | _LARGE).items())
        write_in_order(folder / f"{name}.safetensors", dict(tensors[::-1] if backwards else tensors))


def with_small_models(path: Path) -> dict[str, Any]:
    """A shipped recipe that names the small models, and has a file as its result."""
    text = re.sub(r"demo:(\w+)", r"\1.safetensors", path.read_text()).replace("diffusers}", "checkpoint}")
    tree: dict[str, Any] = yaml.safe_load(text)
    return tree

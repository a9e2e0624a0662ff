"""Runs of recipes without Hydra: settings, a recipe of two models, and a run in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.compose import ComposedRecipe
from runner.config import Job, Settings
from runner.place import Devices
from runner.run import Outcome, run
from tests.build import here


def recipe(tree: dict[str, Any]) -> ComposedRecipe:
    return ComposedRecipe("mix", tree, (), ("recipe.alpha=0.3",), here)


def settings(folder: Path, **changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "job": Job("merge", "summary"),
        "placement": Devices(("cpu",)),
        "models_dir": folder,
        "output_dir": None,
        "cache_dir": folder / "cache",
        "memory": None,
        "threads": 1,
        "tile_elements": 32768,
        "digests": "fresh",
        "verify": True,
        "progress": "off",
        "hub": "online",
    }
    return Settings(**{**defaults, **changes})


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "method": "weighted_sum",
        "models": {"a": "a.safetensors", "b": "b.safetensors"},
        "alpha": 0.3,
        **changes,
    }


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def made(folder: Path, name: str, recipe_tree: dict[str, Any], **changes: Any) -> Outcome:
    """A run by a recipe for the models in a folder; it has folder/name to itself, which is made."""
    own = folder / name
    own.mkdir()
    return run(recipe(recipe_tree), settings(folder, **changes), own)

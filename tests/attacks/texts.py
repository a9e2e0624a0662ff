"""Damaged texts and names: plain data within bounds, or one of our errors."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from runner.architectures import ARCHITECTURES, place
from runner.compose import DATA_ROOT
from runner.errors import Location, Problems, RecipeError
from runner.imports import import_text
from runner.imports.recipe_text import recipe_text
from runner.lora.adapters import read_adapters
from runner.methods import Parameter, Range
from runner.provenance.origins import plan_with_origins
from runner.recipe.canonical import canonical_recipe
from runner.recipe.guard import read_text
from runner.recipe.parse import parse_recipe
from runner.recipe.references import References
from runner.resolve.resolve import resolve
from runner.tensors import TensorSpec
from runner.weighting.parameter import parse_weighting
from runner.weighting.rules import Names
from tests.attacks import mutations
from tests.attacks.mutations import NAMES, PIECES, SECRET
from tests.attacks.refusals import refused_by
from tests.imports.test_strangers import TEXTS
from tests.lora.test_deltas import CASES, RECORDED

# Adapters


def adapter_keys(rng: Random, folder: Path) -> bool:
    case = rng.choice(list(CASES))
    start = f"{case}:adapter:"
    shapes = {
        key.removeprefix(start): tuple(value.shape)
        for key, value in RECORDED.items()
        if key.startswith(start)
    }
    key = CASES[case]["key"]
    shape = tuple(RECORDED[f"{case}:base"].shape)
    base = {key: TensorSpec("F32", shape), key.replace(".weight", ".bias"): TensorSpec("F32", shape[:1])}
    words = [
        "lora_up",
        "lora_down",
        "lora_mid",
        "hada_w1_a",
        "lokr_w1",
        "dora_scale",
        "alpha",
        "diff",
        "oft_blocks",
    ]
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        name = rng.choice(list(shapes) or ["x"])
        size = shapes.pop(name, (2, 2))
        if rng.random() < 0.5:
            name = mutations.text(rng, name, [*words, *NAMES])
        else:
            size = rng.choice(((), (0,), (1 << 40, 1), (*size, 1), size[:-1], size[::-1], (1, *size), (3, 3)))
        shapes[name] = size
    specs = {
        name: TensorSpec(rng.choice(("F16", "F32", "I64", "F16")), size) for name, size in shapes.items()
    }
    config = mutations.tree(
        rng, {"lora_alpha": 8, "r": 4, "alpha_pattern": {"x": 2}, "rank_pattern": {}, "use_rslora": False}
    )
    said = mutations.plain(config) if rng.random() < 0.5 else CASES[case]["config"]
    metadata = {rng.choice(("ss_network_alpha", "lora_adapter_metadata", "format")): rng.choice(PIECES[:20])}
    with refused_by(4, 5, 6) as refused:
        found = read_adapters(
            ARCHITECTURES["sd1"], base, specs, metadata, said if isinstance(said, dict) else None
        )
        found.check("x", partial=rng.random() < 0.3)
        for adapter in found.adapters:
            adapter.scale(
                rng.choice((None, 1.0, float("nan"), float("inf"), 1e30, -4.0)) if adapter.alpha else None
            )
            rows = sum(share.rows for share in adapter.shares)
            assert rows == shape[0] or key not in {share.key for share in adapter.shares}
    return not refused


# Recipes, strings of block weights, recipes of other tools

RECIPES = sorted((DATA_ROOT / "recipes").rglob("*.yaml"))


@cache
def _recipes() -> tuple[str, ...]:
    return tuple(re.sub(r"demo:\w+", "one.safetensors", path.read_text()) for path in RECIPES)


def here(path: Any) -> Location:
    return Location("x.yaml", 1)


def recipe(rng: Random, folder: Path) -> bool:
    for seed, name in enumerate(("one", "two")):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            generator = torch.Generator().manual_seed(seed)
            path.write_bytes(save({"a.weight": torch.randn(4, 4, generator=generator), "b": torch.ones(3)}))
    original = rng.choice(_recipes())
    changed = rng.choice((mutations.text, mutations.lines))(rng, original)
    file = read_text(mutations.encoded(changed), "x.yaml", "x")
    if file.problems:
        with refused_by(3):
            raise RecipeError("\n".join(file.problems))
        return False
    with refused_by(3, 4, 5, 6) as refused:
        tree = References(dict(file.tree), here).resolved()
        bound = resolve(parse_recipe("x", tree, here), here, folder, folder, offline=True)
        plan = plan_with_origins(bound)
        told = json.dumps(canonical_recipe(bound.recipe)) + "".join(plan.warnings)
        assert SECRET not in told
        name = plan.layout.name
        assert "/" not in name and "\\" not in name and not name.startswith(".")
    return not refused


ALPHA = Parameter("alpha", 0.5, Range(0, 1, "ask"))


def block_string(rng: Random, folder: Path) -> bool:
    strings = [
        ",".join(["0.5", "1", "0.25", "0"] * 6 + ["0", "1"]),
        "0.1;" * 25 + "0.3",
        "OUT04:attn2:0.5,IN01 IN02:NOT ff:0.1",
        "0,0;0:1",
        "GRAD_V",
        "BASE:0.1",
    ]
    value: Any = mutations.text(rng, rng.choice(strings))
    key = rng.choice(("mbw", "elemental", "sliders", "unet", "vae", "base", "preset", *NAMES))
    given: Any = rng.choice(
        (value, {"mbw": value, "base": 0.5}, {key: value, "default": 0.1}, {"elemental": value})
    )
    if rng.random() < 0.3:
        given = mutations.plain(
            mutations.tree(rng, {"default": 0.5, "unet": {"IN00": 0.1, "*": [0, 1]}, "dialect": "a1111"})
        )
    if not _is_data(given):
        return False
    with refused_by(3) as refused:
        problems = Problems(here)
        parse_weighting(ALPHA, given, ("alpha",), False, _names(), problems)
        problems.raise_if_any()
    return not refused


@cache
def _names() -> Names:
    """What a recipe can name in a small Stable Diffusion 1.x model: a tensor in each block."""
    blocks = ["time_embed.0", *(f"input_blocks.{n}.0" for n in range(12)), "middle_block.0", "out.2"]
    blocks += [f"output_blocks.{n}.{m}.transformer_blocks.0.attn2.to_q" for n in range(12) for m in range(2)]
    keys = [f"model.diffusion_model.{block}.weight" for block in blocks]
    keys += ["first_stage_model.decoder.conv_in.weight"]
    architecture = ARCHITECTURES["sd1"]
    return Names({key: place(architecture, "checkpoint", key) for key in keys}, architecture)


def _is_data(value: Any) -> bool:
    """Whether the guard lets it pass: all of it can stand in a recipe."""
    written = "alpha: " + json.dumps(value)
    return not read_text(mutations.encoded(written), "x.yaml", "x").problems


def foreign_recipe(rng: Random, folder: Path) -> bool:
    original = rng.choice(TEXTS)
    changed = rng.choice((mutations.text, mutations.lines))(rng, original)
    with refused_by(4) as refused:
        found = import_text(changed.encode("utf-8", "replace").decode(), "x")
        written = recipe_text(found, "x")
        assert SECRET not in written
        assert not read_text(written.encode(), "y.yaml", "y").problems
    return not refused

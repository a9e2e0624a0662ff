"""LoRA files as diffusers and PEFT read them, recorded by oracles/fuse.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.architectures.layouts import canonical
from tests.build import merge
from tests.lora.oracles.fuse import EXPECTED, STRENGTH, base_folder, made
from tests.lora.oracles.pipelines import CASES, place
from tests.stored import read

RECORDED = load_file(EXPECTED)


def recorded(case: str, what: str) -> dict[str, Tensor]:
    prefix = f"{case}:{what}:"
    return {key.removeprefix(prefix): one for key, one in RECORDED.items() if key.startswith(prefix)}


def products(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the modules of a LoRA change, by the names they have in it."""
    found = {}
    for key, up in file.items():
        for ends in (("lora_up", "lora_down"), ("lora_B", "lora_A")):
            name, end, _ = key.partition(f".{ends[0]}.weight")
            if end:
                down = file[f"{name}.{ends[1]}.weight"]
                scale = float(file[f"{name}.alpha"]) / len(down) if f"{name}.alpha" in file else 1.0
                found[name] = scale * up.double().flatten(1) @ down.double().flatten(1)
    return found


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with the models of an architecture, and its name."""
    name: str = request.param
    folder = tmp_path_factory.mktemp("loras") / name
    folder.mkdir()
    place(name, folder, cache)
    return folder


def test_the_files_written_are_those_diffusers_reads(case: Path, cache: Path) -> None:
    for name, path in made(case.name, case, cache).items():
        ours, theirs = load_file(path), recorded(name, "lora")
        assert {key: one.shape for key, one in ours.items()} == {
            key: one.shape for key, one in theirs.items()
        }
        for module, product in products(theirs).items():
            torch.testing.assert_close(products(ours)[module], product, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["extracted", "joined"])
def test_a_lora_is_baked_as_diffusers_and_peft_fuse_it(
    kind: str, case: Path, cache: Path, tmp_path: Path
) -> None:
    expected = recorded(f"{case.name} {kind}", "fused")
    assert expected.keys() == CASES[case.name][1].keys()
    save_file(recorded(f"{case.name} {kind}", "lora"), tmp_path / "lora.safetensors")
    base = CASES[case.name][0][0]
    source = base if base.startswith("demo:") else str(case / base)
    recipe = {
        "method": "add_lora",
        "models": {"a": source, "lora": str(tmp_path / "lora.safetensors")},
        "strength": STRENGTH,
        "output": {"dtype": "float32"},
    }
    path, _ = merge(recipe, case, tmp_path / "out", cache=cache)
    ours, before = read(path), read(base_folder(base, case, cache))
    changed = set()
    for key, tensor in ours.items():
        name = next(iter(canonical(ARCHITECTURES[case.name], "diffusers", key)), key)
        changed |= {name} & expected.keys()
        torch.testing.assert_close(tensor, expected.get(name, before[key].float()), rtol=1e-5, atol=1e-6)
    assert changed == expected.keys()

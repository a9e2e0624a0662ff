"""Writes fused.safetensors: LoRA files as they are written here, and what diffusers makes with them.

Not run by the tests, which only read the file. To make it again, from the root of the repository, with an
environment that has what the tests need and peft 0.21.2 beside:

    python -m tests.lora.oracles.fuse

For each case a LoRA is extracted and another joined of two of those; diffusers loads them into the pipeline
of real classes (load_lora_weights) and merges them into its weights (fuse_lora, which has PEFT do it). For
each the file has CASE:lora:KEY, the LoRA, and CASE:fused:KEY, the weights that changed, by the keys of views.
No other weight may change.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.build import merge
from tests.lora.oracles.pipelines import CASES, place

EXPECTED = Path(__file__).with_name("fused.safetensors")
STRENGTH = 0.75


def extraction(case: str) -> dict[str, Any]:
    """The recipe of the LoRA that is extracted."""
    (base, model), ranks = CASES[case]
    return {
        "method": "extract_lora",
        "models": {"base": base, "model": model},
        "rank": {"default": 0, **ranks},
        "output": {"name": "extracted", "dtype": "float32"},
    }


def joining(case: str) -> dict[str, Any]:
    """The recipe of the LoRA that is joined of that one, twice."""
    lora = "extracted.safetensors"
    return {
        "method": "join_loras",
        "models": {"a": CASES[case][0][0], "one": lora, "other": lora},
        "strength": {"one": 1.5, "other": -0.25},
        "output": {"name": "joined", "dtype": "float32"},
    }


def made(case: str, folder: Path, cache: Path) -> dict[str, Path]:
    """The two LoRAs of a case, made now."""
    place(case, folder, cache)
    extracted, _ = merge(extraction(case), folder, folder, cache=cache)
    joined, _ = merge(joining(case), folder, folder, cache=cache)
    return {f"{case} extracted": extracted, f"{case} joined": joined}


def weights(pipeline: Any) -> dict[str, Tensor]:
    """All weights a LoRA may change, by the keys of views."""
    found = {}
    for name, component in pipeline.components.items():
        if name.startswith(("unet", "transformer", "text_encoder")) and component is not None:
            for key, tensor in component.state_dict().items():
                inner = f"text_model.{key}" if _lacks_text_model(component, key) else key
                found[f"{name}/{inner}"] = tensor.detach().clone()
    return found


def _lacks_text_model(component: Any, key: str) -> bool:
    """Whether a key of CLIP is spelled without what its files have; transformers 5.6 writes none."""
    clip = type(component).__name__.startswith("CLIP")
    return clip and not key.startswith(("text_model.", "text_projection"))


def main() -> None:
    """Writes the file."""
    tensors: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as root:
        for case, ((base, _), _) in CASES.items():
            folder = Path(root) / case
            folder.mkdir()
            files = made(case, folder, Path(root) / "cache")
            for name, file in files.items():
                path = base_folder(base, folder, Path(root) / "cache")
                tensors |= {f"{name}:lora:{key}": one for key, one in load_file(file).items()}
                tensors |= {f"{name}:fused:{key}": one for key, one in fused(path, file).items()}
    save_file(tensors, EXPECTED, metadata={"cases": json.dumps([*CASES])})


def base_folder(base: str, folder: Path, cache: Path) -> Path:
    """Where the base of a case is."""
    from runner.demo.models import demo_model

    return demo_model(base.removeprefix("demo:"), cache) if base.startswith("demo:") else folder / base


def fused(base: Path, lora: Path) -> dict[str, Tensor]:
    """The weights that diffusers changes for a LoRA."""
    absent = ("tokenizer_2", "tokenizer_3", "text_encoder_3")
    index = json.loads((base / "model_index.json").read_text())
    without = {name: None for name in absent if name in index and index[name] == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, **without)
    before = weights(pipeline)
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    parts = [name for name in pipeline._lora_loadable_modules if getattr(pipeline, name, None) is not None]
    pipeline.fuse_lora(components=parts, lora_scale=STRENGTH)  # of Flux it takes the transformer alone
    pipeline.unload_lora_weights()
    after = weights(pipeline)
    assert after.keys() == before.keys()
    return {key: tensor for key, tensor in after.items() if not torch.equal(tensor, before[key])}


if __name__ == "__main__":
    main()

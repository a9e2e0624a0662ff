"""Measures job=models on many models: how long the first list takes, and those after it.

    PYTHONPATH=ROOT python tests/benchmarks/library.py --folder FOLDER [--models 10000] [--own 10]
        [--beside ROOT]

Makes a folder as people have one, of files with the headers of real models: eight of ten are LoRAs, the rest
checkpoints, VAEs and UNets by themselves. Every file is one of its own and is opened: nothing is linked. The
data behind the headers is a hole in the file, so that ten thousand models take 1.5 GB, their headers. Of a
hundred files `--own` have tensors that no other has; the others are alike but for their metadata.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from runner.architectures import ARCHITECTURES
from runner.formats.safetensors import output_file
from runner.lora.names import module_names
from runner.tensors import TensorSpec
from tests.architectures.models import main_component, under, vae

Specs = dict[str, TensorSpec]
RANK = 16
ROOT = Path(__file__).parents[2]


def lora(architecture: str) -> Specs:
    """A LoRA of every matrix of attention, as kohya's scripts name it."""
    found: Specs = {}
    own = {
        key: spec for key, spec in main_component(architecture, "diffusers").items() if len(spec.shape) == 2
    }
    known = module_names(ARCHITECTURES[architecture])
    for key, spec in own.items():
        name = "lora_unet_" + key.partition("/")[2].removesuffix(".weight").replace(".", "_")
        if name in known and "_attn" in name:
            found[f"{name}.lora_down.weight"] = TensorSpec("F16", (RANK, spec.shape[1]))
            found[f"{name}.lora_up.weight"] = TensorSpec("F16", (spec.shape[0], RANK))
            found[f"{name}.alpha"] = TensorSpec("F16", ())
    return found


def checkpoint(architecture: str) -> Specs:
    """A single file of UNet, VAE and a text encoder of the length of the real one."""
    text = {f"transformer.text_model.encoder.layers.{n}.mlp.fc1.weight": (3072, 768) for n in range(196)}
    prefix = "conditioner.embedders.0." if architecture == "sdxl" else "cond_stage_model."
    return {
        **main_component(architecture, "checkpoint"),
        **under("first_stage_model.", vae()),
        **under(prefix, {key: TensorSpec("F16", shape) for key, shape in text.items()}),
    }


def metadata(number: int) -> dict[str, str]:
    """What trainers write, of a length that is usual."""
    tags = {f"tag {one} of {number}": one for one in range(200)}
    return {"ss_output_name": f"model {number}", "ss_tag_frequency": json.dumps(tags)}


def make(folder: Path, count: int, own: int) -> None:
    """Writes the files that are not there yet."""
    kinds = {
        "Lora/sd15": (lora("sd1"), 40),
        "Lora/sdxl": (lora("sdxl"), 40),
        "Stable-diffusion/sd15": (checkpoint("sd1"), 9),
        "Stable-diffusion/sdxl": (checkpoint("sdxl"), 6),
        "VAE": (vae(), 3),
        "unet": (main_component("sd1", "checkpoint"), 2),
    }
    for place, (specs, share) in kinds.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        total = sum(spec.nbytes for spec in specs.values())
        print(f"{place}: {count * share // 100} files of {len(specs)} tensors, {total / 1e6:.0f} MB each")
        for number in range(count * share // 100):
            path = folder / place / f"model_{number:05d}.safetensors"
            if not path.exists():
                more = {f"own_{number}": TensorSpec("F16", (8,))} if number * own % 100 < own else {}
                file = output_file("", {**specs, **more}, metadata(number))
                with path.open("wb") as opened:
                    opened.write(file.header)
                    opened.truncate(file.nbytes)


def measure(folder: Path, cache: Path, root: Path) -> tuple[float, float]:
    """Seconds of a whole process of job=models, by the clock and of the processor."""
    command = [sys.executable, "-m", "runner", "job=models", f"models_dir={folder}", f"cache_dir={cache}"]
    before = os.times()
    started = time.perf_counter()
    run = subprocess.run(
        [*command, f"hydra.run.dir={cache}/run"],
        capture_output=True,
        text=True,
        check=True,
        cwd=cache,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    seconds, after = time.perf_counter() - started, os.times()
    print(f"  {len(run.stdout.splitlines())} lines")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def main() -> None:
    """Makes the folder and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--own", type=int, default=10, help="percent of files like no other")
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turn with this one")
    arguments = parser.parse_args()
    folder, cache = arguments.folder / "models", arguments.folder / "cache"
    roots = [ROOT, *([arguments.beside] if arguments.beside else [])]
    make(folder, arguments.models, arguments.own)
    for root in roots:
        for name in ("headers.json", "digests.json"):
            (cache / root.name / name).unlink(missing_ok=True)
    for name in ("first", "second", "third"):
        for root in roots:
            (cache / root.name).mkdir(parents=True, exist_ok=True)
            seconds, spent = measure(folder, cache / root.name, root)
            each = 1000 * spent / arguments.models
            print(f"{name}, {root}: {seconds:.1f} s, {spent:.1f} s of processor time, {each:.2f} ms a model")


if __name__ == "__main__":
    main()

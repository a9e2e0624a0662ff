"""A merge that gets little memory: python -m tests.faults.memory [MB of a model, MB beyond torch's own]."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

_OWN = "import torch; print(open('/proc/self/status').read())"
TENSOR_BYTES = 8 << 20


def own_bytes() -> int:
    """Private memory of an interpreter that has imported torch and done nothing."""
    done = subprocess.run([sys.executable, "-c", _OWN], capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


def write_models(folder: Path, size: int) -> None:
    """Two models of about `size` bytes, of tensors of 8 MB in float16."""
    tensor = torch.randn(TENSOR_BYTES // 2).half()
    for number, name in enumerate("ab"):
        tensors = {f"k{at}": tensor + number for at in range(max(1, size // TENSOR_BYTES))}
        save_file(tensors, folder / f"{name}.safetensors")


def merge(folder: Path, limit: int, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a merge that may have no more private memory than `limit` bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "runner", "recipe=weighted_sum"]
        + [f"recipe.models.{name}={name}.safetensors" for name in "ab"]
        + ["output_dir=.", "hydra.run.dir=run", "progress=off", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    return done.returncode, done.stderr


if __name__ == "__main__":
    size, beyond = (int(argument) << 20 for argument in (sys.argv[1:] or ["2000", "400"]))
    with tempfile.TemporaryDirectory() as name:
        write_models(Path(name), size)
        own = own_bytes()
        code, errors = merge(Path(name), own + beyond, "memory=128MB")
    print(f"two models of {size >> 20} MB, {own >> 20} + {beyond >> 20} MB of memory: code {code}\n{errors}")

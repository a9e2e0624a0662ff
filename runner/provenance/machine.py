"""What a run took place on: processor, GPUs, versions, and the exact code. Facts for run.json alone."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import resource
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from runner import __version__

PACKAGES = (
    *("torch", "numpy", "safetensors", "diffusers", "transformers"),
    *("accelerate", "hydra-core", "omegaconf", "blake3"),
)
# What MKL_CBWR may say. Another text is an accident, and no value of the environment is recorded as it is.
_MKL_WORDS = ("AUTO", "COMPATIBLE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AVX", "AVX2", "AVX512")
_DRIVER = Path("/proc/driver/nvidia/version")


def machine() -> dict[str, Any]:
    """System, processor with its flags, number of processors."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "flags": " ".join(sorted((_cpuinfo("flags") or _cpuinfo("Features")).split())),
        "processors": os.cpu_count(),
    }


def _cpuinfo(name: str) -> str:
    """What /proc/cpuinfo says of the first processor; "" if it does not."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Versions of what computes, reads and writes."""
    found = {"runner": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def code_digests() -> dict[str, str]:
    """SHA-256 of the program's own source, and of the list of installed packages."""
    root = Path(__file__).parents[1]
    paths = sorted((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
    source = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}" for name, path in paths)
    return {"runner_sha256": _digest(source), "packages_sha256": _digest(_installed())}


def _installed() -> list[str]:
    """NAME-VERSION of every package that can be imported, by the names of their folders of metadata."""
    found = set()
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")  # noqa: PTH208 - names alone
        except OSError:
            continue
        found |= {entry.removesuffix(".dist-info") for entry in entries if entry.endswith(".dist-info")}
    return sorted(found)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def arithmetic(gpus: Iterable[int]) -> dict[str, Any]:
    """What decides how torch computes here; torch must be imported.

    Args:
        gpus: those that were used.
    """
    import torch

    stated = os.environ.get("MKL_CBWR")
    word = (stated or "").partition(",")[0].upper()
    found: dict[str, Any] = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl_cbwr": stated and (word if word in _MKL_WORDS else "another"),
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
    }
    if found["gpus"]:
        found |= {"cuda": torch.version.cuda, "driver": _driver()}
    return found


def _driver() -> str | None:
    try:
        version = re.search(r"\d+(\.\d+)+", _DRIVER.read_text())
    except OSError:
        return None
    return version and version[0]


def peak_bytes() -> int:
    """The most memory this process has had at a time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

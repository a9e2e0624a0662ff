"""Models as they are stored: read with torch, and put from one layout into the other."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.architectures.layouts import to_checkpoint
from runner.architectures.ties import Made
from runner.tensors import TensorSpec

Tensors = dict[str, Tensor]


def read(path: Path) -> Tensors:
    """The tensors of a single file, or of a folder as component/name."""
    if path.is_file():
        return load_file(path)
    return {
        f"{file.parent.name}/{key}": tensor
        for file in sorted(path.glob("*/*.safetensors"))
        for key, tensor in load_file(file).items()
    }


def spec(tensor: Tensor) -> TensorSpec:
    names = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
    return TensorSpec(names[tensor.dtype], tuple(tensor.shape))


def made(plan: Made, tensors: Tensors) -> Tensor:
    """A tensor as its pieces say, by torch."""
    parts = []
    for piece in plan.pieces:
        source = tensors[piece.key]
        part = source.t() if piece.transposed else source[piece.first : piece.first + piece.rows]
        parts.append(part.reshape(piece.shape))
    return torch.cat(parts)


def as_single_file(architecture: str, folder: Tensors) -> Tensors:
    """The tensors of a folder as a single file has them."""
    specs = {key: spec(tensor) for key, tensor in folder.items()}
    conversion = to_checkpoint(ARCHITECTURES[architecture], specs)
    return {key: made(plan, folder).contiguous() for key, plan in conversion.made.items()}


def equal(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

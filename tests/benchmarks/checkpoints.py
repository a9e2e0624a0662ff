"""Makes full-size checkpoints of seeded random weights, or checks those made before.

    python tests/benchmarks/checkpoints.py FOLDER [sd15|sdxl] [--layout checkpoint|diffusers|both]
        [--models a b c] [--check] [--load]

Writes FOLDER/sd15/a.safetensors (one file) and FOLDER/sd15/a/ (a diffusers folder) of the same float16
tensors, a few MiB of them in memory at a time. Model `a` is normal weights of realistic scale; `b`, `c`, …
are `a` with small deltas. The same arguments give the same bytes.
"""

import argparse
import json
import math
import os
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import NormalDist

import layouts
import numpy as np
import torch
from families import FAMILIES, Component, Family
from layouts import Shape, Weight

CHUNK = 1 << 21  # elements; a transposed tensor has to fit in one
DELTA_STD = 1e-3
RANKS = {"I64": 0, "F32": 1, "F16": 2}  # safetensors puts the widest type first, then sorts by name
DTYPES = {"I64": np.int64, "F32": np.float32, "F16": np.float16}
CODES = {np.dtype(kind): code for code, kind in DTYPES.items()}
QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)


@dataclass(frozen=True)
class Header:
    """A safetensors header.

    Attributes:
        text: The bytes before the first tensor.
        starts: Byte in the file at which each tensor starts.
        file_bytes: Length of the whole file.
    """

    text: bytes
    starts: dict[str, int]
    file_bytes: int


def header(specs: dict[str, tuple[str, Shape]]) -> Header:
    """Returns the header that `safetensors.save_file` would write for these dtypes and shapes."""
    entries: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for key in sorted(specs, key=lambda key: (RANKS[specs[key][0]], key)):
        dtype, shape = specs[key]
        offsets[key] = end
        end += math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        entries[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offsets[key], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = struct.pack("<Q", len(text)) + text
    return Header(text, {key: len(text) + offset for key, offset in offsets.items()}, len(text) + end)


def single_specs(family: Family, listed: list[Weight]) -> dict[str, tuple[str, Shape]]:
    """Returns dtype and shape of everything in a family's single file."""
    found = {key: ("F16", shape) for key, shape in layouts.single_shapes(listed).items()}
    return found | {key: (CODES[x.dtype], x.shape) for key, x in layouts.extras(family).items()}


def folder_specs(listed: list[Weight]) -> dict[str, dict[str, tuple[str, Shape]]]:
    """Returns dtype and shape of everything in a family's folder, by component."""
    found: dict[str, dict[str, tuple[str, Shape]]] = defaultdict(dict)
    for weight in listed:
        found[weight.component][weight.key] = ("F16", weight.shape)
    return dict(found)


def generator(*words: str) -> np.random.BitGenerator:
    """Returns a stream of random words that belongs to these names alone."""
    return np.random.SFC64(int.from_bytes(sha256("/".join(words).encode()).digest()[:16], "little"))


def normal(stream: np.random.BitGenerator, elements: int) -> torch.Tensor:
    """Returns standard normal float32 values: quantiles picked by 16 random bits, faster than exact."""
    bits = stream.random_raw(-(-elements // 4)).view(np.uint16)[:elements]
    return torch.from_numpy(QUANTILES[bits])


def distribution(weight: Weight) -> tuple[float, float]:
    """Returns mean and standard deviation of a weight: norms near 1, matrices by fan-in, the rest small."""
    if len(weight.shape) == 1:
        return (0.0, 0.01) if weight.key.endswith("bias") else (1.0, 0.02)
    if "embedding.weight" in weight.key:
        return 0.0, 0.01
    return 0.0, math.prod(weight.shape[1:]) ** -0.5


def values(weight: Weight, models: list[str]) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Yields, chunk by chunk, the first element's index and the float16 values of each model."""
    mean, std = distribution(weight)
    base = generator("a", weight.component, weight.key)
    streams = {name: generator(name, weight.component, weight.key) for name in models if name != "a"}
    for start in range(0, weight.elements, CHUNK):
        elements = min(CHUNK, weight.elements - start)
        first = normal(base, elements).mul_(std).add_(mean).half()
        made = {
            name: normal(stream, elements).mul_(DELTA_STD).add_(first).half()
            for name, stream in streams.items()
        }
        yield start, made | {"a": first}


class Output:
    """A safetensors file being filled in any order; it takes its name when everything is in."""

    def __init__(self, path: Path, specs: dict[str, tuple[str, Shape]]):
        self.path = path
        self.part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        laid_out = header(specs)
        self.starts = laid_out.starts
        self.descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.posix_fallocate(self.descriptor, 0, laid_out.file_bytes)
        os.pwrite(self.descriptor, laid_out.text, 0)

    def fill(self, key: str, values: np.ndarray, first: int = 0) -> None:
        """Writes contiguous values from element `first` of a tensor on."""
        start = self.starts[key] + first * values.itemsize
        if os.pwrite(self.descriptor, values.tobytes(), start) != values.nbytes:
            raise OSError(f"{self.part}: the disk took only a part of {key}")

    def finish(self) -> None:
        """Gives the file its name."""
        self.part.replace(self.path)

    def close(self) -> None:
        """Closes the file; what was not finished is removed."""
        os.close(self.descriptor)
        self.part.unlink(missing_ok=True)


def weights_path(folder: Path, name: str, component: Component) -> Path:
    """Returns where a diffusers folder keeps the weights of a component."""
    file = "model" if component.library == "transformers" else "diffusion_pytorch_model"
    return folder / name / f"{file}.safetensors"


def make(folder: Path, family: Family, models: list[str], single: bool, folders: bool) -> None:
    """Writes models of a family into a folder, as single files, as diffusers folders, or as both."""
    listed = layouts.weights(family)
    fixed = layouts.extras(family)
    specs, parts = single_specs(family, listed), folder_specs(listed)
    with ExitStack() as stack:
        whole: dict[str, Output] = {}
        pieces: dict[tuple[str, str], Output] = {}
        for model in models:
            if single:
                whole[model] = Output(folder / f"{model}.safetensors", specs)
            if folders:
                write_configs(folder / model, family)
                for name, component in family.components.items():
                    path = weights_path(folder / model, name, component)
                    pieces[model, name] = Output(path, parts[name])
        for output in [*whole.values(), *pieces.values()]:
            stack.callback(output.close)
        for output in whole.values():
            for key, buffer in fixed.items():
                output.fill(key, buffer)
        for weight in listed:
            if weight.transposed and weight.elements > CHUNK:
                raise ValueError(f"{weight.key}: {weight.elements} elements to transpose, at most {CHUNK}")
            for first, made in values(weight, models):
                for model in models:
                    chunk = made[model].numpy()
                    if folders:
                        pieces[model, weight.component].fill(weight.key, chunk, first)
                    if single:
                        if weight.transposed:
                            chunk = chunk.reshape(weight.shape).T
                        whole[model].fill(weight.single_key, chunk, weight.start + first)
        for output in [*whole.values(), *pieces.values()]:
            output.finish()


def write_configs(folder: Path, family: Family) -> None:
    """Writes everything of a diffusers folder that is not weights."""
    import diffusers
    import transformers

    index: dict[str, object] = {
        "_class_name": family.pipeline,
        "_diffusers_version": diffusers.__version__,
        **family.index,
    }
    for name, component in family.components.items():
        index[name] = [component.library, component.kind]
        model = layouts.build(component)
        if component.library == "diffusers":
            model.save_config(folder / name)
        else:
            model.config.architectures = [component.kind]
            model.config.save_pretrained(folder / name)
    kind, config = family.scheduler
    index["scheduler"] = ["diffusers", kind]
    getattr(diffusers, kind)(**config).save_pretrained(folder / "scheduler")
    for name in family.tokenizers:
        index[name] = ["transformers", "CLIPTokenizer"]
        transformers.CLIPTokenizer(vocab=vocabulary(), merges=[], model_max_length=77).save_pretrained(
            folder / name
        )
    (folder / "model_index.json").write_text(json.dumps(dict(sorted(index.items())), indent=2) + "\n")


def vocabulary() -> dict[str, int]:
    """Returns a byte-level CLIP vocabulary without merges, its two special tokens where CLIP has them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = letters + [letter + "</w>" for letter in letters]
    return {token: i for i, token in enumerate(tokens)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}


def check(folder: Path, family: Family, models: list[str], single: bool, folders: bool) -> list[str]:
    """Returns what is wrong with the files of a family, read by safetensors, against the real classes."""
    from safetensors import safe_open

    listed = layouts.weights(family)
    found: list[str] = []
    for model in models:
        expected: dict[Path, dict[str, tuple[str, Shape]]] = {}
        if folders:
            for name, component in family.components.items():
                shapes = layouts.model_shapes(component)
                path = weights_path(folder / model, name, component)
                expected[path] = {key: ("F16", shape) for key, shape in shapes.items()}
        if single:
            expected[folder / f"{model}.safetensors"] = single_specs(family, listed)
        for path, specs in expected.items():
            with safe_open(path, "pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
                read = {key: (x.get_dtype(), tuple(x.get_shape())) for key, x in slices.items()}
            found += [f"{path}: {line}" for line in layouts.unlike(read, specs)]
            if path.parent == folder:
                shapes = {key: shape for key, (_, shape) in read.items()}
                found += [f"{path}: {line}" for line in layouts.differences(shapes, family)]
    return found


def load(folder: Path, family: Family, models: list[str], single: bool, folders: bool) -> list[str]:
    """Returns the tensors that diffusers loads unequal to those in the diffusers folders."""
    import diffusers
    from safetensors import safe_open

    found: list[str] = []
    pipeline = getattr(diffusers, family.pipeline)
    options = {"torch_dtype": torch.float16, "local_files_only": True}
    for model in models:
        ways = {}
        if folders:
            ways[folder / model] = lambda path: pipeline.from_pretrained(path, **options)
        if single and folders:
            ways[folder / f"{model}.safetensors"] = lambda path: pipeline.from_single_file(
                path, config=str(path.with_suffix("")), **options
            )
        for path, way in ways.items():
            loaded = way(path)
            for name, component in family.components.items():
                state = getattr(loaded, name).state_dict()
                if component.scheme == "clip":
                    state = {"text_model." + key.removeprefix("text_model."): x for key, x in state.items()}
                with safe_open(weights_path(folder / model, name, component), "pt") as file:
                    keys = set(file.keys())
                    found += [f"{path}: {name}: {key}: absent" for key in sorted(keys ^ state.keys())]
                    unequal = [
                        k for k in keys & state.keys() if not torch.equal(state[k], file.get_tensor(k))
                    ]
                found += [f"{path}: {name}: {key}: other values" for key in sorted(unequal)]
            del loaded
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("family", choices=FAMILIES, nargs="?", default="sd15")
    parser.add_argument("--layout", choices=["checkpoint", "diffusers", "both"], default="both")
    parser.add_argument("--models", nargs="+", default=["a", "b", "c"])
    parser.add_argument(
        "--check", action="store_true", help="check keys, shapes and dtypes instead of making"
    )
    parser.add_argument(
        "--load", action="store_true", help="load with diffusers and compare instead of making"
    )
    given = parser.parse_args()
    arguments = (
        given.folder / given.family,
        FAMILIES[given.family],
        given.models,
        given.layout != "diffusers",
        given.layout != "checkpoint",
    )
    if not (given.check or given.load):
        make(*arguments)
        return
    wrong = (check(*arguments) if given.check else []) + (load(*arguments) if given.load else [])
    sys.exit("\n".join(wrong) if wrong else None)


if __name__ == "__main__":
    main()

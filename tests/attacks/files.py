"""Damaged files and folders: read as the safetensors library reads them, or one of our errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save

from runner.checkpoint import Checkpoint
from runner.disk.files import look
from runner.formats.diffusers import DiffusersFolder
from runner.formats.pickled import read_pickled
from runner.formats.safetensors import read_header
from runner.formats.strict_json import parse_object
from tests.attacks import mutations
from tests.attacks.mutations import NAMES
from tests.attacks.refusals import refused_by
from tests.formats.torch_files import old, state, tensor, zipped
from tests.formats.torch_files import text as pickled_text

DTYPES = ("F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "F4", "F17", "f32", "", "C64", "F64")
CONTAINED = re.compile(r"[A-Za-z_]\w*/[\w.-]+|[\w.-]+", re.ASCII)  # a file in the folder or one below


# Safetensors


def mutated_safetensors(rng: Random) -> bytes:
    """A file of a few tensors, damaged in its header's data, in its text, or as bytes."""
    sizes = [rng.choice(((1,), (2, 3), (0, 4), (), (5,))) for _ in range(rng.randint(1, 4))]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.5 else {}
    at = 0
    for number, shape in enumerate(sizes):
        dtype, width = rng.choice((("F32", 4), ("F16", 2), ("I64", 8), ("U8", 1)))
        count = 1
        for size in shape:
            count *= size
        entries[f"t{number}.weight"] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [at, at + count * width],
        }
        at += count * width
    way = rng.randrange(6)
    changed: Any = entries
    if way in (0, 1):
        for _ in range(rng.choice((1, 1, 2, 3))):
            changed = mutations.tree(rng, changed)
    if way == 2:
        name = rng.choice(list(entries))
        if name != "__metadata__":
            entries[name]["dtype"] = rng.choice(DTYPES)
    head = mutations.dump(rng, changed)
    if way == 3:
        head = mutations.text(rng, head)
    if way == 4:
        head = (
            rng.choice((" ", "\n", "\ufeff", "\0", ""))
            + head
            + rng.choice(("", " " * 7, "\0", "}", "{}", "\x0c"))
        )
    raw = mutations.encoded(head)
    content = (
        len(raw).to_bytes(8, "little")
        + raw
        + rng.randbytes(at + rng.choice((0, 0, 0, 0, 1, -1)) if at else 0)
    )
    return mutations.data(rng, content) if way == 5 else content


def library_reads(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """What the safetensors library makes of a file; None if it refuses it."""
    try:
        found = safetensors.deserialize(content)
    except BaseException as error:  # a panic of Rust's is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
    return {name: (it["dtype"], tuple(it["shape"]), bytes(it["data"])) for name, it in found}


def safetensors_file(rng: Random, folder: Path) -> bool:
    return check_safetensors(mutated_safetensors(rng), folder)


def check_safetensors(content: bytes, folder: Path) -> bool:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    with refused_by(4) as refused:
        tensors, _ = read_header(look(path, "x"))
    if refused:
        return False
    expected = library_reads(content)
    assert expected is not None, "the library refuses what we accept"
    found = {
        key: (spec.dtype, spec.shape, content[offset : offset + spec.nbytes])
        for key, (offset, spec) in tensors.items()
    }
    assert found == expected
    return True


# Pickles


@cache
def _saved() -> tuple[bytes, ...]:
    import io

    files = []
    for zip_form in (True, False):
        for value in (
            {"a": torch.ones(2, 3), "b": torch.zeros(5, dtype=torch.float16)},
            {"state_dict": {"w": torch.arange(6.0)}, "epoch": 3, "callbacks": {"x": [1, (2, "y")]}},
        ):
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=zip_form)
            files.append(file.getvalue())
    return tuple(files)


def pickle_file(rng: Random, folder: Path) -> bool:
    command = f"touch {folder}/canary"
    run = b"cposix\nsystem\n" + pickled_text(command) + b"\x85R"
    pieces = [
        *mutations.BYTES,
        run,
        b"R",
        b"b",
        b"\x81",
        b"\x93",
        b"(",
        b"]",
        b"}",
        b"q\x00",
        b"h\x00",
        b"Q",
        b"c",
    ]
    pieces += [
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n)R",
        b"c__builtin__\neval\n",
        b"K\xff",
        b"t",
    ]
    pieces += [
        tensor(),
        tensor(strides=(0,)),
        tensor(offset=9),
        tensor(shape=(1 << 40,), strides=(0,)),
        b"\x8a\x02\xff\xff",
    ]
    way = rng.randrange(4)
    if way == 0:
        content = mutations.data(rng, rng.choice(_saved()), pieces)
    else:
        first = tensor(
            elements=rng.choice((4, 4, 4, 0, 3, 1 << 40)),
            offset=rng.choice((0, 0, 0, 1, 1 << 62)),
            shape=rng.choice(((4,), (2, 2), (), (0,), (1 << 31, 1 << 31))),
            strides=rng.choice(((1,), (2, 1), (), (0,), (1, 2))),
            kind=rng.choice(
                ("FloatStorage", "FloatStorage", "HalfStorage", "UntypedStorage", "QInt8Storage")
            ),
        )
        data = (
            mutations.data(rng, state(w=first, v=tensor()), pieces) if way > 1 else state(w=first, v=tensor())
        )
        content = rng.choice((zipped, old))(data, {"0": rng.randbytes(16)})
    path = folder / "x.ckpt"
    path.write_bytes(content)
    with refused_by(4) as refused:
        tensors = read_pickled(look(path, "x.ckpt"))
    if refused:
        return False
    assert sum(spec.nbytes for _, spec in tensors.values()) <= 4 * len(content)
    assert all(at >= 0 and at + spec.nbytes <= len(content) for at, spec in tensors.values())
    return True


# JSON and folders


def json_file(rng: Random, folder: Path) -> bool:
    value = {"a": [1, 2.5, "x", None, True, {"b": {"c": -3}}], "weight_map": {"x": "y"}, "é": "\n"}
    raw = mutations.dump(rng, mutations.tree(rng, mutations.tree(rng, value)))
    content = mutations.encoded(mutations.text(rng, raw) if rng.random() < 0.5 else raw)
    with refused_by(4) as refused:
        found = parse_object(content, "x.json")
    if refused:
        return False
    assert found == json.loads(content)
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    return True


COMPONENTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    **{name: ["diffusers", kind] for name, kind in COMPONENTS.items()},
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
}
CONFIG: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "auto_map": {"A": "evil.py"},
    "channels": [1, 2],
}
SHARDS = {"x": "s-00001-of-00002.safetensors", "y": "s-00002-of-00002.safetensors"}


def _folder(root: Path) -> Iterator[tuple[str, Any]]:
    yield "model_index.json", INDEX
    yield "scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}
    for name in COMPONENTS:
        yield f"{name}/config.json", CONFIG
    yield (
        "unet/diffusion_pytorch_model.safetensors.index.json",
        {"metadata": {"total_size": 8}, "weight_map": SHARDS},
    )


def diffusers_folder(rng: Random, folder: Path) -> bool:
    root = folder / "model"
    secret = folder / "secret.safetensors"
    if not root.exists():
        secret.write_bytes(save({"x": torch.ones(1)}))
        (folder / "loop").symlink_to("loop")
        for name in ("unet", "vae", "scheduler"):
            (root / name).mkdir(parents=True)
        (root / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(save({"x": torch.zeros(2)}))
        for key, name in SHARDS.items():
            (root / "unet" / name).write_bytes(save({key: torch.ones(1)}))
        for name, value in _folder(root):
            (root / name).write_text(json.dumps(value))
    files = dict(_folder(root))
    damaged = rng.sample(list(files), rng.choice((1, 1, 2)))
    link = root / rng.choice(("unet/extra.json", "vae/extra.json", "unet/config.json", "unet/" + SHARDS["x"]))
    before = link.read_bytes() if link.exists() else None
    if rng.random() < 0.2:
        link.unlink(missing_ok=True)
        link.symlink_to(
            rng.choice((secret, folder / "loop", "/dev/zero", root / "vae/config.json", "../../nothing"))
        )
        damaged = damaged[:1]
    for name in damaged:
        value = mutations.tree(rng, files[name])
        if "weight_map" in files[name] and rng.random() < 0.5:
            to = rng.choice(
                (*NAMES, *SHARDS.values(), "../secret.safetensors", str(secret), "C:x.safetensors")
            )
            value = {**files[name], "weight_map": {**SHARDS, "x": to}}
        raw = mutations.dump(rng, value)
        content = mutations.encoded(mutations.text(rng, raw) if rng.random() < 0.2 else raw)
        if not (root / name).is_symlink():
            (root / name).write_bytes(content)
    try:
        return _opens(root)
    finally:
        link.unlink(missing_ok=True)
        if before is not None:
            link.write_bytes(before)
        for name in damaged:
            (root / name).write_text(json.dumps(files[name]))


def _opens(root: Path) -> bool:
    form = DiffusersFolder()
    with refused_by(4, 5) as refused:
        checkpoint = form.open(root, "model", None)
        layout = form.layout("out", checkpoint.specs, checkpoint, {}, None)
    if refused:
        return False
    names = [*(file.name for file in layout.files), *layout.texts]
    assert all(CONTAINED.fullmatch(name) and ".." not in name for name in names), names
    assert not any(name.endswith((".py", ".bin", ".pt", ".ckpt", ".pkl")) for name in names)
    configs = (text for name, text in layout.texts.items() if name.endswith(("config.json", "index.json")))
    assert not any(re.search(rb'"auto_map"\s*:', text) for text in configs)
    real = root.resolve()
    assert all(file.path.resolve().is_relative_to(real) for file in _files(checkpoint))
    theirs = [load_file(file.path) for file in checkpoint.files]
    assert sum(map(len, theirs)) == len(checkpoint.tensors)
    for key, stored in checkpoint.tensors.items():
        assert tuple(theirs[stored.file][key.partition("/")[2]].shape) == stored.spec.shape
    return True


def _files(checkpoint: Checkpoint) -> Iterable[Any]:
    return (*checkpoint.files, *checkpoint.others.values())

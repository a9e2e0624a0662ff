"""Small merges with all that is written about them, and the jobs on them without Hydra."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import load_file

import runner
from runner.checkpoint import SIDECAR
from runner.disk.files import look
from runner.errors import CannotReplayError, MismatchError
from runner.formats.safetensors import output_file, read_header
from runner.recipe.canonical import canonical_json
from tests import runs
from tests.build import write_models

NAME = "mix.safetensors"


def made(folder: Path, name: str = "run", cache: Path | None = None, **changes: Any) -> Path:
    """A folder of models with the folder of a run that merged them; returns the latter."""
    if not (folder / "a.safetensors").exists():
        write_models(folder, a=1, b=2)
    runs.made(folder, name, runs.tree(**changes), cache_dir=cache or folder / "cache")
    return folder / name


SCHEMA = json.loads((Path(runner.__file__).parent / "schemas" / "proof.json").read_text())


def answer_of(job: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a job says to programs: as the schema has it, and with the exit code of what is raised."""
    capsys.readouterr()
    code = 0
    try:
        job()
    except (MismatchError, CannotReplayError) as raised:
        code = raised.exit_code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    Draft202012Validator(SCHEMA).validate(found)
    assert found.get("exit_code", 0) == code  # a comparison has none
    return found


def edited(path: Path, **metadata: str) -> None:
    """Writes a file of tensors once more with other entries in its header; the data stays."""
    tensors, told = read_header(look(path, path.name))
    data = path.read_bytes()[min(offset for offset, _ in tensors.values()) :]
    header = output_file("", {key: spec for key, (_, spec) in tensors.items()}, {**told, **metadata})
    content = hashlib.sha256(data).hexdigest()
    path.write_bytes(header.stamped(content) + data)


def by_another_machine(folder: Path, key: str, ulps: int) -> None:
    """Makes of a run what a machine leaves whose kernels give other last digits of one tensor."""
    model = folder / NAME
    tensors = load_file(model)
    flat = tensors[key].view(torch.int16).flatten()
    flat[0] += ulps
    content = model.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    place = json.loads(content[8:begin])[key]["data_offsets"]
    data = bytearray(content[begin:])
    data[place[0] : place[1]] = tensors[key].view(torch.uint8).numpy().tobytes()
    model.write_bytes(content[:begin] + bytes(data))
    edited(model)
    record = json.loads((folder / "run.json").read_text())
    output = record["deterministic"]["output"]
    sidecar = json.loads((folder / (NAME + SIDECAR)).read_text())
    for one in sidecar["tensors"]:
        if one[0] == key:
            one[3] = hashlib.sha256(tensors[key].contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    sidecar["tensor_root"] = hashlib.sha256(canonical_json(sidecar["tensors"]).encode()).hexdigest()
    text = f"{canonical_json(sidecar)}\n".encode()
    (folder / (NAME + SIDECAR)).write_bytes(text)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    output |= {"sha256": digest, "tensor_root": sidecar["tensor_root"]}
    output["tensors"]["sha256"] = hashlib.sha256(text).hexdigest()
    output["files"][0] |= {"sha256": digest}
    record["run"]["versions"]["torch"] = "1.0.0"
    (folder / "run.json").write_text(json.dumps(record))
    next(folder.glob("*.intoto.json")).unlink()

"""Files of torch.save read as torch.load(weights_only=True) reads them."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from runner.disk.files import look
from runner.errors import InputError
from runner.formats import READERS
from runner.formats.pickled import PickledFile, read_pickled
from runner.formats.safetensors import SafetensorsFile
from runner.tensors import DTYPES
from tests.build import flip, merged, planned, random_tensors
from tests.command import run
from tests.formats.test_safetensors import bytes_of, spec_of
from tests.formats.torch_files import old, plain, state, tensor, text, zipped
from tests.runs import made, tree

FORMS = pytest.mark.parametrize("form", ["zip", "old"])


def save(value: object, path: Path, form: str = "zip", **settings: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip", **settings)
    return path


def read(path: Path) -> dict[str, tuple[int, Any]]:
    return read_pickled(look(path, path.name))


def check(path: Path, expected: dict[str, Tensor]) -> None:
    """What was read lies in the file as torch loads it."""
    found, content = read(path), path.read_bytes()
    assert set(found) == set(expected)
    for key, (offset, spec) in found.items():
        assert spec == spec_of(expected[key]), key
        assert content[offset : offset + spec.nbytes] == bytes_of(expected[key].detach()), key
    assert list(found.values()) == sorted(found.values(), key=lambda place: place[0])


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


class Net(nn.Module):
    """A module with tied weights, a buffer and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.second = nn.Linear(3, 5)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("ids", torch.arange(7)[None])


@FORMS
def test_every_dtype_is_read(tmp_path: Path, form: str) -> None:
    for dtype in DTYPES.values():
        if dtype.torch is None or dtype.name == "F8_E8M0":
            continue
        value = torch.arange(6).to(getattr(torch, dtype.torch)).reshape(2, 3)
        path = save({"x": value}, tmp_path / f"{dtype.name}.pt", form)
        check(path, {"x": value})


@FORMS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_state_dict_of_a_module_is_read(tmp_path: Path, form: str, protocol: int) -> None:
    net = Net()
    path = save(net.state_dict(), tmp_path / "net.pth", form, pickle_protocol=protocol)
    check(path, dict(net.state_dict()))
    if protocol < 4:  # torch's own restricted reader knows no more
        check(path, loaded(path))


@FORMS
def test_parameters_views_and_tied_tensors_are_read_where_they_lie(tmp_path: Path, form: str) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "base": base,
        "same": base,
        "rows": base[1:3],
        "row": base[2],
        "one": base[3, 5],
        "column_of_one_row": base[1:2, :1],
        "none": base[:0],
        "parameter": nn.Parameter(base[1:]),
        "half": torch.ones(3, dtype=torch.float16),
    }
    path = save(tensors, tmp_path / "x.pt", form)
    check(path, tensors)
    assert read(path)["base"] == read(path)["same"]


@FORMS
@pytest.mark.parametrize("wrapping", ["state_dict", "model"])
def test_a_state_dict_is_found_inside(tmp_path: Path, form: str, wrapping: str) -> None:
    tensors = random_tensors(1)
    path = save({wrapping: OrderedDict(tensors), "epoch": 3, "loss": 0.5}, tmp_path / "x.ckpt", form)
    check(path, tensors)


@FORMS
def test_what_stands_beside_the_tensors_is_left_out(tmp_path: Path, form: str) -> None:
    tensors = random_tensors(1)
    beside: dict[str, Any] = {"step": 1, "name": "x", "none": None, "nested": {"w": torch.ones(2)}, "l": [1]}
    check(save({**tensors, **beside}, tmp_path / "x.pt", form), tensors)


@pytest.fixture
def model_checkpoint(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class of Lightning's callback, under its own name."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    modules = [ModuleType(name.rsplit(".", depth)[0] if depth else name) for depth in range(3)]
    modules[0].ModelCheckpoint = kind  # type: ignore[attr-defined]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return kind


@FORMS
def test_a_checkpoint_of_a_training_run_is_read(tmp_path: Path, form: str, model_checkpoint: type) -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.first(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 13,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": net.state_dict(),
        "callbacks": {
            model_checkpoint: {"best": torch.tensor(0.5), "path": tmp_path, "by": defaultdict(int)}
        },
        "instance": model_checkpoint(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last": np.float64(0.1), "array": np.arange(3), "many": {1, 2}, "raw": b"bytes"}],
        "hyper_parameters": OmegaConf.create({"a": [1, {"b": "c"}], "lr": 1e-4}),
        "seen": (frozenset({1}), 1 << 40, -5, 2.5, complex(1, 2)),
    }
    path = save(saved, tmp_path / "last.ckpt", form)
    check(path, dict(net.state_dict()))


def test_a_loop_of_references_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append({"again": loop})
    check(save({"w": torch.ones(3), "loop": loop}, tmp_path / "x.pt"), {"w": torch.ones(3)})


def test_files_made_by_hand_are_read_too(tmp_path: Path) -> None:
    """The tests below change these."""
    data = torch.arange(4, dtype=torch.float32)
    for name, content in (
        ("zip", zipped(state(x=tensor()), {"0": bytes_of(data)}, byteorder=b"little", version=b"3\n")),
        ("old", old(state(x=tensor().replace(b"tQ", b"NtQ")), {"0": bytes_of(data)})),
    ):
        (tmp_path / name).write_bytes(content)
        check(tmp_path / name, {"x": data})
        assert torch.equal(loaded(tmp_path / name)["x"], data)


@FORMS
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", "", ".model"])
def test_content_decides_who_reads_a_file(tmp_path: Path, form: str, suffix: str) -> None:
    path = save({"w": torch.ones(2)}, tmp_path / f"x{suffix}", form)
    reader = next(reader for reader in READERS if reader.accepts(path))
    checkpoint = reader.open(path, "x", None)
    assert isinstance(reader, PickledFile)
    assert (checkpoint.format, checkpoint.title) == ("checkpoint", "pickle, single file")


@FORMS
def test_a_pickle_called_safetensors_is_never_read_as_one(tmp_path: Path, form: str) -> None:
    path = save({"w": torch.ones(2)}, tmp_path / "x.safetensors", form)
    reader = next(reader for reader in READERS if reader.accepts(path))
    with pytest.raises(InputError, match="pickle") as caught:
        reader.open(path, "x", None)
    assert "call it .ckpt" in str(caught.value.hint)


def test_weights_that_are_not_as_their_checksum_says_are_no_input_of_a_merge(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        torch.save(random_tensors(seed), tmp_path / f"{name}.ckpt")
    models = {"a": "a.ckpt", "b": "b.ckpt"}
    assert made(tmp_path, "sound", tree(models=models)).path is not None
    ((offset, spec), *_) = (
        place for place in read_pickled(look(tmp_path / "b.ckpt", "b")).values() if place[1].nbytes
    )
    flip(tmp_path / "b.ckpt", offset + spec.nbytes - 1)
    with pytest.raises(InputError, match=r"b\.ckpt: data/\d+ is damaged: its checksum is wrong"):
        made(tmp_path, "damaged", tree(models=models))
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["run.json"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.ckpt")
    assert not PickledFile().accepts(tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="a pipe"):
        PickledFile().open(tmp_path / "x.ckpt", "x", None)


def test_a_safetensors_file_whose_header_begins_as_a_pickle_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for length in range(600):
        save_file({"w": torch.ones(2)}, path, {"pad": "x" * length})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of 640 bytes")
    assert isinstance(next(reader for reader in READERS if reader.accepts(path)), SafetensorsFile)


@FORMS
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"w": torch.ones(2, 3).t()}, "strides"),
        ({"w": torch.ones(3)[::2]}, "strides"),
        ({"w": torch.ones(1).expand(1000)}, "strides"),
        ({"a\nb": torch.ones(1)}, "control"),
        ({"": torch.ones(1)}, "empty"),
        ({1: torch.ones(1)}, "no state dict"),
        ({"epoch": 1, "lr": 2.0}, 'there are: "epoch", "lr"'),
        ({}, "no names"),
        ([torch.ones(1)], "expected a state dict"),
        (torch.ones(1), "expected a state dict"),
        ({"w": torch.ones(1), "q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "qtensor"),
        ({"w": torch.sparse_coo_tensor([[0]], [1.0], (3,))}, "sparse"),
        ({"w": torch.ones(2, device="meta")}, "meta"),
        ({str(n): w for w in [torch.ones(9999)] for n in range(9)}, "would take"),
        (Net(), "Net"),
    ],
)
def test_what_is_no_plain_state_dict_is_refused(tmp_path: Path, form: str, value: Any, reason: str) -> None:
    path = save(value, tmp_path / "x.pt", form)
    with pytest.raises(InputError, match=reason) as caught:
        read(path)
    assert all(len(line.encode()) <= 500 for line in caught.value.lines())


DATA = {"0": bytes(16)}
GOOD = zipped(state(x=tensor()), DATA)
TENSORS = {
    "storage too short": (state(x=tensor(elements=5)), "should have 20 bytes"),
    "storage too long": (state(x=tensor(elements=3, shape=(3,))), "should have 12 bytes"),
    "storage missing": (state(x=tensor(key="7")), "storage"),
    "storage outside": (state(x=tensor(key="../data.pkl")), "storage"),
    "beyond the storage": (state(x=tensor(shape=(5,))), "needs 20 bytes"),
    "offset beyond": (state(x=tensor(offset=1)), "needs 20 bytes"),
    "negative offset": (state(x=tensor(offset=-1)), "natural"),
    "negative stride": (state(x=tensor(strides=(-1,))), "natural"),
    "boolean size": (state(x=tensor(shape=(True,))), "natural"),
    "stride of zero": (state(x=tensor(shape=(1 << 40,), strides=(0,))), "strides"),
    "absurd": (state(x=tensor(shape=(1 << 40, 1 << 40), strides=(0, 0))), "absurd"),
    "shape and strides": (state(x=tensor(shape=(2, 2))), "do not fit"),
    "dimensions": (state(x=tensor(shape=(1,) * 65, strides=(1,) * 65)), "natural"),
    "two accounts": (state(x=tensor(), y=tensor(kind="IntStorage")), "differently"),
    "twice": (state(x=tensor()).replace(b"u.", text("x") + tensor() + b"u."), "stands twice"),
    "no storage": (state(x=b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))\x89}tR"), "without a storage"),
    "arguments": (state(x=b"ctorch._utils\n_rebuild_tensor_v2\n)R"), "number of arguments"),
    "bad persistent id": (state(x=b"K\x01Q"), "persistent id"),
    "dtype called": (state(x=b"ctorch\nFloatStorage\nK\x04\x85R"), "no function"),
}


@FORMS
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_cannot_lie(tmp_path: Path, form: str, name: str) -> None:
    data, reason = TENSORS[name]
    path = tmp_path / "x.ckpt"
    path.write_bytes(zipped(data, DATA) if form == "zip" else old(data, DATA))
    with pytest.raises(InputError) as caught:
        read(path)
    if form == "zip":  # the old form says of some that the list of storages is wrong
        assert reason in caught.value.message


def changed(content: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in content
    return content.replace(old, new, count)


def compressed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state(x=tensor()))
        archive.writestr("archive/data/0", bytes(1 << 20))
    return file.getvalue()


FOLDER = bytearray(GOOD)
FOLDER[GOOD.index(b"PK\x01\x02") + 38] = 0x10  # the attributes of the first member
ARCHIVES = {
    "a member that is a folder": (bytes(FOLDER), "directory"),
    "compressed": (compressed(), "compressed"),
    "encrypted": (
        changed(GOOD, b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
        "encrypted",
    ),
    "two disks": (GOOD[:-18] + b"\x01" + GOOD[-17:], "several files"),
    "comment": (GOOD[:-2] + b"\x01\x00!", "not at the end"),
    "trailing bytes": (GOOD + b"0", "not at the end"),
    "a hole": (changed(GOOD, b"PK\x01\x02", b"\x00PK\x01\x02", 1), "directory"),
    "damaged": (changed(GOOD, b"FloatStorage", b"floatStorage"), "checksum"),
    "another name in the header": (changed(GOOD, b"archive/data/0", b"archive/data/1", 1), "disagree"),
    "two folders": (changed(GOOD, b"archive/data/0", b"Archive/data/0"), "2 folders"),
    "twice": (changed(zipped(state(x=tensor()), {"0": b"", "1": b""}), b"data/1", b"data/0"), "two members"),
    "absolute": (changed(GOOD, b"archive/data/0", b"/rchive/data/0"), "is called"),
    "upwards": (changed(GOOD, b"archive/data/0", b"archive/../d/0"), "is called"),
    "backslash": (changed(GOOD, b"archive/data/0", b"archive\\data/0"), "is called"),
    "no data.pkl": (changed(GOOD, b"data.pkl", b"Data.pkl"), "without data.pkl"),
    "a script": (zipped(state(x=tensor()), DATA, code__x=b"pass"), "TorchScript"),
    "big-endian": (zipped(state(x=tensor()), DATA, byteorder=b"big"), "byteorder"),
    "behind the pickle": (zipped(state(x=tensor()) + b".", DATA), "behind the end"),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "neither"),
    "another pickle": (b"\x80\x02}q\x00.", "not one of torch.save"),
    "another protocol": (changed(old(b"\x80\x02}."), plain(1001), plain(1002), 1), "protocol"),
    "old big-endian": (
        changed(old(b"\x80\x02}."), b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        "big-endian",
    ),
    "old with trailing bytes": (old(state(x=tensor()), DATA) + b"0", "trailing"),
    "old without its storage": (old(state(x=tensor())), "list of storages"),
    "old with one too many": (old(state(x=tensor()), {**DATA, "1": b""}), "list of storages"),
    "a view": (old(state(x=tensor().replace(b"tQ", b"(K\x00K\x01ttQ")), DATA), "part of another"),
    "tar": (b"sys_info".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"), "tar"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_torch_does_not_write_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    content, reason = ARCHIVES[name]
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read(path)
    assert caught.value.message.startswith("x.ckpt: ")
    assert all(len(line.encode()) <= 500 for line in caught.value.lines())


@FORMS
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    path = save({"a": torch.ones(2, 3), "b": torch.zeros(5)}, tmp_path / "x.pt", form)
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(InputError):
            read(path)


@FORMS
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_what_we_accept_of_a_damaged_file_torch_reads_alike(
    tmp_path: Path, form: str, position: int, value: int
) -> None:
    tensors = {"a": torch.ones(2, 3), "b": nn.Parameter(torch.zeros(5, dtype=torch.float16))}
    content = bytearray(save({"state_dict": tensors}, tmp_path / "x.pt", form).read_bytes())
    content[position % len(content)] = value
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    try:
        found = read(path)
    except InputError:
        return
    try:
        theirs = loaded(path)
    except Exception:  # torch is stricter with what we leave out: hooks, devices, version
        return
    inner = next((part for part in theirs.values() if isinstance(part, dict)), theirs)
    assert {key: spec for key, (_, spec) in found.items()} == {k: spec_of(t) for k, t in inner.items()}
    check(path, inner)


# Merging


@FORMS
def test_a_pickle_is_merged_as_the_same_tensors_in_a_safetensors_file(tmp_path: Path, form: str) -> None:
    a, b = random_tensors(1), random_tensors(2)
    save({"state_dict": a, "epoch": 1}, tmp_path / "a.ckpt", form)
    save(b, tmp_path / "b.pt", form)
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")

    def merge(first: str, second: str) -> dict[str, Tensor]:
        tree = {"method": "weighted_sum", "alpha": 0.3, "models": {"a": first, "b": second}}
        return merged(tree, tmp_path, tmp_path / f"{first}-{second}")

    expected = merge("a.safetensors", "b.safetensors")
    for first, second in (("a.ckpt", "b.safetensors"), ("a.safetensors", "b.pt"), ("a.ckpt", "b.pt")):
        result = merge(first, second)
        assert set(result) == set(expected)
        assert all(torch.equal(result[key], expected[key]) for key in expected)


def test_tied_weights_are_written_for_each_name(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    save({"x": shared, "y": shared}, tmp_path / "a.ckpt")
    save({"x": shared + 1, "y": shared + 2}, tmp_path / "b.ckpt")
    tree = {"method": "weighted_sum", "alpha": 0.5, "models": {"a": "a.ckpt", "b": "b.ckpt"}}
    result = merged(tree, tmp_path, tmp_path / "out")
    assert torch.equal(result["x"], shared + 0.5) and torch.equal(result["y"], shared + 1)


def test_the_output_of_a_pickle_is_a_safetensors_file(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        save(random_tensors(1), tmp_path / name)
    tree = {"method": "weighted_sum", "alpha": 0.5, "models": {"a": "a.ckpt", "b": "b.ckpt"}}
    layout = planned(tree, tmp_path).layout
    assert not layout.folder and layout.name.endswith(".safetensors")


def test_the_whole_line_from_an_old_checkpoint_to_a_record(tmp_path: Path) -> None:
    a, b = random_tensors(1), random_tensors(2)
    save({"state_dict": a}, tmp_path / "old.ckpt", "old")
    save_file(b, tmp_path / "b.safetensors")
    arguments = ["recipe=weighted_sum", "recipe.alpha=0.5"]
    arguments += [f"recipe.models.a={tmp_path}/old.ckpt", f"recipe.models.b={tmp_path}/b.safetensors"]
    plan = run(tmp_path, *arguments, "job=plan")
    assert plan.returncode == 0, plan.stderr
    assert "pickle, single file" in plan.stdout
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    (output,) = (path for path in tmp_path.rglob("*.safetensors") if path.name != "b.safetensors")
    key = "model.diffusion_model.linear.weight"
    assert torch.equal(load_file(output)[key], ((a[key].float() + b[key].float()) / 2).half())
    record = json.loads((output.parent / "run.json").read_text())
    assert record["deterministic"]["inputs"][0]["format"] == "checkpoint"

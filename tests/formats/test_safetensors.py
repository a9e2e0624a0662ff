"""The strict reader and the canonical writer, against the safetensors library."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from runner.checkpoint import Layout
from runner.disk.files import look
from runner.errors import InputError
from runner.formats import safetensors as reader
from runner.formats.safetensors import MAX_TENSORS, filled, output_file, read_header
from runner.tensors import DTYPES, TensorSpec
from tests.attacks.files import check_safetensors

TENSORS = {
    "z.half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "a.single": torch.ones(2, 2),
    "b.empty": torch.zeros(0, 4),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "brain": torch.ones(5, dtype=torch.bfloat16),
    "ids": torch.arange(4),
    "mask": torch.tensor([True, False]),
    "byte": torch.tensor([1, 2], dtype=torch.uint8),
    "e4": torch.ones(3).to(torch.float8_e4m3fn),
    "e5": torch.ones(3).to(torch.float8_e5m2),
    "名前": torch.ones(1, dtype=torch.float16),
}


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = next(dtype.name for dtype in DTYPES.values() if dtype.torch == name)
    return TensorSpec(dtype, tuple(tensor.shape))


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def raw(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def entry(dtype: str = "F32", shape: Any = (1,), begin: int = 0, end: int = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_the_file_is_byte_equal_to_what_the_library_writes(tmp_path: Path, metadata: dict[str, str]) -> None:
    file = output_file("", {key: spec_of(tensor) for key, tensor in TENSORS.items()}, metadata)
    content = bytearray(file.nbytes)
    for key, (offset, spec) in file.tensors.items():
        content[offset : offset + spec.nbytes] = bytes_of(TENSORS[key])
    digest = hashlib.sha256(content[len(file.header) :]).hexdigest()
    content[: len(file.header)] = file.stamped(digest)
    said = {"format": "pt", "modelspec.hash_sha256": f"0x{digest}"}
    # The library writes two entries in either order, ours are sorted.
    assert bytes(content) in {save(TENSORS, said) for _ in range(64)}


def test_metadata_is_sorted_and_always_says_format_pt_and_has_room_for_the_hash() -> None:
    header = output_file("", {"x": TensorSpec("F16", (1,))}, {"z": "1", "a": "2"}).header
    room = f'"modelspec.hash_sha256":"0x{64 * "0"}"'
    assert header[8:].startswith(f'{{"__metadata__":{{"a":"2","format":"pt",{room},"z":"1"}},"x":'.encode())
    assert len(header) % 8 == 0


def test_a_header_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, {"a": "b"})
    tensors, metadata = read_header(look(path, "x"))
    with safe_open(path, "pt") as file:
        assert metadata == file.metadata()
        assert list(tensors) == list(file.offset_keys())
    content = path.read_bytes()
    for key, (offset, spec) in tensors.items():
        assert spec == spec_of(TENSORS[key])
        assert content[offset : offset + spec.nbytes] == bytes_of(TENSORS[key])


MALFORMED = {
    "empty": (b"", "empty"),
    "truncated": (b"\x01\x02", "truncated"),
    "truncated header": (raw(b'{"x":')[:-3] + b"", "truncated"),
    "huge length": ((1 << 62).to_bytes(8, "little") + b"{}", "header of"),
    "not json": (raw(b"{nonsense}"), "not JSON"),
    "not utf-8": (raw(b'{"\xff":1}'), "UTF-8"),
    "a list": (raw(b"[1]"), "expected a JSON object"),
    "no tensors": (raw(b"{}"), "no tensors"),
    "duplicate names": (
        raw(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":1}', b"0000"),
        "stands twice",
    ),
    "trailing bytes": (raw(json.dumps({"x": entry()}).encode(), b"00000"), "trailing"),
    "missing bytes": (raw(json.dumps({"x": entry()}).encode(), b"000"), "truncated"),
    "hole": (raw(json.dumps({"x": entry(), "y": entry(begin=8, end=12)}).encode(), b"0" * 12), "hole"),
    "overlap": (raw(json.dumps({"x": entry(), "y": entry(begin=2, end=6)}).encode(), b"0" * 6), "overlaps"),
    "unknown dtype": (raw(json.dumps({"x": entry("F17")}).encode(), b"0" * 4), "F17"),
    "float size": (raw(json.dumps({"x": entry(shape=[1.0])}).encode(), b"0" * 4), "shape"),
    "boolean size": (raw(json.dumps({"x": entry(shape=[True])}).encode(), b"0" * 4), "shape"),
    "negative size": (raw(json.dumps({"x": entry(shape=[-1])}).encode(), b"0" * 4), "shape"),
    "absurd shape": (raw(json.dumps({"x": entry(shape=[2**40, 2**40])}).encode(), b"0" * 4), "absurd"),
    "wrong size": (raw(json.dumps({"x": entry(shape=[2])}).encode(), b"0" * 4), "takes 8 bytes"),
    "unknown field": (raw(json.dumps({"x": {**entry(), "y": 1}}).encode(), b"0" * 4), "exactly"),
    "metadata of numbers": (
        raw(json.dumps({"__metadata__": {"a": 1}, "x": entry()}).encode(), b"0" * 4),
        "__metadata__",
    ),
    "infinity": (raw(b'{"__metadata__":Infinity}'), "not JSON"),
    "deep": (raw(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"), "deep"),
    "control character": (raw(json.dumps({"a\u001b": entry()}).encode(), b"0" * 4), "control"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs"),
    "web page": (b"<!DOCTYPE html><html></html>", "HTML"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + b"0" * 64, "GGUF"),
    "zip": (b"PK\x03\x04\x14\x00\x00\x08" + b"0" * 64, "zip"),
    "pickle": (b"\x80\x02}q\x00X\x05\x00\x00\x00", "pickle"),
    "json error": (b'{"error": "gone"}' + b" " * 20, "JSON text"),
    "xml error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML text"),
    "pickle 3": (b"\x80\x03}q\x00X\x05\x00\x00\x00" + bytes(60), "a pickle"),
    "pickle 5": (b"\x80\x05\x95\x10\x00\x00\x00\x00\x00\x00\x00}." + bytes(60), "a pickle"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "7z archive"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"1" * 60, "gzip stream"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"1" * 60, "zstd stream"),
    "xz": (b"\xfd7zXZ\x00" + b"1" * 60, "xz stream"),
    "bzip2": (b"BZh91AY&SY" + b"1" * 60, "bzip2 stream"),
    "rar": (b"Rar!\x1a\x07" + b"1" * 60, "RAR archive"),
    "larger than is read": (((32 << 20) + 1).to_bytes(8, "little") + bytes(64), "a header of 33554433 bytes"),
    "byte order mark": (raw(b"\xef\xbb\xbf" + json.dumps({"x": entry()}).encode(), b"0" * 4), "JSON"),
    "NUL behind": (raw(json.dumps({"x": entry()}).encode() + b"\0", b"0" * 4), "JSON"),
    "65 dimensions": (raw(json.dumps({"x": entry(shape=[1] * 65)}).encode(), b"0" * 4), "at most 64"),
    "text size": (raw(json.dumps({"x": entry(shape=["1"])}).encode(), b"0" * 4), "shape"),
    "float offset": (raw(json.dumps({"x": entry(end=4.0)}).encode(), b"0" * 4), "data_offsets"),  # type: ignore[arg-type]
    "boolean offset": (raw(json.dumps({"x": entry(begin=False)}).encode(), b"0" * 4), "data_offsets"),
    "three offsets": (
        raw(json.dumps({"x": {**entry(), "data_offsets": [0, 4, 8]}}).encode(), b"0" * 4),
        "data_offsets",
    ),
    "hole before the first": (raw(json.dumps({"x": entry(begin=4, end=8)}).encode(), b"0" * 8), "hole"),
    "half a byte": (raw(json.dumps({"x": entry("F4", [1], 0, 1)}).encode(), b"0"), "F4"),
    "lower case": (raw(json.dumps({"x": entry("f32")}).encode(), b"0" * 4), 'unknown dtype "f32"'),
    "missing field": (raw(b'{"x":{"dtype":"F32","shape":[1]}}', b"0" * 4), "exactly"),
    "a twice named field": (
        raw(b'{"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"0" * 4),
        "stands twice",
    ),
    "twice in the metadata": (
        raw(b'{"__metadata__":{"a":"1","a":"2"},"x":' + json.dumps(entry()).encode() + b"}", b"0" * 4),
        "stands twice",
    ),
    "no name": (raw(json.dumps({"": entry()}).encode(), b"0" * 4), "empty"),
    "a long name": (raw(json.dumps({"x" * 513: entry()}).encode(), b"0" * 4), "too long"),
    "half a character": (raw(json.dumps({"\ud800": entry()}).encode(), b"0" * 4), "surrogate"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    content, reason = MALFORMED[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad") as caught:
        read_header(look(path, "bad"))
    assert reason in caught.value.message
    assert all(len(line.encode()) <= 500 for line in caught.value.lines())


ACCEPTED = {
    "64 dimensions": raw(json.dumps({"x": entry(shape=[1] * 64)}).encode(), b"0" * 4),
    "a name of 512 bytes": raw(json.dumps({"x" * 512: entry()}).encode(), b"0" * 4),
    "no metadata": raw(json.dumps({"__metadata__": None, "x": entry()}).encode(), b"0" * 4),
    "blanks": raw(json.dumps({"x": entry()}).encode() + b" \n\t ", b"0" * 4),
    "rank 0": raw(json.dumps({"x": entry(shape=[])}).encode(), b"0" * 4),
    "no elements": raw(json.dumps({"x": entry(shape=[0, 1 << 40], end=0)}).encode()),
    "large metadata": raw(
        json.dumps({"__metadata__": {"a": "b" * (1 << 20)}, "x": entry()}).encode(), b"0" * 4
    ),
    "names that are paths elsewhere": raw(json.dumps({"../../x": entry()}).encode(), b"0" * 4),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_legal_is_read(tmp_path: Path, name: str) -> None:
    assert check_safetensors(ACCEPTED[name], tmp_path)


def test_a_large_header_takes_time_and_memory_in_proportion(tmp_path: Path) -> None:
    entries = {
        f"model.diffusion_model.block.{n}.weight": entry(begin=4 * n, end=4 * n + 4) for n in range(20_000)
    }
    header = json.dumps(entries).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header, bytes(4 * len(entries) - 1)))
    started = time.process_time()
    with pytest.raises(InputError, match="truncated: 1 bytes"):
        read_header(look(path, "x"))
    assert time.process_time() - started < 2
    tracemalloc.start()
    with pytest.raises(InputError, match="truncated: 1 bytes"):
        read_header(look(path, "x"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < max(64 << 20, 12 * len(header))


@pytest.mark.parametrize(
    ("begin", "costly", "end"),
    [
        ('{"a":', '\u0100"', ""),
        ('{"a":', '\u0100"["', ""),
        ('{"a":"', '\\"', '"}'),
        ('{"\U0001f600":[', "[" * 29 + "]" * 29 + ",", "1]}"),
        ('{"\U0001f600":[', '{"":{}},', "1]}"),
        ('{"a":[', "[],", "1]}"),
        ('{"a":[', '{"ab":"cd","ef":"gh"},', "1]}"),
        ('{"a":[', '{"a":0},        ', "1]}"),
        ('{"a":[', "1.5,", "1]}"),
    ],
)
def test_a_header_that_is_made_to_be_costly_takes_memory_in_proportion(
    tmp_path: Path, begin: str, costly: str, end: str
) -> None:
    header = (begin + costly * ((1 << 20) // len(costly.encode())) + end).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header))
    tracemalloc.start()
    with pytest.raises(InputError):
        read_header(look(path, "x"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(header)


def test_more_tensors_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_TENSORS == 250_000
    monkeypatch.setattr(reader, "MAX_TENSORS", 100)
    one = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{n}":{one}' for n in range(101)) + "}"
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header.encode()))
    with pytest.raises(InputError, match=r"101 tensors \(at most 100 are read\)"):
        read_header(look(path, "x"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 260), mutate=st.booleans())
def test_what_we_accept_the_library_reads_alike(
    tmp_path: Path, position: int, value: int, cut: int, mutate: bool
) -> None:
    content = bytearray(save({"a": torch.ones(2, 3), "b": torch.zeros(5, dtype=torch.float16)}))
    if mutate:
        content[position % len(content)] = value
    else:
        content = content[: cut % len(content)]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    try:
        tensors, _ = read_header(look(path, "m"))
    except InputError:
        return
    try:
        with safe_open(path, "pt") as file:
            theirs = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        pytest.fail(f"the library refuses what we accept: {error}")
    assert {key: spec.shape for key, (_, spec) in tensors.items()} == theirs


def test_a_header_is_filled_in_without_moving_anything(tmp_path: Path) -> None:
    specs = {"x": TensorSpec("F16", (3,)), "y": TensorSpec("F32", (2,))}
    planned = Layout("m.safetensors", False, (output_file("", specs, {"a": "0" * 64, "b": '"é"'}),))
    for value in ("1" * 64, "shorter"):
        file = filled(planned, {"a": value}).files[0]
        assert (len(file.header), file.tensors) == (
            len(planned.files[0].header),
            planned.files[0].tensors,
        )
        path = tmp_path / "m.safetensors"
        path.write_bytes(file.header + bytes(file.nbytes - len(file.header)))
        with safe_open(path, "pt") as opened:
            found = opened.metadata()
            assert (found["a"], found["b"], found["format"]) == (value, '"é"', "pt")
            assert opened.get_tensor("y").tolist() == [0, 0]
    for wrong in ({"a": "0" * 80}, {"c": "1"}):
        with pytest.raises(AssertionError):
            filled(planned, wrong)

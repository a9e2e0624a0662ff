"""The hashes of an output: those of their definitions, computed here from the files themselves."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from runner.checkpoint import OutputFile
from runner.config import Job
from runner.disk.files import look
from runner.disk.hashes import feed
from runner.disk.read_back import Built, read_back
from runner.engine.tensor_digests import TensorHasher
from runner.formats import FORMATS
from runner.formats.safetensors import output_file, read_header
from runner.inspection.hashes import computed_hashes
from runner.tensors import TensorSpec
from tests.build import data_of, metadata_of, write_models
from tests.runs import made, record, tree

BIG = {"x": (700, 1000), "y": (33,), "z.empty": (0, 3), "w": (11, 7)}  # a MiB and more, for AutoV1
SPECS = st.dictionaries(
    st.text("abé.", min_size=1, max_size=4),
    st.tuples(st.sampled_from(["F16", "F32", "U8", "I64"]), st.lists(st.integers(0, 4), max_size=3)),
    min_size=1,
    max_size=8,
)


def merged(folder: Path, name: str, recipe_tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made(folder, name, recipe_tree, **changes)
    output: dict[str, Any] = record(folder / name)["deterministic"]["output"]
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hashes")
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator).half() for key, shape in BIG.items()}
        save_file(tensors, path / f"{name}.safetensors")
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    """The output of a merge with the settings of tests."""
    return merged(folder, "plain", tree())


def check_file(path: Path, found: dict[str, Any]) -> None:
    """Compares what was recorded of a file with the file."""
    content, data = path.read_bytes(), data_of(path)
    sha256 = hashlib.sha256(content).hexdigest()
    assert found == {
        "name": found["name"],
        "bytes": len(content),
        "sha256": sha256,
        "content_sha256": hashlib.sha256(data).hexdigest(),
        "blake3": blake3(content).hexdigest(),
        "auto_v1": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
        "auto_v2": sha256[:10],
        "auto_v3": hashlib.sha256(data).hexdigest()[:12],
    }
    assert metadata_of(path)["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()


def check_tensors(beside: Path, output: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Compares the sidecar with tensors as the library reads them."""
    assert hashlib.sha256(beside.read_bytes()).hexdigest() == output["tensors"]["sha256"]
    said = json.loads(beside.read_bytes())
    assert said["tensor_root"] == output["tensor_root"] and said["model"] == output["name"]
    expected = []
    for name in sorted(tensors, key=str.encode):
        data = tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
        expected.append([name, "F16", list(tensors[name].shape), hashlib.sha256(data).hexdigest()])
    assert said["tensors"] == expected
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == said["tensor_root"]


def test_of_a_file_every_hash_is_that_of_its_definition(folder: Path, plain: dict[str, Any]) -> None:
    path = folder / "plain" / plain["name"]
    (found,) = plain["files"]
    check_file(path, found)
    assert plain["sha256"] == found["sha256"] and found["auto_v1"] != "e3b0c442"
    check_tensors(folder / "plain" / plain["tensors"]["name"], plain, load_file(path))


def test_the_data_is_what_the_library_writes_for_the_same_tensors(
    folder: Path, plain: dict[str, Any]
) -> None:
    path = folder / "plain" / plain["name"]
    written = save(load_file(path))
    assert written[8 + int.from_bytes(written[:8], "little") :] == data_of(path)


def test_of_a_folder_every_file_has_its_own_and_it_opens(folder: Path, cache: Path) -> None:
    trees = tree(models={"a": "demo:photo", "b": "demo:anime"}, output={"max_shard_size": "500KB"})
    output = merged(folder, "pipeline", trees, cache_dir=cache)
    root = folder / "pipeline" / output["name"]
    assert len(output["files"]) > 3
    tensors = {}
    for found in output["files"]:
        check_file(root / found["name"], found)
        component = found["name"].partition("/")[0]
        tensors |= {f"{component}/{key}": one for key, one in load_file(root / found["name"]).items()}
    check_tensors(root.with_name(output["tensors"]["name"]), output, tensors)
    assert not list(root.rglob("*.tensors.json"))


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 1, "verify": False},
        {"threads": 3, "tile_elements": 65536},
        {"threads": 4, "tile_elements": 262144, "memory": 9_000_000},
    ],
    ids=str,
)
def test_no_setting_changes_a_hash(changes: dict[str, Any], folder: Path, plain: dict[str, Any]) -> None:
    assert merged(folder, str(sorted(changes.items())), tree(), **changes) == plain


def test_an_inspection_finds_the_hashes_that_the_merge_recorded(folder: Path, plain: dict[str, Any]) -> None:
    path = folder / "plain" / plain["name"]
    checkpoint = FORMATS["checkpoint"].open(path, "mix", None)
    (found,) = computed_hashes(checkpoint, None, 1, lambda count: None).values()
    (said,) = plain["files"]
    assert (found.sha256, found.content, found.blake3, found.auto_v1, found.auto_v2, found.auto_v3) == tuple(
        said[name] for name in ("sha256", "content_sha256", "blake3", "auto_v1", "auto_v2", "auto_v3")
    )


def test_the_root_knows_neither_names_of_recipes_nor_the_number_of_files(folder: Path, cache: Path) -> None:
    models = {"a": "demo:photo", "b": "demo:anime"}
    one = merged(folder, "whole", tree(models=models), cache_dir=cache)
    shards = {"max_shard_size": "500KB", "name": "other"}
    two = merged(folder, "shards", tree(models=models, output=shards), cache_dir=cache)
    assert one["tensor_root"] == two["tensor_root"] and one["sha256"] != two["sha256"]
    three = merged(folder, "more", tree(models=models, alpha=0.31), cache_dir=cache)
    assert three["tensor_root"] != one["tensor_root"]


def test_what_a_header_states_of_an_input_is_recorded_as_claimed(
    folder: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    merged_again = tree(models={"a": str(folder / "plain" / plain["name"]), "b": "b.safetensors"})
    merged(folder, "second", merged_again)
    first, second = record(folder / "second")["deterministic"]["inputs"]
    assert first["claimed"] == {"content_sha256": plain["files"][0]["content_sha256"]}
    assert "claimed" not in second


def test_a_plan_has_no_hashes_and_leaves_no_sidecar(folder: Path) -> None:
    made(folder, "planned", tree(), job=Job("plan", "summary"))
    assert "output" not in record(folder / "planned")["deterministic"]
    assert [path.name for path in (folder / "planned").iterdir()] == ["run.json"]


def planned(specs: dict[str, tuple[str, list[int]]]) -> OutputFile:
    return output_file(
        "", {key: TensorSpec(dtype, tuple(shape)) for key, (dtype, shape) in specs.items()}, {}
    )


@given(specs=SPECS, cuts=st.lists(st.integers(0, 300), max_size=6), seed=st.binary(min_size=1, max_size=8))
def test_tensors_are_hashed_wherever_the_data_is_cut(
    specs: dict[str, tuple[str, list[int]]], cuts: list[int], seed: bytes
) -> None:
    file = planned(specs)
    length = file.nbytes - len(file.header)
    data = (seed * (length // len(seed) + 1))[:length]
    hasher = TensorHasher(file)
    ends = sorted({min(cut, length) for cut in cuts} | {0, length})
    for begin, end in pairwise(ends):
        hasher.update(memoryview(data)[begin:end])
    content = file.header + data
    assert hasher.digests == {
        key: hashlib.sha256(content[offset : offset + spec.nbytes]).hexdigest()
        for key, (offset, spec) in file.tensors.items()
    }


@given(specs=SPECS, digest=st.binary(min_size=32, max_size=32))
def test_a_stamped_header_reads_back_as_planned(
    specs: dict[str, tuple[str, list[int]]], digest: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = planned(specs)
    path = tmp_path_factory.mktemp("stamped") / "x"
    path.write_bytes(file.stamped(digest.hex()) + bytes(file.nbytes - len(file.header)))
    tensors, metadata = read_header(look(path, "x"))
    assert tensors == file.tensors
    assert metadata == {"format": "pt", "modelspec.hash_sha256": f"0x{digest.hex()}"}


@given(blocks=st.lists(st.binary(max_size=5000), max_size=6))
def test_several_hashers_take_the_same_blocks_in_order(blocks: list[bytes]) -> None:
    hashers = hashlib.sha256(), blake3(), hashlib.md5()
    feed(map(memoryview, blocks), hashers)
    whole = b"".join(blocks)
    expected = [one(whole).hexdigest() for one in (hashlib.sha256, blake3, hashlib.md5)]
    assert [hasher.hexdigest() for hasher in hashers] == expected


def test_an_error_while_blocks_are_made_ends_the_hashing(tmp_path: Path) -> None:
    def blocks() -> Any:
        yield memoryview(b"one")
        raise ValueError("two")

    with pytest.raises(ValueError, match="two"):
        feed(blocks(), [hashlib.sha256()])


def test_many_files_are_read_back_each_with_its_own_hashes(tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2, c=3)
    built = []
    for name in "abc":
        path = tmp_path / f"{name}.safetensors"
        header = path.read_bytes()[: -len(data_of(path))]
        built.append(Built(path, name, header + data_of(path), path.stat().st_size, "0" * 64))
    found = read_back(built, [], threads=4)
    assert [one.sha256 for one in found] == [
        hashlib.sha256(file.path.read_bytes()).hexdigest() for file in built
    ]

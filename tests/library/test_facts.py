"""Files that are alike: read as each is by itself, also where one of them is hostile."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from runner.library import facts
from runner.library.facts import BROKEN, Facts, HeaderReader
from runner.tensors import TensorSpec
from tests.attacks import mutations
from tests.library.trees import found, write

TABLE = b'"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
LIKE = b'{"__metadata__":{"format":"pt"},' + TABLE + b"}"


def put(path: Path, header: bytes, nbytes: int = 4) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(nbytes))
    return path


def read_after(like: bytes, header: bytes, folder: Path, nbytes: int = 4) -> tuple[Facts, Facts]:
    """What a file is to a reader that has read one like it, and what it is to a new one."""
    put(folder / "like.safetensors", like)
    put(folder / "x.safetensors", header, nbytes)
    first, one = sorted(found(folder)[0], key=lambda one: one.name)
    reader = HeaderReader()
    assert reader.read(first).kind != BROKEN
    return reader.read(one), HeaderReader().read(one)


def test_files_that_are_alike_but_for_their_metadata_are_parsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = {"text_model.embeddings.token_embedding.weight": TensorSpec("F16", (8, 8))}
    for number in range(9):  # the blanks at the end are up to seven
        write(tmp_path / f"a{number}.safetensors", clip, metadata={"n": 'é"\\{' * number})
        write(tmp_path / f"b{number}.safetensors", metadata={"n": "m" * number})
    parsed, parse = [], facts.parse_header
    monkeypatch.setattr(facts, "parse_header", lambda *given: parsed.append(given) or parse(*given))
    reader = HeaderReader()
    shared = [reader.read(one) for one in found(tmp_path)[0]]
    assert len(parsed) == 2 and {one.kind for one in shared} == {"text_encoder", "other"}
    assert shared == [HeaderReader().read(one) for one in found(tmp_path)[0]]
    assert len({one.nbytes for one in shared}) > 4


def test_what_cannot_be_merged_names_the_file_itself(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.safetensors", {"a.qweight": TensorSpec("I32", (4, 4))})
    reader = HeaderReader()
    problems = [reader.read(one).problem or "" for one in found(tmp_path)[0]]
    assert [problem.partition(":")[0] for problem in problems] == ["one.safetensors", "two.safetensors"]


METADATA = {
    "a twice named entry": b'{"a":"1","a":"2"}',
    "a twice named entry, spelled in two ways": b'{"a":"1","\\u0061":"2"}',
    "a number": b'{"a":1}',
    "a list": b'["a"]',
    "a mapping": b'{"a":{"b":"c"}}',
    "half a character": b'{"a":"\\ud800"}',
    "no UTF-8": b'{"a":"\xff"}',
    "a control character": b'{"a":"\n"}',
    "no escape": b'{"a":"\\x"}',
    "a text that ends in an escape": b'{"a":"\\u12"}',
    "a comma too many": b'{"a":"b",}',
    "no comma": b'{"a":"b""c":"d"}',
    "another bracket": b'{"a":"b"}}',
    "a tensor": b'{"a":"b"},' + TABLE.replace(b'"a"', b'"b"'),
    "the metadata again": b'{"a":"b"},"__metadata__":{"a":"b"}',
    "brackets": b"[" * 100_000,
}


@pytest.mark.parametrize("name", METADATA)
def test_hostile_metadata_before_a_known_table_are_refused_as_ever(name: str, tmp_path: Path) -> None:
    header = b'{"__metadata__":' + METADATA[name] + b"," + TABLE + b"}"
    after, alone = read_after(LIKE, header, tmp_path)
    assert after == alone and alone.kind == BROKEN


@pytest.mark.parametrize(
    ("header", "nbytes"),
    [
        (LIKE, 3),
        (LIKE, 5),
        (LIKE + b" ", 5),
        (LIKE + b"}", 4),
        (b"{" + TABLE, 4),
        (b'{"__metadata__":{"format":"pt"},{' + TABLE + b"}", 4),
        (b'{"__metadata__":{"format":"pt"}' + TABLE + b"}", 4),
        (b"x" + LIKE[1:], 4),
    ],
)
def test_a_known_table_in_a_file_that_is_malformed_helps_it_nowhere(
    header: bytes, nbytes: int, tmp_path: Path
) -> None:
    after, alone = read_after(LIKE, header, tmp_path, nbytes)
    assert after == alone and alone.kind == BROKEN


def test_metadata_behind_the_tensors_are_not_taken_for_none(tmp_path: Path) -> None:
    behind = b"{" + TABLE + b',"__metadata__":{"a":"b"}}'
    after, alone = read_after(behind, b'{"__metadata__":{"a":"b"},' + behind[1:], tmp_path)
    assert after == alone and alone.kind == BROKEN


def test_damaged_headers_are_to_a_reader_of_thousands_what_they_are_by_themselves(tmp_path: Path) -> None:
    rng, reader, refused = Random(7), HeaderReader(), 0
    tensor = json.loads(b"{" + TABLE + b"}")
    (one,) = found(put(tmp_path / "x.safetensors", LIKE).parent)[0]
    for _ in range(500):
        changed: Any = {"__metadata__": {"format": "pt", "tags": '{"a": [1]}'}}
        for _ in range(rng.randrange(3)):
            changed = mutations.tree(rng, changed)
        text = mutations.dump(rng, {**changed, **tensor} if isinstance(changed, dict) else changed)
        compact = text if rng.random() < 0.5 else text.replace(": ", ":").replace(", ", ",")
        put(one.path, mutations.encoded(mutations.text(rng, compact) if rng.random() < 0.3 else compact))
        expected = HeaderReader().read(one)
        refused += expected.kind == BROKEN
        assert reader.read(one) == expected, one.path.read_bytes()
    assert 50 < refused < 450

"""Digests of inputs: right, and remembered only while the file cannot have changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from runner.digests import InputDigests, folder_digest
from runner.errors import InputError
from runner.files import InputFile, look

OLD = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_bytes(os.urandom(5_000_000))
    os.utime(path, OLD)
    return path


def digest(path: Path, memory: Path | None) -> tuple[str, bool]:
    """The digest of a file, and whether it was remembered."""
    found = look(path, "model")
    with InputDigests([found, found], memory, 2) as digests:
        known = bool(digests.known)
        result: Mapping[InputFile, str] = digests.wait()
        return result[found], known


def test_a_digest_is_sha256_and_computed_once(file: Path, tmp_path: Path) -> None:
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    memory = tmp_path / "cache" / "digests.json"
    assert digest(file, memory) == (expected, False)
    assert digest(file, memory) == (expected, True)
    assert digest(file, None) == (expected, False)


def test_a_changed_file_is_hashed_again(file: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    first, _ = digest(file, memory)
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    os.utime(file, OLD)  # even with its old time: its ctime is another
    second, remembered = digest(file, memory)
    assert not remembered and second != first


def test_a_file_written_a_moment_ago_is_not_trusted_later(file: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    os.utime(file)
    digest(file, memory)
    assert digest(file, memory)[1] is False


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"x": 3}', b"\xff\xff"])
def test_a_damaged_memory_is_ignored_and_replaced(content: bytes, file: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    memory.write_bytes(content)
    assert digest(file, memory)[1] is False
    assert digest(file, memory)[1] is True
    assert all(len(value) == 64 for value in json.loads(memory.read_text()).values())


def test_a_memory_that_cannot_be_written_fails_nothing(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    assert digest(file, tmp_path / "cache" / "digests.json")[1] is False


def test_a_file_that_changes_while_it_is_hashed_is_refused(file: Path) -> None:
    found = look(file, "model")
    os.utime(file, (5, 5))
    with InputDigests([found], None, 1) as digests, pytest.raises(InputError, match="changed"):
        digests.wait()


def test_leaving_early_stops_hashing(file: Path) -> None:
    with InputDigests([look(file, "model")], None, 1):
        pass


def test_the_digest_of_a_folder_is_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    files = [(hashlib.sha256(name.encode()).hexdigest(), name) for name in ("b", "a")]
    printed = subprocess.run(["sha256sum", "a", "b"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert folder_digest(files) == hashlib.sha256(printed).hexdigest()

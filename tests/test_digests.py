"""Digests of inputs: right, and remembered only while the file cannot have changed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from runner.demo.models import demo_model
from runner.digests import InputDigests, folder_digest, model_digest
from runner.disk import cachefile
from runner.disk.files import InputFile, look
from runner.errors import InputError
from runner.formats import FORMATS
from runner.run import run
from tests.build import flip, write_models
from tests.runs import recipe, settings

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
    flip(file, 0)
    os.utime(file, OLD)  # even with its old time: its ctime is another
    second, remembered = digest(file, memory)
    assert not remembered and second != first


def test_a_file_written_a_moment_ago_is_not_trusted_later(file: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    os.utime(file)
    digest(file, memory)
    assert digest(file, memory)[1] is False


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"x": 3}', b'{"x": ' + b"1" * 64 + b"}", b"\xff\xff"]
)
def test_a_damaged_memory_is_ignored_and_replaced(content: bytes, file: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    memory.write_bytes(content)
    assert digest(file, memory)[1] is False
    assert digest(file, memory)[1] is True
    assert all(len(value) == 64 for value in json.loads(memory.read_text()).values())


@pytest.mark.parametrize("value", ["z" * 64, "A" * 64])
def test_a_remembered_text_that_is_no_digest_is_ignored(value: str, file: Path, tmp_path: Path) -> None:
    expected, memory = digest(file, None)[0], tmp_path / "digests.json"
    digest(file, memory)
    memory.write_text(memory.read_text().replace(expected, value))
    assert digest(file, memory) == (expected, False)


def test_a_memory_that_is_nested_too_deep_is_ignored(file: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    memory.write_bytes(b"[" * 100_000)
    assert digest(file, memory)[1] is False


def remember(name: str, memory: Path) -> None:
    """What runs do, one after the other, while others do the same."""
    for number in range(60):
        cachefile.add(memory, {f"{name}:{number}": f"{number:064x}"})
        assert len(json.loads(memory.read_bytes())) >= 1


def test_runs_that_remember_at_once_tear_nothing(tmp_path: Path) -> None:
    memory = tmp_path / "cache" / "digests.json"
    cachefile.add(memory, {str(number): f"{number:064x}" for number in range(500)})
    fork = multiprocessing.get_context("fork")
    savers = [fork.Process(target=remember, args=(name, memory)) for name in "abc"]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join(60)
    assert [saver.exitcode for saver in savers] == [0, 0, 0]
    assert [entry.name for entry in memory.parent.iterdir()] == ["digests.json"]
    assert len(json.loads(memory.read_bytes())) == 500 + 3 * 60


def test_every_file_is_told_of_and_what_is_wrong_with_one_spoils_no_other(file: Path, tmp_path: Path) -> None:
    others = [tmp_path / name for name in "bc"]
    for other in others:
        other.write_bytes(b"x" * 1000)
        os.utime(other, OLD)
    found = [look(path, path.name) for path in (file, *others)]
    os.utime(others[0], (5, 5))
    memory, done = tmp_path / "digests.json", []
    with InputDigests(found, memory, 2, advance=done.append) as digests:
        outcomes = {one.path.name: outcome for one, outcome in digests.finished()}
    assert isinstance(outcomes["b"], InputError) and "changed" in str(outcomes["b"])
    assert outcomes["c"] == hashlib.sha256(b"x" * 1000).hexdigest()
    assert sum(done) == 5_001_000
    with InputDigests(found, memory, 1) as again:
        assert set(again.known) == {found[0], found[2]}
    with InputDigests(found, memory, 1, trusted=False) as again:
        assert not again.known


def test_what_was_hashed_before_an_interruption_is_remembered(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x")
    os.utime(other, OLD)
    found, memory = [look(file, "model"), look(other, "other")], tmp_path / "digests.json"
    with pytest.raises(KeyboardInterrupt), InputDigests(found, memory, 1) as digests:
        for _ in digests.finished():
            raise KeyboardInterrupt
    with InputDigests(found, memory, 1) as again:
        assert set(again.known) == {found[0]}


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


def test_the_digest_of_a_model_is_that_of_its_weight_files(cache: Path) -> None:
    folder = demo_model("photo", cache)
    checkpoint = FORMATS["diffusers"].open(folder, "photo", None)
    with InputDigests(checkpoint.files, None, 2) as digests:
        found = model_digest(checkpoint, digests.wait())
    command = "find . -name '*.safetensors' -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert printed.stdout.split()[0] == found


def test_the_digest_of_a_folder_is_that_of_what_sha256sum_prints(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    files = [(hashlib.sha256(name.encode()).hexdigest(), name) for name in ("b", "a")]
    printed = subprocess.run(["sha256sum", "a", "b"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert folder_digest(files) == hashlib.sha256(printed).hexdigest()


def test_fresh_asks_no_memory_and_leaves_it_alone(tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2)
    for path in tmp_path.glob("*.safetensors"):
        os.utime(path, OLD)
    memory = tmp_path / "cache" / "digests.json"
    tree = {"method": "weighted_sum", "models": {"a": "a.safetensors", "b": "b.safetensors"}}

    def sources(digests: str) -> list[str]:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        run(recipe(tree), settings(tmp_path, digests=digests), folder)
        content = json.loads((folder / "run.json").read_text())
        return [entry["sha256"] for entry in content["deterministic"]["inputs"]]

    right = [hashlib.sha256((tmp_path / f"{name}.safetensors").read_bytes()).hexdigest() for name in "ab"]
    assert sources("fresh") == right and not memory.exists()
    assert sources("remember") == right and len(json.loads(memory.read_text())) == 2
    memory.write_text(memory.read_text().replace(right[0], "0" * 64))
    assert sources("remember") == ["0" * 64, right[1]]  # the memory was asked
    before = memory.read_text()
    assert sources("fresh") == right and memory.read_text() == before

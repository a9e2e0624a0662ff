"""The output invariant: absent, unchanged, or complete."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from runner.checkpoint import Layout, OutputFile
from runner.disk.read_back import Written, checksum
from runner.errors import BusyError, MismatchError, OutputError, UsageError
from runner.formats.safetensors import filled, output_file
from runner.tensors import TensorSpec
from runner.write import Staging, check_place, write_file
from tests.build import flip

SPEC = TensorSpec("F32", (4,))
DATA = bytes(range(16))
CONTENT = hashlib.sha256(DATA).hexdigest()


def single() -> Layout:
    return Layout("x.safetensors", folder=False, files=(output_file("", {"k": SPEC}, {}),))


def folder() -> Layout:
    file = output_file("unet/model.safetensors", {"k": SPEC}, {})
    return Layout(
        "x", folder=True, files=(file,), texts={"model_index.json": b"{}", "vae/config.json": b"[]"}
    )


LAYOUTS = {"file": single, "folder": folder}


def data_offset(file: OutputFile) -> int:
    return file.tensors["k"][0]


def fill(staging: Staging) -> list[Written]:
    written = [staging.write(0, memoryview(bytearray(DATA)), data_offset(staging.layout.files[0]))]
    staging.stamp([CONTENT])
    return written


def whole(layout: Layout) -> bytes:
    """The only weight file of a layout, as it must be."""
    return layout.files[0].stamped(CONTENT) + DATA


def described(text: str) -> Layout:
    """The layouts with an entry in the header that is known at the end alone."""
    return Layout("x.safetensors", folder=False, files=(output_file("", {"k": SPEC}, {"said": text}),))


def test_what_is_known_at_the_end_alone_is_in_the_output_and_its_digest(tmp_path: Path) -> None:
    planned = described("0" * 64)
    final = filled(planned, {"said": "f" * 64})
    with Staging(planned, tmp_path / "x.safetensors") as staging:
        staging.fill(final)
        written = fill(staging)
        (hashes,) = staging.read_back(written, threads=2)
        staging.publish()
    content = (tmp_path / "x.safetensors").read_bytes()
    assert content == whole(described("f" * 64))
    assert hashes.sha256 == hashlib.sha256(content).hexdigest()


def test_texts_that_are_known_at_the_end_alone_are_in_the_folder(tmp_path: Path) -> None:
    planned = folder()
    final = replace(planned, texts={**planned.texts, "README.md": b"digests"})
    with Staging(planned, tmp_path / "x") as staging:
        staging.fill(final)
        staging.read_back(fill(staging), threads=1)
        staging.publish()
    assert (tmp_path / "x" / "README.md").read_bytes() == b"digests"
    assert (tmp_path / "x" / "model_index.json").read_bytes() == b"{}"


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]()


def test_a_published_output_is_complete_and_nothing_else_is_left(layout: Layout, tmp_path: Path) -> None:
    with Staging(layout, tmp_path / layout.name) as staging:
        written = fill(staging)
        staging.sync()
        staging.read_back(written, threads=2)
        assert entries(tmp_path) == [staging.partial.name]
        staging.publish()
    assert entries(tmp_path) == [layout.name]
    target = tmp_path / layout.name
    file = target / "unet" / "model.safetensors" if layout.folder else target
    assert file.read_bytes() == whole(layout)
    if layout.folder:
        assert (target / "vae" / "config.json").read_bytes() == b"[]"


def test_a_stamped_header_differs_in_the_64_digits_alone(layout: Layout) -> None:
    file = layout.files[0]
    stamped = file.stamped(CONTENT)
    assert len(stamped) == len(file.header)
    assert file.header.count(b"0" * 64) == 1 and stamped == file.header.replace(b"0" * 64, CONTENT.encode())


@pytest.mark.parametrize("checked", [True, False])
def test_what_is_read_back_is_hashed_whether_or_not_it_is_compared(
    checked: bool, layout: Layout, tmp_path: Path
) -> None:
    with Staging(layout, tmp_path / layout.name, checked=checked) as staging:
        (hashes,) = staging.read_back(fill(staging), threads=1)
    assert hashes.sha256 == hashlib.sha256(whole(layout)).hexdigest()
    assert hashes.blake3 == blake3(whole(layout)).hexdigest()
    assert (hashes.content, hashes.auto_v1) == (CONTENT, "e3b0c442")


def test_what_was_never_written_is_found(layout: Layout, tmp_path: Path) -> None:
    with Staging(layout, tmp_path / layout.name, checked=False) as staging:
        fill(staging)
        with pytest.raises(MismatchError, match="not what was written"):
            staging.read_back([], threads=1)


def test_the_sidecar_stands_beside_the_model(layout: Layout, tmp_path: Path) -> None:
    with Staging(layout, tmp_path / layout.name) as staging:
        fill(staging)
        staging.publish(b"digests")
    assert entries(tmp_path) == sorted([layout.name, f"{layout.name}.tensors.json"])
    assert (tmp_path / f"{layout.name}.tensors.json").read_bytes() == b"digests"


def test_a_model_never_has_the_sidecar_of_the_one_it_replaced(tmp_path: Path) -> None:
    layout = single()
    target, beside = tmp_path / layout.name, tmp_path / f"{layout.name}.tensors.json"
    target.write_bytes(b"old")
    beside.write_bytes(b"of the old")
    with Staging(layout, target) as staging:
        fill(staging)
        staging.publish()
    assert entries(tmp_path) == [layout.name] and target.read_bytes() == whole(layout)


def test_a_rename_that_fails_leaves_the_old_model_its_sidecar(tmp_path: Path) -> None:
    layout = single()
    target, beside = tmp_path / layout.name, tmp_path / f"{layout.name}.tensors.json"
    target.write_bytes(b"old")
    beside.write_bytes(b"of the old")
    real = Path.replace

    def fail(path: Path, to: Path) -> Path:
        if to == target:
            raise OSError(5, "Input/output error")
        return real(path, to)

    with mock.patch.object(Path, "replace", fail), pytest.raises(OutputError), Staging(layout, target) as it:
        fill(it)
        it.publish(b"new")
    assert target.read_bytes() == b"old" and beside.read_bytes() == b"of the old"
    assert entries(tmp_path) == [layout.name, beside.name]


def test_a_sidecar_that_cannot_be_written_is_said_and_the_model_stays(tmp_path: Path) -> None:
    layout = single()
    target = tmp_path / layout.name
    real = os.open

    def fail(path: Path, flags: int, *mode: int) -> int:
        if "tensors.json" in path.name and flags & os.O_CREAT:
            raise OSError(28, "No space left on device")
        return real(path, flags, *mode)

    with (
        mock.patch.object(os, "open", fail),
        pytest.raises(OutputError, match="in place and verified, but the digests of its tensors are not"),
        Staging(layout, target) as staging,
    ):
        fill(staging)
        staging.publish(b"digests")
    assert entries(tmp_path) == [layout.name] and target.read_bytes() == whole(layout)


def test_permissions_follow_the_umask(layout: Layout, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with Staging(layout, tmp_path / layout.name) as staging:
            fill(staging)
            staging.publish()
    finally:
        os.umask(old)
    target = tmp_path / layout.name
    assert stat.S_IMODE(target.stat().st_mode) == (0o750 if layout.folder else 0o640)


def test_an_error_leaves_nothing(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Staging(layout, tmp_path / layout.name):
        raise KeyboardInterrupt
    assert entries(tmp_path) == []


def test_an_existing_file_is_unchanged_until_it_is_replaced(tmp_path: Path) -> None:
    layout = single()
    target = tmp_path / layout.name
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), Staging(layout, target) as staging:
        fill(staging)
        assert target.read_bytes() == b"old"
        raise RuntimeError
    assert target.read_bytes() == b"old"
    with Staging(layout, target) as staging:
        fill(staging)
        staging.publish()
    assert target.read_bytes() == whole(layout)


def test_two_runs_on_one_output_the_second_is_told(layout: Layout, tmp_path: Path) -> None:
    target = tmp_path / layout.name
    with Staging(layout, target) as first:
        with pytest.raises(BusyError), Staging(layout, target):
            pass
        fill(first)
        first.publish()
    assert entries(tmp_path) == [layout.name]


def test_what_a_killed_run_left_is_removed(layout: Layout, tmp_path: Path) -> None:
    target = tmp_path / layout.name
    pid = os.fork()
    if pid == 0:  # a run that dies without cleaning up
        Staging(layout, target).__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(entries(tmp_path)) == 1
    with Staging(layout, target) as staging:
        assert staging.stale
        fill(staging)
        staging.publish()
    assert entries(tmp_path) == [layout.name]


def test_a_partial_that_links_to_something_else_is_removed_and_what_it_links_to_is_not_touched(
    tmp_path: Path,
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    layout = single()
    with Staging(layout, tmp_path / layout.name) as staging:
        name = staging.partial.name
    (tmp_path / name).hardlink_to(tmp_path / "precious")
    with Staging(layout, tmp_path / layout.name) as staging:
        fill(staging)
        staging.publish()
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert entries(tmp_path) == ["precious", layout.name]


def test_a_lost_write_is_found_when_reading_back(layout: Layout, tmp_path: Path) -> None:
    with (
        pytest.raises(MismatchError, match="not what was written"),
        Staging(layout, tmp_path / layout.name) as staging,
    ):
        file = layout.files[0]
        lost = Written(0, data_offset(file), len(DATA), checksum(memoryview(bytearray(DATA))))
        staging.stamp([CONTENT])
        staging.read_back([lost], threads=1)
    assert entries(tmp_path) == []


def test_a_flipped_bit_in_the_header_is_found(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(MismatchError), Staging(layout, tmp_path / layout.name) as staging:
        written = fill(staging)
        flip(staging.path(layout.files[0]), 20)
        staging.read_back(written, threads=1)
    assert entries(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path) -> None:
    layout = single()
    real = os.pwrite
    with (
        mock.patch.object(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at)),
        Staging(layout, tmp_path / "x") as staging,
    ):
        written = fill(staging)
        staging.read_back(written, threads=1)


def test_no_room_is_found_before_any_work(tmp_path: Path) -> None:
    huge = Layout("x", folder=False, files=(OutputFile("", b"header", {}, 1 << 60, 0),))
    with pytest.raises(OutputError), Staging(huge, tmp_path / "x"):
        pass
    assert entries(tmp_path) == []


def test_a_device_that_takes_nothing_is_an_error_and_not_asked_for_ever(tmp_path: Path) -> None:
    with (
        mock.patch.object(os, "pwrite", lambda fd, data, at: 0),
        pytest.raises(OutputError, match="takes nothing"),
        Staging(single(), tmp_path / "x"),
    ):
        pass
    assert entries(tmp_path) == []


def test_places_that_are_refused(tmp_path: Path) -> None:
    layout = single()
    target = tmp_path / layout.name
    with pytest.raises(OutputError, match="no such folder"):
        check_place(layout, tmp_path / "missing", set())
    assert check_place(layout, tmp_path, set()) == target
    target.symlink_to(tmp_path / "y")
    with pytest.raises(UsageError, match="symbolic link"):
        check_place(layout, tmp_path, set())
    target.unlink()
    target.write_bytes(b"")
    assert check_place(layout, tmp_path, set()) == target
    status = target.stat()
    with pytest.raises(UsageError, match="one of the inputs"):
        check_place(layout, tmp_path, {(status.st_dev, status.st_ino)})
    (tmp_path / f"{layout.name}.tensors.json").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_place(layout, tmp_path, set())
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="never replaced"):
        check_place(folder(), tmp_path, set())
    with pytest.raises(OutputError, match="name too long"):
        check_place(Layout("z" * 300, folder=False, files=()), tmp_path, set())
    os.mkfifo(tmp_path / "y")
    with pytest.raises(UsageError, match="no regular file"):
        check_place(Layout("y", folder=False, files=()), tmp_path, set())


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_file(path, b"one")
    with (
        mock.patch.object(Path, "replace", side_effect=OSError(28, "No space left")),
        pytest.raises(OutputError),
    ):
        write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert entries(tmp_path) == ["run.json"]


@given(data=st.binary(min_size=1, max_size=200), at=st.integers(0, 199), bit=st.integers(0, 7))
def test_a_checksum_changes_with_any_bit(data: bytes, at: int, bit: int) -> None:
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << bit
    assert checksum(memoryview(changed)) != checksum(memoryview(bytearray(data)))


def test_a_checksum_changes_with_words_that_change_places() -> None:
    words = [number.to_bytes(8, "little") for number in range(1, 9)]
    swapped = [words[1], words[0], *words[2:]]
    assert checksum(memoryview(bytearray(b"".join(words)))) != checksum(
        memoryview(bytearray(b"".join(swapped)))
    )


def test_what_killed_runs_left_of_other_outputs_is_removed_and_what_runs_build_is_not(
    layout: Layout, tmp_path: Path
) -> None:
    pid = os.fork()
    if pid == 0:  # a run that dies
        Staging(layout, tmp_path / "dead").__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    with Staging(single(), tmp_path / "alive") as alive:
        assert alive.stale
        with Staging(layout, tmp_path / layout.name) as staging:
            assert not staging.stale
            fill(staging)
            staging.publish()
        fill(alive)
        alive.publish()
    assert entries(tmp_path) == sorted(["alive", layout.name])

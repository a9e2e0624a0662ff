"""The output invariant: absent, unchanged, or complete."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.checkpoint import Layout, OutputFile
from runner.errors import BusyError, MismatchError, OutputError, UsageError
from runner.formats.safetensors import output_file
from runner.tensors import TensorSpec
from runner.write import Staging, Written, check_place, checksum, write_file

SPEC = TensorSpec("F32", (4,))
DATA = bytes(range(16))


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
    return [staging.write(0, memoryview(bytearray(DATA)), data_offset(staging.layout.files[0]))]


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]()


def test_a_published_output_is_complete_and_nothing_else_is_left(layout: Layout, tmp_path: Path) -> None:
    with Staging(layout, tmp_path / layout.name) as staging:
        written = fill(staging)
        staging.sync()
        staging.verify(written, threads=2)
        assert entries(tmp_path) == [staging.partial.name]
        staging.publish()
    assert entries(tmp_path) == [layout.name]
    target = tmp_path / layout.name
    file = target / "unet" / "model.safetensors" if layout.folder else target
    assert file.read_bytes() == layout.files[0].header + DATA
    if layout.folder:
        assert (target / "vae" / "config.json").read_bytes() == b"[]"


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
    assert target.read_bytes() == layout.files[0].header + DATA


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
        staging.verify([lost], threads=1)
    assert entries(tmp_path) == []


def test_a_flipped_bit_in_the_header_is_found(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(MismatchError), Staging(layout, tmp_path / layout.name) as staging:
        written = fill(staging)
        path = staging.path(layout.files[0])
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
        staging.verify(written, threads=1)
    assert entries(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path) -> None:
    layout = single()
    real = os.pwrite
    with (
        mock.patch.object(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at)),
        Staging(layout, tmp_path / "x") as staging,
    ):
        written = fill(staging)
        staging.verify(written, threads=1)


def test_no_room_is_found_before_any_work(tmp_path: Path) -> None:
    huge = Layout("x", folder=False, files=(OutputFile("", b"header", {}, 1 << 60),))
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

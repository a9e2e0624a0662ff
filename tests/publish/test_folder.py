"""Models in folders: whole or not at all, and never over another one silently."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from runner.errors import PublishError
from runner.publish.folder import put
from runner.publish.target import CHECKPOINT, COPIED, DRY_RUN, LINKED, PIPELINE, THERE, Model, Target

CONTENT = bytes(range(256)) * 5000  # more than one piece
LINK, COPY = Target("folder"), Target("folder", link=False)
OVERWRITE = Target("folder", link=False, overwrite=True)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A single file."""
    path = tmp_path / "own" / "mix.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return Model(path, CHECKPOINT, {"": sha256(CONTENT)})


@pytest.fixture
def pipeline(tmp_path: Path) -> Model:
    """A folder with files in folders."""
    files = {"model_index.json": b"{}", "unet/config.json": b"[]", "unet/x.safetensors": CONTENT}
    for name, content in files.items():
        path = tmp_path / "own" / "mix" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    names = {name: sha256(content) for name, content in files.items()}
    return Model(tmp_path / "own" / "mix", PIPELINE, names)


@pytest.fixture
def ui(tmp_path: Path) -> Path:
    """The folder that models go to."""
    (tmp_path / "ui").mkdir()
    return tmp_path / "ui"


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_link_is_the_same_file_and_a_copy_another_with_the_same_bytes(model: Model, ui: Path) -> None:
    assert put(model, ui / "a.safetensors", LINK) == LINKED
    assert put(model, ui / "b.safetensors", COPY) == COPIED
    assert (ui / "a.safetensors").samefile(model.path) and not (ui / "b.safetensors").samefile(model.path)
    assert (ui / "b.safetensors").read_bytes() == CONTENT
    assert entries(ui) == ["a.safetensors", "b.safetensors"]


def test_a_copy_can_be_read_by_whom_the_umask_lets(model: Model, ui: Path) -> None:
    before = os.umask(0o022)
    try:
        put(model, ui / "x.safetensors", COPY)
    finally:
        os.umask(before)
    assert (ui / "x.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("target", [LINK, COPY, OVERWRITE])
def test_twice_is_there_already(target: Target, model: Model, pipeline: Model, ui: Path) -> None:
    for one in (model, pipeline):
        put(one, ui / one.path.name, target)
        times = {path: path.stat().st_mtime_ns for path in ui.rglob("*")}
        assert put(one, ui / one.path.name, target) == THERE
        assert times == {path: path.stat().st_mtime_ns for path in ui.rglob("*")}


def test_the_same_content_under_a_link_of_the_users_is_there_already(model: Model, ui: Path) -> None:
    (ui / "x.safetensors").symlink_to(model.path)
    assert put(model, ui / "x.safetensors", OVERWRITE) == THERE and (ui / "x.safetensors").is_symlink()


def test_a_folder_is_put_whole_linked_or_copied(pipeline: Model, ui: Path) -> None:
    assert put(pipeline, ui / "linked", LINK) == LINKED and put(pipeline, ui / "copied", COPY) == COPIED
    for name in pipeline.files:
        assert (ui / "linked" / name).samefile(pipeline.file(name))
        assert (ui / "copied" / name).read_bytes() == pipeline.file(name).read_bytes()
        assert not (ui / "copied" / name).samefile(pipeline.file(name))
    assert len(entries(ui)) == 2 * len(pipeline.files)


@pytest.mark.parametrize("other", [b"x" * len(CONTENT), b"short"])
def test_another_model_is_replaced_only_on_request(other: bytes, model: Model, ui: Path) -> None:
    place = ui / "x.safetensors"
    place.write_bytes(other)
    with pytest.raises(PublishError, match="another model is there") as caught:
        put(model, place, COPY)
    assert caught.value.exit_code == 7 and "publish.overwrite=true" in str(caught.value.hint)
    assert place.read_bytes() == other
    for target in (OVERWRITE, Target("folder", overwrite=True)):
        place.write_bytes(other)
        assert put(model, place, target) in (COPIED, LINKED)
        assert place.read_bytes() == CONTENT and entries(ui) == ["x.safetensors"]
        place.unlink()


def test_folders_and_links_are_never_replaced(
    model: Model, pipeline: Model, ui: Path, tmp_path: Path
) -> None:
    (ui / "mix").mkdir()
    (ui / "mix" / "mine.txt").write_text("mine")
    (ui / "other").write_text("mine too")
    (ui / "link.safetensors").symlink_to(ui / "other")
    (ui / "dangling.safetensors").symlink_to(ui / "nothing")
    for place in ("link.safetensors", "dangling.safetensors", "mix"):
        with pytest.raises(PublishError, match=r"symbolic link|folders are never replaced"):
            put(model, ui / place, OVERWRITE)
    for place in ("mix", "other"):
        with pytest.raises(PublishError, match="folders are never replaced"):
            put(pipeline, ui / place, OVERWRITE)
    assert (ui / "mix" / "mine.txt").read_text() == "mine" and (ui / "other").read_text() == "mine too"


@pytest.mark.parametrize("target", [COPY, OVERWRITE])
def test_what_is_neither_file_nor_folder_is_told_and_never_replaced(
    target: Target, model: Model, pipeline: Model, ui: Path
) -> None:
    place = ui / "mix"
    os.mkfifo(place)
    for one in (model, pipeline):
        with pytest.raises(PublishError) as caught:
            put(one, place, target)
        assert caught.value.message == f'"{place}": a pipe is there'
        assert caught.value.hint == "remove it, or give output.name another name"
    assert place.is_fifo()


def test_a_folder_that_lacks_a_file_or_has_another_is_another_model(pipeline: Model, ui: Path) -> None:
    put(pipeline, ui / "mix", COPY)
    (ui / "mix" / "unet" / "config.json").write_bytes(b"{}")
    with pytest.raises(PublishError, match="folders are never replaced"):
        put(pipeline, ui / "mix", COPY)


def test_a_dry_run_changes_nothing_and_says_what_would_be_refused(model: Model, ui: Path) -> None:
    dry = Target("folder", dry_run=True)
    assert put(model, ui / "x.safetensors", dry) == DRY_RUN and entries(ui) == []
    (ui / "x.safetensors").write_bytes(b"other")
    with pytest.raises(PublishError, match="another model is there"):
        put(model, ui / "x.safetensors", dry)


def test_where_no_link_can_be_made_a_copy_is(
    model: Model, pipeline: Model, ui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two file systems, or on one that has no links at all."""

    def refuse(source: object, link: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    assert put(model, ui / "x.safetensors", LINK) == COPIED
    assert put(pipeline, ui / "mix", LINK) == COPIED
    assert (ui / "x.safetensors").read_bytes() == CONTENT
    assert entries(ui) == sorted(["x.safetensors", *(f"mix/{name}" for name in pipeline.files)])


def test_a_device_that_fails_leaves_nothing_and_the_model_alone(
    model: Model, pipeline: Model, ui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for one in (model, pipeline):
        with pytest.raises(PublishError, match="No space left on device"):
            put(one, ui / one.path.name, COPY)
    assert list(ui.iterdir()) == [] and model.path.read_bytes() == CONTENT


def test_a_model_that_changed_is_not_copied(model: Model, ui: Path) -> None:
    model.path.write_bytes(CONTENT + b"!")
    with pytest.raises(PublishError, match="changed since it was merged"):
        put(model, ui / "x.safetensors", COPY)
    assert list(ui.iterdir()) == []


def test_what_a_killed_copy_left_is_removed_by_the_next(model: Model, ui: Path) -> None:
    (ui / ".rnr-0123abcd.part").write_bytes(b"half")
    put(model, ui / "x.safetensors", COPY)
    assert [path.name for path in ui.iterdir()] == ["x.safetensors"]

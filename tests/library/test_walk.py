"""What lies in folders: everything that looks like a model, and nothing that makes a walk stumble."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir

from runner.demo.models import demo_model
from runner.library.hub import cache_folder, parse_name
from tests.library.trees import COMMIT, OTHER, found, keep, names, write


def test_files_and_folders_of_models_are_found_in_order_of_their_names(tmp_path: Path, cache: Path) -> None:
    for name in ("b.safetensors", "a.ckpt", "sub/C.SAFETENSORS", "sub/deep/d.pt", "readme.txt", "x.gguf"):
        write(tmp_path / name)
    shutil.copytree(demo_model("photo", cache), tmp_path / "pipeline")
    one = tmp_path / "unet_alone"
    shutil.copytree(demo_model("photo", cache) / "unet", one)
    assert names(tmp_path) == ["a", "b", "pipeline", "C", "d", "unet_alone"]
    assert {each.name for each in found(tmp_path)[0] if each.folder} == {"pipeline", "unet_alone"}
    assert names(one) == ["unet_alone"]


def test_hidden_files_and_parts_of_models_are_left_out(tmp_path: Path) -> None:
    for name in (
        ".hidden.safetensors",
        ".cache/x.safetensors",
        "big-00001-of-00002.safetensors",
        "y.safetensors",
    ):
        write(tmp_path / name)
    assert names(tmp_path) == ["y"]


def test_links_that_lead_back_end_and_each_model_comes_once(tmp_path: Path) -> None:
    write(tmp_path / "real" / "x.safetensors")
    (tmp_path / "real" / "up").symlink_to("..")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "x.safetensors").symlink_to("real/x.safetensors")
    (tmp_path / "alias.safetensors").symlink_to("real/x.safetensors")
    assert sorted(names(tmp_path, tmp_path, tmp_path / "real")) == ["alias", "x"]


def test_what_is_no_file_is_found_for_its_reason_to_be_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ckpt")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "gone.safetensors").symlink_to("nowhere")
    assert names(tmp_path) == ["gone", "loop", "pipe"]


def test_a_folder_that_is_missing_or_unreadable_is_told_of(tmp_path: Path) -> None:
    closed = tmp_path / "m" / "closed"
    write(closed / "x.safetensors")
    write(tmp_path / "m" / "y.safetensors")
    closed.chmod(0)
    try:
        models, problems = found(tmp_path / "m", tmp_path / "nowhere")
    finally:
        closed.chmod(0o700)
    expected = [f"{tmp_path}/nowhere: no such file or directory"]
    if os.geteuid() == 0:  # root reads all
        assert {one.name for one in models} == {"x", "y"} and problems == expected
    else:
        assert [one.name for one in models] == ["y"]
        assert problems == [f"{closed}: permission denied", *expected]


def test_a_deep_nest_of_folders_ends(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(20):
        deep = deep / "d"
    write(deep / "x.safetensors")
    models, problems = found(tmp_path)
    assert not models and len(problems) == 1 and problems[0].endswith("nested too deep")


# ---- The hub's cache.


def test_the_hubs_cache_has_pipelines_and_single_files_under_names_that_recipes_use(
    tmp_path: Path, cache: Path
) -> None:
    photo, hub = demo_model("photo", cache), tmp_path / "hub"
    files = {path.relative_to(photo).as_posix(): path for path in photo.rglob("*") if path.is_file()}
    single = write(tmp_path / "x.safetensors")
    keep(hub, "org/photo", {**files, "photo-full.safetensors": single})
    keep(hub, "org/files", {"x.safetensors": single, "sub/y.safetensors": single})
    keep(hub, "org/files", {"x.safetensors": single}, OTHER, "v1.0")
    keep(hub, "org/branch", {"X.SAFETENSORS": single, "x.sft": single}, OTHER, "feature/x")
    keep(hub, "org/parts", {"config.json": photo / "unet/config.json", "model.safetensors": single})
    (hub / "datasets--org--d").mkdir()
    assert names(hub) == [
        *("hf:org/branch@feature%2Fx/X.SAFETENSORS", "hf:org/branch@feature%2Fx/x.sft"),
        *("hf:org/files/x.safetensors", "hf:org/files/sub/y.safetensors", "hf:org/files@v1.0/x.safetensors"),
        *("hf:org/parts/model.safetensors", "hf:org/photo", "hf:org/photo/photo-full.safetensors"),
    ]
    assert all(parse_name(name) for name in names(hub))
    scanned = scan_cache_dir(hub)
    theirs = {
        file.file_path
        for repository in scanned.repos
        for revision in repository.revisions
        for file in revision.files
        if file.file_name.lower().endswith((".safetensors", ".sft"))
    }
    ours = {one.path for one in found(hub)[0] if not one.folder}
    assert ours <= theirs
    pipeline = hub / "models--org--photo" / "snapshots" / COMMIT
    assert {path for path in theirs - ours if not path.is_relative_to(pipeline)} == set()


@pytest.mark.parametrize("names", [{}, {"HF_HOME": "~/h"}, {"XDG_CACHE_HOME": "/x"}, {"HF_HUB_CACHE": "~/c"}])
def test_the_hubs_cache_is_where_its_library_has_it(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    try:
        assert str(cache_folder()) == importlib.reload(constants).HF_HUB_CACHE
    finally:
        monkeypatch.undo()
        importlib.reload(constants)

"""Sources by name and by digest: found wherever they lie, and the result does not say where."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.config import Job
from runner.demo.models import demo_model
from runner.errors import InputError, MismatchError
from runner.library.lookup import Library
from runner.listing import find_digests
from runner.recipe.parse import parse_recipe
from runner.resolve.resolve import resolve
from tests.build import digest, here
from tests.library.trees import found, invokeai, keep, write
from tests.runs import made, settings


def tree(a: Any, b: Any = "b", **more: Any) -> dict[str, Any]:
    return {"method": "weighted_sum", "models": {"a": a, "b": b}, "alpha": 0.5, **more}


def library(*folders: Path) -> Library:
    return Library(folders, folders[0] / "cache")


def by_name(text: str, *folders: Path) -> Path | None:
    one = library(*folders).by_name(text)
    return one.path if one else None


@pytest.mark.parametrize(
    "text", ["Photo", "Photo.safetensors", "photo", "PHOTO.SAFETENSORS", "sub/Photo", "./Photo"]
)
def test_a_name_is_that_of_the_file_with_or_without_suffix_and_folder(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "sub" / "Photo.safetensors")
    write(tmp_path / "other.safetensors")
    assert by_name(text, tmp_path) == path


@pytest.mark.parametrize(
    "text", ["hoto", "Photo.ckpt", "other/Photo", "/Photo", "../Photo", "Photo/..", "", ".", "*"]
)
def test_other_texts_name_nothing(text: str, tmp_path: Path) -> None:
    write(tmp_path / "deep" / "Photo.safetensors")
    assert by_name(text, tmp_path) is None


def test_a_name_spelled_exactly_wins_over_one_in_other_case(tmp_path: Path) -> None:
    exact = write(tmp_path / "x" / "photo.safetensors")
    write(tmp_path / "y" / "Photo.safetensors")
    assert by_name("photo", tmp_path) == exact
    with pytest.raises(InputError, match="2 models have this name"):
        by_name("PHOTO", tmp_path)


def test_accents_are_the_same_however_they_are_encoded(tmp_path: Path) -> None:
    path = write(tmp_path / "cafe\u0301.safetensors")
    assert by_name("café", tmp_path) == path


def test_several_models_of_a_name_are_listed(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("x/photo.safetensors", "y/photo.ckpt")]
    with pytest.raises(InputError) as caught:
        by_name("photo", tmp_path)
    assert caught.value.message == f'"photo": 2 models have this name: {paths[0]}, {paths[1]}'
    assert by_name("photo.ckpt", tmp_path) == paths[1]
    assert by_name("x/photo", tmp_path) == paths[0]


def test_one_file_that_is_found_twice_is_one_model(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "photo.safetensors")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photo.safetensors").symlink_to(path)
    assert by_name("photo", tmp_path, tmp_path / "a") in (path, tmp_path / "b" / "photo.safetensors")


def test_the_names_that_invokeai_gives_are_names_too(tmp_path: Path) -> None:
    path = write(tmp_path / "models" / "0b1c" / "file.safetensors")
    invokeai(tmp_path, {"Photo Real v2": "0b1c/file.safetensors"})
    assert by_name("photo real V2", tmp_path) == path == by_name("file", tmp_path)


# ---- Recipes.


def merged(folder: Path, recipe_tree: dict[str, Any], out: str, **more: Any) -> Path:
    done = made(folder, out, recipe_tree, **more)
    assert done.path is not None
    return done.path


def test_the_bytes_of_a_result_do_not_depend_on_where_a_model_lay(tmp_path: Path) -> None:
    results = []
    for number, name in enumerate(
        ("photo.safetensors", "x/y/photo.safetensors", "elsewhere/Photo.safetensors")
    ):
        folder = tmp_path / str(number)
        more = folder / "elsewhere"
        more.mkdir(parents=True)
        write(folder / ("models/" if number < 2 else "") / name, fill=1)
        write(folder / "models" / "b.safetensors", fill=2)
        results.append(
            merged(folder, tree("photo"), "out", models_dir=folder / "models", model_folders=(more,))
        )
    assert len({path.read_bytes() for path in results}) == 1
    assert str(tmp_path).encode() not in results[0].read_bytes()
    assert b"safetensors" not in results[0].read_bytes()[:2000]


def test_a_path_wins_over_a_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.safetensors", fill=1)
    write(tmp_path / "sub" / "a.safetensors", fill=2)
    write(tmp_path / "b.safetensors")
    caplog.set_level("INFO")
    found = resolve(parse_recipe("t", tree("a.safetensors"), here), here, tmp_path, tmp_path / "cache")
    assert found.primary.checkpoint.root == tmp_path / "a.safetensors"
    assert [record.message for record in caplog.records] == [f"b: {tmp_path}/b.safetensors"]


def resolved(folder: Path, recipe_tree: dict[str, Any], *more: Path) -> Path:
    parsed = parse_recipe("test", recipe_tree, here)
    return resolve(parsed, here, folder, folder / "cache", folders=more).primary.checkpoint.root


def refused(folder: Path, recipe_tree: dict[str, Any]) -> InputError:
    with pytest.raises(InputError) as caught:
        resolved(folder, recipe_tree)
    return caught.value


def test_a_name_that_none_has_comes_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "b.safetensors")
    write(tmp_path / "sub" / "anime_v3.safetensors")
    error = refused(tmp_path, tree("animev3"))
    assert error.message == "animev3: no such file"
    assert error.hint == f'paths start at models_dir={tmp_path}, did you mean "anime_v3"?'
    assert (refused(tmp_path, tree("anime_v2.safetensors")).hint or "").endswith('"anime_v3.safetensors"?')


def test_a_model_of_the_hub_is_suggested_by_the_name_recipes_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    photo = demo_model("photo", cache)
    files = {path.relative_to(photo).as_posix(): path for path in photo.rglob("*") if path.is_file()}
    keep(tmp_path / "hub", "someone/stable-photo", files)
    write(tmp_path / "m" / "b.safetensors")
    assert 'did you mean "hf:someone/stable-photo"?' in (
        refused(tmp_path / "m", tree("stable-photo")).hint or ""
    )


def test_an_ambiguous_name_in_a_recipe_is_an_error(tmp_path: Path) -> None:
    for name in ("b", "x/photo", "y/photo"):
        write(tmp_path / f"{name}.safetensors")
    error = refused(tmp_path, tree("photo"))
    assert error.tag == "AMBIGUOUS" and error.exit_code == 4


def test_a_missing_model_and_an_ambiguous_name_are_told_under_a_word_true_of_both(tmp_path: Path) -> None:
    for name in ("x/photo", "y/photo"):
        write(tmp_path / f"{name}.safetensors")
    missing, ambiguous, _ = refused(tmp_path, tree("animev3", "photo")).lines()
    assert missing == "runner: error[E-INPUT]: animev3: no such file"
    assert ambiguous.startswith('runner: error[E-INPUT]: "photo": 2 models have this name: ')
    assert refused(tmp_path, tree("animev3", "animev2")).tag == "MISSING"


# ---- Digests.


def find(folder: Path, **more: Any) -> None:
    find_digests(settings(folder, job=Job("find"), digests="remember", **more))


def test_a_model_that_was_moved_and_renamed_is_found_by_its_digest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, elsewhere = tmp_path / "m", tmp_path / "elsewhere"
    write(folder / "b.safetensors", fill=2)
    moved = write(elsewhere / "renamed.safetensors", fill=1)
    write(elsewhere / "other.safetensors", fill=3)
    source = {"source": "photo.safetensors", "sha256": digest(moved)}
    error = refused(folder, tree(source))
    assert error.message == "photo.safetensors: no such file" and "job=find" in (error.hint or "")
    find(folder, model_folders=(elsewhere,))
    caplog.set_level("INFO")
    assert resolved(folder, tree(source), elsewhere) == moved
    assert caplog.records[0].message == f"photo.safetensors: found by its sha256, {moved}"
    plain = write(folder / "photo.safetensors", fill=1)
    expected = merged(folder, tree(source), "plain").read_bytes()
    plain.unlink()
    assert merged(folder, tree(source), "found", model_folders=(elsewhere,)).read_bytes() == expected


def test_a_folder_is_found_by_the_digest_of_its_weights(tmp_path: Path, cache: Path) -> None:
    shutil.copytree(demo_model("photo", cache), tmp_path / "far" / "renamed")
    for path in (tmp_path / "far").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    find(tmp_path)
    (one,) = found(tmp_path / "far")[0]
    names = sorted(path for path in one.path.rglob("*.safetensors"))
    lines = [f"{digest(path)}  {path.relative_to(one.path).as_posix()}\n" for path in names]
    sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert resolved(tmp_path, tree({"source": "gone", "sha256": sha256}, "demo:photo")) == one.path


def test_what_was_changed_since_it_was_hashed_is_not_found(tmp_path: Path) -> None:
    write(tmp_path / "b.safetensors", fill=2)
    path = write(tmp_path / "sub" / "x.safetensors", fill=1)
    source = {"source": "photo.safetensors", "sha256": digest(path)}
    find(tmp_path)
    assert resolved(tmp_path, tree(source)) == path
    write(path, fill=9)
    refused(tmp_path, tree(source))


def test_a_model_found_by_name_must_still_have_the_digest(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "photo.safetensors", fill=1)
    write(tmp_path / "b.safetensors", fill=2)
    with pytest.raises(MismatchError):
        merged(tmp_path, tree({"source": "photo.safetensors", "sha256": "0" * 64}), "out")

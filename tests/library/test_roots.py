"""Programs that keep models: each is known by its folder, and its models are found where it has them."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from runner.errors import InputError
from runner.library.comfyui import extra_folders
from runner.library.invokeai import invokeai_names
from runner.library.roots import root_of
from tests.library.trees import found, insert, invokeai, names, write


def test_a1111_and_forge_have_models_of_all_kinds_and_others_that_are_not_merged(tmp_path: Path) -> None:
    for name in ("Stable-diffusion/sd15/photo", "Lora/style", "LyCORIS/old", "VAE/v", "ESRGAN/upscale"):
        write(tmp_path / "models" / f"{name}.safetensors")
    write(tmp_path / "outputs" / "not_a_model.pt")
    assert root_of(tmp_path).title == "A1111"
    assert sorted(names(tmp_path)) == ["old", "photo", "style", "v"]
    assert found(tmp_path)[0][0].inside == "models/Stable-diffusion/sd15/photo.safetensors"


def test_comfyui_has_its_own_folders_and_those_its_settings_name(tmp_path: Path) -> None:
    comfy, other = tmp_path / "ComfyUI", tmp_path / "webui"
    own = (
        "checkpoints/photo",
        "loras/style",
        "vae/v",
        "unet/u",
        "diffusion_models/d",
        "clip/c",
        "text_encoders/t",
    )
    for name in (*own, "controlnet/no", "upscale_models/no"):
        write(comfy / "models" / f"{name}.safetensors")
    for name in ("Stable-diffusion/base", "Lora/l1", "LyCORIS/l2", "ESRGAN/no"):
        write(other / "models" / f"{name}.safetensors")
    (comfy / "extra_model_paths.yaml").write_text(
        "a111:\n  base_path: ../webui/\n  checkpoints: models/Stable-diffusion\n"
        "  upscale_models: models/ESRGAN\n"
        "  loras: |\n    models/Lora\n    models/LyCORIS\n"
    )
    assert root_of(comfy).title == "ComfyUI"
    assert sorted(names(comfy)) == sorted(
        [*(name.rpartition("/")[2] for name in own), "base", "l1", "l2"],
    )
    assert sorted(names(comfy / "extra_model_paths.yaml")) == ["base", "l1", "l2"]


def test_paths_of_comfyui_start_at_base_path_or_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS", "/from/environment")
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "extra_model_paths.yaml"
    path.write_text(
        "one:\n  base_path: /base\n  is_default: true\n  checkpoints: a\n  vae: /absolute\n"
        "two:\n  loras: beside\n  clip: [x, y]\n"
        "three:\n  base_path: $MODELS\n  unet: |\n\n    u1\n     u2\n"
        "four:\n  base_path: ~/m\n  checkpoints: c\n"
        "five:\nsix: text\nseven:\n  checkpoints:\n  loras: 7\n"
    )
    assert list(map(str, extra_folders(path))) == [
        *("/base/a", "/absolute", f"{tmp_path}/beside", f"{tmp_path}/x", f"{tmp_path}/y"),
        *("/from/environment/u1", "/from/environment/u2", "/home/me/m/c"),
    ]


@pytest.mark.parametrize("text", ["a: [", "- a list", "\x00", "!!python/object:os.system {}", "[" * 500, "5"])
def test_settings_of_comfyui_that_are_none_are_told_of_and_the_rest_is_listed(
    text: str, tmp_path: Path
) -> None:
    write(tmp_path / "models" / "checkpoints" / "x.safetensors")
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    models, problems = found(tmp_path)
    assert [one.name for one in models] == ["x"]
    assert len(problems) == 1 and problems[0].startswith("extra_model_paths.yaml: ")


# ---- InvokeAI.


def test_invokeais_models_have_the_names_of_its_database(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "invokeai", write(tmp_path / "elsewhere" / "in_place.safetensors")
    write(root / "models" / "0b1c" / "file.safetensors")
    write(root / "models" / "loose.safetensors")
    invokeai(
        root, {"Photo Real v2": "0b1c/file.safetensors", "In Place": str(elsewhere), "Gone": "gone.ckpt"}
    )
    assert root_of(root).title == "InvokeAI"
    assert names(root) == ["loose", "Photo Real v2", "In Place", "Gone"]


def test_invokeais_folders_are_where_its_settings_say(tmp_path: Path) -> None:
    root = tmp_path / "invokeai"
    database = invokeai(root, {"Photo Real v2": "0b1c/file.safetensors"})
    database.parent.rename(root / "data")
    write(tmp_path / "large disk" / "0b1c" / "file.safetensors")
    write(tmp_path / "large disk" / "loose.safetensors")
    settings = root / "invokeai.yaml"
    settings.write_text(f"schema_version: 4.0.3\ndb_dir: data\nmodels_dir: {tmp_path}/large disk\n")
    assert root_of(root).title == "InvokeAI"
    assert names(root) == ["loose", "Photo Real v2"]
    settings.write_text("models_dir: [")
    (problem,) = root_of(root).problems
    assert problem.startswith("invokeai.yaml: not YAML")


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_the_database_is_read_without_writing_beside_it(journal: str, tmp_path: Path) -> None:
    database = invokeai(tmp_path, {"x": "x.safetensors"}, journal)
    before = {path: path.stat().st_mtime_ns for path in database.parent.iterdir()}
    assert list(invokeai_names(database, tmp_path / "models").values()) == ["x"]
    assert {path: path.stat().st_mtime_ns for path in database.parent.iterdir()} == before


def test_what_a_running_invokeai_has_not_yet_put_in_its_place_is_read_too(tmp_path: Path) -> None:
    database = invokeai(tmp_path, {"x": "x.safetensors"}, "WAL")
    with closing(sqlite3.connect(database)) as running:
        running.execute("PRAGMA wal_autocheckpoint = 0")
        insert(running, {"y": "y.safetensors"})
        assert sorted(invokeai_names(database, tmp_path / "models").values()) == ["x", "y"]


def test_what_a_killed_invokeai_left_is_read_without_mending_it(tmp_path: Path) -> None:
    database = invokeai(tmp_path / "running", {}, "WAL")
    with closing(sqlite3.connect(database)) as running:
        insert(running, {"x": "x.safetensors"})
        shutil.copytree(tmp_path / "running", tmp_path / "killed")
    left = tmp_path / "killed" / "databases"
    index = left / "invokeai.db-shm"
    index.write_bytes(bytes(index.stat().st_size))
    before = {path: path.stat().st_mtime_ns for path in left.iterdir()}
    assert list(invokeai_names(left / database.name, left).values()) == ["x"]
    assert {path: path.stat().st_mtime_ns for path in left.iterdir()} == before and len(before) == 3
    assert not any(index.read_bytes())
    index.unlink()
    with pytest.raises(InputError, match=r"its newest part, invokeai\.db-wal, cannot be read without"):
        invokeai_names(left / database.name, left)


def test_a_locked_database_is_read(tmp_path: Path) -> None:
    database = invokeai(tmp_path, {"x": "x.safetensors"})
    with closing(sqlite3.connect(database)) as running:
        running.execute("BEGIN EXCLUSIVE")
        assert list(invokeai_names(database, tmp_path / "models").values()) == ["x"]


def test_a_database_that_is_none_is_told_of_and_the_folder_is_listed(tmp_path: Path) -> None:
    database = invokeai(tmp_path, {})
    write(tmp_path / "models" / "x.safetensors")
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript("DROP TABLE models")
    for content in (None, b"no database", b""):
        if content is not None:
            database.write_bytes(content)
        with pytest.raises(InputError, match="no database of models"):
            invokeai_names(database, tmp_path / "models")
        models, problems = found(tmp_path)
        assert [one.name for one in models] == ["x"] and len(problems) == 1


def test_a_table_that_never_ends_is_given_up(tmp_path: Path) -> None:
    database = tmp_path / "invokeai.db"
    with closing(sqlite3.connect(database)) as connection:
        endless = (
            "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n) SELECT max(x) AS config FROM n"
        )
        connection.execute(f"CREATE VIEW models AS {endless}")
    with pytest.raises(InputError, match="interrupted"):
        invokeai_names(database, tmp_path)


def test_rows_that_are_odd_are_left_out(tmp_path: Path) -> None:
    database = tmp_path / "invokeai.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE models (config)")
        odd = (
            "{",
            "[]",
            '{"path": 3, "name": "x"}',
            '{"path": "a\\u0000b", "name": "x"}',
            '{"path": "external://openai/x", "name": "x", "base": "external"}',
            None,
            b"\xff",
            7,
            "[" * 9999,
        )
        connection.executemany("INSERT INTO models VALUES (?)", [(one,) for one in odd])
        connection.execute("""INSERT INTO models VALUES ('{"path": "p", "name": "good"}')""")
        connection.commit()
    assert list(invokeai_names(database, tmp_path).values()) == ["good"]

"""The model of a finished run: only what the record says of it is published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from runner.errors import InputError, MismatchError
from runner.publish.finished import finished_model, note, verify
from runner.publish.target import CHECKPOINT, PIPELINE, Publication


def changed(path: Path, change: Callable[[Any], object]) -> None:
    """A JSON file with a change."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_a_file_is_known_by_its_record(file_run: Path) -> None:
    model = finished_model(file_run, file_run)
    content = (file_run / "mix.safetensors").read_bytes()
    digests = {"": hashlib.sha256(content).hexdigest()}
    assert (model.kind, model.files, model.card) == (CHECKPOINT, digests, file_run / "README.md")
    assert model.path == file_run / "mix.safetensors"
    assert model.blake3 == {"": blake3(content).hexdigest()}
    verify(model)


def test_a_folder_is_every_file_of_its_statement(folder_run: Path) -> None:
    model, path = finished_model(folder_run, folder_run), folder_run / "mix"
    there = {one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()}
    assert model.kind == PIPELINE and set(model.files) == there and model.card is None
    assert set(model.blake3) == {name for name in there if name.endswith(".safetensors")}
    verify(model)


@pytest.mark.parametrize("name", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_file_that_changed_is_not_published(name: str, folder_run: Path) -> None:
    path = folder_run / "mix" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(MismatchError, match="the record says") as caught:
        verify(finished_model(folder_run, folder_run))
    assert caught.value.exit_code == 10


def test_a_model_that_is_gone_or_a_link_is_told(file_run: Path, folder_run: Path, tmp_path: Path) -> None:
    (file_run / "mix.safetensors").rename(tmp_path / "mix.safetensors")
    verify(finished_model(file_run, tmp_path))  # where output_dir was
    with pytest.raises(InputError, match="no such file") as caught:
        verify(finished_model(file_run, file_run))
    assert "output_dir" in str(caught.value.hint)
    (file_run / "mix.safetensors").symlink_to(tmp_path / "mix.safetensors")
    with pytest.raises(InputError, match="or a link"):
        verify(finished_model(file_run, file_run))
    (folder_run / "mix" / "unet").rename(tmp_path / "unet")
    (folder_run / "mix" / "unet").symlink_to(tmp_path / "unet")
    with pytest.raises(InputError, match="or a link"):
        verify(finished_model(folder_run, folder_run))


@pytest.mark.parametrize("name", ["../mix", "/etc/passwd", "..", "", "a/b", ".ssh", "a\0b/../c"])
def test_no_record_names_a_file_outside_of_its_folder(name: str, file_run: Path) -> None:
    def rename(tree: Any) -> None:
        output = tree["deterministic"]["output"]
        output["name"] = output["files"][0]["name"] = name

    changed(file_run / "run.json", rename)
    with pytest.raises(InputError, match="no name of a file of a model"):
        finished_model(file_run, file_run)


@pytest.mark.parametrize("name", ["mix/../../secret", "/etc/passwd", "mix/.git/config"])
def test_no_statement_does_either(name: str, folder_run: Path) -> None:
    entry = {"name": name, "digest": {"sha256": "0" * 64}}
    changed(folder_run / "mix.intoto.json", lambda tree: tree["subject"].append(entry))
    with pytest.raises(InputError, match="no name of a file of a model"):
        finished_model(folder_run, folder_run)


def test_a_run_without_a_model_is_told(tmp_path: Path, file_run: Path, folder_run: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        finished_model(tmp_path, tmp_path)
    changed(file_run / "run.json", lambda tree: tree["deterministic"].pop("output"))
    with pytest.raises(InputError, match="no model was made in this run"):
        finished_model(file_run, file_run)
    changed(folder_run / "mix.intoto.json", lambda tree: tree["subject"].pop())
    with pytest.raises(InputError, match="not the statement of this run"):
        finished_model(folder_run, folder_run)


def test_what_was_published_is_added_to_the_record_and_the_statement_stays_true(file_run: Path) -> None:
    note(file_run, Publication("folder", "/home/me/models/mix.safetensors", "linked", 0.12345))
    note(file_run, Publication("hub", "me/mix", "failed", 1, "no token=hf_0123456789abcdefgh at /home/me/x"))
    text = (file_run / "run.json").read_bytes()
    assert json.loads(text)["run"]["published"] == [
        {"target": "folder", "place": "…/mix.safetensors", "result": "linked", "seconds": 0.123},
        {
            "target": "hub",
            "place": "me/mix",
            "result": "failed",
            "seconds": 1,
            "error": "no token=*** at …/x",
        },
    ]
    statement = json.loads((file_run / "mix.safetensors.intoto.json").read_text())
    (said,) = (one for one in statement["predicate"]["runDetails"]["byproducts"] if one["name"] == "run.json")
    assert said["digest"]["sha256"] == hashlib.sha256(text).hexdigest()

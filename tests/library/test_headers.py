"""What models are, from headers that are read once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from runner.demo.models import demo_model
from runner.digests import folder_digest
from runner.disk import cachefile
from runner.library import headers
from runner.library.facts import Facts
from runner.library.headers import EDITION, entries_of, known_facts
from runner.tensors import TensorSpec
from tests.architectures.models import main_component, under, vae
from tests.build import digest
from tests.formats import torch_files
from tests.library.trees import PLAIN, entries, found, write


def kinds(folder: Path) -> dict[str, tuple[str, str | None, str | None, str]]:
    return {
        name: (entry.facts.kind, entry.facts.architecture, entry.facts.variant, entry.facts.format)
        for name, entry in entries(folder).items()
    }


def test_kinds_architectures_and_variants_are_told_by_headers(tmp_path: Path, cache: Path) -> None:
    unet = main_component("sd1", "checkpoint", tiny=True)
    text = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": TensorSpec("F16", (8,))}
    small = {"decoder.conv_in.weight": (4, 4, 3, 3), "encoder.conv_in.weight": (4, 3, 3, 3)}
    sdxl = main_component("sdxl", "diffusers", tiny=True)
    own = {key: TensorSpec("F32", shape) for key, shape in small.items()}
    files = {
        "whole": {**unet, **text},
        "unet": unet,
        "inpainting": main_component("sd1", "checkpoint", tiny=True, channels=9),
        "alone": {key.partition("/")[2]: spec for key, spec in sdxl.items()},
        "vae": own,
        "baked": under("first_stage_model.", own),
        "clip": {"text_model.embeddings.token_embedding.weight": TensorSpec("F16", (8, 8))},
        "anything": PLAIN,
    }
    for name, specs in files.items():
        write(tmp_path / f"{name}.safetensors", specs)
    shutil.copy(demo_model("lora", cache), tmp_path / "lora.safetensors")
    shutil.copytree(demo_model("photo", cache), tmp_path / "pipeline")
    shutil.copytree(demo_model("photo", cache) / "vae", tmp_path / "folder_of_vae")
    state = torch_files.state(x=torch_files.tensor())
    (tmp_path / "p.ckpt").write_bytes(torch_files.zipped(state, {"0": bytes(16)}))
    assert kinds(tmp_path) == {
        "whole": ("checkpoint", "sd1", None, "safetensors"),
        "unet": ("unet", "sd1", None, "safetensors"),
        "inpainting": ("unet", "sd1", "inpainting", "safetensors"),
        "alone": ("unet", "sdxl", None, "safetensors"),
        "vae": ("vae", None, None, "safetensors"),
        "baked": ("vae", None, None, "safetensors"),
        "clip": ("text_encoder", None, None, "safetensors"),
        "anything": ("other", None, None, "safetensors"),
        "lora": ("lora", "sd1", None, "safetensors"),
        "pipeline": ("folder", "sd1", None, "diffusers"),
        "folder_of_vae": ("vae", None, None, "safetensors"),
        "p": ("other", None, None, "pickle"),
    }


def test_the_real_vae_is_one(tmp_path: Path) -> None:
    empty = {key: TensorSpec("F16", (0,)) for key in vae()}
    write(tmp_path / "x.safetensors", empty)
    assert kinds(tmp_path)["x"][0] == "vae"


def test_dtypes_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    shapes = {"a": TensorSpec("F32", (2,)), "b": TensorSpec("F16", (90,)), "c": TensorSpec("I64", (3,))}
    write(tmp_path / "x.safetensors", shapes)
    assert entries(tmp_path)["x"].facts.dtypes == ("F16", "I64", "F32")


def test_what_is_broken_has_its_reason_and_hinders_nothing(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "good.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html>" + bytes(90))
    (tmp_path / "no.ckpt").write_bytes(b"\x80\x02garbage")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(tmp_path / "pipe.pt")
    shutil.copytree(demo_model("photo", cache), tmp_path / "torn")
    next((tmp_path / "torn" / "unet").glob("*.safetensors")).unlink()
    reasons = {name: entry.facts.problem for name, entry in entries(tmp_path).items()}
    assert reasons.pop("good") is None
    expected = {
        "short": "truncated",
        "page": "a web page",
        "no": "pickle",
        "loop": "a loop of symbolic links",
        "pipe": "a pipe",
        "torn": "torn/unet: expected .safetensors or .bin weights, found none",
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in (reasons[name] or ""), (name, reasons[name])


def test_a_model_quantised_in_a_way_that_is_not_read_says_so(tmp_path: Path) -> None:
    packed = {"a.qweight": TensorSpec("I32", (4, 4)), "a.qzeros": TensorSpec("I32", (4,))}
    write(tmp_path / "x.safetensors", packed)
    facts = entries(tmp_path)["x"].facts
    assert facts.kind == "other" and "GPTQ" in (facts.problem or "")


# ---- The memory.


def test_headers_are_read_once_and_again_when_a_file_changes(tmp_path: Path, cache: Path) -> None:
    models, memory = tmp_path / "m", tmp_path / "cache" / "headers.json"
    one = write(models / "x.safetensors")
    shutil.copytree(demo_model("photo", cache), models / "pipeline")
    for path in (models / "pipeline").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    first = entries(models, memory=memory)
    content = json.loads(memory.read_bytes())
    assert content.pop("edition") == EDITION and len(content) == 2
    # What stands in the memory is believed: so it can be seen that no header is read.
    changed = {key: {**value, "variant": "remembered"} for key, value in content.items()}
    cachefile.add(memory, changed)
    again = entries(models, memory=memory)
    assert {entry.facts.variant for entry in again.values()} == {"remembered"}
    assert [entry.weights for entry in again.values()] == [entry.weights for entry in first.values()]
    write(one, {"k": TensorSpec("F32", (3,))})
    weights = next((models / "pipeline" / "unet").glob("*.safetensors"))
    os.utime(weights, (1_000_000_001, 1_000_000_001))
    assert {entry.facts.variant for entry in entries(models, memory=memory).values()} == {None}


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    os.utime(write(tmp_path / "m" / "x.safetensors"))
    entries(tmp_path / "m", memory=tmp_path / "headers.json")
    assert not (tmp_path / "headers.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"edition": "another", "k": {}}'),
        json.dumps({"edition": EDITION, "k": 3, "l": {"kind": "lora"}}).encode(),
    ],
)
def test_a_damaged_memory_is_made_anew(content: bytes, tmp_path: Path) -> None:
    write(tmp_path / "m" / "x.safetensors")
    memory = tmp_path / "headers.json"
    memory.write_bytes(content)
    assert entries(tmp_path / "m", memory=memory)["x"].facts.kind == "other"
    assert len(known_facts(memory)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 3},
        {"nbytes": "1"},
        {"nbytes": True},
        {"files": "x"},
        {"files": [3]},
        {"dtypes": None},
        {"more": 1},
    ],
)
def test_an_entry_that_is_none_is_read_again(change: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path / "m" / "x.safetensors")
    memory = tmp_path / "headers.json"
    expected = entries(tmp_path / "m", memory=memory)["x"].facts
    content = json.loads(memory.read_bytes())
    memory.write_text(
        json.dumps(
            {key: value if key == "edition" else {**value, **change} for key, value in content.items()}
        )
    )
    assert known_facts(memory) == {}
    assert entries(tmp_path / "m", memory=memory)["x"].facts == expected


def test_another_edition_of_the_program_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m" / "x.safetensors")
    memory = tmp_path / "headers.json"
    entries(tmp_path / "m", memory=memory)
    assert known_facts(memory)
    monkeypatch.setattr(headers, "EDITION", "next")
    assert known_facts(memory) == {}


def list_all(models: Path, memory: Path) -> None:
    entries(models, memory=memory)


def test_lists_made_at_once_lose_nothing(tmp_path: Path) -> None:
    memory = tmp_path / "cache" / "headers.json"
    for name in "abc":
        for number in range(20):
            write(tmp_path / name / f"{name}{number}.safetensors")
    fork = multiprocessing.get_context("fork")
    lists = [fork.Process(target=list_all, args=(tmp_path / name, memory)) for name in "abc"]
    for one in lists:
        one.start()
    for one in lists:
        one.join(60)
    assert [one.exitcode for one in lists] == [0, 0, 0]
    assert len(known_facts(memory)) == 60
    assert [path.name for path in memory.parent.iterdir()] == ["headers.json"]


def test_a_memory_that_cannot_be_kept_fails_nothing(tmp_path: Path) -> None:
    write(tmp_path / "m" / "x.safetensors")
    (tmp_path / "file").write_bytes(b"")
    assert entries(tmp_path / "m", memory=tmp_path / "file" / "headers.json")["x"].facts.kind == "other"


# ---- Digests.


def test_the_digest_of_a_model_is_known_when_those_of_all_its_files_are(tmp_path: Path, cache: Path) -> None:
    one = write(tmp_path / "x.safetensors")
    photo = tmp_path / "photo"
    shutil.copytree(demo_model("photo", cache), photo)
    before = entries(tmp_path)
    assert {entry.sha256 for entry in before.values()} == {None}
    digests = {before["x"].weights[""].key: digest(one)}
    weights = before["photo"].weights
    digests |= {identity.key: digest(photo / name) for name, identity in list(weights.items())[1:]}
    models = found(tmp_path)[0]
    known = {entry.found.name: entry.sha256 for entry in entries_of(models, None, digests)}
    assert known == {"x": digest(one), "photo": None}
    digests |= {identity.key: digest(photo / name) for name, identity in weights.items()}
    known = {entry.found.name: entry.sha256 for entry in entries_of(models, None, digests)}
    assert known["photo"] == folder_digest([(digest(photo / name), name) for name in weights])


def test_facts_of_what_is_broken_say_nothing_else() -> None:
    assert Facts("broken", problem="x") == Facts("broken", None, None, "", (), 0, (), "x")

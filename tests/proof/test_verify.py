"""job=verify: every word with real files, and what is told of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from runner.checkpoint import SIDECAR
from runner.config import Job
from runner.demo.models import demo_model
from runner.errors import InputError, MismatchError, UsageError
from runner.proof.job import verify_job
from tests.build import flip, write_models
from tests.proof.build import NAME, answer_of, edited, made
from tests.runs import settings


def answer(source: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> dict[str, Any]:
    """The answer for programs."""
    output_dir = changes.pop("output_dir", None)
    folder = changes.pop("models", source.parent)
    job = Job("verify", source=source, json=True, **changes)
    return answer_of(lambda: verify_job(settings(folder, job=job, output_dir=output_dir)), capsys)


def wrong(found: dict[str, Any]) -> list[str]:
    return [one["part"] for one in found["findings"] if one["verdict"] == "wrong"]


def test_the_folder_of_a_run_its_texts_and_its_model_are_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    digest = json.loads((run / "run.json").read_text())["deterministic"]["output"]["sha256"]
    for source in (run, run / "run.json", run / f"{NAME}.intoto.json", run / NAME):
        found = answer(source, capsys)
        assert (found["word"], found["sha256"], wrong(found)) == ("VERIFIED", digest, [])
        assert sorted(found["witnesses"]) == sorted(["run.json", f"{NAME}.intoto.json", NAME + SIDECAR])


def test_a_folder_is_verified_file_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    run = made(tmp_path, cache=cache, models={"a": "demo:photo", "b": "demo:anime"})
    assert answer(run, capsys)["word"] == "VERIFIED"
    (run / "mix" / "unet" / "extra.py").write_text("print()")
    found = answer(run / "mix", capsys)
    assert found["word"] == "MISMATCH" and "unet/extra.py" in str(found["findings"])
    (run / "mix" / "unet" / "extra.py").unlink()
    flip(run / "mix" / "vae" / "diffusion_pytorch_model.safetensors", -1)
    found = answer(run, capsys)
    assert found["word"] == "MISMATCH" and found["first_tensor"].startswith("vae/")
    (run / "mix" / "unet" / "config.json").write_text("{}")
    flip(run / "mix" / "vae" / "diffusion_pytorch_model.safetensors", -1)
    assert "unet/config.json" in str(answer(run, capsys)["findings"])


def test_a_flipped_bit_in_the_model_is_a_mismatch_that_names_the_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    flip(run / NAME, -1)
    found = answer(run, capsys)
    assert found["word"] == "MISMATCH"
    assert found["first_tensor"] == max(load_file(run / NAME))  # the last in the order of the file
    assert {"hash of the data in the header", f"tensors in {NAME + SIDECAR}", "1 file in run.json"} <= set(
        wrong(found)
    )


def test_the_content_hash_alone_finds_a_flipped_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / NAME).read_bytes())
    assert answer(alone, capsys)["word"] == "UNPROVEN"
    assert answer(alone, capsys, proof=True)["exit_code"] == 10
    flip(alone, -1)
    assert wrong(answer(alone, capsys)) == ["hash of the data in the header"]


def test_what_a_proof_lacks_is_said(tmp_path: Path) -> None:
    run = made(tmp_path)
    (tmp_path / "alone.safetensors").write_bytes((run / NAME).read_bytes())
    (tmp_path / "a.safetensors").unlink()
    for source, inputs, words in (
        (tmp_path / "alone.safetensors", False, r"statement or signature \(job.key=\) vouches for it"),
        (run, True, 'UNPROVEN: input a: "a.safetensors", sha256 .*: not found'),
    ):
        job = Job("verify", source=source, proof=True, inputs=inputs)
        with pytest.raises(MismatchError, match=words):
            verify_job(settings(tmp_path, job=job))


def test_a_model_of_another_tool_is_unproven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_models(tmp_path, a=1)
    found = answer(tmp_path / "a.safetensors", capsys)
    assert (found["word"], found["exit_code"]) == ("UNPROVEN", 0)


@pytest.mark.parametrize("offset", [0, 200, -3])
def test_a_changed_sidecar_is_a_mismatch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], offset: int
) -> None:
    run = made(tmp_path)
    flip(run / (NAME + SIDECAR), offset)
    found = answer(run, capsys)
    assert found["word"] == "MISMATCH" and f"{NAME + SIDECAR} in run.json" in wrong(found)
    assert "1 file in run.json" not in wrong(found)


def test_a_truncated_model_is_a_mismatch_where_something_says_what_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    content = (run / NAME).read_bytes()
    (run / NAME).write_bytes(content[:-5])
    found = answer(run, capsys)
    assert found["word"] == "MISMATCH" and "5 bytes are missing" in str(found["findings"])
    (tmp_path / "alone.safetensors").write_bytes(content[:-5])
    with pytest.raises(InputError, match="5 bytes are missing"):
        verify_job(settings(tmp_path, job=Job("verify", source=tmp_path / "alone.safetensors")))


def test_a_missing_model_or_none_is_an_input_error(tmp_path: Path) -> None:
    run = made(tmp_path)
    (run / NAME).unlink()
    (tmp_path / "page.safetensors").write_text("<html></html>")
    for source in (run, tmp_path / "nowhere", tmp_path / "page.safetensors", tmp_path):
        with pytest.raises(InputError):
            verify_job(settings(tmp_path, job=Job("verify", source=source)))


def test_an_edited_recipe_in_the_header_is_a_mismatch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    text = '{"compute_dtype":"float32","method":"copy","models":[{"role":"a","source":"a"}]}'
    edited(run / NAME, **{"runner.recipe": text})
    found = answer(run, capsys)
    assert {"recipe in the header", "recipe of run.json and header", "1 file in run.json"} <= set(
        wrong(found)
    )


def test_a_record_that_was_edited_is_a_mismatch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    text = (run / "run.json").read_text()
    for before, after, part in (
        ('"alpha": 0.3', '"alpha": 0.4', "recipe in run.json"),
        ('"source": "b.safetensors"', '"source": "c.safetensors"', "recipe in run.json"),
        ('"blake3": "', '"blake3": "0', "blake3 in run.json"),
        ('"tensor_root": "', '"tensor_root": "0', "tensor root in run.json"),
    ):
        assert before in text
        (run / "run.json").write_text(text.replace(before, after))
        assert {part, f"run.json in {NAME}.intoto.json"} <= set(wrong(answer(run, capsys)))
    (run / "run.json").write_text(text[:-20])
    assert "run.json" in wrong(answer(run, capsys))


def test_inputs_are_the_recorded_ones_wherever_they_lie_and_whatever_they_are_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    assert answer(run, capsys, inputs=True)["word"] == "VERIFIED"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "a.safetensors").rename(elsewhere / "renamed.safetensors")
    found = answer(run, capsys, inputs=True, models=elsewhere)
    verdicts = {one["part"]: one["verdict"] for one in found["findings"] if one["part"].startswith("input ")}
    assert verdicts == {"input a": "right", "input b": "absent"} and found["word"] == "UNPROVEN"
    save_file({"x": load_file(tmp_path / "b.safetensors").popitem()[1]}, elsewhere / "b.safetensors")
    found = answer(run, capsys, inputs=True, models=elsewhere)
    assert wrong(found) == ["input b"] and "there is another" in str(found["findings"])


def test_inputs_whose_running_means_were_taken_are_held_to_those(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo_model("photo", cache), tmp_path / "trained")
    shutil.copytree(demo_model("anime", cache) / "unet", tmp_path / "trained" / "unet_ema")
    run = made(tmp_path, models={"a": "trained", "b": "trained"}, ema="use")
    found = answer(run, capsys, inputs=True)
    assert found["word"] == "VERIFIED", found
    flip(next((tmp_path / "trained" / "unet_ema").glob("*.safetensors")), -1)
    assert wrong(answer(run, capsys, inputs=True)) == ["input a, b"]


def test_inputs_of_a_recipe_that_cannot_be_read_are_looked_for_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    record = run / "run.json"
    record.write_text(record.read_text().replace('"method": "weighted_sum"', '"method": 7'))
    found = answer(run, capsys, inputs=True)
    assert "recipe in run.json" in wrong(found)
    assert {one["part"] for one in found["findings"]} > {"input a", "input b"}


def test_a_model_that_lies_elsewhere_is_found_by_output_dir(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for name in (NAME, NAME + SIDECAR):
        (run / name).rename(out / name)
    assert answer(run, capsys, output_dir=out)["word"] == "VERIFIED"


def test_inputs_of_what_names_none_are_a_mistake(tmp_path: Path) -> None:
    write_models(tmp_path, a=1)
    with pytest.raises(UsageError):
        verify_job(settings(tmp_path, job=Job("verify", source=tmp_path / "a.safetensors", inputs=True)))


def test_the_answer_for_people_has_a_line_for_each_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    capsys.readouterr()
    verify_job(settings(tmp_path, job=Job("verify", source=run)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("VERIFIED: ") and "  right  1 file in run.json" in lines

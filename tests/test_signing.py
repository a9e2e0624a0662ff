"""Signatures of models: made, checked by us and by the package's own command, and what cannot be signed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runner.config import Job
from runner.errors import InputError, RunnerError, SigningError, UsageError
from runner.proof.job import verify_job
from runner.publish.finished import finished_model
from runner.run import Outcome, run
from runner.signing import fault, key_digest, sign, signature_path, signing_key
from tests.build import flip, write_models
from tests.proof.build import NAME, answer_of
from tests.runs import recipe, settings, tree

pytest.importorskip("model_signing", reason="the extra [sign] is not installed: signatures are not tested")

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

SCHEMA = json.loads((Path(__file__).parents[1] / "runner" / "schemas" / "run.json").read_text())


def keys(folder: Path, name: str = "key", curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """The files of a new private key and of its public half."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(as_pem(key))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def as_pem(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return text


def merged(folder: Path, key: Path | None, models: dict[str, str] | None = None, **more: Any) -> Outcome:
    """A merge in the folder of a run, which is the same each time."""
    if not (folder / "a.safetensors").exists():
        write_models(folder, a=1, b=2)
    own = folder / "run"
    own.mkdir(exist_ok=True)
    changes = {"models": models} if models else {}
    return run(recipe(tree(**changes)), settings(folder, sign_key=key, **more), own)


def record(folder: Path) -> Any:
    content = json.loads((folder / "run" / "run.json").read_text())
    jsonschema.validate(content, SCHEMA)
    return content["run"]


def by_the_package(model: Path, public: Path) -> subprocess.CompletedProcess[str]:
    """What the package's own command says of a model and its signature."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(model)]
    return subprocess.run(
        [*command, "--signature", str(signature_path(model)), "--public_key", str(public)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def verified(
    source: Path, folder: Path, key: Path | None, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    job = Job("verify", source=source, json=True, key=key)
    return answer_of(lambda: verify_job(settings(folder, job=job)), capsys)


def test_a_signed_model_is_accepted_by_us_and_by_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys(tmp_path)
    path = merged(tmp_path, private).path
    assert path is not None
    digest = key_digest(public.read_bytes())
    assert capsys.readouterr().out.splitlines()[-1] == f"{NAME}.sig: signed by the key {digest}"
    assert by_the_package(path, public).returncode == 0
    signed = record(tmp_path)["signed"]
    assert [(one["signature"], one["key_sha256"]) for one in signed] == [(f"{NAME}.sig", digest)]
    found = verified(path, tmp_path, public, capsys)
    assert found["word"] == "VERIFIED" and f"{NAME}.sig" in found["witnesses"]
    assert {"part": f"signature {NAME}.sig by the key {digest}", "verdict": "right", "text": ""} in found[
        "findings"
    ]
    assert finished_model(tmp_path / "run", tmp_path / "run").files  # the record is a record as before


def test_a_signature_alone_vouches_for_a_model_and_fails_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys(tmp_path)
    _, other = keys(tmp_path, "other", ec.SECP384R1())
    path = merged(tmp_path, private).path
    assert path is not None
    alone = tmp_path / "alone"
    alone.mkdir()
    for one in (path, signature_path(path)):
        one.rename(alone / one.name)
    model = alone / NAME
    assert verified(model, tmp_path, None, capsys)["word"] == "UNPROVEN"
    assert verified(model, tmp_path, public, capsys)["word"] == "VERIFIED"
    signature = signature_path(model).read_bytes()
    for key, content, damage in (
        (other, signature, False),
        (public, signature[:-40], False),
        (public, signature.replace(b'"payload":"ew', b'"payload":"fw'), False),
        (public, b"[" * 100_000, False),
        (public, b'{"verificationMaterial":[]}', False),
        (public, signature, True),
    ):
        signature_path(model).write_bytes(content)
        if damage:
            flip(model, -1)
        found = verified(model, tmp_path, key, capsys)
        assert (found["word"], found["exit_code"]) == ("MISMATCH", 10)
        wrong = [one for one in found["findings"] if one["verdict"] == "wrong" and ".sig by" in one["part"]]
        assert wrong and wrong[0]["text"]
    signature_path(model).unlink()
    assert verified(model, tmp_path, public, capsys)["exit_code"] == 10
    capsys.readouterr()


def test_a_folder_is_signed_with_all_its_files(tmp_path: Path, cache: Path) -> None:
    private, public = keys(tmp_path)
    demos = {"a": "demo:photo", "b": "demo:anime"}
    path = merged(tmp_path, private, demos, cache_dir=cache).path
    assert path is not None and signature_path(path) == tmp_path / "run" / "mix.sig"
    assert by_the_package(path, public).returncode == 0
    (path / "README.md").write_text("another card")
    assert by_the_package(path, public).returncode == 1
    wrong = fault(path, public.read_bytes())
    assert wrong is not None and "README.md" in wrong


def test_files_of_git_are_signed_like_all_others(tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"run": {}, "deterministic": {"output": {"name": "model"}}}')
    sign(model, private, tmp_path / "run")
    assert fault(model, public.read_bytes()) is None and by_the_package(model, public).returncode == 0
    (model / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert ".gitattributes" in str(fault(model, public.read_bytes()))


def test_the_folder_one_stands_in_has_its_signature_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert signature_path(Path()) == tmp_path.with_name(f"{tmp_path.name}.sig")


def test_a_model_that_is_there_already_is_signed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys(tmp_path)
    path = merged(tmp_path, None).path
    assert path is not None and not signature_path(path).exists()
    before = path.read_bytes()
    assert merged(tmp_path, private).earlier
    signature = signature_path(path).read_bytes()
    capsys.readouterr()
    assert merged(tmp_path, private).earlier
    assert "mix.safetensors.sig: there already" in capsys.readouterr().out
    assert signature_path(path).read_bytes() == signature and len(record(tmp_path)["signed"]) == 1
    signature_path(path).write_text("{}")
    assert merged(tmp_path, private).earlier
    assert fault(path, public.read_bytes()) is None and len(record(tmp_path)["signed"]) == 2
    assert path.read_bytes() == before
    assert verified(tmp_path / "run", tmp_path, public, capsys)["word"] == "VERIFIED"


def test_a_signature_goes_with_the_model_it_is_of(tmp_path: Path) -> None:
    path = merged(tmp_path, keys(tmp_path)[0]).path
    assert path is not None
    merged(tmp_path, None, rerun=True)
    assert path.exists() and not signature_path(path).exists()
    assert any("removed" in warning and ".sig" in warning for warning in record(tmp_path)["warnings"])


def test_a_signature_that_fails_leaves_the_model_and_its_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, _ = keys(tmp_path)
    (tmp_path / "run" / f"{NAME}.sig" / "in the way").mkdir(parents=True)
    with pytest.raises(SigningError) as caught:
        merged(tmp_path, private)
    assert caught.value.exit_code == 7
    assert str(caught.value).startswith("the model is in place, signing failed: ")
    said = record(tmp_path)
    assert said["error"] is None and "error" in said["signed"][0]
    assert verified(tmp_path / "run", tmp_path, None, capsys)["word"] == "VERIFIED"
    private.unlink()
    with pytest.raises(SigningError, match="no such file"):
        sign(tmp_path / "run" / NAME, private, tmp_path / "run")


def test_an_earlier_model_that_cannot_be_signed_leaves_a_record_of_the_run_that_tried(tmp_path: Path) -> None:
    private, _ = keys(tmp_path)
    write_models(tmp_path, a=1, b=2)
    first, again = (tmp_path / f"2026-01-0{day}_00-00-00_abcdef" for day in (1, 2))
    for folder in (first, again):
        folder.mkdir()
    run(recipe(tree()), settings(tmp_path), first)
    (first / f"{NAME}.sig" / "in the way").mkdir(parents=True)
    with pytest.raises(SigningError, match="signing failed"):
        run(recipe(tree()), settings(tmp_path, sign_key=private), again)
    content = json.loads((again / "run.json").read_text())
    jsonschema.validate(content, SCHEMA)
    assert content["run"]["error"]["exit_code"] == 7
    assert content["deterministic"]["recipe"]["method"] == "weighted_sum"
    assert json.loads((first / "run.json").read_text())["run"]["error"] is None


def test_a_key_that_cannot_sign_is_told_before_the_merge(tmp_path: Path) -> None:
    good, public = keys(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "secret.pem").write_bytes(as_pem(key, BestAvailableEncryption(b"word")))
    (tmp_path / "rsa.pem").write_bytes(as_pem(rsa.generate_private_key(65537, 2048)))
    (tmp_path / "text.pem").write_text("no key")
    odd = keys(tmp_path, "odd", ec.SECP256K1())[0]
    for path, kind, words in (
        (tmp_path / "absent.pem", InputError, "no such file"),
        (tmp_path / "secret.pem", UsageError, "has a passphrase"),
        (tmp_path / "rsa.pem", UsageError, "a key of another kind"),
        (tmp_path / "text.pem", UsageError, "is no private key"),
        (public, UsageError, "is no private key"),
        (odd, UsageError, "a key of another kind"),
    ):
        kinds: type[RunnerError] = kind
        with pytest.raises(kinds, match=words):
            merged(tmp_path, path)
        assert not (tmp_path / "run" / NAME).exists()
    assert signing_key(good) == public.read_bytes()


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, _ = keys(tmp_path)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UsageError, match="needs model-signing") as caught:
        merged(tmp_path, private)
    assert caught.value.hint == "pip install 'runner[sign]'"


def test_a_plan_names_the_key_and_signs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = keys(tmp_path)
    merged(tmp_path, private, job=Job("plan"))
    expected = f"sign\n  {NAME}.sig, by the key {key_digest(public.read_bytes())}\n"
    assert expected in capsys.readouterr().out
    assert not (tmp_path / "run" / f"{NAME}.sig").exists()

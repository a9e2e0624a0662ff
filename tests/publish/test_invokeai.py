"""A model registered with InvokeAI: a server here that answers as InvokeAI does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from runner.errors import PublishError, UsageError
from runner.publish.finished import finished_model
from runner.publish.invokeai import checked_url, register
from runner.publish.target import CHECKPOINT, DRY_RUN, PUBLISHED, THERE, Model, Target
from tests.publish.conftest import mix
from tests.publish.invokeai_server import InvokeAI, served
from tests.runs import made


@pytest.fixture
def invokeai() -> Iterator[InvokeAI]:
    with served() as state:
        yield state


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A file with a name that must be escaped in an address."""
    path = tmp_path / "a mix & more+.safetensors"
    path.write_bytes(b"weights")
    return Model(path, CHECKPOINT, {"": "0" * 64}, blake3={"": blake3(b"weights").hexdigest()})


def target(invokeai: InvokeAI, patience: int = 20, **changes: bool) -> Target:
    return Target("invokeai", url=invokeai.url, patience=patience, **changes)


def test_a_model_is_installed_in_place_and_waited_for(invokeai: InvokeAI, model: Model) -> None:
    assert register(model, target(invokeai)) == PUBLISHED
    (job,) = invokeai.jobs
    assert job["source"]["path"] == str(model.path) and job["inplace"] is True
    assert job["status"] == "completed" and model.path.read_bytes() == b"weights"
    assert [line.partition("?")[0] for line in invokeai.asked] == [
        "GET /api/v2/models/",
        "POST /api/v2/models/install",
        *["GET /api/v2/models/install/0"] * 2,
    ]


def test_twice_is_there_already_and_asks_for_nothing_more(invokeai: InvokeAI, model: Model) -> None:
    register(model, target(invokeai))
    del invokeai.asked[:]
    assert register(model, target(invokeai)) == THERE
    assert invokeai.asked == ["GET /api/v2/models/"] and len(invokeai.jobs) == 1


def test_a_file_of_the_same_bytes_elsewhere_is_there_already(invokeai: InvokeAI, model: Model) -> None:
    invokeai.know("0b1c/x.safetensors", hash=f"blake3:{model.blake3['']}")
    assert register(model, target(invokeai)) == THERE and not invokeai.jobs


def test_what_it_knows_of_a_file_that_is_gone_is_not_there(invokeai: InvokeAI, model: Model) -> None:
    invokeai.know(str(model.path.with_name("gone.safetensors")), hash=f"blake3:{model.blake3['']}")
    assert register(model, target(invokeai)) == PUBLISHED


def test_a_folder_is_known_by_its_weights(invokeai: InvokeAI, folder_run: Path, tmp_path: Path) -> None:
    folder = finished_model(folder_run, folder_run)
    assert [register(folder, target(invokeai)) for _ in range(2)] == [PUBLISHED, THERE]
    copy = replace(folder, path=Path(shutil.copytree(folder.path, tmp_path / "copy")))
    assert register(copy, target(invokeai)) == THERE
    (entry,) = invokeai.models
    entry["hash"] = f"blake3:{'1' * 64}"
    with pytest.raises(PublishError, match='knows "mix" at this path, with another content'):
        register(folder, target(invokeai))


def test_where_it_does_not_hash_with_blake3_a_model_is_known_by_its_path(
    invokeai: InvokeAI, model: Model
) -> None:
    invokeai.know(str(model.path), hash=f"sha256:{'1' * 64}")
    assert register(model, target(invokeai)) == THERE


@pytest.mark.parametrize("known", [False, True])
def test_a_model_is_put_down_for_what_it_predicts(known: bool, invokeai: InvokeAI, model: Model) -> None:
    model = replace(model, prediction="v_prediction")
    if known:
        invokeai.know(str(model.path), hash=f"blake3:{model.blake3['']}")
        assert register(model, target(invokeai, dry_run=True)) == DRY_RUN
    assert [register(model, target(invokeai)) for _ in range(2)] == [PUBLISHED, THERE]
    assert [one["prediction_type"] for one in invokeai.models] == ["v_prediction"]
    assert len([line for line in invokeai.asked if line == "PATCH /api/v2/models/i/key%200"]) == 1


def test_one_that_keeps_to_another_prediction_is_told(invokeai: InvokeAI, model: Model) -> None:
    invokeai.keeps = True
    with pytest.raises(PublishError, match="does not take the model for one that predicts v_prediction"):
        register(replace(model, prediction="v_prediction"), target(invokeai))


@pytest.mark.parametrize(
    ("stated", "layout", "expected"),
    [
        ({}, "checkpoint", "epsilon"),
        ({"prediction_type": "v_prediction"}, "checkpoint", "v_prediction"),
        ({"prediction_type": "v_prediction", "zero_terminal_snr": True}, "diffusers", "v_prediction"),
    ],
)
def test_what_a_model_predicts_is_in_its_record(
    stated: dict[str, object], layout: str, expected: str, cache: Path, tmp_path: Path
) -> None:
    recipe = mix(a="demo:photo", b="demo:anime") | stated | {"output": {"format": layout}}
    made(tmp_path, "run", recipe, cache_dir=cache)
    assert finished_model(tmp_path / "run", tmp_path / "run").prediction == expected


def test_another_content_at_this_path_is_refused(invokeai: InvokeAI, model: Model) -> None:
    invokeai.know(str(model.path), name="old", hash=f"blake3:{'1' * 64}")
    with pytest.raises(PublishError, match='knows "old" at this path, with another content'):
        register(model, target(invokeai))
    assert not invokeai.jobs


def test_a_dry_run_only_asks_what_is_known(invokeai: InvokeAI, model: Model) -> None:
    assert register(model, target(invokeai, dry_run=True)) == DRY_RUN
    assert invokeai.asked == ["GET /api/v2/models/"]


def test_a_model_that_cannot_be_installed_is_told_in_its_words(invokeai: InvokeAI, model: Model) -> None:
    invokeai.steps = ("waiting", "error")
    with pytest.raises(PublishError, match="ValueError: No model files or config files found"):
        register(model, target(invokeai))


def test_a_model_that_is_listed_but_not_recognised_is_told(invokeai: InvokeAI, model: Model) -> None:
    invokeai.recognises = False
    for _ in range(2):
        with pytest.raises(
            PublishError, match=r'lists "a mix & more\+", and does not recognise it'
        ) as caught:
            register(model, target(invokeai))
        assert "model manager" in str(caught.value.hint)
    assert len(invokeai.jobs) == 1


def test_patience_ends(invokeai: InvokeAI, model: Model) -> None:
    invokeai.steps = ("running",)
    with pytest.raises(PublishError, match="has not installed the model in 0 s; its job 0 goes on") as caught:
        register(model, target(invokeai, patience=0))
    assert "publish.patience" in str(caught.value.hint)


def test_a_refusal_is_told_with_its_detail(invokeai: InvokeAI, model: Model) -> None:
    model.path.unlink()
    with pytest.raises(PublishError, match='answers 409: "Unsupported model source: ') as caught:
        register(model, target(invokeai))
    assert "under the same path" in str(caught.value.hint)


def test_an_address_below_that_of_invokeai_gets_a_page(invokeai: InvokeAI, model: Model) -> None:
    with pytest.raises(PublishError, match="the answer is not JSON"):
        register(model, replace(target(invokeai), url=f"{invokeai.url}/ui"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, b"[]"), "no JSON object"),
        ((200, b"{}"), "no list of models"),
        ((200, b"[" * 100_000), "the answer is not JSON"),
        ((500, b"oops"), "answers 500$"),
        (
            (401, b'{"detail": "Authentication required\\u001b[31m"}'),
            r'answers 401: "Authentication required\\u001b',
        ),
    ],
)
def test_strange_answers_are_one_line(
    fault: tuple[int, bytes], words: str, invokeai: InvokeAI, model: Model
) -> None:
    invokeai.fault = fault
    with pytest.raises(PublishError, match=words) as caught:
        register(model, target(invokeai))
    assert "\n" not in caught.value.message


def test_where_nobody_answers_it_is_told(model: Model) -> None:
    with pytest.raises(PublishError, match="does not answer"):
        register(model, Target("invokeai", url="http://127.0.0.1:9", patience=1))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:9090", "ftp://x", "http://", "http://x:y", "http://x?y", "file:///x"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected an address"):
        checked_url(url)


def test_an_address_has_no_password() -> None:
    with pytest.raises(UsageError, match="without a name and a password") as caught:
        checked_url("http://me:s3cr3t@127.0.0.1:9090")
    assert "s3cr3t" not in caught.value.message
    assert checked_url("http://localhost:9090/") == "http://localhost:9090"

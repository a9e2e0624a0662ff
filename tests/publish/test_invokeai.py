"""A model registered with InvokeAI: a server here that keeps to what its OpenAPI document says.

It answers three of its routes, refuses what the document does not know, and installs by reading the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from blake3 import blake3

from runner.errors import PublishError, UsageError
from runner.publish.invokeai import checked_url, register
from runner.publish.target import CHECKPOINT, DRY_RUN, PIPELINE, PUBLISHED, THERE, Model, Target
from tests.serving import serving

# What InvokeAI 6.8 documents of POST /api/v2/models/install: its query, and the fields of its body.
QUERY = {"source", "inplace", "access_token"}
CHANGES = {"source", "name", "path", "description", "base", "type", "key", "hash", "file_size", "format"}
STEPS = ("waiting", "running", "completed")


@dataclass
class InvokeAI:
    """What the server knows, and how it behaves."""

    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    steps: tuple[str, ...] = STEPS
    fault: tuple[int, bytes] | None = None

    def install(self, source: str, inplace: bool) -> dict[str, Any]:
        """A new job."""
        job = {"id": len(self.jobs), "source": {"type": "local", "path": source}, "inplace": inplace}
        self.jobs.append({**job, "status": self.steps[0], "left": list(self.steps[1:])})
        return self.jobs[-1]

    def go_on(self, job: dict[str, Any]) -> None:
        """A job's next state; at its end the model is known."""
        if job["left"]:
            job["status"] = job["left"].pop(0)
        if job["status"] == "error":
            job |= {"error_reason": "InvalidModelConfigException", "error": "Unable to determine model type"}
        if job["status"] == "completed" and "config_out" not in job:
            path = Path(job["source"]["path"])
            digest = blake3(path.read_bytes()).hexdigest() if path.is_file() else "0" * 64
            job["config_out"] = {"name": path.stem, "path": str(path), "hash": f"blake3:{digest}"}
            self.models.append(job["config_out"])


@pytest.fixture
def invokeai() -> Iterator[InvokeAI]:
    state = InvokeAI()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: Any) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            state.asked.append(f"GET {self.path}")
            if state.fault:
                return self.answer(*state.fault)
            if self.path == "/api/v2/models/":
                return self.answer(200, {"models": state.models})
            number = self.path.removeprefix("/api/v2/models/install/")
            if not number.isdecimal() or int(number) >= len(state.jobs):
                return self.answer(404, {"detail": "No such job"})
            state.go_on(state.jobs[int(number)])
            return self.answer(200, {k: v for k, v in state.jobs[int(number)].items() if k != "left"})

        def do_POST(self) -> None:
            state.asked.append(f"POST {self.path}")
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, strict_parsing=True)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if parts.path != "/api/v2/models/install":
                return self.answer(404, {"detail": "Not Found"})
            known = set(query) <= QUERY and isinstance(body, dict) and set(body) <= CHANGES
            if not known or "source" not in query or self.headers["Content-Type"] != "application/json":
                return self.answer(422, {"detail": [{"msg": "Field required"}]})
            (source,), (inplace,) = query["source"], query["inplace"]
            if not Path(source).exists():
                return self.answer(415, {"detail": "Unrecognized file/folder format"})
            job = state.install(source, {"true": True, "false": False}[inplace])
            return self.answer(201, {key: value for key, value in job.items() if key != "left"})

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Handler) as state.url:
        yield state


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A file with a name that must be escaped in an address."""
    path = tmp_path / "a mix & more+.safetensors"
    path.write_bytes(b"weights")
    return Model(path, CHECKPOINT, {"": "0" * 64}, blake3=blake3(b"weights").hexdigest())


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
    invokeai.models.append({"name": "x", "path": "sd-1/main/x", "hash": f"blake3:{model.blake3}"})
    assert register(model, target(invokeai)) == THERE and not invokeai.jobs


def test_a_folder_is_known_by_its_path(invokeai: InvokeAI, tmp_path: Path) -> None:
    (tmp_path / "mix").mkdir()
    folder = Model(tmp_path / "mix", PIPELINE, {})
    assert [register(folder, target(invokeai)) for _ in range(2)] == [PUBLISHED, THERE]


def test_another_content_at_this_path_is_refused(invokeai: InvokeAI, model: Model) -> None:
    invokeai.models.append({"name": "old", "path": str(model.path), "hash": f"blake3:{'1' * 64}"})
    with pytest.raises(PublishError, match='knows "old" at this path, with another content'):
        register(model, target(invokeai))
    assert not invokeai.jobs


def test_a_dry_run_only_asks_what_is_known(invokeai: InvokeAI, model: Model) -> None:
    assert register(model, target(invokeai, dry_run=True)) == DRY_RUN
    assert invokeai.asked == ["GET /api/v2/models/"]


def test_a_model_that_is_not_recognised_is_told_in_its_words(invokeai: InvokeAI, model: Model) -> None:
    invokeai.steps = ("waiting", "error")
    with pytest.raises(PublishError, match="InvalidModelConfigException: Unable to determine model type"):
        register(model, target(invokeai))


def test_patience_ends(invokeai: InvokeAI, model: Model) -> None:
    invokeai.steps = ("running",)
    with pytest.raises(PublishError, match="has not installed the model in 0 s; its job 0 goes on") as caught:
        register(model, target(invokeai, patience=0))
    assert "publish.patience" in str(caught.value.hint)


def test_a_refusal_is_told_with_its_detail(invokeai: InvokeAI, model: Model) -> None:
    model.path.unlink()
    with pytest.raises(PublishError, match='answers 415: "Unrecognized file/folder format"'):
        register(model, target(invokeai))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, b"[]"), "no JSON object"),
        ((200, b"{}"), "no list of models"),
        ((200, b"[" * 100_000), "the answer is not JSON"),
        ((500, b"oops"), "answers 500$"),
        ((401, b'{"detail": "Not authenticated\\u001b[31m"}'), r'answers 401: "Not authenticated\\u001b'),
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

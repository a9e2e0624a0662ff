"""An InvokeAI on this machine: the routes that publishing asks, answered as InvokeAI 6.14.2 does.

tests/publish/test_real_invokeai.py holds what stands here to what a real one answers and documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from blake3 import blake3

from tests.serving import serving

# What its OpenAPI document says of the routes that are asked.
ROUTES = {
    ("get", "/api/v2/models/"),
    ("post", "/api/v2/models/install"),
    ("get", "/api/v2/models/install/{id}"),
    ("patch", "/api/v2/models/i/{key}"),
}
QUERY = {"source", "inplace", "access_token"}
PREDICTIONS = {"epsilon", "v_prediction", "sample"}
STATES = {"waiting", "running", "completed", "error", "cancelled"}  # those that count here
# Answers of 6.14.2: a job, and what it says of a single file that it recognises and of one that it does not.
ANSWERS = json.loads((Path(__file__).parent / "invokeai.json").read_text())
CHANGES = set(ANSWERS["job"]["config_in"])  # fields of the body of an installation, and of a change
PAGE = b"<!DOCTYPE html>\n<html>"  # for whatever else is asked of it, with status 200


@dataclass
class InvokeAI:
    """What the server knows, and how it behaves.

    Attributes:
        steps: states of a job, the first in the answer to its request.
        recognises: whether it finds out what a model is.
        keeps: whether it keeps to what it takes a model to predict, whatever is asked.
        fault: what it answers everything with.
    """

    url: str = ""
    models: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    steps: tuple[str, ...] = ("waiting", "running", "completed")
    recognises: bool = True
    keeps: bool = False
    fault: tuple[int, bytes] | None = None

    def know(self, path: str, **changes: Any) -> dict[str, Any]:
        """Has it know a model, which need not be there."""
        key = f"key {len(self.models)}"
        name = Path(path).name if Path(path).is_dir() else Path(path).stem
        answer = ANSWERS["main" if self.recognises else "unknown"]
        entry: dict[str, Any] = {**answer, "key": key, "name": name, "path": path, "source": path, **changes}
        self.models.append(entry)
        return entry

    def install(self, source: str, inplace: bool) -> dict[str, Any]:
        """A new job."""
        place = {"path": source, "inplace": inplace, "type": "local"}
        job = {**ANSWERS["job"], "id": len(self.jobs), "status": self.steps[0], "inplace": inplace}
        job |= {"source": place, "local_path": source}
        self.jobs.append(job)
        return job

    def go_on(self, job: dict[str, Any]) -> None:
        """A job's next state; at its end the model is known."""
        at = self.steps.index(job["status"]) + 1
        if at == len(self.steps):
            return
        job["status"], path = self.steps[at], job["source"]["path"]
        if job["status"] == "completed" and any(one["path"] == path for one in self.models):
            error = f"A model with path '{path}' is already installed"
            job |= {"status": "error", "error_reason": "DuplicateModelException", "error": error}
        elif job["status"] == "completed":
            job["config_out"] = self.know(path, hash=f"blake3:{hash_of(Path(path))}")
        elif job["status"] == "error":
            error = f"No model files or config files found in directory {path}."
            job |= {"error_reason": "ValueError", "error": error}


def hash_of(path: Path) -> str:
    """InvokeAI's: of a file, or of the digits of a folder's weight files in the order of their paths."""
    if path.is_file():
        return blake3(path.read_bytes()).hexdigest()
    digits = [blake3(one.read_bytes()).hexdigest() for one in sorted(path.rglob("*.safetensors"))]
    return blake3("".join(digits).encode()).hexdigest()


@contextmanager
def served() -> Iterator[InvokeAI]:
    """An InvokeAI that answers until the block ends."""
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
            number = self.path.removeprefix("/api/v2/models/install/")
            if state.fault:
                self.answer(*state.fault)
            elif self.path == "/api/v2/models/":
                self.answer(200, {"models": state.models})
            elif number == self.path:
                self.answer(200, PAGE)
            elif not number.isdecimal() or int(number) >= len(state.jobs):
                self.answer(404, {"detail": f"No job with id {number} known"})
            else:
                state.go_on(state.jobs[int(number)])
                self.answer(200, state.jobs[int(number)])

        def do_POST(self) -> None:
            state.asked.append(f"POST {self.path}")
            parts = urlsplit(self.path)
            query, body = parse_qs(parts.query, strict_parsing=True), self.body()
            if parts.path != "/api/v2/models/install":
                return self.answer(405, {"detail": "Method Not Allowed"})
            known = set(query) <= QUERY and isinstance(body, dict) and set(body) <= CHANGES
            if not known or "source" not in query or self.headers["Content-Type"] != "application/json":
                missing = {"type": "missing", "loc": ["query", "source"], "msg": "Field required"}
                return self.answer(422, {"detail": [missing]})
            (source,), (inplace,) = query["source"], query["inplace"]
            if not Path(source).exists():
                return self.answer(409, {"detail": f"Unsupported model source: '{source}'"})
            return self.answer(201, state.install(source, {"true": True, "false": False}[inplace]))

        def do_PATCH(self) -> None:
            state.asked.append(f"PATCH {self.path}")
            key = self.path.removeprefix("/api/v2/models/i/").replace("%20", " ")
            found = [one for one in state.models if one["key"] == key]
            body = self.body()
            if not found:
                return self.answer(404, {"detail": "model not found"})
            if set(body) != {"prediction_type"} or body["prediction_type"] not in PREDICTIONS:
                return self.answer(422, {"detail": [{"type": "enum", "loc": ["body", "prediction_type"]}]})
            if not state.keeps:
                found[0].update(body)
            return self.answer(200, found[0])

        def body(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Handler) as state.url:
        yield state

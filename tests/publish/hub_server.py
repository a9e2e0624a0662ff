"""A hub on this machine: the routes that huggingface_hub asks to make a repository and to commit to it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.serving import serving

TOKEN = "hf_" + "t0ken" * 7


@dataclass
class Hub:
    """What it has, and what it was asked.

    Attributes:
        files: of its one repository, by name; None: there is none.
        large: names of those that are stored as large files.
        objects: large files that were uploaded, by SHA-256.
        fault: a path, and the status it is answered with.
    """

    repository: str = "me/mix"
    endpoint: str = ""
    private: bool | None = None
    files: dict[str, bytes] | None = None
    large: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    fault: tuple[str, int] | None = None

    def entry(self, name: str) -> dict[str, Any]:
        """A file as the hub lists it."""
        content = (self.files or {})[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name in self.large:
            found["oid"] = "f" * 40  # of the pointer
            found["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
        return found

    def commit(self, lines: list[dict[str, Any]]) -> None:
        """Takes all files of a commit, or none."""
        assert self.files is not None
        new, large = dict(self.files), set(self.large)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                new[value["path"]] = self.objects[value["oid"]]
                large.add(value["path"])
            else:
                self.commits.append(value["summary"])
        self.files, self.large = new, large


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: Any, **headers: str) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            said = {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}
            for name, text in said.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            self.wfile.write(content)

        def content(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def do_GET(self) -> None:
            self.answer(404, {"error": "not here"})

        def do_PUT(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            path, content = urlsplit(self.path).path, self.content()
            hub.asked.append(f"{self.command} {path}")
            if hub.fault and hub.fault[0] in path:
                return self.answer(hub.fault[1], {"error": "out of order"})
            if path.startswith("/objects/"):  # a store that knows no login
                hub.objects[path.removeprefix("/objects/")] = content
                return self.answer(200, {})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid credentials"})
            if path == "/api/repos/create":
                return self.create(json.loads(content))
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if hub.files is None:
                return self.answer(404, {"error": "Not found"}, X_Error_Code="RepoNotFound")
            return self.in_repository(path, content)

        def create(self, body: dict[str, Any]) -> None:
            if hub.files is not None:
                return self.answer(409, {"error": "You already created this model repo"})
            hub.files, hub.private = {".gitattributes": b"*"}, body.get("visibility") == "private"
            hub.private |= body.get("private") is True  # as older releases say it
            return self.answer(200, {"url": f"{hub.endpoint}/{body['organization']}/{body['name']}"})

        def in_repository(self, path: str, content: bytes) -> None:
            api = path.removeprefix(f"/api/models/{hub.repository}/")
            if api == "paths-info/main":
                names = parse_qs(content.decode())["paths"]
                return self.answer(200, [hub.entry(name) for name in names if name in (hub.files or {})])
            if api == "preupload/main":
                files = [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for one in json.loads(content)["files"]
                ]
                return self.answer(200, {"files": files})
            if path == f"/{hub.repository}.git/info/lfs/objects/batch":
                objects = [
                    {**one, "actions": {"upload": {"href": f"{hub.endpoint}/objects/{one['oid']}"}}}
                    for one in json.loads(content)["objects"]
                ]
                return self.answer(200, {"transfer": "basic", "objects": objects})
            if api == "commit/main":
                hub.commit([json.loads(line) for line in content.splitlines()])
                url = f"{hub.endpoint}/{hub.repository}/commit/{'a' * 40}"
                return self.answer(200, {"commitUrl": url, "commitOid": "a" * 40})
            return self.answer(404, {"error": "no such route"})

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that answers, without a repository."""
    hub = Hub()
    with serving(_handler(hub)) as hub.endpoint:
        yield hub

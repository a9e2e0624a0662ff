"""A model made known to a running InvokeAI, which loads it from where it lies.

Source: InvokeAI 6.8, its OpenAPI document: /api/v2/models/, /api/v2/models/install and /install/{id};
services/model_install/model_install_common.py for the states of a job.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from runner.errors import PublishError, UsageError, quote
from runner.publish.target import DRY_RUN, PUBLISHED, THERE, Model, Target

MAX_ANSWER_BYTES = 64 << 20
ANSWER_SECONDS = 60  # that one request may take
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # between two questions for a job, the last again and again
_FAILED = ("error", "cancelled")
_BLAKE3 = "blake3:"


def checked_url(url: str) -> str:
    """The address of InvokeAI, without a slash at its end.

    Raises:
        UsageError: it is none, or has a name or password in it.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise UsageError(
            f"publish.url: expected an address such as http://127.0.0.1:9090; found {quote(url)}"
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError("publish.url: expected an address without a name and a password")
    return url.rstrip("/")


def register(model: Model, target: Target) -> str:
    """Has InvokeAI install a model in place; returns the word for what was done.

    Raises:
        PublishError: it does not answer, refuses the model, or takes too long.
    """
    url, path = checked_url(target.url), model.path.resolve()
    models = _object(_asked(url, "GET", "/api/v2/models/")).get("models")
    if not isinstance(models, list):
        raise PublishError(f"{url}: no list of models in the answer; is this InvokeAI?")
    if _is_known([one for one in models if isinstance(one, Mapping)], path, model):
        return THERE
    if target.dry_run:
        return DRY_RUN
    query = urlencode({"source": str(path), "inplace": "true"})
    job = _object(_asked(url, "POST", f"/api/v2/models/install?{query}", {}))
    _wait(url, job, target.patience)
    return PUBLISHED


def _is_known(models: list[Mapping[str, Any]], path: Path, model: Model) -> bool:
    """Whether InvokeAI has a model: at this path, or a file of these bytes wherever it lies.

    Raises:
        PublishError: it knows another model at this path.
    """
    ours = f"{_BLAKE3}{model.blake3}" if model.blake3 else None
    if ours and any(one.get("hash") == ours for one in models):
        return True
    for one in models:
        theirs, digest = one.get("path"), one.get("hash")
        if not isinstance(theirs, str) or not theirs.startswith("/") or os.path.realpath(theirs) != str(path):
            continue
        if ours and isinstance(digest, str) and digest.startswith(_BLAKE3):
            raise PublishError(
                f"InvokeAI knows {quote(one.get('name'))} at this path, with another content",
                hint="remove that one in InvokeAI's model manager, and publish again",
            )
        return True
    return False


def _wait(url: str, job: Mapping[str, Any], patience: int) -> None:
    """Waits for the end of an installation.

    Raises:
        PublishError: it failed, or it has not ended in time.
    """
    until, tries = time.monotonic() + patience, 0
    while (status := job.get("status")) != "completed":
        if status in _FAILED:
            reason = ": ".join(str(job[name]) for name in ("error_reason", "error") if job.get(name))
            raise PublishError(f"InvokeAI did not install the model: {quote(reason or status)}")
        number = job.get("id")
        if type(number) is not int:
            raise PublishError(f"{url}: no number of a job in the answer; is this InvokeAI?")
        if time.monotonic() >= until:
            raise PublishError(
                f"InvokeAI has not installed the model in {patience} s; its job {number} goes on",
                hint="publish.patience=SECONDS waits longer",
            )
        time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
        tries += 1
        job = _object(_asked(url, "GET", f"/api/v2/models/install/{number}"))


def _object(answer: Any) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise PublishError("InvokeAI's answer is no JSON object; is this InvokeAI?")
    return answer


def _asked(url: str, method: str, path: str, body: object = None) -> Any:
    """The answer to a request, as JSON."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import ProxyHandler, Request, build_opener

    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{url}{path}", data, {"Content-Type": "application/json"}, method=method)
    try:
        # It sees our folders, so it is no further than this machine's network: never by way of a proxy.
        with build_opener(ProxyHandler({})).open(request, timeout=ANSWER_SECONDS) as answer:
            content = answer.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise PublishError(f"{url}: an answer of more than {MAX_ANSWER_BYTES} bytes")
        return json.loads(content)
    except HTTPError as error:
        raise PublishError(f"{url}: InvokeAI answers {error.code}{_detail(error.read(1 << 16))}") from error
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise PublishError(
            f"{url}: InvokeAI does not answer: {quote(reason)}",
            hint="is it running there? publish.url says where",
        ) from error
    except (ValueError, RecursionError) as error:
        raise PublishError(f"{url}: the answer is not JSON; is this InvokeAI?") from error


def _detail(content: bytes) -> str:
    """What an error of the server says of itself."""
    try:
        detail = json.loads(content)["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f": {quote(detail)}"

"""A model made known to a running InvokeAI, which loads it from where it lies.

Source: InvokeAI 6.14, its OpenAPI document: /api/v2/models/ with install, install/{id} and i/{key};
services/model_install/model_install_common.py for the states of a job; backend/model_hash/model_hash.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote as url_quote
from urllib.parse import urlencode, urlsplit

from runner.errors import PublishError, UsageError, quote
from runner.publish.target import DRY_RUN, PUBLISHED, THERE, Model, Target

MAX_ANSWER_BYTES = 64 << 20
ANSWER_SECONDS = 60  # that one request may take
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # between two questions for a job, the last again and again
_FAILED = ("error", "cancelled")
_BLAKE3 = "blake3:"
_WEIGHTS = (".ckpt", ".safetensors", ".bin", ".pt", ".pth")  # files that count for the hash of a folder
_UNKNOWN = "unknown"
_HINTS = {  # method and status
    ("GET", 401): "an InvokeAI with accounts is not supported: multiuser: false in its invokeai.yaml",
    ("POST", 409): "InvokeAI must see the model under the same path",
}


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
    """Has InvokeAI install a model in place, as what it predicts; returns the word for what was done.

    Raises:
        PublishError: it does not answer, refuses the model, does not recognise it, or takes too long.
    """
    url, path = checked_url(target.url), model.path.resolve()
    models = _object(_asked(url, "GET", "/api/v2/models/")).get("models")
    if not isinstance(models, list):
        raise PublishError(f"{url}: no list of models in the answer; is this InvokeAI?")
    entry = _known([one for one in models if isinstance(one, Mapping)], path, model)
    if entry is not None and _is_right(entry, model):
        return THERE
    if target.dry_run:
        return DRY_RUN
    if entry is None:
        query = urlencode({"source": str(path), "inplace": "true"})
        job = _object(_asked(url, "POST", f"/api/v2/models/install?{query}", {}))
        entry = _installed(url, job, target.patience)
    if not _is_right(entry, model):
        # It takes nearly every single file for one of epsilon, and passes over what an install says of that.
        place = f"/api/v2/models/i/{url_quote(str(entry.get('key')), safe='')}"
        entry = _object(_asked(url, "PATCH", place, {"prediction_type": model.prediction}))
        if not _is_right(entry, model):
            raise PublishError(f"InvokeAI does not take the model for one that predicts {model.prediction}")
    return PUBLISHED


def _known(models: list[Mapping[str, Any]], path: Path, model: Model) -> Mapping[str, Any] | None:
    """What InvokeAI says of a model that it has: at this path, or of the same bytes wherever it lies.

    Raises:
        PublishError: it knows another model at this path.
    """
    ours = _hash_of(model)
    for one in models:
        if ours and one.get("hash") == ours and not _is_gone(one.get("path")):
            return one
    for one in models:
        theirs, digest = one.get("path"), one.get("hash")
        if not isinstance(theirs, str) or not theirs.startswith("/") or os.path.realpath(theirs) != str(path):
            continue
        if ours and isinstance(digest, str) and digest.startswith(_BLAKE3):
            raise PublishError(
                f"InvokeAI knows {quote(one.get('name'))} at this path, with another content",
                hint="remove that one in InvokeAI's model manager, and publish again",
            )
        return one
    return None


def _is_gone(path: object) -> bool:
    """Whether what InvokeAI knows has been removed; a relative path is in a folder of its own."""
    return isinstance(path, str) and path.startswith("/") and not os.path.exists(path)  # noqa: PTH110 - no errors


def _hash_of(model: Model) -> str | None:
    """The hash InvokeAI knows a model by: of a file, or of the digits of a folder's files in their order."""
    from blake3 import blake3

    if not model.folder:
        return f"{_BLAKE3}{model.blake3['']}" if model.blake3 else None
    weights = sorted(PurePosixPath(name) for name in model.files if name.endswith(_WEIGHTS))
    digits = [model.blake3.get(str(name)) for name in weights]
    if not digits or None in digits:
        return None
    return f"{_BLAKE3}{blake3(''.join(map(str, digits)).encode()).hexdigest()}"


def _is_right(entry: Mapping[str, Any], model: Model) -> bool:
    """Whether InvokeAI takes a model for one that predicts what it does, as far as both say.

    Raises:
        PublishError: it did not recognise the model at all.
    """
    if entry.get("type") == _UNKNOWN:
        raise PublishError(
            f"InvokeAI lists {quote(entry.get('name'))}, and does not recognise it: its type is unknown",
            hint="it cannot be used there: remove it in InvokeAI's model manager",
        )
    says = entry.get("prediction_type")
    return says is None or model.prediction is None or says == model.prediction


def _installed(url: str, job: Mapping[str, Any], patience: int) -> Mapping[str, Any]:
    """What InvokeAI says of a model once its installation has ended.

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
    return _object(job.get("config_out"))


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
        message = f"{url}: InvokeAI answers {error.code}{_detail(error.read(1 << 16))}"
        raise PublishError(message, hint=_HINTS.get((method, error.code))) from error
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

"""A model and its card in a repository of the Hugging Face hub, all in one commit.

huggingface_hub does the work: it finds the login by itself, no token passes through here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from runner.checkpoint import CARD
from runner.errors import InputError, PublishError, RunnerError, UsageError, counted, escape, quote
from runner.library.hub import parse_name, said_offline
from runner.publish.folder import digest_of
from runner.publish.target import DRY_RUN, PUBLISHED, THERE, Model, Target

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)
File: TypeAlias = tuple[Path, str]  # and its SHA-256


def checked_repository(target: Target, offline: bool) -> str:
    """ORG/NAME.

    Raises:
        UsageError: it is not said or none, or the hub is not to be asked.
    """
    if target.repository is None:
        raise UsageError(
            "publish.repository=ORG/NAME is missing", hint="publish=hub publish.repository=ORG/NAME"
        )
    try:
        fine = parse_name(f"hf:{target.repository}").repository == target.repository
    except InputError:
        fine = False
    if not fine:
        raise UsageError(f"publish.repository: expected ORG/NAME; found {quote(target.repository)}")
    if offline or said_offline():
        raise UsageError("publish=hub: the hub is not to be asked: hub=offline or HF_HUB_OFFLINE says so")
    return target.repository


def push(model: Model, target: Target) -> str:
    """Uploads what the repository lacks; returns the word for what was done.

    Raises:
        PublishError: other files are there, or the hub cannot be reached or refuses.
    """
    repository = checked_repository(target, offline=False)
    files = {name or model.path.name: (model.file(name), sha256) for name, sha256 in model.files.items()}
    if model.card is not None:
        files[CARD] = model.card, digest_of(model.card)
    try:
        return _push(repository, files, target)
    except RunnerError:
        raise
    except Exception as error:  # a network fails in the classes of every library below
        raise _failed(repository, error) from error


def _push(repository: str, files: Mapping[str, File], target: Target) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not (sys.stderr and sys.stderr.isatty()):
        disable_progress_bars()
    # The address as the environment has it now, not as it was when the library was imported.
    api = HfApi(os.environ.get("HF_ENDPOINT"), library_name="runner")
    there = _there(api, repository, files)
    other = sorted(name for name, same in (there or {}).items() if not same)
    if there and len(there) == len(files) and not other:
        return THERE
    if other and not target.overwrite:
        names = ", ".join(map(escape, other[:5])) + (", ..." if len(other) > 5 else "")
        raise PublishError(
            f"{repository}: {counted(len(other), 'file')} there with another content: {names}",
            hint="publish.overwrite=true replaces them, or choose another repository",
        )
    if target.dry_run:
        return DRY_RUN
    if there is None:
        api.create_repo(repository, private=target.private, exist_ok=True)
    lacking = [name for name in files if not (there or {}).get(name)]
    operations = [CommitOperationAdd(name, str(files[name][0])) for name in lacking]
    api.create_commit(repository, operations, commit_message=f"Add {counted(len(lacking), 'file')}")
    arrived = _there(api, repository, files) or {}
    if len(arrived) != len(files) or not all(arrived.values()):
        raise PublishError(f"{repository}: what arrived there is not what was sent")
    return PUBLISHED


def _there(api: HfApi, repository: str, files: Mapping[str, File]) -> dict[str, bool] | None:
    """Which of some files a repository has, and whether with our content; None if there is no repository."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        found = api.get_paths_info(repository, list(files))
    except RepositoryNotFoundError:
        return None
    return {
        one.path: _same(one.size, one.blob_id, one.lfs.sha256 if one.lfs else None, *files[one.path])
        for one in found
        if isinstance(one, RepoFile) and one.path in files
    }


def _same(size: int, blob: str, theirs: str | None, file: Path, sha256: str) -> bool:
    """Whether a file is what the hub has: large files are known by SHA-256, small ones as git knows them."""
    if file.stat().st_size != size:
        return False
    if theirs is not None:
        return theirs == sha256
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob


def _failed(repository: str, error: Exception) -> PublishError:
    """What went wrong on the way to the hub, in a line."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    log.debug("%s", repository, exc_info=error)
    status = getattr(error.response, "status_code", None) if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        hint = "log in with a token that may write there: hf auth login"
        return PublishError(f"{repository}: the hub refuses this login, or there is none", hint=hint)
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    at = os.environ.get("HF_ENDPOINT")
    where = f" (HF_ENDPOINT is {quote(at)})" if at else ""
    return PublishError(f"{repository}: the hub cannot be reached, or refuses: {quote(first)}{where}")

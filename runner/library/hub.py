"""Models of the Hugging Face hub: which files of a repository are one, and where the hub's cache has them.

The only room that asks huggingface_hub, and only for a source that names hf:. Names of files come from
strangers: of a repository only those are fetched that a reader will open.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runner.disk.files import read_small
from runner.errors import InputError, RunnerError, counted, nearest, quote
from runner.formats.component_files import INDEX, wanted_files
from runner.formats.strict_json import parse_object

log = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")  # of models, in any case
MAX_INDEX_BYTES = 16 << 20

_PART = r"[A-Za-z0-9_][\w.-]*"
_SLASH = "%2F"  # in a revision, as in addresses of the hub: a plain one ends it
_NAME = re.compile(
    rf"hf:(?P<repository>{_PART}/{_PART})(@(?P<revision>refs/pr/\d+|\w(?:[\w.+-]|{_SLASH})*))?"
    r"(/(?P<file>.+))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubName:
    """What hf:ORG/NAME@REVISION/FILE names.

    Attributes:
        text: as the recipe writes it.
        repository: ORG/NAME.
        revision: a branch, a tag, a commit or refs/pr/NUMBER.
        file: in the repository; None for the pipeline that it is.
    """

    text: str
    repository: str
    revision: str
    file: str | None


def parse_name(text: str) -> HubName:
    """Reads the name of a model of the hub.

    Raises:
        InputError: it is none.
    """
    match = _NAME.fullmatch(text)
    file = match["file"] if match else None
    revision = (match["revision"] if match else None) or "main"
    parts = {*(file or "x").split("/"), *revision.split(_SLASH)}
    strange = "\\" in text or not text.isprintable() or {"", ".", ".."} & parts
    if match is None or strange:
        raise InputError(
            f"{quote(text)}: expected hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE.safetensors",
            tag="HUB",
        )
    if file and not is_model_file(file):
        pipeline = text.removesuffix(f"/{file}")
        hint = f"for a pipeline write {pipeline}"
        if match["revision"] and revision != "main" and not revision.startswith("refs/pr/"):
            branch = _SLASH.join([pipeline, *file.split("/")])
            hint += f"; a slash in the name of a branch is written {_SLASH}: {branch}"
        raise InputError(
            f"{quote(text)}: a path in a repository is that of a file, {', '.join(SUFFIXES)}",
            tag="HUB",
            hint=hint,
        )
    return HubName(text, match["repository"], revision.replace(_SLASH, "/"), file)


def is_model_file(name: str) -> bool:
    """Whether a file is called as models are."""
    return name.lower().endswith(SUFFIXES)


def revision_in_name(revision: str) -> str:
    """A revision as it stands in the name of a model."""
    return revision if revision.startswith("refs/pr/") else revision.replace("/", _SLASH)


def fetch(text: str, variant: str | None, offline: bool) -> tuple[Path, str]:
    """Where the hub's cache has a model, and its commit; what the cache lacks is downloaded.

    Args:
        text: hf:ORG/NAME, with @REVISION and /FILE if wanted.
        variant: of the weight files, "fp16"; None for the plain ones.
        offline: whether to take what the cache has; HF_HUB_OFFLINE=1 says so too.

    Raises:
        InputError: there is no such model, or it cannot be had.
    """
    name = parse_name(text)
    try:
        if offline or said_offline():
            return _cached(name)
        return _downloaded(name, variant)
    except RunnerError:
        raise
    except Exception as error:  # a network fails in the classes of every library below
        raise _unavailable(name, error) from error


def said_offline() -> bool:
    """Whether the environment says that the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cache_folder() -> Path:
    """Where the hub's cache is. huggingface_hub, which knows it, takes long to import.

    Source: huggingface_hub, constants.py.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111 - no error without a home
    hub = os.path.join(os.environ.get("HF_HOME") or os.path.join(home, "huggingface"), "hub")
    stated = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or hub
    return Path(os.path.expandvars(stated)).expanduser()


def _cached(name: HubName) -> tuple[Path, str]:
    """What the cache has of a model."""
    from huggingface_hub import try_to_load_from_cache

    file = name.file or INDEX
    found = try_to_load_from_cache(name.repository, file, cache_folder(), name.revision)
    if not isinstance(found, str):
        raise InputError(
            f"{quote(name.text)}: {file} at revision {name.revision} is not in the hub's cache, and the hub "
            "is not asked",
            tag="HUB",
            hint="run once with hub=online and without HF_HUB_OFFLINE, or give the path of a local copy",
        )
    root = Path(found).parents[len(PurePosixPath(file).parts) - 1]
    return Path(found) if name.file else root, root.name


def _downloaded(name: HubName, variant: str | None) -> tuple[Path, str]:
    """Has huggingface_hub fetch what the cache lacks of a model, as the hub has it now."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not (sys.stderr and sys.stderr.isatty()):
        disable_progress_bars()
    found = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True)
    commit = str(found.sha)
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or []}
    if name.file:
        if name.file not in sizes:
            raise InputError(f"{quote(name.text)}: no such file{_there_is(sizes, name.file)}", tag="HUB")
        wanted = [name.file]
    else:
        if INDEX not in sizes:
            raise InputError(
                f"{quote(name.text)}: no {INDEX}, so no pipeline{_there_is(sizes, '.safetensors')}",
                tag="HUB",
                hint="for a single file write hf:ORG/NAME/FILE.safetensors",
            )
        index = Path(hf_hub_download(name.repository, INDEX, revision=commit, cache_dir=cache_folder()))
        label = f"{name.text}/{INDEX}"
        components = parse_object(read_small(index, label, MAX_INDEX_BYTES), label)
        wanted = needed(list(sizes), components, variant, _error(name))
    lacking = [
        file
        for file in wanted
        if not isinstance(try_to_load_from_cache(name.repository, file, cache_folder(), commit), str)
    ]
    if lacking:
        gigabytes = sum(sizes[file] for file in lacking) / 1e9
        what = f"{counted(len(lacking), 'file')}, {gigabytes:.1f} GB"
        log.info("%s: downloading %s, commit %s", name.text, what, commit[:12])
    # With the revision as it was named, so that the cache remembers which commit that is.
    root = Path(
        snapshot_download(
            name.repository,
            revision=name.revision,
            cache_dir=cache_folder(),
            allow_patterns=[glob.escape(file) for file in wanted],
        )
    )
    if root.name != commit:
        raise InputError(
            f"{quote(name.text)}: changed on the hub, or it went away, while it was downloaded", tag="HUB"
        )
    return root / name.file if name.file else root, commit


def needed(
    files: Sequence[str], index: Iterable[str], variant: str | None, error: Callable[[str, str], InputError]
) -> list[str]:
    """The files of a repository that a pipeline consists of.

    Args:
        files: all of them.
        index: what its model_index.json names, components among it.
        variant: of the weight files; None for the plain ones.
        error: makes the error if it cannot be told which, from where and why.
    """
    found = [INDEX]
    for component in sorted(index):
        inside = [file.removeprefix(f"{component}/") for file in files if file.startswith(f"{component}/")]
        names = [file for file in inside if "/" not in file]
        found += [f"{component}/{file}" for file in wanted_files(component, names, variant, error)]
    return found


def _error(name: HubName) -> Callable[[str, str], InputError]:
    return lambda where, reason: InputError(f"{quote(name.text)}: {where}: {reason}", tag="HUB")


def _there_is(files: Iterable[str], wanted: str) -> str:
    """What single files there are, for a message."""
    models = sorted(file for file in files if is_model_file(file) and "/" not in file)
    if hint := nearest(wanted, models):
        return hint
    return f" (there are: {', '.join(models[:5])}{', ...' if len(models) > 5 else ''})" if models else ""


def _unavailable(name: HubName, error: Exception) -> InputError:
    """What went wrong on the way to the hub, in a line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    log.debug("%s", name.text, exc_info=error)
    if isinstance(error, GatedRepoError):
        reason, hint = "access is restricted", "accept its conditions on its page, then: hf auth login"
    elif isinstance(error, RepositoryNotFoundError):
        reason, hint = "no such repository, or a private one", "for a private one: hf auth login"
    elif isinstance(error, RevisionNotFoundError):
        reason, hint = f"no revision {quote(name.revision)}", "a branch, a tag or a commit stands after @"
    elif isinstance(error, HFValidationError):
        reason, hint = "no name of a repository", "write hf:ORG/NAME"
    else:
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        reason = f"the hub cannot be reached, or breaks off: {quote(first)}"
        hint = "hub=offline takes the model from the hub's cache, if it is there"
    return InputError(f"{quote(name.text)}: {reason}", tag="HUB", hint=hint)

"""Settings: the schema of conf/. They say how a recipe is run and never change a byte of the result."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.disk.cachefile import DIGESTS
from runner.errors import UsageError, nearest, quote
from runner.place import Devices, processors
from runner.publish.target import HUB, INVOKEAI, TARGETS, Target
from runner.recipe.parse import parse_size
from runner.tensors import SUM_ELEMENTS

if TYPE_CHECKING:
    from runner.library.lookup import Library

MAX_THREADS = 256
RECIPE_JOBS = ("merge", "plan", "lock")  # those that run a recipe
MAX_ULPS = 1 << 20
MAX_TILE_ELEMENTS = 1 << 26
MAX_PATIENCE = 86400  # seconds
# The settings of each job, in the order in which they are read, and the kinds of those that are no flags.
_JOBS: dict[str, tuple[str, ...]] = {
    "merge": ("keys",),
    "plan": ("keys",),
    "lock": ("update",),
    "methods": ("method",),
    "presets": ("preset",),
    "import": ("source", "output", "overwrite"),
    "inspect": ("keys", "source", "other", "variant", "hashes", "distances"),
    "models": ("match", "json"),
    "find": ("match",),
    "publish": ("run",),
    "verify": ("source", "json", "inputs", "proof", "key"),
    "replay": ("source", "json", "ulps", "keep"),
    "compare": ("a", "b", "keys", "json"),
    "compose": ("recipe", "browser", "port", "confined"),
}
# What those settings take that take one of a few words.
WORDS: Mapping[str, tuple[str, ...]] = {
    "name": tuple(_JOBS),
    "keys": ("summary", "all"),
    "target": TARGETS,
    "digests": ("remember", "fresh"),
    "progress": ("auto", "on", "off", "lines"),
    "hub": ("online", "offline"),
}
_PATHS = {
    **dict.fromkeys(("source", "other", "a", "b"), "a file or folder"),
    "output": "a file",
    "run": "a folder",
    "key": "the file of a public key",
}
_NAMES = ("method", "preset", "match", "variant", "recipe")
_NUMBERS = {"port": (0, 65535), "ulps": (0, MAX_ULPS)}


@dataclass(frozen=True, slots=True)
class Job:
    """What is done.

    Attributes:
        name: "merge", "plan" or "lock" by a recipe; "methods", "presets"; "import" from a source, "inspect"
            of one or two; "models" and "find" of all there are; "verify" and "replay" of a result, "compare"
            of two; "publish" of a run; "compose".
        keys: of a merge, plan, inspection or comparison: lists "all" keys or a "summary".
        source: of an import, inspection, verify or replay: the file it reads.
        output: of an import: the recipe it writes; None: a name of its own.
        overwrite: of an import: whether it may replace a file.
        method: of methods: the one that is explained; None: all are listed.
        preset: of presets: the one whose numbers are shown; None: all are listed.
        other: of an inspection: a second model, compared with the source.
        variant: of an inspection: which weight files of a diffusers folder, "fp16".
        hashes: of an inspection: whether files are read for their hashes.
        distances: of an inspection: whether both models are read for how far they are apart.
        recipe: of compose: the one that is opened; None: a new one.
        browser: of compose: whether a browser shows the form.
        port: where it is served to the browser; 0: any free one.
        confined: of compose: whether models outside the folders of the settings are refused, as in a browser.
        match: of models and find: a glob that names or paths must match; None: all.
        json: of models, verify, replay and compare: whether the answer is for programs.
        inputs: of verify: whether the inputs are looked for and hashed too.
        proof: of verify: whether it fails if nothing vouches for the model.
        key: of verify: the public key that the signature has to be by.
        keep: of replay: whether the model that is built is kept.
        ulps: of replay: by how many units in the last place tensors may differ that promise no more.
        a, b: of compare: the two runs.
        run: of publish: the folder of the run.
        update: of lock: whether what a lock says may be changed.
    """

    name: str
    keys: str = "summary"
    source: Path | None = None
    output: Path | None = None
    overwrite: bool = False
    method: str | None = None
    preset: str | None = None
    other: Path | None = None
    variant: str | None = None
    hashes: bool = False
    distances: bool = False
    recipe: str | None = None
    browser: bool = False
    port: int = 0
    confined: bool = False
    match: str | None = None
    json: bool = False
    inputs: bool = False
    proof: bool = False
    key: Path | None = None
    keep: bool = False
    ulps: int = 0
    a: Path | None = None
    b: Path | None = None
    run: Path | None = None
    update: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """How a recipe is run; conf/config.yaml explains each."""

    job: Job
    placement: Devices
    models_dir: Path
    output_dir: Path | None
    cache_dir: Path
    memory: int | None
    threads: int
    tile_elements: int
    digests: str
    verify: bool
    progress: str
    hub: str
    model_folders: tuple[Path, ...] = ()
    publish: Target | None = None
    locked: bool = False
    rerun: bool = False
    resume: Path | None = None
    sign_key: Path | None = None

    @property
    def library(self) -> Library:
        """The models there are: a library of its own each time, which looks for them anew."""
        from runner.library.lookup import Library  # here: the schema is read for --help too

        return Library((self.models_dir, *self.model_folders), self.cache_dir)

    @property
    def workers(self) -> int:
        """How many may work on the host: what is said, or one for each processor."""
        return self.threads or processors()

    @property
    def offline(self) -> bool:
        """Whether models of the hub are only looked for in its cache."""
        return self.hub == "offline"

    @property
    def digest_memory(self) -> Path | None:
        """The file that remembers digests; None if they are not to be trusted."""
        return self.cache_dir / DIGESTS if self.digests == "remember" else None


def settings_of(config: DictConfig) -> Settings:
    """The settings in a composed configuration.

    Raises:
        UsageError: an unknown setting, or a value of another kind than expected.
    """
    try:
        # The recipe's own references are not resolved here, and Hydra's settings are not ours.
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("recipe", "hydra")])
        tree: Any = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"settings: {quote(error)}") from error
    groups = ("job", "placement", "publish")
    job, placement, publish = (_Node(tree.pop(name, None) or {}, f"{name}.") for name in groups)
    node = _Node(tree, "")
    settings = Settings(
        job=_job(job),
        placement=Devices(placement.devices("devices"), placement.sizes("max_memory")),
        models_dir=node.path("models_dir") or Path(),
        output_dir=node.path("output_dir"),
        cache_dir=node.path("cache_dir") or default_cache(),
        memory=node.size("memory"),
        threads=node.integer("threads", 0, MAX_THREADS),
        tile_elements=node.integer("tile_elements", SUM_ELEMENTS, MAX_TILE_ELEMENTS),
        digests=node.word("digests"),
        verify=node.flag("verify"),
        progress=node.word("progress"),
        hub=node.word("hub"),
        model_folders=node.paths("model_folders", default_folders),
        publish=_target(publish) if publish.tree else None,
        locked=node.flag("locked"),
        rerun=node.flag("rerun"),
        resume=node.path("resume", "the folder of a sweep"),
        sign_key=node.path("sign_key", "the file of a private key"),
    )
    for name in ("source", "run"):  # jobs that read one refer to it
        node.take(name)
    for part in (job, placement, publish, node):
        part.raise_if_unknown()
    if settings.tile_elements % SUM_ELEMENTS:
        raise UsageError(
            f"tile_elements: expected a multiple of {SUM_ELEMENTS}, found {settings.tile_elements}"
        )
    return settings


def _job(node: _Node) -> Job:
    name = node.word("name")
    return Job(name, **{field: _of_job(node, name, field) for field in _JOBS[name]})


def _of_job(node: _Node, job: str, field: str) -> Any:
    if field == "keys":
        return node.word(field)
    if field in _PATHS:
        return node.path(field, "a file" if job == "import" else _PATHS[field])
    if field in _NAMES:
        return node.text(field)
    if field in _NUMBERS:
        return node.integer(field, *_NUMBERS[field])
    return node.flag(field)


def _target(node: _Node) -> Target:
    name = node.word("target")
    dry_run = node.flag("dry_run")
    if name == INVOKEAI:
        url, patience = node.text("url", "an address"), node.integer("patience", 1, MAX_PATIENCE)
        return Target(name, dry_run=dry_run, url=url or "", patience=patience)
    overwrite = node.flag("overwrite")
    if name == HUB:
        repository, private = node.text("repository", "ORG/NAME"), node.flag("private")
        return Target(name, overwrite=overwrite, dry_run=dry_run, repository=repository, private=private)
    return Target(name, node.path("root"), node.flag("link"), overwrite, dry_run)


def default_cache() -> Path:
    """RUNNER_CACHE, or the user's folder for caches."""
    if stated := os.environ.get("RUNNER_CACHE"):
        return Path(stated).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(os.path.expanduser("~")) / ".cache") / "runner"  # noqa: PTH111 - no error without a home


def default_folders() -> tuple[Path, ...]:
    """The folders that RUNNER_MODELS names, separated as PATH is."""
    stated = os.environ.get("RUNNER_MODELS", "").split(os.pathsep)
    return tuple(Path(folder).expanduser() for folder in stated if folder)


class _Node:
    """Takes typed values out of a mapping; what is left at the end is unknown."""

    def __init__(self, tree: Mapping[str, Any], prefix: str) -> None:
        self.tree = dict(tree)
        self.prefix = prefix
        self.asked: list[str] = []

    def take(self, name: str) -> Any:
        self.asked.append(name)
        return self.tree.pop(name, None)

    def refuse(self, name: str, expected: str, found: object, suggestion: str = "") -> UsageError:
        return UsageError(f"{self.prefix}{name}: expected {expected}; found {quote(found)}{suggestion}")

    def word(self, name: str) -> str:
        value, words = self.take(name), WORDS[name]
        # YAML reads on and off as booleans.
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if value not in words:
            raise self.refuse(name, " or ".join(words), value, nearest(str(value), words))
        return str(value)

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false", value)
        return value

    def text(self, name: str, what: str = "a name") -> str | None:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, what, value)
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.take(name)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(name, f"an integer from {low} to {high}", value)
        return value

    def path(self, name: str, what: str = "a folder") -> Path | None:
        value = self.take(name)
        if value is None:
            return None
        if not _is_path(value):
            raise self.refuse(name, what, value)
        return Path(str(value)).expanduser()

    def paths(self, name: str, default: Callable[[], tuple[Path, ...]]) -> tuple[Path, ...]:
        value = self.take(name)
        if value is None:
            return default()
        if not isinstance(value, list) or not all(_is_path(one) for one in value):
            raise self.refuse(name, "a list of folders", value)
        return tuple(Path(str(one)).expanduser() for one in value)

    def size(self, name: str) -> int | None:
        value = self.take(name)
        if value in ("auto", None):
            return None
        size = parse_size(value)
        if size is None:
            raise self.refuse(name, 'auto or a size such as "512MB"', value)
        return size

    def sizes(self, name: str) -> dict[str | int, int]:
        value = self.take(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.refuse(name, "sizes by device: {0: 6GB, cpu: 512MB}", value)
        found: dict[str | int, int] = {}
        for device, text in value.items():
            size = parse_size(text)
            if size is None:
                raise self.refuse(f"{name}.{device}", 'a size such as "6GB"', text)
            found[self.device(name, device)] = size
        return found

    def devices(self, name: str) -> tuple[str | int, ...] | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, list) or not value:
            raise self.refuse(name, "a list such as [0, 1, cpu]", value)
        return tuple(self.device(name, device) for device in value)

    def device(self, name: str, device: object) -> str | int:
        if device == "cpu" or (type(device) is int and device >= 0):
            assert isinstance(device, (str, int))
            return device
        if isinstance(device, str) and device.isdecimal():
            return int(device)
        raise self.refuse(name, "cpu or the number of a GPU", device)

    def raise_if_unknown(self) -> None:
        for name in self.tree:
            hint = nearest(name, self.asked) or f" (known: {', '.join(self.asked)})"
            raise UsageError(f"{self.prefix}{name}: unknown setting{hint}")


def _is_path(value: object) -> bool:
    return (
        isinstance(value, (str, int))
        and not isinstance(value, bool)
        and value != ""
        and "\0" not in str(value)
    )

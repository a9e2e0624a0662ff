"""What lies in folders: files and folders that look like models, by their names alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runner.errors import escape
from runner.formats.component_files import INDEX, is_model_folder, is_shard
from runner.library.hub import is_model_file, revision_in_name
from runner.library.roots import Root

MAX_DEPTH = 16
MAX_ENTRIES = 1_000_000  # of one root: where there are more, it is no folder of models
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_REPOSITORY = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Found:
    """A file or folder that looks like a model.

    Attributes:
        name: what a recipe can call it: its own without suffix, the one its program gives it, or hf:ORG/NAME.
        path: where it is.
        inside: where it is in its root, with slashes.
        root: the place it was found in.
        folder: whether it is a folder.
    """

    name: str
    path: Path
    inside: str
    root: Root
    folder: bool


@dataclass
class Walk:
    """A walk over a root.

    Attributes:
        root: what is searched.
        found: what looks like a model.
        problems: what could not be read, a line each.
    """

    root: Root
    found: list[Found] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _entries: int = 0

    def start(self) -> None:
        """Looks at everything there is, in the order of names."""
        self.problems += self.root.problems
        for folder in self.root.folders:
            if self.root.title == "hub":
                self._hub(folder)
            elif folder.is_file():  # a model that a program's list names
                self._add(folder, folder=False)
            elif folder.is_dir():
                self._folder(folder, 0)
            elif folder == self.root.path:
                self._problem(folder, "no such folder")
        for path in self.root.names:
            if not path.exists():  # whoever reads it says so
                self._add(path, folder=False)
        if self._entries > MAX_ENTRIES:
            self._problem(self.root.path, f"more than {MAX_ENTRIES} entries; the rest is left out")

    def _folder(self, folder: Path, depth: int) -> None:
        try:
            status = folder.stat()
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            self._problem(folder, (error.strerror or str(error)).lower())
            return
        if (status.st_dev, status.st_ino) in self._seen or self._entries > MAX_ENTRIES:
            return  # links that lead back, or to what was seen
        self._seen.add((status.st_dev, status.st_ino))
        self._entries += len(entries)
        names = {entry.name for entry in entries}
        # A recipe names a pipeline of the hub, or a file of it, but no folder of a component.
        if INDEX in names if self.root.title == "hub" else is_model_folder(names):
            self._add(folder, folder=True)
            return
        if depth >= MAX_DEPTH:
            self._problem(folder, "nested too deep")
            return
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # links in a circle
                is_folder = False
            if is_folder:
                below.append(Path(entry.path))
            elif is_model_file(entry.name) and not is_shard(entry.name):
                self._add(Path(entry.path), folder=False)
        for path in below:
            self._folder(path, depth + 1)

    def _hub(self, cache: Path) -> None:
        """Pipelines and single files in a cache of the hub: a snapshot for each commit of a repository."""
        for repository in _folders(cache):
            match = _REPOSITORY.fullmatch(repository.name)
            if match is None:
                continue
            commits = {commit: name for name, commit in _references(repository / "refs")}
            for snapshot in _folders(repository / "snapshots"):
                if not _COMMIT.fullmatch(snapshot.name):
                    continue
                revision = commits.get(snapshot.name, snapshot.name)
                at = "" if revision == "main" else f"@{revision_in_name(revision)}"
                self._snapshot(snapshot, f"hf:{match['owner']}/{match['name']}{at}")

    def _snapshot(self, snapshot: Path, name: str) -> None:
        before = len(self.found)
        self._folder(snapshot, 0)
        for at in range(before, len(self.found)):
            one = self.found[at]
            rest = one.path.relative_to(snapshot).as_posix()
            called = name if rest == "." else f"{name}/{rest}"
            self.found[at] = Found(called, one.path, one.inside, one.root, one.folder)
        if self.found[before:] and self.found[before].path == snapshot:  # single files beside the pipeline
            for path in sorted(snapshot.iterdir()):
                if is_model_file(path.name) and not is_shard(path.name) and not path.is_dir():
                    self.found.append(
                        Found(f"{name}/{path.name}", path, self._inside(path), self.root, folder=False)
                    )

    def _add(self, path: Path, *, folder: bool) -> None:
        name = path.name if folder else path.stem
        if self.root.names:
            name = self.root.names.get(path.resolve(), name)
        self.found.append(Found(name or path.resolve().name, path, self._inside(path), self.root, folder))

    def _inside(self, path: Path) -> str:
        try:
            return path.relative_to(self.root.path).as_posix()
        except ValueError:
            return path.as_posix()

    def _problem(self, path: Path, reason: str) -> None:
        self.problems.append(f"{escape(str(path))}: {reason}")


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []


def _references(folder: Path) -> Iterator[tuple[str, str]]:
    """Names of revisions and their commits, those of branches last: main wins where two name one."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: (name == "main", name)):
        try:
            yield name, (folder / name).read_text().strip()
        except (OSError, ValueError):
            continue


def models_in(roots: Iterable[Root]) -> tuple[list[Found], list[str]]:
    """Everything in some places that looks like a model, each once, and what could not be read."""
    found: dict[tuple[str, str], Found] = {}
    problems: list[str] = []
    for root in roots:
        walk = Walk(root)
        walk.start()
        problems += walk.problems
        for one in walk.found:
            found.setdefault((os.path.realpath(one.path), one.name), one)
    return list(found.values()), list(dict.fromkeys(problems))

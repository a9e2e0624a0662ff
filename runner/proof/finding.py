"""The recorded inputs among the models there are: by digest, wherever they lie, whatever they are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner.checkpoint import Checkpoint
from runner.digests import InputDigests, model_digest
from runner.disk.files import Identity, InputFile, identity_of
from runner.errors import RunnerError
from runner.formats import READERS
from runner.formats.component_files import CONFIG
from runner.library.hub import parse_name
from runner.library.lookup import Library
from runner.models.ema import averaged, users
from runner.proof.recorded import Recorded, RecordedInput
from runner.recipe.structure import NAMED, Recipe, Source, roles_at
from runner.resolve.sources import source_path


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is looked for.

    Attributes:
        said: what is recorded of it.
        means: whether the running means of its weights were taken, which may lie in other files.
    """

    said: RecordedInput
    means: bool = False


def wanted(said: Recorded, recipe: Recipe | None) -> list[Wanted]:
    """The recorded inputs, to be looked for.

    Args:
        said: what is recorded of them.
        recipe: that they are of; None: it cannot be read, and models are taken for what their weights are.
    """
    means = {roles_at(path) for path in users(recipe.merge)} if recipe else set()
    return [Wanted(one, not means.isdisjoint(one.roles)) for one in said.inputs]


@dataclass(frozen=True, slots=True)
class There:
    """What was found of a recorded input.

    Attributes:
        said: what is recorded of it.
        name: how a recipe names the model that is it; None: there is none.
        other: SHA-256 of the one of its name that is there, if that is another.
    """

    said: RecordedInput
    name: str | None
    other: str | None = None


@dataclass
class Finder:
    """Looks for models by digest; every digest is computed here and now, each once.

    Attributes:
        library: of the places they are looked for in.
        offline: whether a model of the hub is only looked for in its cache.
        threads: how many files of a model are hashed at a time.
        advance: called with the number of bytes done.
        computed: digests by Identity.key.
    """

    library: Library
    offline: bool
    threads: int
    advance: Callable[[int], None]
    computed: dict[str, str] = field(default_factory=dict)

    def find(self, wanted: Sequence[Wanted]) -> list[There]:
        """Each model that is looked for, or what is there in its place.

        Two inputs of the same bytes get different files if there are two: a recipe that names one file
        twice reads it as one model.
        """
        found: list[There] = []
        taken: set[str] = set()
        for one in wanted:
            name, other = None, None
            for candidate, path in self._candidates(one.said):
                digest = self._digest(path, one)
                if digest == one.said.sha256:
                    name = name or candidate
                    if os.path.realpath(path) not in taken:
                        taken.add(os.path.realpath(path))
                        name = candidate
                        break
                elif digest is not None and self._is_called(path, candidate, one.said):
                    other = other or digest
            if name is None and other is None:
                other = self._of_that_name(one)
            found.append(There(one.said, name, other if name is None else None))
        return found

    def _candidates(self, said: RecordedInput) -> Iterator[tuple[str, Path]]:
        """What may be the model, the likeliest first: how a recipe names it, and where it is."""
        if said.name.startswith(NAMED):
            yield from self._named(said)
            return
        known = {key for key, one in self.library.digests.items() if one == said.sha256}
        paths: list[tuple[int, Path]] = []
        for one in self.library.found:
            below = [path.parent for path in one.path.glob(f"*/{CONFIG}")] if one.folder else []
            for path in (one.path, *sorted(below)):
                key = _identity(path)
                if key is None or (said.nbytes is not None and key.size != said.nbytes and not path.is_dir()):
                    continue
                called = path.name == said.name or one.name == said.name
                # What is remembered says where to look first, and no more.
                paths.append((0 if key.key in known else 1 if called else 2, path))
        for _, path in sorted(paths, key=lambda one: one[0]):
            yield str(path.absolute()), path

    def _named(self, said: RecordedInput) -> Iterator[tuple[str, Path]]:
        """A demo model, or one of the hub at the recorded commit."""
        name = said.name
        if name.startswith("hf:") and said.revision:
            hub = parse_name(name)
            name = f"hf:{hub.repository}@{said.revision}" + (f"/{hub.file}" if hub.file else "")
        try:
            path, _ = source_path(Source(name, variant=said.variant), Path(), self.library, self.offline)
        except RunnerError:
            return
        yield name, path

    def _digest(self, path: Path, wanted: Wanted, *, sized: bool = True) -> str | None:
        """The digest of a model, as a merge records it; None if it cannot be the one, or be read."""
        try:
            reader = next(reader for reader in READERS if reader.accepts(path))
            checkpoint = reader.open(path, path.name, wanted.said.variant)
            checkpoint = averaged(checkpoint) if wanted.means else checkpoint
            if sized and wanted.said.nbytes not in (None, checkpoint.nbytes):
                return None
            return model_digest(checkpoint, self._hashed(checkpoint))
        except (RunnerError, OSError, RuntimeError):
            return None  # what cannot be read is not what was

    def _hashed(self, checkpoint: Checkpoint) -> dict[InputFile, str]:
        with InputDigests(
            checkpoint.files, None, self.threads, advance=self.advance, computed=self.computed
        ) as digests:
            found = dict(digests.wait())
        self.computed |= {file.identity.key: digest for file, digest in found.items()}
        return found

    def _of_that_name(self, wanted: Wanted) -> str | None:
        """The digest of the model that has the recorded name, of whatever size."""
        for candidate, path in self._candidates(RecordedInput(wanted.said.name, (), wanted.said.sha256)):
            if self._is_called(path, candidate, wanted.said):
                return self._digest(path, wanted, sized=False)
        return None

    def _is_called(self, path: Path, candidate: str, said: RecordedInput) -> bool:
        return candidate.startswith(NAMED) or said.name in (path.name, path.stem)


def _identity(path: Path) -> Identity | None:
    try:
        return identity_of(path.stat())
    except OSError:
        return None

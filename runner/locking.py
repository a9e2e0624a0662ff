"""A recipe and its lock: where the lock is, what is compared with it, and job=lock, which writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.compose import DATA_ROOT, ComposedRecipe
from runner.digests import known_digest
from runner.disk.files import InputFile
from runner.errors import KeyPath, MismatchError, UsageError, counted, quote
from runner.planning.plan import Plan
from runner.provenance.record import RunRecord
from runner.recipe.canonical import canonical_source
from runner.recipe.lockfile import (
    ASIDE,
    RECIPE,
    REFUSED,
    SUFFIX,
    Difference,
    Lock,
    LockedOutput,
    LockedSource,
    differences,
    lock_text,
    read_lock,
)
from runner.recipe.structure import Recipe, Source
from runner.tables import size
from runner.write import write_file

_UPDATE = "job=lock job.update=true"


@dataclass(frozen=True)
class Held:
    """A lock that a run is held to.

    Attributes:
        lock: what it says.
        path: of its file.
        strict: whether anything else than it says is refused, also another recipe.
    """

    lock: Lock
    path: Path
    strict: bool

    def check(self, plan: Plan, record: RunRecord, digests: Mapping[InputFile, str]) -> list[str]:
        """Compares what is here with the lock; returns what is unusual about it, a line each.

        Args:
            plan: of the recipe.
            record: of the run, which knows the recipe's files.
            digests: of the inputs, as far as they are known.

        Raises:
            MismatchError: other models or methods; of a strict one, any difference.
        """
        found = differences(self.lock, lock_here(plan, record, digests))
        refused = [one for one in found if self.strict or one.kind in REFUSED]
        if refused:
            raise _differs(self.path, refused, "No output was written.")
        aside = [f"{quote(self.path)}: {_said(one)}" for one in found if one.kind == ASIDE]
        if any(one.kind == RECIPE for one in found):
            what = (
                "is of another state of the recipe: models that both name are held to it, the result is not"
            )
            aside.append(f"{quote(self.path)} {what}")
        return aside

    def check_output(
        self, plan: Plan, record: RunRecord, digests: Mapping[InputFile, str], output: Mapping[str, Any]
    ) -> list[str]:
        """Compares a result with the one that is locked; returns what is unusual about it, a line each.

        Args:
            plan, record, digests: as of check.
            output: what the record says of it.

        Raises:
            MismatchError: another result, of a recipe that promises the same bytes.
        """
        locked = self.lock.output
        if locked is None or locked.sha256 == output["sha256"]:
            return []
        if any(one.kind == RECIPE for one in differences(self.lock, lock_here(plan, record, digests))):
            return []
        what = f"{quote(self.path)}: sha256 of the result: locked {locked.sha256}, found {output['sha256']}"
        if locked.tensor_root == output["tensor_root"]:
            what += "; its tensors are the same, only headers differ"
        if plan.determinism != "exact":
            return [
                f"{what}; a merge of the class {plan.determinism} promises its bytes on like machines only"
            ]
        hint = (
            f"if that is meant: {_UPDATE} forgets the locked result; merge, then job=lock notes the new one"
        )
        raise MismatchError(f"{what}. No output was written.", tag="LOCK", hint=hint)


def lock_path(recipe: ComposedRecipe) -> Path | None:
    """Where a recipe's lock is: beside its file; in the current folder if the recipe comes with runner."""
    if recipe.path is None:
        return None
    name = recipe.path.stem + SUFFIX
    if recipe.path.is_relative_to(DATA_ROOT / "recipes"):
        return Path(name)
    path = recipe.path.with_name(name)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def held(recipe: ComposedRecipe, strict: bool) -> Held | None:
    """The lock of a recipe; None if it has none.

    Raises:
        InputError: its file is no lock.
        MismatchError: it has none, and is to be held to one.
    """
    path = lock_path(recipe)
    lock = read_lock(path) if path else None
    if path is not None and lock is not None:
        return Held(lock, path, strict)
    if strict:
        hint = "write it: job=lock"
        raise MismatchError(f"{quote(path or recipe.name)}: no such lock; locked=true", tag="LOCK", hint=hint)
    return None


def with_digests(recipe: Recipe, lock: Held | None) -> Recipe:
    """A recipe whose models can be found by the digests that its lock has."""
    if lock is None:
        return recipe
    sources = lock.lock.sources

    def known(source: Source) -> Source:
        locked = sources.get(_place(source.path))
        same = locked is not None and (locked.source, locked.variant) == (_name(source), source.variant)
        return replace(source, locked=locked.sha256) if locked and same else source

    return recipe.with_sources(known)


def lock_here(
    plan: Plan, record: RunRecord, digests: Mapping[InputFile, str], output: LockedOutput | None = None
) -> Lock:
    """The lock as it would be for what is here; without the digests that are not known."""
    known = record.deterministic
    sources = {}
    for model in plan.resolved.models:
        checkpoint = model.checkpoint
        sha256 = known_digest(checkpoint, digests)
        architecture = model.architecture.name if model.architecture else None
        for source in model.sources:
            sources[_place(source.path)] = LockedSource(
                _name(source), sha256, checkpoint.nbytes, architecture, source.variant, model.revision
            )
    return Lock(
        known["recipe_sha256"],
        {file["name"].removesuffix(".yaml"): file["sha256"] for file in known["recipe_files"]},
        sources,
        tuple(sorted({one["method"] for one in known["methods"]})),
        output,
    )


def write_lock(
    recipe: ComposedRecipe,
    before: Held | None,
    here: Lock,
    update: bool,
) -> tuple[Path, str]:
    """Writes the lock of a recipe, unless it is there and says the same.

    Args:
        recipe: the recipe.
        before: the lock there is.
        here: what it would say now; without an output if no merge of this is known.
        update: whether what it says may be changed, and a result that is not known any more be forgotten.

    Returns:
        Its path, and what was done, for people.

    Raises:
        MismatchError: it says something else, and may not be changed.
    """
    path = lock_path(recipe)
    if path is None:
        raise UsageError("a lock stands beside the file of a recipe, and this one has none")
    changes = []
    if before is not None:
        if not update and here.output is None:
            here = replace(here, output=before.lock.output)
        changes = [*differences(before.lock, here), *_of_outputs(before.lock.output, here.output)]
        if changes and not update:
            raise _differs(path, changes, "It was not changed.")
    if before is None or changes or before.lock.output != here.output:
        write_file(path, lock_text(here, recipe.name).encode())
        done = "written" if before is None else "updated" if changes else "the result was added"
    else:
        done = "unchanged"
    models = {source.sha256: source.bytes for source in here.sources.values()}
    lines = [str(path), f"  {done}: {counted(len(models), 'model')}, {size(sum(models.values()))}"]
    lines += [f"  {one.where}: {one.locked} → {one.found}" for one in changes]
    if here.output is None:
        lines.append("  result: not known yet; merge, then job=lock adds it")
    else:
        lines.append(f"  result: sha256 {here.output.sha256} ({here.output.determinism})")
    return path, "\n".join(lines)


def locked_output(record: RunRecord, output: Mapping[str, Any] | None) -> LockedOutput | None:
    """What a lock says of a result that a record describes."""
    if output is None:
        return None
    determinism = record.deterministic["determinism"]
    return LockedOutput(output["name"], output["sha256"], output["tensor_root"], determinism)


def _of_outputs(locked: LockedOutput | None, here: LockedOutput | None) -> Iterator[Difference]:
    """What differs in the results; to know one where none was known is no difference."""
    if locked is not None and locked != here:
        found = "nothing" if here is None else here.sha256
        yield Difference(ASIDE, "the result: sha256", locked.sha256, found)


def _differs(path: Path, found: Iterable[Difference], end: str) -> MismatchError:
    lines = [f"{quote(path)}: {_said(one)}" for one in found]
    hint = f"if that is meant: {_UPDATE} writes it into the lock"
    return MismatchError("\n".join([*lines[:-1], f"{lines[-1]}. {end}"]), tag="LOCK", hint=hint)


def _said(one: Difference) -> str:
    return f"{one.where}: locked {one.locked}, found {one.found}"


def _place(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _name(source: Source) -> str:
    return canonical_source(replace(source, alias=""))["source"]

"""job=replay: a recorded merge done once more, from inputs found by digest, and compared with what it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.build import build, input_identities, placed
from runner.checkpoint import RECORD
from runner.config import Settings
from runner.errors import (
    CannotReplayError,
    IncompatibleError,
    InputError,
    KeyPath,
    Location,
    RecipeError,
    escape,
    quote,
)
from runner.imports import own
from runner.planning.plan import Plan
from runner.progress import progress
from runner.proof.difference import DIFFERENT, IDENTICAL, Difference, difference
from runner.proof.finding import Finder, There, wanted
from runner.proof.places import Places, recorded_at
from runner.proof.recorded import NewerError, Recorded
from runner.provenance.origins import plan_with_origins
from runner.provenance.parts import methods
from runner.provenance.record import RunRecord
from runner.recipe.canonical import canonical_json, canonical_recipe
from runner.recipe.guard import RecipeFile
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import Recipe, Source, roles_at
from runner.resolve.resolved import Resolved
from runner.run import resolved_by, write_beside
from runner.write import check_place, write_file

CANNOT = "CANNOT REPLAY"


@dataclass(frozen=True)
class Replay:
    """What came of it.

    Attributes:
        word: IDENTICAL, EQUIVALENT or DIFFERENT.
        recorded: what was done again.
        sha256: of the model that was built; None: nothing was.
        reasons: what differs, and what else has changed, a line each.
        difference: from the recorded model; None if there is none, or nothing was built.
        kept: where the model is.
    """

    word: str
    recorded: Recorded
    sha256: str | None = None
    reasons: tuple[str, ...] = ()
    difference: Difference | None = None
    kept: Path | None = None


def recorded_merge(places: Places) -> tuple[Recorded, list[Recorded]]:
    """What is done again, and everything that is said of it.

    Raises:
        CannotReplayError: nothing says how the model was made, or it is said in a newer schema.
        InputError: what says so cannot be read.
    """
    try:
        texts = list(recorded_at(places))
    except NewerError as error:
        hint = "replay it with the version of runner it names, or a newer one"
        raise CannotReplayError(error.message, hint=hint) from error
    if not texts:
        raise CannotReplayError(
            f"{escape(str(places.asked))}: nothing says how it was merged",
            hint="expected the folder of a run, its run.json, a statement, or a model runner has merged",
        )
    # A model that was named is held to its own header; run.json beside it knows of methods and machines.
    return texts[0], texts


def find_inputs(
    recipe: Recipe, said: Recorded, settings: Settings, advance: Callable[[int], None]
) -> tuple[list[There], dict[str, str]]:
    """The recorded inputs among the models there are, and the digests computed on the way.

    Raises:
        CannotReplayError: some are not there; names them.
    """
    finder = Finder(settings.library, settings.offline, settings.threads or 1, advance)
    there = finder.find(wanted(said, recipe))
    if lacking := [one for one in there if one.name is None]:
        raise CannotReplayError(
            "\n".join(map(_lacking, lacking)),
            tag="INPUT-GONE",
            hint=f"looked in {', '.join(str(root.path) for root in finder.library.roots)}; "
            "models_dir=FOLDER or 'model_folders=[...]' names others",
        )
    return there, finder.computed


def _lacking(one: There) -> str:
    here = f"; of this name there is another, {one.other}" if one.other else ""
    said = one.said
    what = f"{quote(said.name)}, sha256 {said.sha256}"
    return f"{CANNOT}: input {escape(', '.join(said.roles))}: {what}: not found{here}"


def recipe_of(said: Recorded) -> Recipe:
    """The recorded recipe.

    Raises:
        CannotReplayError: it says something this version does not know.
    """
    try:
        tree = own.read(said.recipe, said.label, said.by_role).tree
        recipe = parse_recipe(said.name or "replay", tree, _located(said))
    except (InputError, RecipeError) as error:
        raise _unknown(said, error.message) from error
    recipe = _with_sources(recipe, lambda source: replace(source, alias=source.name))
    if canonical_json(canonical_recipe(recipe)) != canonical_json(said.recipe):
        raise _unknown(said, "the recipe says something that this version does not know")
    return recipe


def _unknown(said: Recorded, reason: str) -> CannotReplayError:
    lines = "\n".join(f"{CANNOT}: {line}" for line in reason.split("\n"))
    version: Any = said.content if said.kind == RECORD else None
    for name in ("run", "versions", "runner"):
        version = version.get(name) if isinstance(version, Mapping) else None
    hint = f"it was made by runner {escape(version)}" if isinstance(version, str) else None
    return CannotReplayError(lines, tag="VERSION", hint=hint)


def _located(said: Recorded) -> Callable[[KeyPath], Location]:
    return lambda path: Location(said.label)


def _with_sources(recipe: Recipe, change: Callable[[Source], Source]) -> Recipe:
    config = recipe.output.config
    output = replace(recipe.output, config=change(config) if config else None)
    return replace(recipe.with_sources(change), output=output)


def with_files(recipe: Recipe, there: list[There]) -> Recipe:
    """The recipe with each source where it was found, to be held to its digest."""
    by_role = {role: one for one in there for role in one.said.roles}
    # The folder whose other files are carried on is not recorded by digest; it may be one of the inputs.
    by_name = {one.said.name: one for one in there}

    def placed(source: Source) -> Source:
        if source.path == ("output", "config"):
            one = by_name.get(source.name)
            return replace(source, name=one.name or source.name) if one else source
        one = by_role.get(roles_at(source.path))
        if one is None or one.name is None:
            where = roles_at(source.path)
            raise CannotReplayError(f"{CANNOT}: input {escape(where)}: no digest of it is recorded")
        return replace(source, name=one.name, sha256=one.said.sha256)

    return _with_sources(recipe, placed)


def resolved_again(recipe: Recipe, said: Recorded, settings: Settings) -> Resolved:
    """The recipe with its models opened.

    Raises:
        CannotReplayError: this version does not know a method or a parameter, or has another version of it.
    """
    try:
        return resolved_by(recipe, _located(said), settings)
    except (RecipeError, IncompatibleError) as error:
        raise _unknown(said, error.message) from error
    except InputError as error:  # the inputs were there a moment ago: it is the folder of the configs
        lines = "\n".join(f"{CANNOT}: {line}" for line in error.message.split("\n"))
        raise CannotReplayError(lines, tag="INPUT-GONE", hint=error.hint) from error


def check_methods(plan: Plan, texts: list[Recorded]) -> None:
    """Raises: CannotReplayError if a merge was done by another version of its method."""
    ours = {one["at"]: one["method"] for one in methods(plan)}
    for said in texts:
        for at, label in said.methods.items():
            if label != ours.get(at):
                where = f"{escape(at)}: " if at else ""
                found = f"{where}made by {quote(label)}, this version of runner has {ours.get(at)}"
                raise _unknown(said, found)


def replay(
    places: Places,
    settings: Settings,
    output_dir: Path,
) -> Replay:
    """Does a recorded merge again and says what came of it; the model is kept only if that is asked for.

    Args:
        places: of what was recorded.
        settings: how to run.
        output_dir: where the model is built.

    Raises:
        CannotReplayError: an input, a method or the recipe is not what this machine and version have.
        RunnerError: whatever else is wrong.
    """
    said, texts = recorded_merge(places)
    if said.edited:
        stated, found = said.stated_digest, said.recipe_digest
        text = (
            f"recipe: that of {said.label} has sha256 {found}, stated beside it is {stated}: it was changed"
        )
        return Replay(DIFFERENT, said, reasons=(text,))
    recipe = recipe_of(said)
    total = sum(one.nbytes or 0 for one in said.inputs)
    with progress(total, "inputs", settings.progress) as advance:
        there, computed = find_inputs(recipe, said, settings, advance)
    resolved = resolved_again(with_files(recipe, there), said, settings)
    plan = plan_with_origins(resolved)
    check_methods(plan, [said, *(one for one in texts if one.kind == RECORD)])
    settings = replace(settings, digests="fresh")
    placement = placed(plan, settings)
    record = _record_like(said)
    record.resolved(resolved)
    record.planned(plan, placement)
    target = output_dir / plan.layout.name
    if settings.job.keep:
        target = check_place(plan.layout, output_dir, input_identities(resolved))
    with build(plan, placement, settings, target, record, computed=computed) as (staging, made):
        found_difference = difference(plan, staging, made, places, texts, settings)
        record.text()  # what this machine is, to be compared with what that one was
        word = found_difference.word(settings.job.ulps)
        reasons = found_difference.lines()
        if word != IDENTICAL:
            reasons = (*reasons, *changed(texts, record.run))
        if settings.job.keep:
            staging.publish(made.sidecar)
    sha256 = record.deterministic["output"]["sha256"]
    if settings.job.keep:
        text_of_record = record.text().encode()
        write_file(output_dir / RECORD, text_of_record)
        write_beside(output_dir, plan, made, record, text_of_record)
    kept = target if settings.job.keep else None
    return Replay(word, said, sha256, reasons, found_difference, kept)


def _record_like(said: Recorded) -> RunRecord:
    """A record that names the files of the recipe as the one that is replayed."""
    listed = said.content["deterministic"].get("recipe_files") if said.kind == RECORD else None
    files = [
        RecipeFile(one["name"], one["name"], one["sha256"])
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, Mapping) and {str} == {type(one.get(part)) for part in ("name", "sha256")}
    ]
    return RunRecord(files, ())


def changed(texts: list[Recorded], run: Mapping[str, Any]) -> tuple[str, ...]:
    """What is not as it was when the record was made: versions, processor, GPUs."""
    record = next((one for one in texts if one.kind == RECORD), None)
    if record is None:
        return ("no run.json says on which machine and with which versions it was made",)
    return tuple(environment_changes(record.content.get("run"), run))


def environment_changes(before: Any, after: Any) -> list[str]:
    """Versions, code and machine of two runs, where they differ."""
    found = []
    for group in ("versions", "code", "machine", "arithmetic"):
        first, second = (
            part
            if isinstance(part := side.get(group) if isinstance(side, Mapping) else None, Mapping)
            else {}
            for side in (before, after)
        )
        for name in dict.fromkeys([*first, *second]):
            if first.get(name) != second.get(name):
                found.append(f"{escape(str(name))}: {_shown(first.get(name))} → {_shown(second.get(name))}")
    return found


def _shown(value: Any) -> str:
    return "–" if value is None else quote(value) if not isinstance(value, str) else escape(value)

"""From a resolved recipe to its plan, from headers alone: equal recipes and inputs give equal plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from runner.architectures.ties import Made
from runner.checkpoint import Checkpoint, Layout
from runner.formats import FORMATS
from runner.models.view import whole
from runner.planning.arrange import arrange
from runner.planning.builtin import built_in, lacking
from runner.planning.factors import network_metadata
from runner.planning.jobs import Jobs
from runner.planning.lora import modules_of
from runner.planning.marking import marks, predicting, with_header, with_scheduler
from runner.planning.noted import Noted
from runner.planning.plan import Job, Plan
from runner.planning.prediction import Prediction, agreed, disagreeing, said_by
from runner.planning.taken import taken
from runner.resolve.resolved import Resolved


def make_plan(
    resolved: Resolved, metadata: Mapping[str, str], ranks: Mapping[str, int] | None = None
) -> Plan:
    """Plans a resolved recipe.

    Args:
        resolved: the recipe with its models opened.
        metadata: what the header of the output says beside the tensors.
        ranks: by key, where they were measured. Without them what depends on them has its upper bound.

    Raises:
        IncompatibleError: keys or shapes do not fit and the recipe has no policy for them.
    """
    jobs = Jobs(resolved)
    if resolved.merge.method.result == "factors":
        return _lora_plan(jobs, metadata, ranks or {})
    return _model_plan(jobs, metadata)


def _model_plan(jobs: Jobs, metadata: Mapping[str, str]) -> Plan:
    """The plan of a merge whose result is a model."""
    resolved, noted = jobs.resolved, jobs.noted
    of_components = Noted(resolved)
    given = taken(resolved, jobs.nonfinite, of_components)
    job_of = {job.key: job for job in (*map(jobs.job, jobs.keys.of(resolved.merge)), *given)}
    made = arrange(resolved, {job.key: job.spec for job in job_of.values()}, noted)
    noted.add(of_components)
    noted.raise_if_unfit(of_components.unfit)
    result = _predict(jobs, job_of.values())
    said = marks(resolved, result)
    for key in said.removed:
        made.pop(key, None)
        noted.drop(f"left out: the result predicts {result}", key)
    for job in said.added:
        job_of[job.key], made[job.key] = job, whole(job.key, job.spec)
    output = resolved.recipe.output
    specs = {key: one.spec for key, one in made.items()}
    carrier: Checkpoint | dict[str, bytes] | None = resolved.carrier
    if carrier is None and resolved.output_format == "diffusers":
        carrier = built_in(resolved, specs, result)
        noted.lines.append(lacking(resolved, specs))
    layout = FORMATS[resolved.output_format].layout(
        output.name,
        specs,
        carrier,
        with_header(metadata, resolved, result),
        output.max_shard_bytes,
    )
    if layout.folder:
        layout = with_scheduler(layout, resolved, result)
    placed = tuple(
        job
        for number, file in enumerate(layout.files)
        for key, (offset, _) in file.tensors.items()
        for job in _placed(job_of, key, made[key], number, offset)
    )
    return _plan(jobs, placed, layout, result)


def _lora_plan(jobs: Jobs, metadata: Mapping[str, str], ranks: Mapping[str, int]) -> Plan:
    """The plan of a merge whose result is a LoRA: a job for each module, which writes all its tensors.

    Raises:
        IncompatibleError: what has no place in a LoRA, and the recipe does not drop it.
    """
    resolved = jobs.resolved
    architecture, modules = modules_of(jobs, ranks)
    result = _predict(jobs, (job for _, job in modules.values()))
    said = network_metadata(architecture, (module for module, _ in modules.values()))
    said = {**with_header(metadata, resolved, result), **said}
    specs = {key: spec for module, _ in modules.values() for key, spec in module.specs.items()}
    layout = FORMATS["lora"].layout(resolved.recipe.output.name, specs, None, said, None)
    first = {next(iter(module.specs)): (module, job) for module, job in modules.values()}
    placed = tuple(
        replace(first[key][1], offset=offset, stored=first[key][0].name)
        for key, (offset, _) in layout.files[0].tensors.items()
        if key in first
    )
    return _plan(jobs, placed, layout, result)


def _placed(job_of: Mapping[str, Job], key: str, made: Made, file: int, offset: int) -> Iterable[Job]:
    """The jobs whose results are a tensor of the output, each at its place."""
    parts = list(dict.fromkeys(piece.key for piece in made.pieces))
    if len(parts) == 1 and (len(made.pieces) > 1 or made.transposed):
        yield replace(job_of[parts[0]], file=file, offset=offset, stored=key, arranged=made.pieces)
        return
    for part in parts:
        yield replace(job_of[part], file=file, offset=offset, stored=key)
        offset += job_of[part].spec.nbytes


def _predict(jobs: Jobs, made: Iterable[Job]) -> Prediction | None:
    """What the result predicts; notes which models say otherwise.

    Raises:
        IncompatibleError: they predict different things, and the recipe does not say which it is.
    """
    recipe, said = jobs.resolved.recipe, said_by(predicting(jobs.resolved, made))
    found = agreed(said, recipe.prediction_type, recipe.zero_terminal_snr)
    if found is not None:
        jobs.noted.lines += disagreeing(said, found)
    return found


def _plan(jobs: Jobs, placed: tuple[Job, ...], layout: Layout, result: Prediction | None) -> Plan:
    """The plan, with what was noted on the way."""
    noted = jobs.noted
    return Plan(
        jobs.resolved,
        placed,
        layout,
        {reason: tuple(sorted(keys)) for reason, keys in noted.dropped.items()},
        {reason: tuple(sorted(keys)) for reason, keys in noted.deviations.items()},
        tuple(noted.warnings(placed)),
        result,
    )

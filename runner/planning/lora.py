"""The modules of a LoRA that is the result of a merge, each with the job that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from runner.architectures import Architecture
from runner.errors import IncompatibleError, escape
from runner.lora.algebra import Kind
from runner.methods.factors import sides
from runner.planning.factors import Module, dialect_for, module_name
from runner.planning.jobs import Jobs
from runner.planning.keys import policies
from runner.planning.plan import Job, Load
from runner.resolve.resolved import BoundMerge


def modules_of(jobs: Jobs, ranks: Mapping[str, int]) -> tuple[Architecture, dict[str, tuple[Module, Job]]]:
    """The modules by name, in the order of the primary's keys, and what their names follow from.

    Args:
        jobs: of the recipe.
        ranks: by key, where they were measured.

    Raises:
        IncompatibleError: what has no place in a LoRA, and the recipe does not drop it.
    """
    primary = jobs.resolved.primary
    architecture = primary.architecture
    if architecture is None:
        label = escape(primary.checkpoint.label)
        raise IncompatibleError(
            f"{label} is of an unknown architecture: the names of a LoRA's modules follow from it", tag="LORA"
        )
    modules: dict[str, tuple[Module, Job]] = {}
    for key in jobs.keys.of(jobs.resolved.merge):
        if found := _module(jobs, architecture, key, ranks.get(key)):
            modules[found[0].name] = found
    jobs.noted.raise_if_unfit()
    if not modules:
        raise IncompatibleError("nothing to write: no module of the LoRA has a rank above 0", tag="LORA")
    return architecture, modules


def _module(
    jobs: Jobs, architecture: Architecture, key: str, measured: int | None
) -> tuple[Module, Job] | None:
    """The module that changes a tensor, and its job; None if there is none."""
    merge, noted = jobs.resolved.merge, jobs.noted
    spec = jobs.keys.spec(merge, key) if jobs.keys.has(merge, key) else None
    name = module_name(architecture, key, spec) if spec else None
    if merge.method.adapters and not _fits_factors(jobs, merge, key, name):
        return None
    if spec is None or name is None:
        noted.drop("not part of a LoRA", key)
        return None
    job = jobs.job(key)
    if not job.steps:
        noted.drop("left out of the LoRA", key)
        return None
    step = job.steps[-1]
    assert step.method.rank is not None  # its result is factors
    of = [_rank(jobs, job.loads[at]) for at in step.arguments] if merge.method.adapters else []
    most = step.method.rank(spec.shape, of, **dict(step.parameters))
    rank = most if measured is None else measured
    if rank == 0:
        noted.drop("no change there" if most else "rank 0", key)
        return None
    bound = step.over == "rank" and measured is None
    module = Module(name, dialect_for(architecture), spec.shape, rank, job.spec.dtype)
    return module, replace(job, rank=rank, bound=bound, alpha=module.alpha)


def _fits_factors(jobs: Jobs, merge: BoundMerge, key: str, name: str | None) -> bool:
    """Whether any of the adapters changes a tensor; notes those that have no factors there."""
    parameters = jobs.keys.parameters(merge, key)
    strengths = parameters["strength"]
    joined = not int(float(str(parameters["rank"])))
    assert isinstance(strengths, tuple)
    found = False
    for (role, node), strength in zip(list(merge.models.items())[1:], strengths, strict=True):
        assert isinstance(node, int)  # merges are no adapters
        changes = jobs.resolved.models[node].changes.get(key, ())
        if not changes or strength == 0:
            continue
        label = jobs.noted.name_of(merge, role)
        if any(change.adapter.magnitude for change in changes):
            what = f"{label}: DoRA's lengths follow from the weights, which are no part of a LoRA"
        elif name is None:
            what = f"{label}: changes of what is no linear layer or convolution"
            if policies(merge).extra == "drop":
                jobs.noted.drop(f"{what}, left out", key)
                continue
        elif joined and any(change.adapter.kind is not Kind.LORA for change in changes):
            kinds = ", ".join(sorted({change.adapter.kind for change in changes}))
            what = f"{label}: {kinds} cannot be joined exactly; say rank"
        else:
            found = True
            continue
        jobs.noted.misfit(what, key)
    return found


def _rank(jobs: Jobs, load: Load) -> int:
    """The rank of what adapters change of a tensor, as the engine makes factors of it."""
    columns = sides(jobs.keys.spec(load.model, load.key).shape)[1]
    return sum(
        change.adapter.rank or columns if change.adapter.kind is Kind.LORA else columns
        for change in jobs.resolved.models[load.model].changes[load.key]
    )

"""The plan as a person reads it: inputs, the fate of the keys, parameters, devices, memory and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from runner.errors import counted, escape
from runner.formats import FORMATS
from runner.models.model import Model
from runner.place import Placement
from runner.planning.plan import BUFFER, COPIED, KEPT, MERGED, Job, Plan, Value
from runner.provenance.parts import roles
from runner.provenance.record import RunRecord
from runner.recipe.structure import roles_at
from runner.resolve.resolved import Resolved
from runner.tables import size, table

_FATES = (MERGED, COPIED, KEPT, BUFFER)


def describe(
    plan: Plan,
    placement: Placement,
    free: int,
    publication: Sequence[str] = (),
    signature: Sequence[str] = (),
    *,
    all_keys: bool = False,
) -> str:
    """The plan as text.

    Args:
        plan: what will be done.
        placement: where.
        free: bytes that are free where the output goes.
        publication: where the result is published.
        signature: how it is signed.
        all_keys: also a line for every key.
    """
    layout, resolved = plan.layout, plan.resolved
    kind = FORMATS[resolved.output_format].title
    predicts = f", predicts {plan.prediction.title}" if plan.prediction else ""
    method = resolved.merge.method.label
    lines = [f"plan of {resolved.recipe.name}: {method} → {layout.name} ({kind}{predicts})", ""]
    lines += ["inputs", *_inputs(plan), ""]
    lines += ["keys", *_keys(plan), ""]
    if parameters := _parameters(plan):
        lines += ["parameters", *parameters, ""]
    lines += ["work", *_work(plan, placement, free)]
    if signature:
        lines += ["", "sign", *(f"  {line}" for line in signature)]
    if publication:
        lines += ["", "publish", *(f"  {line}" for line in publication)]
    if plan.warnings:
        lines += ["", "warnings", *(f"  {warning}" for warning in plan.warnings)]
    if all_keys:
        lines += ["", *_every_key(plan)]
    return "\n".join(lines) + "\n"


def report(path: Path, plan: Plan, record: RunRecord) -> str:
    """What a finished merge says: where the model is, what it is, how far it moved from the primary."""
    output, lora = record.deterministic["output"], plan.resolved.output_format == "lora"
    moved = record.run["residual" if lora else "moved"]
    primary = escape(plan.resolved.primary.checkpoint.label)
    lines = [str(path), f"  sha256 {output['sha256']}, {size(output['bytes'])}"]
    if not plan.layout.folder:
        (file,) = output["files"]
        lines.append(f"  AutoV2 {file['auto_v2']}, AutoV3 {file['auto_v3']}")
    if moved:
        distances = ", ".join(
            f"{name} {100 * found['relative']:.2g} %"
            for name, found in moved.items()
            if found["relative"] is not None
        )
        what = "of the change not in the LoRA" if lora else f"moved from {primary}"
        lines.append(f"  {what}: {distances or 'no finite distance'}")
    lines += _ranks(record) if lora else _copied(plan)
    seconds = record.run["seconds"]
    lines.append(f"  {sum(seconds.values()):.1f} s, record in run.json beside run.log")
    demos = sorted({label for label in _labels(plan) if label.startswith("demo:")})
    if demos:
        own = f"runner recipe={plan.resolved.recipe.name} {_first_demo(plan)}=/path/to/model ..."
        lines += [
            f"  {', '.join(demos)}: demo models, tiny, with random weights, to try recipes on.",
            f"  With your own: {own}",
            "  or copy the recipe and write your paths in it (README: your own models).",
        ]
    return "\n".join(lines)


def _ranks(record: RunRecord) -> list[str]:
    """How many modules a LoRA has, and the ranks of their factors."""
    found = [
        (int(rank), count)
        for counts in record.deterministic["ranks"].values()
        for rank, count in counts.items()
    ]
    low, high = min(found)[0], max(found)[0]
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    return [f"  {counted(sum(count for _, count in found), 'module')}, {ranks}"]


def report_of_earlier(path: Path, record: RunRecord) -> str:
    """What is said of a model that is there already: where it is, what it is, and how to make it again."""
    output = record.deterministic["output"]
    return "\n".join(
        [
            str(path),
            f"  sha256 {output['sha256']}, {size(output['bytes'])}",
            "  there already, made by the same recipe from the same models; rerun=true merges again",
        ]
    )


def _first_demo(plan: Plan) -> str:
    """The field of the recipe that names the first demo model."""
    demos = (model for model in plan.resolved.models if model.checkpoint.label.startswith("demo:"))
    return ".".join(map(str, ("recipe", *next(demos).sources[0].path)))


def _copied(plan: Plan) -> list[str]:
    """What of the result is another model's, unchanged: it is in no distance."""
    counts: dict[tuple[str, str], int] = {}
    for job in plan.jobs:
        if job.fate != COPIED:
            continue
        model = plan.resolved.models[job.loads[0].model]
        if model is not plan.resolved.primary:
            place = (model.checkpoint.label, job.place.component)
            counts[place] = counts.get(place, 0) + 1
    parts = [f"{component} {count} from {escape(label)}" for (label, component), count in counts.items()]
    return [f"  tensors copied: {', '.join(parts)}"] if parts else []


def _labels(plan: Plan) -> list[str]:
    return [model.checkpoint.label for model in plan.resolved.models]


def _inputs(plan: Plan) -> list[str]:
    rows = [["role", "source", "format", "architecture", "tensors", "size", "dtype"]]
    for model, stands in zip(plan.resolved.models, roles(plan.resolved), strict=True):
        checkpoint = model.checkpoint
        rows.append(
            [
                ", ".join(stands),
                escape(checkpoint.label),
                checkpoint.title or FORMATS[checkpoint.format].title,
                model.title,
                str(len(checkpoint.tensors)),
                size(checkpoint.nbytes),
                _dtypes(model),
            ]
        )
    return table(rows, right=(4, 5))


def _dtypes(model: Model) -> str:
    floats = Counter(s.spec.dtype for s in model.checkpoint.tensors.values() if s.spec.is_float)
    return ", ".join(name for name, _ in floats.most_common())


def _keys(plan: Plan) -> list[str]:
    counts: dict[str, Counter[str]] = {}
    dtypes: dict[str, Counter[str]] = {}
    for job in plan.jobs:
        counts.setdefault(job.place.component, Counter())[job.fate] += 1
        dtypes.setdefault(job.place.component, Counter())[job.spec.dtype] += job.spec.nbytes
    fates = [fate for fate in _FATES if fate in plan.fates]
    rows = [["component", *fates, "written as"]]
    for component in sorted(counts):
        written = ", ".join(name for name, _ in dtypes[component].most_common(2))
        rows.append([component, *(str(counts[component][fate]) for fate in fates), written])
    if len(counts) > 1:
        rows.append(["all", *(str(plan.fates[fate]) for fate in fates), ""])
    return table(rows, right=range(1, len(fates) + 1))


def _values(job: Job, resolved: Resolved) -> dict[str, Value]:
    """The parameters of a job's steps, by name; of nested merges with the roles that lead there.

    Where they make the result one of the models, nothing is computed; they are shown all the same.
    """
    if job.place.component in resolved.components:
        return {}
    if job.fate == COPIED:
        return {
            name: tuple(one.at(job.key, job.place) for one in weighting)
            if isinstance(weighting, tuple)
            else weighting.at(job.key, job.place)
            for name, weighting in resolved.merge.weightings.items()
        }
    return {
        " ".join([roles_at(step.path), name]).strip(): value
        for step in job.steps
        for name, value in step.parameters
    }


def _parameters(plan: Plan) -> list[str]:
    """The values the parameters take: by component, or by block where they differ inside it."""
    values = {job.key: _values(job, plan.resolved) for job in plan.jobs}
    names = list(dict.fromkeys(name for job in plan.jobs for name in values[job.key]))
    if not names:
        return []
    rows = [["where", *names]]
    for component in sorted({job.place.component for job in plan.jobs}):
        jobs = [job for job in plan.jobs if job.place.component == component]
        if _agree(jobs, values):
            rows.append([component, *_spread(jobs, names, values)])
            continue
        runs: list[tuple[str, str, list[str]]] = []  # first block, last block, values
        for block, part in _by_block(jobs, values, plan):
            cells = _spread(part, names, values)
            if block and runs and runs[-1][0] and runs[-1][2] == cells:
                runs[-1] = (runs[-1][0], block, cells)
            else:
                runs.append((block, block, cells))
        for first, last, cells in runs:
            blocks = first if first == last else f"{first}-{last}"
            rows.append([f"{component} {blocks}".rstrip(), *cells])
    return table(rows)


def _agree(jobs: Iterable[Job], values: Mapping[str, Mapping[str, Value]]) -> bool:
    """Whether some jobs have the same parameters."""
    return len({tuple(values[job.key].items()) for job in jobs}) == 1


def _by_block(
    jobs: Sequence[Job], values: Mapping[str, Mapping[str, Value]], plan: Plan
) -> Iterator[tuple[str, list[Job]]]:
    """The jobs of each block in order of depth; of its parts, if the values differ between them only."""
    architecture = plan.resolved.primary.architecture
    names = (*architecture.blocks, *architecture.fine) if architecture else ()
    order = {name: at for at, name in enumerate(names)}
    for block, whole in _divided(jobs, -1, order).items():
        parts = _divided(whole, 0, order)
        clear = all(_agree(part, values) for part in parts.values())
        yield from parts.items() if clear and not _agree(whole, values) else [(block, whole)]


def _divided(jobs: Iterable[Job], name: int, order: Mapping[str, int]) -> dict[str, list[Job]]:
    """The jobs by one of the names of their blocks: 0 the most specific, -1 the block itself."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.place.blocks[name] if job.place.blocks else "", []).append(job)
    return {key: found[key] for key in sorted(found, key=lambda key: order.get(key, len(order)))}


def shown(value: Value) -> str:
    """A parameter's value as a person writes it."""
    if isinstance(value, tuple):
        return " ".join(map(shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"


def _spread(jobs: list[Job], names: list[str], values: Mapping[str, Mapping[str, Value]]) -> list[str]:
    """For each parameter the values it takes, the most frequent first."""
    cells = []
    for name in names:
        counts = Counter(shown(values[job.key][name]) for job in jobs if name in values[job.key])
        found = [f"{text} ({count})" if len(counts) > 1 else text for text, count in counts.most_common(4)]
        cells.append((", ".join(found) or "–") + (", ..." if len(counts) > 4 else ""))
    return cells


def _work(plan: Plan, placement: Placement, free: int) -> list[str]:
    lines = []
    for device, count in placement.jobs_by_device.items():
        where = f"{device}, {counted(placement.threads, 'thread')}" if device == "cpu" else f"GPU {device}"
        lines.append(f"{where}: {counted(count, 'tensor')}, budget {size(placement.memory[device])}")
    lines.append(f"at most {size(placement.peak_bytes)} of tensors in memory at a time")
    if ranks := [job.rank for job in plan.jobs if job.bound]:
        what = f"{counted(len(ranks), 'rank')} to be measured before anything is written"
        lines.append(f"{what}: at most {max(ranks)} each")
    enough = "" if free >= plan.layout.nbytes else ": NOT ENOUGH"
    most = "at most " if plan.is_bound else ""
    written = f"{most}{size(plan.layout.nbytes)} to write in {counted(len(plan.layout.files), 'weight file')}"
    lines.append(f"{size(plan.bytes_read)} to read, {written}, {size(free)} free{enough}")
    classes = Counter(job.determinism for job in plan.jobs if job.steps)
    lines.append(f"determinism: {', '.join(classes) or 'copies only'}")
    return [f"  {line}" for line in lines]


def _every_key(plan: Plan) -> list[str]:
    rows = [["key", "fate", "blocks", "written as", "parameters"]]
    for job in plan.jobs:
        values = _values(job, plan.resolved)
        parameters = ", ".join(f"{name}={shown(value)}" for name, value in values.items())
        rows.append([escape(job.key), job.fate, " ".join(job.place.blocks), str(job.spec), parameters])
    lines = table(rows)
    for reason, keys in plan.dropped.items():
        lines += [f"  {escape(key)}  dropped: {reason}" for key in keys]
    return lines

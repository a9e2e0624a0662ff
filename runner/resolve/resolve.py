"""Names to things: opens the headers of the sources, finds methods, binds parameters to places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from runner.architectures import Place
from runner.checkpoint import Checkpoint
from runner.errors import IncompatibleError, KeyPath, Location, Problems, nearest, quote
from runner.formats import FORMATS
from runner.formats.component_files import CONFIG
from runner.library.lookup import Library
from runner.methods import Method, find_method
from runner.models.changes import changes_of
from runner.models.ema import users
from runner.models.model import Model, component_config, component_model, component_names, recognised
from runner.models.view import View, whole
from runner.recipe.structure import Merge, Policies, Recipe, Source
from runner.resolve.binding import bind, check_names, names_of, primary_source
from runner.resolve.resolved import Resolved
from runner.resolve.sources import Opened, open_model, open_sources, together
from runner.tensors import TensorSpec
from runner.weighting.rules import Names

WINDOWS_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def resolve(
    recipe: Recipe,
    locate: Callable[[KeyPath], Location],
    models_dir: Path,
    cache_dir: Path,
    offline: bool = False,
    folders: Sequence[Path] = (),
) -> Resolved:
    """Binds a recipe to files, methods and places.

    Args:
        recipe: as parsed.
        locate: where the value at a key path was written, for errors.
        models_dir: relative paths of sources start here.
        cache_dir: demo models are kept here.
        offline: whether models of the hub are taken from its cache alone.
        folders: where else models are looked for by name or digest.

    Raises:
        RecipeError: with every wrong name and value.
        InputError: with every source that is missing or malformed.
        IncompatibleError: layouts that cannot be mixed, adapters or components that do not fit.
    """
    problems = Problems(locate)
    bound = check_names(recipe.merge, problems)
    library = Library((models_dir, *folders), cache_dir)
    opened, unreadable = open_sources(
        recipe.sources(), set(users(recipe.merge)), models_dir, library, offline
    )
    stated = {source.path for source in recipe.components.values()}
    models = tuple(
        replace(recognised(named, checkpoint), revision=revision)
        for sources, checkpoint, revision in opened
        if (named := tuple(source for source in sources if source.path not in stated))
    )
    if unreadable or not models:
        if problems:
            for error in unreadable:
                problems.add((), error.message)
        problems.raise_if_any()
        raise together(unreadable)
    index_of = {source.path: at for at, model in enumerate(models) for source in model.sources}
    # With a method or role unknown the first model stands for the primary, to check the rest against.
    primary = models[index_of[primary_source(recipe.merge).path] if bound else 0]
    if bound:
        _check_kinds(recipe.merge, models, index_of, problems)
    names = names_of(primary, models)
    merge = bind(recipe.merge, index_of, names, problems)
    output_format = _check_output(
        recipe, find_method(recipe.merge.method, recipe.merge.compat), primary, names, problems
    )
    _check_components(recipe, primary, names, problems)
    if recipe.output.name.partition(".")[0].upper() in WINDOWS_NAMES:
        problems.warn(("output", "name"), "Windows keeps this name for a device")
    problems.raise_if_any()
    assert merge is not None  # else its method were a problem
    _check_layouts(models, primary)
    models, components, places = _with_components(recipe, opened, models, primary, names.places)
    models = tuple(_with_changes(model, primary, recipe.merge.policies) for model in models)
    carrier = None
    if output_format == "diffusers":
        carrier = _carrier(recipe, (primary, *models), models_dir, library, offline)
        for component, number in components.items():
            carrier = carrier and _with_config(carrier, component, models[number].checkpoint)
    return Resolved(
        recipe, models, merge, output_format, carrier, places, tuple(problems.warnings), components
    )


def _check_output(
    recipe: Recipe, method: Method | None, primary: Model, names: Names, problems: Problems
) -> str:
    """Notes what is wrong with `output`; returns its format."""
    output, found = recipe.output, primary.checkpoint.format
    if method is not None and method.result == "factors":
        found = "lora"
    if output.format is not None and output.format not in FORMATS:
        hint = nearest(output.format, FORMATS) or f" (there are: {', '.join(FORMATS)})"
        problems.add(("output", "format"), f"unknown format {quote(output.format)}{hint}")
    elif method is not None and output.format is not None and (output.format == "lora") != (found == "lora"):
        what = "a LoRA" if found == "lora" else "a model"
        hint = "" if found == "lora" else "; extract_lora and join_loras give a LoRA"
        problems.add(
            ("output", "format"),
            f"the result of {method.name} is {what}: leave it out{hint} (found {quote(output.format)})",
        )
    elif output.format not in (None, found) and found != "lora" and primary.architecture is None:
        problems.add(
            ("output", "format"),
            f"{quote(primary.checkpoint.label)} is of an unknown architecture: its layout cannot be "
            f"converted; leave it out or say {found}",
        )
    format_ = output.format if output.format in FORMATS else found
    assert format_ is not None
    for component in output.dtype:
        if component not in ("default", *names.components, *recipe.components):
            hint = nearest(component, names.components)
            there_are = ", ".join(sorted(names.components))
            problems.add(("output", "dtype", component), f"no such component{hint} (there are: {there_are})")
    if output.max_shard_bytes is not None and format_ != "diffusers":
        problems.add(("output", "max_shard_size"), "a single file is not split; leave it out")
    if output.config is not None and format_ == "checkpoint":
        problems.add(("output", "config"), "a single file has no configuration files; leave it out")
    return format_


def _carrier(
    recipe: Recipe, models: Sequence[Model], models_dir: Path, library: Library, offline: bool
) -> Checkpoint | None:
    """The pipeline whose other files go into a folder: the one the recipe names, or the first there is.

    Raises:
        InputError: it cannot be read.
        IncompatibleError: it is of another architecture.
    """
    source = recipe.output.config
    if source is None:
        folders = (model.checkpoint for model in models if model.checkpoint.format == "diffusers")
        return next(folders, None)
    model = open_model(source, models_dir, library, offline)
    checkpoint = model.checkpoint
    if checkpoint.format != "diffusers" or model.architecture != models[0].architecture:
        kind = FORMATS[checkpoint.format].title
        raise IncompatibleError(
            f"output.config: {quote(source.name)} is a {kind} ({model.title}), "
            f"the result is {models[0].title}",
            tag="CONFIG",
            hint="give the folder of a pipeline of the same architecture",
        )
    return checkpoint


def _check_kinds(
    merge: Merge, models: Sequence[Model], index_of: Mapping[KeyPath, int], problems: Problems
) -> None:
    """Notes adapters where models are expected, and the other way round."""
    method = find_method(merge.method, merge.compat)
    assert method is not None  # checked by check_names
    for role, model in merge.models.items():
        if isinstance(model, Merge):
            _check_kinds(model, models, index_of, problems)
            inner = find_method(model.method, model.compat)
            if inner is not None and inner.result == "factors":
                what = f"the result of {inner.name} is a LoRA, which is no part of another merge"
                problems.add((*merge.path, "models", role), f"{what}; make it with a recipe of its own")
                continue
        wanted = method.adapters and role not in method.roles
        found = isinstance(model, Source) and models[index_of[model.path]].adapters is not None
        if wanted != found:
            named = quote(model.name) if isinstance(model, Source) else "a merge"
            what = f"{named} is no file of adapters" if wanted else f"{named} is a file of adapters, no model"
            hint = "" if wanted else "; add_lora bakes it into one, join_loras makes one of several"
            problems.add((*merge.path, "models", role), f"{what}{hint}")


def _with_changes(model: Model, primary: Model, policies: Policies) -> Model:
    """A file of adapters with what it changes of the primary; a model as it is."""
    if not model.adapters:
        return model
    base = primary.view.specs
    partial = policies.extra == "drop"
    changes = changes_of(primary.architecture, base, model.checkpoint, partial=partial)
    return replace(
        model,
        changes=changes,
        view=View({key: whole(key, TensorSpec("F32", base[key].shape)) for key in changes}, {}),
    )


def _check_components(recipe: Recipe, primary: Model, names: Names, problems: Problems) -> None:
    method = find_method(recipe.merge.method, recipe.merge.compat)
    if recipe.components and method is not None and method.result == "factors":
        problems.add(("components",), "a LoRA has no components of its own; leave it out")
        return
    known = component_names(primary.architecture, names.components)
    for component in recipe.components:
        if component not in known:
            hint = nearest(component, known) or f" (there are: {', '.join(known)})"
            problems.add(("components", component), f"{primary.title} has no such component{hint}")


def _with_components(
    recipe: Recipe,
    opened: Sequence[Opened],
    models: tuple[Model, ...],
    primary: Model,
    places: Mapping[str, Place],
) -> tuple[tuple[Model, ...], dict[str, int], dict[str, Place]]:
    """The models and the sources of components, which of them each component is of, and all places.

    Raises:
        IncompatibleError: a source is of another architecture, or has nothing of the component.
    """
    checkpoints = {source.path: checkpoint for sources, checkpoint, _ in opened for source in sources}
    found, numbers, all_places = list(models), {}, dict(places)
    for component, source in recipe.components.items():
        expected = [key for key in primary.view.tensors if places[key].component == component]
        model, own = component_model(component, source, checkpoints[source.path], primary, expected)
        same = [at for at, one in enumerate(found) if one.is_also(model)]
        if same:
            found[same[0]] = found[same[0]].named_again(model)
        else:
            found.append(model)
        numbers[component] = same[0] if same else len(found) - 1
        all_places |= {key: place for key, place in own.items() if key not in places}
    return tuple(found), numbers, all_places


def _with_config(carrier: Checkpoint, component: str, source: Checkpoint) -> Checkpoint:
    """A pipeline with the config of a component that is taken from a folder: it belongs to the weights."""
    config = component_config(component, source)
    others = {**carrier.others, f"{component}/{CONFIG}": config} if config else carrier.others
    return replace(carrier, others=others)


def _check_layouts(models: tuple[Model, ...], primary: Model) -> None:
    for model in models:
        ours, theirs = primary.checkpoint, model.checkpoint
        if model.adapters:
            continue
        same = primary.architecture == model.architecture
        if theirs.format != ours.format and not (same and primary.architecture):
            raise IncompatibleError(
                f"{quote(ours.label)} is a {FORMATS[ours.format].title} ({primary.title}), "
                f"{quote(theirs.label)} is a {FORMATS[theirs.format].title} ({model.title}): "
                "their layouts cannot be mixed",
                tag="LAYOUT",
                hint="that is possible where both models are of the same known architecture",
            )

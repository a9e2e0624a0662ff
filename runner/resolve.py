"""Names to things: opens the headers of the sources, finds methods, binds parameters to places."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.architectures import Place, place
from runner.architectures.layouts import single_file_name
from runner.checkpoint import Checkpoint
from runner.demo.models import demo_model
from runner.disk.files import InputFile
from runner.errors import IncompatibleError, InputError, KeyPath, Location, Problems, escape, nearest, quote
from runner.formats import FORMATS, READERS
from runner.formats.diffusers import CONFIG
from runner.library.hub import fetch
from runner.library.lookup import Library
from runner.methods import METHODS, Method, Parameter, find_method
from runner.models.changes import changes_of
from runner.models.ema import averaged, users
from runner.models.model import Model as Model
from runner.models.model import component_config, component_model, component_names, recognised
from runner.models.view import View, whole
from runner.recipe.structure import RECIPE_KEYS, Merge, Policies, Recipe, Source
from runner.tensors import TensorSpec
from runner.weighting.parameter import Weighting, parse_weighting
from runner.weighting.rules import Names

WINDOWS_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundMerge:
    """A merge of the recipe with its names resolved.

    Attributes:
        method: the method.
        models: by role in the order of the method's operands; a source is its index in Resolved.models.
        weightings: the numeric parameters of the method; of one per model, one for each of `*models`.
        choices: its other parameters.
        policies, seed, path: of the recipe's merge.
    """

    method: Method
    models: Mapping[str, int | BoundMerge]
    weightings: Mapping[str, Weighting | tuple[Weighting, ...]]
    choices: Mapping[str, str | bool]
    policies: Policies
    seed: int
    path: KeyPath

    def primary(self) -> int:
        """The source that decides the keys: the first role, and of a merge there its first role."""
        first = next(iter(self.models.values()))
        return first if isinstance(first, int) else first.primary()

    def merges(self) -> Iterator[BoundMerge]:
        """This merge and those below it."""
        yield self
        for model in self.models.values():
            if isinstance(model, BoundMerge):
                yield from model.merges()


@dataclass(frozen=True)
class Resolved:
    """A recipe and everything it names.

    Attributes:
        recipe: as parsed.
        models: its sources, each once: those of the merge first.
        merge: the recipe's merge, its names resolved.
        output_format: in FORMATS.
        carrier: the model whose other files the output has; None if it has none, or built-in ones.
        places: where each key of any model stands.
        warnings: what is unusual in the recipe, a line each.
        components: that are taken whole from a source of their own, component → index in models.
    """

    recipe: Recipe
    models: tuple[Model, ...]
    merge: BoundMerge
    output_format: str
    carrier: Checkpoint | None
    places: Mapping[str, Place]
    warnings: tuple[str, ...] = ()
    components: Mapping[str, int] = field(default_factory=dict)

    @property
    def primary(self) -> Model:
        """The model whose keys, shapes and other files the output has."""
        return self.models[self.merge.primary()]

    @property
    def files(self) -> list[InputFile]:
        """The weight files of all models."""
        return [file for model in self.models for file in model.checkpoint.files]


def _places(primary: Model, models: tuple[Model, ...]) -> dict[str, Place]:
    """Where each tensor of any of the models stands."""
    architecture = primary.architecture
    found: dict[str, Place] = {}
    for model in models:
        layout = model.checkpoint.format
        for key in model.view.tensors:
            if key not in found:
                named = "diffusers" if architecture and key not in model.view.left else layout
                found[key] = place(architecture, named, key)
    return found


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
    bound = _check_names(recipe.merge, problems)
    library = Library((models_dir, *folders), cache_dir)
    opened, unreadable = _open_sources(
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
        raise _together(unreadable)
    index_of = {source.path: at for at, model in enumerate(models) for source in model.sources}
    # With a method or role unknown the first model stands for the primary, to check the rest against.
    primary = models[index_of[_primary_source(recipe.merge).path] if bound else 0]
    if bound:
        _check_kinds(recipe.merge, models, index_of, problems)
    names = _names(primary, models)
    merge = _bind(recipe.merge, index_of, names, problems)
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


def source_path(source: Source, models_dir: Path, library: Library, offline: bool) -> tuple[Path, str | None]:
    """Where a source is, and the commit of a model of the hub.

    Raises:
        InputError: it names something that is no file here, or several models.
    """
    name = source.name
    if name.startswith("demo:"):
        return demo_model(name.removeprefix("demo:"), library.cache_dir), None
    if name.startswith("hf:"):
        return fetch(name, source.variant, offline)
    if "://" in name:
        raise InputError(f"{quote(name)}: a URL; a source is a path, demo:NAME or hf:ORG/NAME", tag="URL")
    path = models_dir / Path(name).expanduser()
    if os.path.lexists(path):
        return path, None
    wanted = source.sha256 or source.locked
    if wanted and (found := library.by_digest(wanted)):
        log.info("%s: found by its sha256, %s", escape(name), escape(str(found.path)))
        return found.path, None
    if found := library.by_name(name):
        log.info("%s: %s", escape(name), escape(str(found.path)))
        return found.path, None
    return path, None


Opened = tuple[tuple[Source, ...], Checkpoint, str | None]  # what names a model, its headers, its commit


def _open_sources(
    sources: Iterable[Source], means: Collection[KeyPath], models_dir: Path, library: Library, offline: bool
) -> tuple[list[Opened], list[InputError]]:
    """Opens each distinct source once; returns with the models what could not be opened.

    Args:
        sources: of the recipe.
        means: places of those whose running means are taken in place of the weights.
        models_dir, offline: as of resolve.
        library: of the models there are.
    """
    opened: dict[tuple[Path, str | None, bool], Opened] = {}
    unreadable: dict[tuple[str, str | None], InputError] = {}
    for source in sources:
        try:
            path, revision = source_path(source, models_dir, library, offline)
            file = (path.resolve(), source.variant, source.path in means)
            if file in opened:
                others, checkpoint, revision = opened[file]
                opened[file] = ((*others, source), checkpoint, revision)
                continue
            checkpoint = _open(path, source, models_dir, library)
            opened[file] = ((source,), averaged(checkpoint) if file[-1] else checkpoint, revision)
        except InputError as error:
            unreadable[source.name, source.variant] = error
        except (OSError, RuntimeError) as error:
            unreadable[source.name, source.variant] = _missing(source, error)
    return list(opened.values()), list(unreadable.values())


def open_model(source: Source, models_dir: Path, library: Library, offline: bool) -> Model:
    """A model by itself, without a recipe.

    Args:
        source: names it.
        models_dir: a relative path starts here.
        library: where it is looked for if there is none.
        offline: whether a model of the hub is only looked for in its cache.

    Raises:
        InputError: it is missing or malformed.
    """
    try:
        path, revision = source_path(source, models_dir, library, offline)
        checkpoint = _open(path, source, models_dir, library)
    except (OSError, RuntimeError) as error:
        raise _missing(source, error) from error
    return replace(recognised((source,), checkpoint), revision=revision)


def _missing(source: Source, error: Exception) -> InputError:
    """The error for a name too long, links in a circle, an unknown ~user."""
    return InputError(f"{quote(source.name)}: {getattr(error, 'strerror', None) or error}", tag="MISSING")


def _open(path: Path, source: Source, models_dir: Path, library: Library) -> Checkpoint:
    reader = next(reader for reader in READERS if reader.accepts(path))
    try:
        return reader.open(path, source.name, source.variant)
    except InputError as error:
        if source.name.startswith("demo:"):
            error.hint = f"remove {path}: the demo model is made anew"
        elif source.name.startswith("hf:"):
            error.hint = error.hint or f"the hub's cache has it in {path}"
        elif error.tag == "MISSING" and not path.exists():
            there = "" if models_dir.is_dir() else ", which is no folder"
            near = library.nearest(source.name, _names_beside(path))
            error.hint = f"paths start at models_dir={models_dir}{there}{near}"
            if source.sha256 or source.locked:
                error.hint += "; if the file has another name: job=find, then sha256 finds it"
        raise


def _names_beside(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def _together(errors: list[InputError]) -> InputError:
    if len(errors) == 1:
        return errors[0]
    hint = next((error.hint for error in errors if error.hint), None)
    return InputError("\n".join(error.message for error in errors), tag=errors[0].tag, hint=hint)


def _check_names(merge: Merge, problems: Problems) -> bool:
    """Notes unknown methods, roles and parameters; whether all methods and roles are known."""
    good = True
    for model in merge.models.values():
        if isinstance(model, Merge):
            good &= _check_names(model, problems)
    method = find_method(merge.method, merge.compat)
    if method is None:
        problems.add(*_unknown_method(merge))
        return False
    takes = f"{method.name} takes {_takes(method)}"
    for role in method.roles:
        if role not in merge.models:
            problems.add((*merge.path, "models", role), f"missing: {takes}")
            good = False
    others = [role for role in merge.models if role not in (*method.roles, method.optional)]
    if method.variadic is None:
        for role in others:
            problems.add((*merge.path, "models", role), f"no such model: {takes}")
    for role in others if method.variadic is not None and method.roles else ():
        if hint := nearest(role, method.roles):
            problems.warn((*merge.path, "models", role), f"one more model{hint}")
    if method.variadic is not None and len(others) < method.variadic:
        problems.add((*merge.path, "models"), f"too few: {takes}")
        good = False
    for name, value in merge.parameters.items():
        if name not in method.parameters:
            known = (*method.parameters, *RECIPE_KEYS)
            own = ", ".join(method.parameters) or "none"
            hint = nearest(name, known) or f" (its parameters: {own})"
            problems.add(
                (*merge.path, name), f"unknown parameter of {method.name}{hint} (found {quote(value)})"
            )
    return good


def _takes(method: Method) -> str:
    """The models a method takes, for a message."""
    text = ", ".join(method.roles)
    if method.variadic is not None:
        more = f"{method.variadic} or more models under names of your own"
        text = f"{text} and {more}" if text else more
    return f"{text}, and {method.optional} if you like" if method.optional else text


def _operands(merge: Merge, method: Method) -> list[str]:
    """The roles of a merge in the order of the method's operands; one it may leave out comes last."""
    optional = [role for role in merge.models if role == method.optional]
    others = [role for role in merge.models if role not in method.roles and role != method.optional]
    return [*method.roles, *others, *optional]


def _unknown_method(merge: Merge) -> tuple[KeyPath, str]:
    tools = sorted({tool for _, tool in METHODS if tool})
    if merge.compat is not None and merge.compat not in tools:
        hint = nearest(merge.compat, tools) or f" (there are: {', '.join(tools)})"
        return (*merge.path, "compat"), f"unknown tool {quote(merge.compat)}{hint}"
    names = sorted(name for name, tool in METHODS if tool == merge.compat)
    where = f" with compat: {merge.compat}" if merge.compat else ""
    hint = nearest(merge.method, names) or f" (there are: {', '.join(names)})"
    return (*merge.path, "method"), f"unknown method {quote(merge.method)}{where}{hint}"


def _primary_source(merge: Merge) -> Source:
    method = find_method(merge.method, merge.compat)
    assert method is not None  # checked by _check_names
    first = merge.models[_operands(merge, method)[0]]
    return first if isinstance(first, Source) else _primary_source(first)


def _names(primary: Model, models: tuple[Model, ...]) -> Names:
    """What a recipe can name: tensors of known architectures by their names in either layout."""
    places, architecture = _places(primary, models), primary.architecture
    if architecture is None:
        single = primary.checkpoint.format == "checkpoint"
        return Names(places, None) if single else Names(places, None, single_file_name=lambda key: None)
    stored_so = {
        key for model in models if model.checkpoint.format == "checkpoint" for key in model.view.left
    }

    def in_a_single_file(key: str) -> str | None:
        return key if key in stored_so else single_file_name(architecture, key)

    return Names(places, architecture, in_a_single_file, lambda key: [in_a_single_file(key) or key])


def _bind(
    merge: Merge, index_of: Mapping[KeyPath, int], names: Names, problems: Problems
) -> BoundMerge | None:
    """A merge with its parameters read; None if its method, or one below, is unknown."""
    models: dict[str, int | BoundMerge] = {}
    method = find_method(merge.method, merge.compat)
    operands = _operands(merge, method) if method else list(merge.models)
    for role in operands:
        model = merge.models.get(role)
        if isinstance(model, Source):
            models[role] = index_of[model.path]
        elif model is not None and (bound := _bind(model, index_of, names, problems)):
            models[role] = bound
    if method is None:
        return None
    binder = _Binder(merge, names, problems)
    weightings: dict[str, Weighting | tuple[Weighting, ...]] = {}
    choices: dict[str, str | bool] = {}
    for name, parameter in method.parameters.items():
        value = merge.parameters.get(name)
        if parameter.choices:
            choices[name] = binder.choice(parameter, value)
        elif parameter.per_model:
            several = [role for role in operands if role not in method.roles and role != method.optional]
            weightings[name] = binder.per_model(parameter, value, several or method.roles)
        else:
            weightings[name] = binder.weighting(parameter, value, (*merge.path, name))
    return BoundMerge(method, models, weightings, choices, merge.policies, merge.seed, merge.path)


class _Binder:
    """Reads the parameters of one merge."""

    def __init__(self, merge: Merge, names: Names, problems: Problems) -> None:
        self.merge = merge
        self.names = names
        self.problems = problems

    def weighting(self, parameter: Parameter, value: Any, path: KeyPath) -> Weighting:
        """The number at every place of the model; notes rules that select nothing."""
        extrapolate = self.merge.policies.extrapolate
        before = len(self.problems)
        weighting = parse_weighting(parameter, value, path, extrapolate, self.names, self.problems)
        readable = len(self.problems) == before
        for at, reason in weighting.unused:
            self.problems.add(at, reason)
        if weighting.open is not None and readable:
            hint = "add default: NUMBER for the rest"
            if isinstance(value, list):
                hint = "a list is for the blocks; write {COMPONENT: LIST, default: NUMBER}"
            self.problems.add(path, f"says nothing of {quote(weighting.open)} and others; {hint}")
        return weighting

    def per_model(self, parameter: Parameter, value: Any, roles: Sequence[str]) -> tuple[Weighting, ...]:
        """A number for each model: one for all, or a mapping by role."""
        path = (*self.merge.path, parameter.name)
        if isinstance(value, list):
            by_role = "a list runs over blocks; for a number for each model write {MODEL: NUMBER, ...}"
            self.problems.add(path, f"{by_role}; found {quote(value)}")
            value = None
        if not (isinstance(value, Mapping) and set(value) & set(roles)):
            return (self.weighting(parameter, value, path),) * len(roles)
        for name in value:
            if name not in roles:
                hint = nearest(str(name), roles) or f" (there are: {', '.join(roles)})"
                self.problems.add((*path, name), f"no such model{hint}")
        return tuple(self.weighting(parameter, value.get(role), (*path, role)) for role in roles)

    def choice(self, parameter: Parameter, value: Any) -> str | bool:
        """One of a few words, or true or false."""
        value = parameter.default if value is None else value
        word = str(value) if type(value) is int else value  # axis: 0
        if not any(word is known or word == known for known in parameter.choices) or (
            isinstance(value, bool) != isinstance(parameter.choices[0], bool)
        ):
            words = [str(known).lower() if isinstance(known, bool) else known for known in parameter.choices]
            hint = nearest(str(value), words)
            path = (*self.merge.path, parameter.name)
            self.problems.add(path, f"expected one of {', '.join(words)}; found {quote(value)}{hint}")
            return parameter.choices[0]
        return bool(value) if isinstance(value, bool) else str(word)


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
    assert method is not None  # checked by _check_names
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

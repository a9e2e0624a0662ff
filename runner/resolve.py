"""Names to things: opens the headers of the sources, finds methods, binds parameters to places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.architectures import Architecture, Place, detect, place, variant
from runner.architectures.layouts import single_file_name
from runner.changes import Change, changes_of
from runner.checkpoint import Checkpoint
from runner.demo import demo_model
from runner.errors import IncompatibleError, InputError, KeyPath, Location, Problems, nearest, quote
from runner.files import InputFile
from runner.formats import FORMATS, READERS
from runner.lora.summary import detect_lora
from runner.methods import METHODS, Method, Parameter, find_method
from runner.recipe import RECIPE_KEYS, Merge, Policies, Recipe, Source
from runner.rules import Names
from runner.tensors import TensorSpec
from runner.view import View, view_of, whole
from runner.weighting import Weighting, parse_weighting


@dataclass(frozen=True)
class Model:
    """A model on disk that the recipe names, opened.

    Attributes:
        sources: every place in the recipe that names it.
        checkpoint: its headers.
        view: its tensors under the names merges know them by.
        architecture: None if it is none we know.
        variant: what else than the plain model it is: "inpainting".
        adapters: the dialect of its names if it is a file of adapters, such as a LoRA; None for a model.
        changes: of adapters: what they change of the primary's tensors; the view then has their specs.
    """

    sources: tuple[Source, ...]
    checkpoint: Checkpoint
    view: View
    architecture: Architecture | None
    variant: str | None
    adapters: str | None = None
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its architecture, for people."""
        if self.adapters:
            return f"adapters ({self.adapters})"
        if self.architecture is None:
            return "unknown"
        return f"{self.architecture.title} {self.variant}" if self.variant else self.architecture.title


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


@dataclass(frozen=True)
class Resolved:
    """A recipe and everything it names.

    Attributes:
        recipe: as parsed.
        models: its sources, each once.
        merge: the recipe's merge, its names resolved.
        output_format: in FORMATS.
        carrier: the model whose other files the output has; None if the output has none.
        places: where each key of any model stands.
        warnings: what is unusual in the recipe, a line each.
    """

    recipe: Recipe
    models: tuple[Model, ...]
    merge: BoundMerge
    output_format: str
    carrier: Checkpoint | None
    places: Mapping[str, Place]
    warnings: tuple[str, ...] = ()

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
    recipe: Recipe, locate: Callable[[KeyPath], Location], models_dir: Path, cache_dir: Path
) -> Resolved:
    """Binds a recipe to files, methods and places.

    Args:
        recipe: as parsed.
        locate: where the value at a key path was written, for errors.
        models_dir: relative paths of sources start here.
        cache_dir: demo models are kept here.

    Raises:
        RecipeError: with every wrong name and value.
        InputError: with every source that is missing or malformed.
        IncompatibleError: the sources are of different layouts.
    """
    problems = Problems(locate)
    bound = _check_names(recipe.merge, problems)
    models, unreadable = _open_sources(recipe, models_dir, cache_dir)
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
    problems.raise_if_any()
    assert merge is not None  # else its method were a problem
    _check_layouts(models, primary)
    models = tuple(_with_changes(model, primary, recipe.merge.policies) for model in models)
    carrier = None
    if output_format == "diffusers":
        carrier = _carrier(recipe, (primary, *models), models_dir, cache_dir)
    return Resolved(recipe, models, merge, output_format, carrier, names.places, tuple(problems.warnings))


def source_path(source: Source, models_dir: Path, cache_dir: Path) -> Path:
    """Where a source is.

    Raises:
        InputError: it names something that is no file here.
    """
    name = source.name
    if name.startswith("demo:"):
        return demo_model(name.removeprefix("demo:"), cache_dir)
    if name.startswith("hf:"):
        hint = "download it first (hf download ORG/NAME) and give the path of the folder"
        raise InputError(f"{quote(name)}: models of the hub are not read yet", tag="HUB", hint=hint)
    if "://" in name:
        raise InputError(f"{quote(name)}: a URL; a source is a path or demo:NAME", tag="URL")
    return models_dir / Path(name).expanduser()


def _open_sources(
    recipe: Recipe, models_dir: Path, cache_dir: Path
) -> tuple[tuple[Model, ...], list[InputError]]:
    """Opens each distinct source once; returns with the models what could not be opened."""
    opened: dict[tuple[Path, str | None], Model] = {}
    unreadable: dict[tuple[str, str | None], InputError] = {}
    for source in recipe.merge.sources():
        try:
            path = source_path(source, models_dir, cache_dir)
            file = (path.resolve(), source.variant)
            if file in opened:
                opened[file] = replace(opened[file], sources=(*opened[file].sources, source))
                continue
            checkpoint = _open(path, source, models_dir)
            opened[file] = _recognised(source, checkpoint)
        except InputError as error:
            unreadable[source.name, source.variant] = error
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle, an unknown ~user
            reason = f"{quote(source.name)}: {getattr(error, 'strerror', None) or error}"
            unreadable[source.name, source.variant] = InputError(reason, tag="MISSING")
    return tuple(opened.values()), list(unreadable.values())


def _recognised(source: Source, checkpoint: Checkpoint) -> Model:
    specs = checkpoint.specs
    if (dialect := detect_lora(specs)) is not None:
        return Model((source,), checkpoint, View({}, {}), None, None, str(dialect))
    architecture = detect(checkpoint.format, specs)
    kind = variant(architecture, checkpoint.format, specs) if architecture else None
    view = view_of(architecture, checkpoint.format, specs)
    return Model((source,), checkpoint, view, architecture, kind)


def _open(path: Path, source: Source, models_dir: Path) -> Checkpoint:
    reader = next(reader for reader in READERS if reader.accepts(path))
    try:
        return reader.open(path, source.name, source.variant)
    except InputError as error:
        if source.name.startswith("demo:"):
            error.hint = f"remove {path}: the demo model is made anew"
        elif error.tag == "MISSING" and not path.exists():
            there = "" if models_dir.is_dir() else ", which is no folder"
            error.hint = f"paths start at models_dir={models_dir}{there}{_nearest_file(path)}"
        raise


def _nearest_file(path: Path) -> str:
    try:
        return nearest(path.name, (entry.name for entry in path.parent.iterdir()))
    except OSError:
        return ""


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
    elif len(others) < method.variadic:
        problems.add((*merge.path, "models"), f"too few: {takes}")
        good = False
    for name, value in merge.parameters.items():
        if name not in method.parameters:
            known = (*method.parameters, *RECIPE_KEYS)
            own = ", ".join(method.parameters) or "none"
            hint = nearest(name, known) or f" (its parameters: {own})"
            if name in method.refuses:
                hint = f": {method.refuses[name]}"
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
        weighting = parse_weighting(parameter, value, path, extrapolate, self.names, self.problems)
        for at, reason in weighting.unused:
            self.problems.add(at, reason)
        if weighting.open is not None:
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
        if component != "default" and component not in names.components:
            hint = nearest(component, names.components)
            there_are = ", ".join(sorted(names.components))
            problems.add(("output", "dtype", component), f"no such component{hint} (there are: {there_are})")
    if output.max_shard_bytes is not None and format_ != "diffusers":
        problems.add(("output", "max_shard_size"), "a single file is not split; leave it out")
    return format_


def _carrier(recipe: Recipe, models: Sequence[Model], models_dir: Path, cache_dir: Path) -> Checkpoint:
    """The pipeline whose other files go into a folder: the one the recipe names, or the first there is.

    Raises:
        InputError: it cannot be read.
        IncompatibleError: there is none, or it is of another architecture.
    """
    source = recipe.output.config
    if source is None:
        folders = (model.checkpoint for model in models if model.checkpoint.format == "diffusers")
        if (found := next(folders, None)) is not None:
            return found
        raise IncompatibleError(
            "output.format: diffusers: no model of this recipe is a folder that the configuration and "
            "tokenizer files could come from",
            tag="CONFIG",
            hint="output.config: FOLDER names a pipeline of the same architecture",
        )
    checkpoint = _open(source_path(source, models_dir, cache_dir), source, models_dir)
    model = _recognised(source, checkpoint)
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

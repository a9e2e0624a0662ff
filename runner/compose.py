"""Recipes as a source of Hydra's configuration, and what a composed one contains.

Recipes are found in the folders of RUNNER_RECIPES, then among those shipped, or by absolute path.
They pass the guard before Hydra sees them: of a file with problems it sees an empty one, and the
problems are raised when the job reads the recipe, so that in a sweep only that job fails.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.errors import KeyPath, Location, RecipeError, UsageError, escape, nearest, quote
from runner.recipe.guard import RecipeFile, read_recipe
from runner.recipe.lockfile import SUFFIX
from runner.recipe.references import References

MAX_FILES = 32  # that one recipe is composed of; each could double the next
_PACKAGE = Path(__file__).parent
# In a wheel conf/ and recipes/ lie inside the package, in a checkout beside it.
DATA_ROOT = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
_COMMAND_LINE = Location("command line")
Layers = list[tuple[RecipeFile, tuple[str, ...]]]  # files and the key path each is laid at


@dataclass(frozen=True)
class ComposedRecipe:
    """A recipe after inheritance, overrides and references: plain data.

    Attributes:
        name: of the recipe, without folder and suffix.
        tree: its content.
        files: every file it was composed from, in the order in which they are laid over each other.
        overrides: of the command line.
        locate: where the value at a key path was written.
        path: of the file that was chosen.
    """

    name: str
    tree: Mapping[str, Any]
    files: Sequence[RecipeFile]
    overrides: Sequence[str]
    locate: Callable[[KeyPath], Location]
    path: Path | None = None


def recipe_folders() -> list[Path]:
    """Where recipes are looked for by name, the first that has one wins."""
    stated = filter(None, os.environ.get("RUNNER_RECIPES", "").split(os.pathsep))
    return [*(Path(folder).expanduser().absolute() for folder in stated), DATA_ROOT / "recipes"]


def recipe_path(folder: Path, name: str) -> Path:
    """The file of a recipe in a folder; an absolute name stands for itself."""
    path = folder / name
    return path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")


def is_file(path: Path) -> bool:
    """Whether there is a file; a name that is too long names none."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_recipe(path: Path) -> bool:
    """Whether a file in a folder of recipes is one, by its name; a lock that lies beside it is none."""
    return path.suffix == ".yaml" and not path.name.endswith(SUFFIX)


def recipe_names() -> list[str]:
    """Every recipe that can be given by name."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in recipe_folders()
        if folder.is_dir()
        for path in folder.rglob("*.yaml")
        if is_recipe(path)
    }
    return sorted(found)


class RecipeSource(ConfigSource):
    """One folder of recipes, as the config group "recipe"."""

    @staticmethod
    def scheme() -> str:
        """The prefix of its search paths."""
        return "recipes"

    def available(self) -> bool:
        """Whether the folder is there."""
        return Path(self.path).is_dir()

    def load_config(self, config_path: str) -> ConfigResult:
        """The recipe; an empty one if the guard refuses the file."""
        name = config_path.rstrip("/").removeprefix("recipe/")
        file = read_recipe(self._file(config_path), name)
        if not _can_be_laid(file):
            file = RecipeFile(name, file.label)
        entries = [
            "_self_" if name == "_self_" else {f"/recipe@{package}": name} if package else name
            for name, package in file.defaults
        ]
        config = OmegaConf.create({"defaults": entries, **file.tree})
        # What a recipe does not mention can be overridden all the same: recipe.alpha=0.3
        OmegaConf.set_struct(config, False)
        return ConfigResult(
            provider=self.provider,
            path=self.full_path(),
            config=config,
            header={"package": None},
        )

    def is_group(self, config_path: str) -> bool:
        """Whether a path is the group, or a folder in it."""
        path = config_path.rstrip("/")
        return path in ("", "recipe") or (
            path.startswith("recipe/") and (Path(self.path) / path.removeprefix("recipe/")).is_dir()
        )

    def is_config(self, config_path: str) -> bool:
        """Whether a path is a recipe."""
        return config_path.startswith("recipe/") and is_file(self._file(config_path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of the recipes and folders below a path."""
        path = config_path.rstrip("/")
        if path == "":
            return [] if results_filter == ObjectType.CONFIG else ["recipe"]
        if not self.is_group(path):
            return []
        folder = Path(self.path) / path.removeprefix("recipe").lstrip("/")
        names = set()
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.is_dir() and results_filter != ObjectType.CONFIG:
                names.add(entry.name)
            elif is_recipe(entry) and results_filter != ObjectType.GROUP:
                names.add(entry.stem)
        return sorted(names)

    def _file(self, config_path: str) -> Path:
        return recipe_path(Path(self.path), config_path.rstrip("/").removeprefix("recipe/"))


class RecipeSearchPath(SearchPathPlugin):
    """Adds the folders of recipes to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra once per process."""
        for folder in recipe_folders():
            search_path.append("runner", f"recipes://{folder}")


def register() -> None:
    """Makes the recipes known to Hydra; harmless when done twice."""
    Plugins.instance().register(RecipeSource)
    Plugins.instance().register(RecipeSearchPath)


def recipe_of(config: DictConfig, choice: str, overrides: Sequence[str]) -> ComposedRecipe:
    """What a composed configuration says of the recipe.

    Args:
        config: as Hydra composed it; its `recipe` node is read.
        choice: the recipe as the command line names it.
        overrides: of the command line.

    Raises:
        RecipeError: with everything the guard has against the files and the overrides.
    """
    chosen = _chosen(overrides)
    layers = _layers(choice, (), (), chosen)
    last = Location(layers[-1][0].label)
    for place in sorted(chosen.keys() - {prefix for _, prefix in layers}):  # in no file's defaults
        layers += _layers(chosen[place], place, (), chosen)
    written = _written(layers)
    _check_kinds(layers)
    overridden = [
        tuple(override.lstrip("+~").partition("=")[0].split("."))[1:]
        for override in overrides
        if override.lstrip("+~").startswith("recipe.")
    ]

    def locate(path: KeyPath) -> Location:
        if any(path[: len(changed)] == changed for changed in overridden):
            return _COMMAND_LINE
        if path not in written and any(changed[: len(path)] == path for changed in overridden):
            return _COMMAND_LINE
        return _written_at(written, last, path)

    tree = OmegaConf.to_container(config.recipe, resolve=False)
    resolved = References(tree, locate).resolved()
    name, files = Path(choice).with_suffix("").name, [file for file, _ in layers]
    return ComposedRecipe(name, resolved, files, overrides, locate, _found(choice))


def recipe_in(file: RecipeFile) -> ComposedRecipe:
    """What a recipe that was read says, by itself and with what it inherits.

    Raises:
        RecipeError: with everything the guard has against it and the recipes it names.
    """
    layers = _layers_of(file, (), (), {})
    for layer, _ in layers:
        for parent, _ in layer.defaults:
            if parent != "_self_" and _found(parent) is None:
                raise RecipeError(
                    f"{layer.label}: defaults: no recipe {quote(parent)}{nearest(parent, recipe_names())}"
                )
    locate = functools.partial(_written_at, _written(layers), Location(file.label))
    _check_kinds(layers)
    # As Hydra lays them, which looks through references and at "???" in its own way.
    config = OmegaConf.create({"recipe": {}})
    for layer, prefix in layers:
        try:
            config.merge_with({"recipe": _placed(layer, prefix)})
        except OmegaConfBaseException as error:  # behind a reference
            reason = escape(str(error.msg).partition("\n")[0])
            raise RecipeError(
                f"{layer.label}: what is laid over each other does not fit: {reason}"
            ) from error
    resolved = References(OmegaConf.to_container(config.recipe, resolve=False), locate).resolved()
    return ComposedRecipe(file.name, resolved, [layer for layer, _ in layers], (), locate)


def _written(layers: Layers) -> dict[KeyPath, Location]:
    """Where each value of files that are laid over each other was written.

    Raises:
        RecipeError: with everything the guard has against them.
    """
    problems = [problem for file, _ in layers for problem in file.problems]
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    return {
        (*prefix, *path): location for file, prefix in layers for path, location in file.locations.items()
    }


def _check_kinds(layers: Layers) -> None:
    """Raises: RecipeError if a list is laid over a mapping, or a mapping over a list."""
    laid: dict[str, Any] = {}
    for file, prefix in layers:
        laid = _over(laid, _placed(file, prefix), (), file, prefix)


def _placed(file: RecipeFile, prefix: tuple[str, ...]) -> Mapping[str, Any]:
    """What a file says, at the key path it is laid at."""
    tree = file.tree
    for key in reversed(prefix):
        tree = {key: tree}
    return tree


def _over(below: Any, above: Any, path: KeyPath, file: RecipeFile, prefix: tuple[str, ...]) -> Any:
    """A value of a file laid over what is at its key path already."""
    if isinstance(below, dict) and isinstance(above, Mapping):
        joined = dict(below)
        for key, value in above.items():
            joined[key] = _over(below.get(key), value, (*path, key), file, prefix)
        return joined
    kinds = [type(value) for value in (above, below) if isinstance(value, (dict, list))]
    if len(set(kinds)) == 2:
        new, old = ("a list" if kind is list else "a mapping" for kind in kinds)
        where = _written_at(file.locations, Location(file.label), path[len(prefix) :])
        name = ".".join(map(str, path))
        raise RecipeError(
            f"{where}: {quote(name)}: {new} cannot be laid over {old} of a recipe that it is laid over;"
            " write it as that does"
        )
    return above


def _written_at(written: Mapping[KeyPath, Location], last: Location, path: KeyPath) -> Location:
    """Where a value was written: at its key path, or at the nearest one above it."""
    for length in range(len(path), 0, -1):
        if path[:length] in written:
            return written[path[:length]]
    return last


def _can_be_laid(file: RecipeFile) -> bool:
    """Whether Hydra may see a recipe: its defaults lead to few files that fit, and not back to itself."""
    try:
        _check_kinds(_layers_of(file, (), (), {}))
    except RecipeError:
        return False
    return True


def _chosen(overrides: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The recipes which the command line composes as models, by key path: recipe@recipe.models.b=NAME."""
    chosen = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group != "recipe" or override.package is None:
            continue
        place = tuple(override.package.split("."))
        if override.is_delete() or place[:2] != ("recipe", "models") or len(place) < 3:
            raise UsageError(
                f"{quote(override.input_line)}: expected recipe@recipe.models.ROLE=NAME,"
                " a recipe in the place of a model"
            )
        chosen[place[1:]] = str(override.value())
    return chosen


def _layers(
    name: str,
    prefix: tuple[str, ...],
    above: tuple[str, ...],
    chosen: Mapping[tuple[str, ...], str],
) -> Layers:
    """The files of a recipe with the key path each is laid at, later ones over earlier ones.

    Args:
        name: of the recipe.
        prefix: the key path it is laid at.
        above: the recipes whose defaults lead to it.
        chosen: recipes which the command line puts in the place of others, by key path.

    Raises:
        RecipeError: defaults that lead back to where they stand, or to too many files.
    """
    if name in above:
        raise RecipeError(f"recipe {quote(name)}: its defaults lead back to itself")
    if len(above) >= MAX_FILES:
        raise _too_many(name)
    path = _found(name)
    if path is None:
        return []  # Hydra has said so already
    return _layers_of(read_recipe(path, name), prefix, above, chosen)


def _layers_of(
    file: RecipeFile,
    prefix: tuple[str, ...],
    above: tuple[str, ...],
    chosen: Mapping[tuple[str, ...], str],
) -> Layers:
    """The same of a recipe that has been read."""
    name = file.name
    layers: Layers = []
    for parent, package in file.defaults:
        if parent == "_self_":
            layers.append((file, prefix))
        else:
            below = (*prefix, *package.split(".")) if package else prefix
            layers += _layers(chosen.get(below, parent) if package else parent, below, (*above, name), chosen)
        if len(layers) > MAX_FILES:
            raise _too_many(name)
    return layers


def _found(name: str) -> Path | None:
    """The file of a recipe, in the first folder that has one."""
    paths = (recipe_path(folder, name) for folder in recipe_folders())
    return next((path for path in paths if is_file(path)), None)


def _too_many(name: str) -> RecipeError:
    return RecipeError(f"recipe {quote(name)}: its defaults lead to more than {MAX_FILES} files")

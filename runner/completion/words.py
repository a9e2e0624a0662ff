"""What can be said on a command line: its keys, and the words each takes. All follows from the schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from runner.architectures import ARCHITECTURES
from runner.compose import is_recipe, recipe_names
from runner.config import WORDS as SETTING_WORDS
from runner.config import Job, Settings
from runner.demo.models import DEMO_LORA, DEMO_MODELS
from runner.formats import FORMATS
from runner.formats.component_files import INDEX
from runner.library.hub import is_model_file
from runner.methods import METHODS, Method, Parameter, find_method
from runner.publish.target import Target
from runner.recipe.structure import (
    FLAGS,
    MERGE_KEYS,
    OUTPUT_KEYS,
    RECIPE_KEYS,
    RESULT_KEYS,
    SOURCE_KEYS,
    WORDS,
)
from runner.tensors import OUTPUT_DTYPES
from runner.weighting.dialects import DIALECTS
from runner.weighting.pasted import KEYS
from runner.weighting.presets import PRESET_NAMES

Words = Sequence[str] | Callable[[str], Iterable[str]]  # of a key; or what finds them, given what is typed

# Any other value needs quotes of Hydra's, and where those begin is for the user to say.
_PLAIN = re.compile(r"(~/)?[\w./@:%+-]+( [\w./@:%+-]+)*", re.ASCII)
_KEY = re.compile(r"[\w-]+", re.ASCII)  # part of a key: others are no names for the command line
_FLAG = ("true", "false")
_METHODS = tuple(dict.fromkeys(name for name, _ in METHODS))
_COMPONENTS = tuple(dict.fromkeys(name for found in ARCHITECTURES.values() for name in found.components))
# The settings that are paths, by the last part of their names.
_PATHS = {
    name
    for schema in (Settings, Job, Target)
    for name, hint in get_type_hints(schema).items()
    if Path in (hint, *get_args(hint))
}


def completions(word: str, vocabulary: Mapping[str, Words]) -> list[str]:
    """What a word that is begun can become; what ends in "=", "." or "/" goes on.

    Args:
        word: as far as it is typed: part of a key, or a key with part of a value, or with several values and
            part of the last.
        vocabulary: every key with its words.
    """
    bare = word.lstrip("+")
    key, equals, value = bare.partition("=")
    if not equals:
        plus = word.removesuffix(bare)
        return sorted({f"{plus}{_next(known, len(key))}" for known in vocabulary if known.startswith(key)})
    last = value.rpartition(",")[2]
    words = vocabulary.get(key, ())
    found = words(last) if callable(words) else words
    return sorted(
        {f"{word.removesuffix(last)}{one}" for one in found if one.startswith(last) and _PLAIN.fullmatch(one)}
    )


def _next(key: str, typed: int) -> str:
    """A key up to the end of the part that is being typed."""
    dot = key.find(".", typed)
    return f"{key}=" if dot < 0 else key[: dot + 1]


def vocabulary(
    tree: Mapping[str, Any], groups: dict[str, Words], settings: Callable[[], Settings]
) -> dict[str, Words]:
    """Every key with its words, in dotted form.

    Args:
        tree: the configuration as far as the command line gives it; what it says already is among the words.
        groups: what each group can be, by its name.
        settings: reads them, once models are looked for.
    """
    recipe = _fitting(_mapping(tree.get("recipe")))
    said = dict(_said({name: value for name, value in tree.items() if name not in ("recipe", "hydra")}, ""))
    for key in said:
        name = key.rpartition(".")[2]
        said[key] = SETTING_WORDS.get(name, files if name in _PATHS else said[key])
    of_job: dict[str, Words] = {"method": _METHODS, "preset": PRESET_NAMES, "recipe": recipes}
    said |= {f"job.{name}": words for name, words in of_job.items() if f"job.{name}" in said}
    said |= _said({"recipe": recipe, "hydra": _mapping(tree.get("hydra"))}, "")
    for key, words in _of_recipe(recipe, partial(_models, settings)):
        said[key] = words or said.get(key, ())
    return said | groups


def _fitting(merge: Mapping[str, Any]) -> dict[str, Any]:
    """A merge, and those inside it, without parameters that its method does not take."""
    method = _method_of(merge)
    taken = (*RECIPE_KEYS, *method.parameters) if method else merge
    kept = {name: value for name, value in merge.items() if name in taken}
    if models := _mapping(merge.get("models")):
        kept["models"] = {
            role: _fitting(model) if isinstance(model, Mapping) else model for role, model in models.items()
        }
    return kept


def _method_of(merge: Mapping[str, Any]) -> Method | None:
    name = str(merge.get("method"))
    return find_method(name, merge.get("compat")) or find_method(name, None)


def _said(tree: Mapping[Any, Any], at: str) -> Iterator[tuple[str, Words]]:
    """What is said already."""
    for name, value in tree.items():
        if not _KEY.fullmatch(str(name)):
            continue
        if isinstance(value, Mapping) and value:
            yield from _said(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", _word(value)


def _of_recipe(recipe: Mapping[str, Any], models: Words) -> Iterator[tuple[str, Words]]:
    """What a recipe can say; of keys that take anything, no words."""
    yield from _of_merge(recipe, "recipe.", models)
    yield from ((f"recipe.{key}", _field(key)) for key in RESULT_KEYS if key not in ("components", "output"))
    yield from ((f"recipe.components.{component}", models) for component in _COMPONENTS)
    yield from ((f"recipe.output.{key}", _field(key)) for key in OUTPUT_KEYS)
    yield from (("recipe.output.config", models), ("recipe.output.format", tuple(FORMATS)))
    divided = _is_open(_mapping(recipe.get("output")).get("dtype"))
    for key in ("dtype", *(f"dtype.{name}" for name in ("default", *_COMPONENTS) if divided)):
        yield f"recipe.output.{key}", tuple(OUTPUT_DTYPES)


def _of_merge(merge: Mapping[str, Any], at: str, models: Words) -> Iterator[tuple[str, Words]]:
    name, given = str(merge.get("method")), _mapping(merge.get("models"))
    yield from ((f"{at}{key}", _field(key)) for key in MERGE_KEYS if key != "models")
    yield f"{at}method", _METHODS
    yield f"{at}compat", [tool for of, tool in METHODS if of == name and tool]
    method = _method_of(merge)
    asked = (*method.roles, *filter(None, [method.optional])) if method else ()
    for role in dict.fromkeys((*asked, *filter(_KEY.fullmatch, map(str, given)))):
        inside = f"{at}models.{role}"
        yield inside, models
        model = _mapping(given.get(role))
        if "source" in model:
            yield from ((f"{inside}.{key}", models if key == "source" else ()) for key in SOURCE_KEYS)
        elif model:
            yield from _of_merge(model, f"{inside}.", models)
    for parameter in method.parameters.values() if method else ():
        roles = tuple(given) if parameter.per_model else ()
        yield from _of_parameter(parameter, merge.get(parameter.name), f"{at}{parameter.name}", roles)


def _of_parameter(
    parameter: Parameter, value: object, at: str, roles: Sequence[str]
) -> Iterator[tuple[str, Words]]:
    if parameter.choices:
        yield at, _FLAG if True in parameter.choices else tuple(map(str, parameter.choices))
        return
    yield at, _word(parameter.default) if value is None else ()
    if not _is_open(value):
        return
    yield from ((f"{at}.{key}", ()) for key in (*KEYS, *_COMPONENTS, *roles))
    yield from ((f"{at}.dialect", tuple(DIALECTS)), (f"{at}.mbw", PRESET_NAMES))
    for architecture in ARCHITECTURES.values():
        for block in ("default", *architecture.depth):
            yield f"{at}.{architecture.main}.{block}", ()


def _field(key: str) -> Words:
    """The words of a key of recipes."""
    return _FLAG if key in FLAGS else WORDS.get(key, ())


def _word(value: object) -> Words:
    """A value as the only word, or true and false if it is one of them; none if no word can say it."""
    if isinstance(value, bool):
        return _FLAG
    return () if value is None or isinstance(value, (Mapping, list)) else (str(value),)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_open(value: object) -> bool:
    """Whether keys can be added to a value: what is no mapping they would replace."""
    return value is None or isinstance(value, Mapping)


def files(
    typed: str, folder: Path = Path(), ends: Callable[[Path], bool] = lambda path: not path.is_dir()
) -> Iterator[str]:
    """The paths that one can become: what is asked for, and folders on the way there.

    Args:
        typed: the path so far.
        folder: that relative paths start at.
        ends: whether something there is what is asked for.
    """
    above = typed[: typed.rfind("/") + 1]
    start = typed.removeprefix(above)
    inside = folder / Path(above).expanduser()
    for path in inside.iterdir() if inside.is_dir() else ():
        if path.name.startswith(start) and (start or not path.name.startswith(".")):
            if ends(path):
                yield f"{above}{path.name}"
            elif path.is_dir():
                yield f"{above}{path.name}/"


def recipes(typed: str) -> Iterable[str]:
    """The recipes that can be given by name, or by a path that is begun."""
    return files(typed, ends=is_recipe) if typed.startswith("/") else recipe_names()


def _models(settings: Callable[[], Settings], typed: str) -> Iterator[str]:
    """The models a recipe can name."""
    from runner.library.lookup import Library  # here: most who press TAB do not ask for a model

    chosen = settings()
    yield from (f"demo:{name}" for name in (*DEMO_MODELS, DEMO_LORA))
    yield from files(typed, chosen.models_dir, _is_model)
    # What lies deep in models_dir, by default the folder one is in, is not looked for: that could take long.
    yield from (one.name for one in Library(chosen.model_folders, chosen.cache_dir).found)


def _is_model(path: Path) -> bool:
    return (path / INDEX).is_file() or (is_model_file(path.name) and path.is_file())

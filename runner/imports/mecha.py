"""sd-mecha: the text of a recipe, in a file or in the header of a merged model.

Each line after the first is an instruction and has the next number from 0; the last is the result.
An instruction becomes a value at once: a model or merge, a difference of models, numbers, a text.
Source: sd-mecha 1.1.8, serialization.py and extensions/builtin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from runner.errors import quote
from runner.imports.imported import Imported, Notes, file_name, number, source
from runner.imports.mecha_merges import Merging
from runner.imports.mecha_values import Model, RefusedError, Value

TITLE = "sd-mecha"
MAX_LINES = 1_000
MAX_ARGUMENTS = 64  # of one line
_VERSION = re.compile(r"version [\d.]{1,20}\s*", re.ASCII)
_TOKEN = re.compile(
    r'\s*(?:(?P<name>[A-Za-z_]\w*)=)?(?:"(?P<text>(?:[^"\\]|\\.)*)"|(?P<word>[^\s"=]+))(?=\s|$)', re.ASCII
)


def is_recipe(text: str) -> bool:
    """Whether a text is a recipe of sd-mecha."""
    first, _, rest = text.lstrip("\ufeff").partition("\n")
    return bool(_VERSION.fullmatch(first)) and bool(re.match(r"\s*(#|model|dict|literal|merge)", rest))


def read(text: str, label: str) -> Imported:
    """A recipe's text as a recipe of ours.

    Raises:
        InputError: no merge could be made of its last instruction.
    """
    notes = Notes()
    values: list[Value] = []
    lines = text.lstrip("\ufeff").splitlines()
    if len(lines) > MAX_LINES:
        raise notes.cannot(label, f"{len(lines)} lines; at most {MAX_LINES} are read")
    reason = "no instructions"
    for at, line in enumerate(lines[1:], start=2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue  # an empty line is an error there
        try:
            values.append(_instruction(line.strip(), values, f"line {at}", notes))
            reason = ""
        except RefusedError as error:
            reason = f"line {at}: {error}"
            notes.refused(f"line {at}", str(error))
            # No such file exists, so that what is built on it cannot run by mistake.
            values.append(Model(source(f"result-of-line-{at}.safetensors")))
    result = values[-1] if values else None
    if reason or not isinstance(result, Model) or not result.size:
        raise notes.cannot(
            label, "no merge could be read" if reason else "its last line is no merge of models"
        )
    notes.approximate("models", "known by path alone; the files are not compared with what was merged then")
    notes.approximate("arithmetic", "rounded otherwise in the last bits (lerp, addcmul)")
    return Imported(TITLE, result.tree, tuple(notes.found))


def _instruction(line: str, values: Sequence[Value], part: str, notes: Notes) -> Value:
    command, _, rest = line.partition(" ")
    arguments, named = _arguments(rest.strip(), values)
    if command == "dict":
        return named
    if command == "literal" and arguments:
        return arguments[0]
    if command == "model" and arguments and isinstance(arguments[0], str):
        config = str(named.get("model_config"))
        if named.get("merge_space") not in ("weight", None) or "lora" in config or "lycoris" in config:
            raise RefusedError(f"{quote(arguments[0])} is an adapter; bake it into a model first")
        if file_name(arguments[0]) != arguments[0]:
            notes.approximate(part, f"{quote(arguments[0])} is looked up as {quote(file_name(arguments[0]))}")
        return Model(source(arguments[0]))
    if command == "merge" and arguments and isinstance(arguments[0], str):
        return Merging(arguments[0], arguments[1:], named, part, notes).value()
    raise RefusedError(f"expected dict, literal, model or merge, found {quote(line)}")


def _arguments(text: str, values: Sequence[Value]) -> tuple[list[Value], dict[str, Value]]:
    """What stands after a command: values, and values by name. A = inside quotation marks is text."""
    arguments: list[Value] = []
    named: dict[str, Value] = {}
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise RefusedError(f"cannot read {quote(text[at : at + 200])}")
        if token["text"] is not None:
            value: Value = re.sub(r"\\(.)", r"\1", token["text"])
        else:
            value = _word(token["word"], values)
        if token["name"]:
            named[token["name"]] = value
        else:
            arguments.append(value)
        at = token.end()
        if len(arguments) + len(named) > MAX_ARGUMENTS:
            raise RefusedError(f"more than {MAX_ARGUMENTS} values")
    return arguments, named


def _word(word: str, values: Sequence[Value]) -> Value:
    constants: dict[str, Value] = {"null": None, "true": True, "false": False}
    if word in constants:
        return constants[word]
    if word.startswith("&"):
        if re.fullmatch(r"&\d{1,6}", word, re.ASCII) and int(word[1:]) < len(values):
            return values[int(word[1:])]
        raise RefusedError(f"{quote(word)} is no earlier line")
    value = number(word)
    if value is None:
        raise RefusedError(f"{quote(word)} is no value")
    return value

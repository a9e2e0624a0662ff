"""Methods and presets as text: what job=methods and job=presets print, and the table of docs/methods.md."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator

from runner.architectures import ARCHITECTURES
from runner.errors import UsageError, escape, nearest
from runner.methods import METHODS, Method, Parameter, Range
from runner.tables import table
from runner.weighting.presets import PRESET_NAMES, PRESETS, preset

_OUTSIDE = {"error": "", "ask": "; outside with extrapolate: true", "warn": "; a warning outside"}

_ARGUMENT = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")  # one or several, in a docstring
_CONTINUED = " " * 8  # how a line that goes on with it begins


def standard() -> list[Method]:
    """The methods of our own meaning, by name."""
    return [METHODS[name, tool] for name, tool in sorted(METHODS, key=str) if tool is None]


def compatible() -> dict[str, list[Method]]:
    """Those that repeat what a tool computed, by tool."""
    tools = sorted({tool for _, tool in METHODS if tool})
    return {
        tool: [entry for (_, of), entry in sorted(METHODS.items(), key=str) if of == tool] for tool in tools
    }


def models_of(method: Method) -> str:
    """The roles of its models: "a, b", "base, any", "any (base)"."""
    roles = [*method.roles, *([] if method.variadic is None else ["any"])]
    return ", ".join(roles) + (f" ({method.optional})" if method.optional else "")


def parameters_of(method: Method) -> str:
    """Its parameters with their defaults: "alpha 0.5, per tensor|row|column"."""
    return ", ".join(map(_short, method.parameters.values()))


def _short(parameter: Parameter) -> str:
    if parameter.choices:
        first = [one for one in parameter.choices if one == parameter.default]
        words = [*first, *(one for one in parameter.choices if one not in first)]
        return f"{parameter.name} {'|'.join(map(_word, words))}"
    return f"{parameter.name} {_word(parameter.default)}"


def _word(value: object) -> str:
    if value is None:
        return "(to be given)"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def determinism_of(method: Method) -> str:
    """Its class of determinism; of one that depends on its parameters, that of its defaults."""
    if not callable(method.determinism):
        return method.determinism
    count = max(2, method.variadic or 0)
    defaults = {
        name: (parameter.default,) * count if parameter.per_model else parameter.default
        for name, parameter in method.parameters.items()
    }
    return f"{method.determinism(**defaults)} …"


def overview() -> str:
    """Every method in two lines: its models and parameters, and what it computes."""
    lines = ["method(models) and parameters with their defaults; of words the first is the default", ""]
    for method in standard():
        parameters = parameters_of(method)
        lines.append(f"{method.name}({models_of(method)})  {parameters}".rstrip())
        lines.append(f"    {method.summary}")
    for tool, methods in compatible().items():
        lines += ["", f"compat: {tool}"]
        lines += [f"    {method.name}({models_of(method)}): {method.differs}" for method in methods]
    lines += ["", "One of them with all it takes: job=methods job.method=NAME; a guide: docs/methods.md"]
    return "\n".join(lines) + "\n"


def in_short() -> str:
    """Every method with the names of its parameters, as a paragraph."""
    entries = (f"{method.name}({', '.join(method.parameters)})" for method in standard())
    return textwrap.fill(", ".join(entries), 118, break_on_hyphens=False)


def details(name: str) -> str:
    """All there is to know of a method.

    Raises:
        UsageError: there is none of that name.
    """
    entries = [entry for (own, _), entry in sorted(METHODS.items(), key=str) if own == name]
    if not entries:
        known = sorted({own for own, _ in METHODS})
        raise UsageError(
            f"job.method={name}: there is no such method{nearest(name, known)}", hint="job=methods"
        )
    return "\n".join(map(_details, entries))


def _details(method: Method) -> str:
    compat = f", compat: {method.compat}" if method.compat else ""
    lines = [f"{method.name}({models_of(method)}){compat}", ""]
    lines += [f"  {line}".rstrip() for line in _explained(method)]
    lines += ["", f"  determinism: {determinism_of(method)}"]
    if method.differs:
        lines.append(f"  differs: {method.differs}")
    lines += [f"  {parameter.name}: {_range(parameter)}" for parameter in method.parameters.values()]
    return "\n".join(lines) + "\n"


def _explained(method: Method) -> Iterator[str]:
    """The lines of its docstring, without the arguments that the engine supplies: no recipe says them."""
    arguments = inspect.signature(method.function).parameters.values()
    keywords = {one.name for one in arguments if one.kind is one.KEYWORD_ONLY}
    supplied = keywords - {*method.parameters, method.optional}
    shown = True
    for line in (inspect.getdoc(method.function) or "").splitlines():
        if argument := _ARGUMENT.fullmatch(line):
            names = [name for name in argument[1].split(", ") if name not in supplied]
            shown = bool(names)
            line = f"    {', '.join(names)}: {argument[2]}"
        elif not line.startswith(_CONTINUED):
            shown = True
        if shown:
            yield line


def _range(parameter: Parameter) -> str:
    """What a parameter may be: "0 to 1; outside with extrapolate: true; default 0.5"."""
    each = "; one for all or one for each model" if parameter.per_model else ""
    if parameter.choices:
        may_be = ", ".join(map(_word, parameter.choices))
    else:
        limits = parameter.range
        may_be = f"{limits}{_OUTSIDE[limits.outside]}" if isinstance(limits, Range) else "any number"
    default = "must be given" if parameter.default is None else f"default {_word(parameter.default)}"
    return f"{may_be}{each}; {default}"


_BARS = "▁▂▃▄▅▆▇█"
_BLOCKS = ARCHITECTURES["sd1"].blocks


def preset_overview() -> str:
    """Every preset with its curve from IN00 to OUT11; a bar is a number from 0 to 1."""
    width = max(map(len, PRESETS))
    lines = ["block weights of a UNet from IN00 over M00 to OUT11, from 0 to 1", ""]
    for name in PRESETS:
        values = preset(name)
        assert values is not None
        lines.append(f"{name:<{width}}  {''.join(map(_bar, values[1:]))}")
    others = [name for name in PRESET_NAMES if name not in PRESETS]
    lines += ["", f"also under the names {', '.join(others)}"]
    lines += [
        "",
        "in a recipe: alpha: {mbw: GRAD_V, base: 0.2}; the numbers of one: job=presets job.preset=NAME",
    ]
    return "\n".join(lines) + "\n"


def _bar(value: float) -> str:
    last = len(_BARS) - 1
    return _BARS[max(0, min(last, round(value * last)))]


def preset_details(name: str) -> str:
    """The numbers of a preset, block by block, and as a text to paste.

    Raises:
        UsageError: there is none of that name.
    """
    values = preset(name)
    if values is None:
        hint = nearest(name, PRESET_NAMES)
        raise UsageError(f"job.preset={escape(name)}: there is no such preset{hint}", hint="job=presets")
    rows = [("block", "number")]
    rows += [(block, f"{value:.6g}") for block, value in zip(_BLOCKS, values, strict=True)]
    pasted = ",".join(f"{value:.6g}" for value in values)
    return "\n".join([*table(rows, right=[1]), "", f"mbw: [{pasted}]"]) + "\n"


def markdown() -> str:
    """The table of docs/methods.md."""
    lines = ["| Method | Models | Parameters and defaults | Class | Result |", "|---|---|---|---|---|"]
    for method in standard():
        cells = [
            f"`{method.name}`",
            models_of(method),
            parameters_of(method).replace("|", " \\| "),
            determinism_of(method),
            method.summary.replace("|", "\\|"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

"""How a plain function becomes a method: its signature is the schema of the recipe.

    @method(determinism="exact", scope="element")
    def weighted_sum(a: Weight, b: Weight, *, alpha: Annotated[float, Range(0, 1)] = 0.5) -> Weight:

Positional parameters are the roles of the recipe's models, `*models` any number of them under names
of the recipe's choice; keyword-only ones are its parameters. An operand annotated Delta is the
difference from the first one, the base; a keyword `Weight | None` is a role the recipe may leave out.
The engine supplies what else a function asks for: `random: Random`, the streams of the merge;
`part: Part`, which elements these are; and `measured`, what its `measure` found on its way through
the tiles. The last two have defaults, so that the function, which the decorator returns as it is,
can be called in a notebook. Modules of methods do not import torch: the tensors bring their operations,
and a plan needs only the signatures.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from runner.methods.factors import Factors, Shape
from runner.methods.random import Random
from runner.methods.tiles import Part

if TYPE_CHECKING:
    from torch import Tensor

    # To a type checker both are tensors; to the registry they say what kind of operand a role takes.
    Weight = Annotated[Tensor, "weight"]
    Delta = Annotated[Tensor, "delta"]
    Adapter = Annotated[Tensor, "adapter"]
    Pair = tuple[Tensor, Tensor]
    Outline = Shape
    PerModel = Sequence[float] | float
else:

    class Weight:
        """A tensor of a model."""

    class Delta:
        """The difference of a tensor of a model from the base model's, computed before the call."""

    class Adapter:
        """What a file of adapters, such as a LoRA, changes of a tensor."""

    class Pair:
        """The same as two factors, up and down, whose product it is."""

    class Outline:
        """The shape of a tensor of a model whose weights are not read."""

    class PerModel:
        """A number for each of `*models`: the recipe gives one for all, or one by role."""


Determinism = Literal["exact", "stable", "machine"]
Scope = Literal["element", "row", "tensor"]
Over = Literal["tensor", "model", "rank"]
Reads = Literal["compute", "file", "pipeline"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Range:
    """The values a number may have.

    Attributes:
        low, high: the ends, both allowed.
        outside: what a value outside them is: an "error"; an error unless the recipe says
            `extrapolate: true` ("ask"); or unusual ("warn").
    """

    low: float
    high: float
    outside: Literal["error", "ask", "warn"] = "error"

    def __str__(self) -> str:
        return f"{self.low:g} or more" if self.high == math.inf else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A keyword of a method.

    Attributes:
        name: in the recipe.
        default: None if the recipe must give it.
        range: the numbers allowed; None: any finite one.
        choices: the values allowed instead of a number: words, or True and False.
        per_model: whether each of `*models` has a number of its own.
    """

    name: str
    default: float | str | bool | None
    range: Range | None
    choices: tuple[str | bool, ...] = ()
    per_model: bool = False


@dataclass(frozen=True, eq=False)
class Method:
    """What the planner and the executor need to know of a function.

    Where an attribute may be a function, it is one of the method's parameters by name.

    Attributes:
        name: in the recipe.
        function: tensors of one key in, one tensor out; or the factors of one.
        roles: names of the models it always takes, the primary first.
        variadic: how many more it takes at least, under any names; None: none.
        optional: a role the recipe may leave out; it is handed over by name. None: none.
        deltas: whether operands after the first are differences from it.
        adapters: whether operands after the first are what adapters change of it.
        result: "tensor", or "factors": then the output is a LoRA.
        parameters: by name.
        determinism: the promise about its bytes: exact, stable or machine.
        scope: what each element of the result depends on, beside what is measured: the same "element"
            of the operands, its "row", or the whole "tensor". It says where a tensor may be cut.
        measure: what is called with the tiles first, and with those parameters it names; None: nothing.
        over: what is measured: each "tensor", or the whole "model" at once; of a method that gives factors
            the "rank" of each, before the output is laid out; None: nothing.
        draws: whether it takes `random`.
        placed: whether it takes `part`.
        copies: how many copies of its operands it holds at its peak: for each operand, and beside; the
            memory of a merge is planned by them.
        compat: the tool whose results it reproduces, errors included; None for ours.
        differs: what a compat method does otherwise than the standard one, for the user to read.
        reads: the dtype operands come in: the "compute" dtype; as in the "file"; or as a "pipeline" gives
            them, a in the dtype of the output and the others as in the file.
        merges: whether a key, as a single file calls it, is merged at all; others stay as they are in a.
            Tools that have such a filter also leave alone what another model lacks.
        idempotent: whether operands that are all equal are the result. Products of their shares need
            not add up to the last bit, so the executor restores the common value.
        check: what is wrong with parameters that are each in their range but do not go together, asked
            while planning; None: nothing.
        result_is: the number of the operand that is the result for these parameters, unchanged;
            None if it must be computed. Then the other models are not even read.
        spreads: whether NaN or Inf anywhere in an operand is seen in the result; else the engine looks at
            the operands themselves.
        rank: of a method that gives factors their rank: from the shape of the tensor, the ranks of the
            factors it is given, and the parameters by name. 0: the tensor gets no factors. Where the rank is
            measured it is the most that can be.
        version: raised when the meaning of the method changes.
    """

    name: str
    function: Callable[..., Any]
    roles: tuple[str, ...]
    variadic: int | None
    optional: str | None
    deltas: bool
    adapters: bool
    result: Literal["tensor", "factors"]
    parameters: Mapping[str, Parameter]
    determinism: Determinism | Callable[..., Determinism]
    scope: Scope | Callable[..., Scope]
    measure: Callable[..., Any] | None
    over: Over | Callable[..., Over | None] | None
    draws: bool
    placed: bool
    copies: tuple[int, int]
    compat: str | None = None
    differs: str = ""
    reads: Reads = "compute"
    merges: Callable[[str], bool] | None = None
    idempotent: bool | Callable[..., bool] = False
    check: Callable[..., str | None] = lambda **_: None
    result_is: Callable[..., int | None] = lambda **_: None
    spreads: bool = False
    rank: Callable[..., int] | None = None
    version: int = 1

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def label(self) -> str:
        """How records name it: weighted_sum@1, weighted_sum[diffusers]@1."""
        compat = f"[{self.compat}]" if self.compat else ""
        return f"{self.name}{compat}@{self.version}"

    def measured_by(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Of the parameters those that what is measured depends on."""
        assert self.measure is not None
        return {
            name: parameters[name]
            for name in inspect.signature(self.measure).parameters
            if name in parameters
        }


METHODS: dict[tuple[str, str | None], Method] = {}


def find_method(name: str, compat: str | None) -> Method | None:
    """The method of that name, in the variant of that tool."""
    return METHODS.get((name, compat))


def method(
    *,
    determinism: Determinism | Callable[..., Determinism],
    scope: Scope | Callable[..., Scope],
    measure: Callable[..., Any] | None = None,
    over: Over | Callable[..., Over | None] | None = None,
    at_least: int = 1,
    copies: tuple[int, int] | None = None,
    name: str | None = None,
    compat: tuple[str, ...] = (),
    differs: str = "",
    reads: Reads = "compute",
    merges: Callable[[str], bool] | None = None,
    idempotent: bool | Callable[..., bool] = False,
    check: Callable[..., str | None] = lambda **_: None,
    result_is: Callable[..., int | None] = lambda **_: None,
    spreads: bool = False,
    rank: Callable[..., int] | None = None,
    version: int = 1,
) -> Callable[[Function], Function]:
    """Registers a function under its own name (or `name`), once for each tool in `compat`.

    The arguments are the attributes of Method; `at_least` says how many of `*models` it needs. What
    is measured is measured over the tensor if nothing else is said.
    """

    def register(function: Function) -> Function:
        found = _schema(function)
        for tool in compat or (None,):
            entry = Method(
                name=name or function.__name__,
                function=function,
                roles=tuple(found.roles),
                variadic=at_least if found.variadic else None,
                optional=found.optional,
                deltas=found.deltas,
                adapters=found.adapters,
                result="factors" if found.factors else "tensor",
                parameters=found.parameters,
                determinism=determinism,
                scope=scope,
                measure=measure,
                over=over or ("tensor" if measure else None),
                draws=found.draws,
                placed=found.placed,
                copies=copies or ((0, 2) if scope == "element" else (1, 2)),
                compat=tool,
                differs=differs,
                reads=reads,
                merges=merges,
                idempotent=idempotent,
                check=check,
                result_is=result_is,
                spreads=spreads,
                rank=rank,
                version=version,
            )
            METHODS[entry.name, tool] = entry
        return function

    return register


def either_end(alpha: float, **_: object) -> int | None:
    """For result_is: of two operands the first at a share of 0, the second at 1."""
    return {0.0: 0, 1.0: 1}.get(alpha)


def first_without_scale(scale: float, **_: object) -> int | None:
    """For result_is: the base, if what is added to it is scaled by 0."""
    return 0 if scale == 0 else None


def cancelling(weight: tuple[float, ...], **_: object) -> str | None:
    """For check: weights are divided by their sum, so that it can not be 0."""
    if abs(sum(weight)) > 1e-8 * sum(map(abs, weight)):
        return None
    return "the weights add up to 0; give others"


def each(value: PerModel, count: int) -> list[float]:
    """A number for each of `count` models, from one for all or one for each."""
    return [float(value)] * count if isinstance(value, (int, float)) else list(value)


@dataclass
class _Schema:
    """What a signature says."""

    roles: list[str]
    parameters: dict[str, Parameter]
    variadic: bool = False
    optional: str | None = None
    deltas: bool = False
    adapters: bool = False
    factors: bool = False
    draws: bool = False
    placed: bool = False


def _schema(function: Callable[..., Any]) -> _Schema:
    hints = get_type_hints(function, include_extras=True)
    found = _Schema([], {}, factors=hints["return"] is Factors)
    for name, argument in inspect.signature(function).parameters.items():
        hint = hints[name]
        if hint is Random:
            found.draws = True
        elif hint is Part:
            found.placed = True
        elif argument.kind is inspect.Parameter.VAR_POSITIONAL:
            found.variadic = True
            found.deltas |= hint is Delta
            found.adapters |= hint in (Adapter, Pair)
        elif argument.kind is not inspect.Parameter.KEYWORD_ONLY:
            found.roles.append(name)
            found.deltas |= hint is Delta
        elif get_args(hint) == (Weight, NoneType):
            found.optional = name
        elif name != "measured":
            found.parameters[name] = _parameter(name, hint, argument.default)
    return found


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    default = None if default is inspect.Parameter.empty else default
    if get_origin(hint) is Literal:
        return Parameter(name, default, None, get_args(hint))
    if hint is bool:
        return Parameter(name, default, None, (True, False))
    limits = next((extra for extra in get_args(hint)[1:] if isinstance(extra, Range)), None)
    return Parameter(name, default, limits, per_model=PerModel in (hint, *get_args(hint)[:1]))

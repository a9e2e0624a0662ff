"""The plan as data: one Job for each tensor of the output, and what becomes of every key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from runner.architectures import Place
from runner.architectures.ties import Piece
from runner.checkpoint import Layout
from runner.errors import KeyPath
from runner.methods import Method
from runner.methods.factors import sides
from runner.planning.prediction import Prediction
from runner.resolve.resolved import Resolved
from runner.tensors import TensorSpec

MERGED = "merged"  # computed
COPIED = "copied"  # the parameters say: exactly one of the models
KEPT = "kept"  # taken from the primary because a policy of the recipe says so
BUFFER = "buffer"  # never merged: integers, schedules, markers, empty tensors


Value = float | str | bool | tuple[float, ...]  # of a parameter; one number for each model is a tuple


@dataclass(frozen=True, slots=True)
class Load:
    """A tensor to be read: index of the model, and its key there."""

    model: int
    key: str


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of a merge.

    Attributes:
        seed: of the recipe.
        roles: of its models, in the order of the operands.
    """

    seed: int
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A method to be applied.

    Attributes:
        method: the method.
        arguments: its operands: a number below the count of loads is a load, the others are steps.
        parameters: its keyword arguments, as resolved for this key.
        path: where in the recipe the merge stands first.
        draw: the random numbers it is given; their stream has the identity of the merge, which is known
            when its inputs are hashed. None: none.
        with_optional: whether the last operand is the role that a recipe may leave out.
        survey: where the first merge stands that is this one in every tensor: over those it is measured.
    """

    method: Method
    arguments: tuple[int, ...]
    parameters: tuple[tuple[str, Value], ...]
    path: KeyPath = ()
    draw: Draw | None = None
    with_optional: bool = False
    survey: KeyPath = ()

    @property
    def scope(self) -> str:
        """What an element of its result depends on: the same "element", its "row", or the "tensor"."""
        return str(self._property(self.method.scope))

    @property
    def over(self) -> str | None:
        """What is measured before it computes: the "tensor", the whole "model", the "rank", or nothing."""
        return None if self.method.over is None else self._property(self.method.over)

    @property
    def determinism(self) -> str:
        """The promise about its bytes: exact, stable or machine."""
        return str(self._property(self.method.determinism))

    @property
    def idempotent(self) -> bool:
        """Whether operands that are all equal are its result."""
        return bool(self._property(self.method.idempotent))

    def _property(self, value: Any) -> Any:
        return value(**dict(self.parameters)) if callable(value) else value


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the output.

    Attributes:
        key: its name; in a diffusers folder component/name.
        place: its component and blocks.
        fate: MERGED, COPIED, KEPT or BUFFER.
        spec: dtype and shape as written.
        loads: what is read; the first is the primary's tensor unless the job copies another model's.
        steps: what is computed, in order; the last is the result. Empty: the first load is the result.
        equal: loads that must hold the same values as the first: integer tensors are never merged.
        compute: the dtype operands are cast to, "float32" or "float64".
        nonfinite: whether the recipe allows NaN and Inf here.
        file, offset: where the data goes: index in the layout's files, byte position.
        stored: name of the tensor it is, or is a part of, in the output.
        lengths: of what they are needed before anything is computed: of its "rows", or of its "inputs",
            which are columns over all rows; None: of nothing.
        padded: whether operands may have fewer input channels than the first load, whose they then get.
        rank: of the factors that are written instead of the tensor, one after the other from the offset
            on; 0: the tensor itself is.
        bound: whether that rank is the most it can be: the run measures it, and plans again.
        alpha: whether their alpha is written before them.
        content: what is written where nothing is read: the bytes of a tensor that says what the model is.
        arranged: if its rows stand in another order there, or it is transposed: the pieces that make the
            stored tensor.
    """

    key: str
    place: Place
    fate: str
    spec: TensorSpec
    loads: tuple[Load, ...]
    steps: tuple[Step, ...] = ()
    equal: tuple[Load, ...] = ()
    compute: str = "float32"
    nonfinite: bool = False
    file: int = 0
    offset: int = 0
    stored: str = ""
    arranged: tuple[Piece, ...] = ()
    lengths: Literal["rows", "inputs"] | None = None
    padded: bool = False
    rank: int = 0
    bound: bool = False
    alpha: bool = False
    content: bytes | None = None

    @property
    def scope(self) -> str:
        """Where the tensor may be cut: anywhere ("element"), between rows ("row"), or nowhere ("tensor")."""
        scopes = {step.scope for step in self.steps}
        if self.lengths:
            scopes.add("row" if self.lengths == "rows" else "tensor")
        if "tensor" in scopes or len(self.spec.shape) < 2:
            return "tensor" if scopes - {"element"} else "element"
        if "row" in scopes:
            # What is measured is summed in pieces, which rows do not keep to.
            return "tensor" if any(step.over for step in self.steps) else "row"
        return "element"

    @property
    def whole(self) -> bool:
        """Whether the tensor must be in memory whole."""
        return self.scope == "tensor" or bool(self.arranged) or self.padded

    @property
    def written_elements(self) -> int:
        """How many elements are written: those of the tensor, or of its factors."""
        if not self.rank:
            return self.spec.elements
        return self.alpha + self.rank * sum(sides(self.spec.shape))

    def piece_elements(self, tile_elements: int) -> int:
        """How many elements are computed at a time, if a tile is as large as that."""
        elements = max(1, self.spec.elements)
        if self.whole:
            return elements
        if self.scope == "element":
            return min(tile_elements, elements)
        row = elements // self.spec.shape[0]
        return min(max(1, tile_elements // row) * row, elements)

    @property
    def determinism(self) -> str:
        """The weakest class of its steps."""
        return weakest(step.determinism for step in self.steps)


def weakest(classes: Iterable[str]) -> str:
    """The determinism of what is made of parts: of exact, stable and machine the last that occurs."""
    return max(classes, key=("exact", "stable", "machine").index, default="exact")


@dataclass(frozen=True)
class Plan:
    """Everything that will be done, before a tensor is read.

    Attributes:
        resolved: the recipe and its models.
        jobs: in the order of the output's files.
        layout: the output's files to the byte.
        dropped: keys that will not be in the output, by reason.
        deviations: keys where a policy of the recipe decided, by what it decided.
        warnings: what the user should know, a line each.
        prediction: what the result predicts; None if unknown.
    """

    resolved: Resolved
    jobs: tuple[Job, ...]
    layout: Layout
    dropped: Mapping[str, tuple[str, ...]]
    deviations: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]
    prediction: Prediction | None = None

    def spec(self, load: Load) -> TensorSpec:
        """Dtype and shape of a tensor that is read, or of what adapters change of one."""
        return self.resolved.models[load.model].view.tensors[load.key].spec

    def is_scaled(self, load: Load) -> bool:
        """Whether a tensor that is read is stored as fp8 codes that are multiplied by a scale."""
        return self.resolved.models[load.model].view.is_scaled(load.key)

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read; digests read whole files beside, and ranks that are measured once more."""
        return sum(map(self.bytes_of, self.jobs))

    def bytes_of(self, job: Job) -> int:
        """Bytes of tensors that a job reads."""
        return sum(
            self.spec(load).elements if self.is_scaled(load) else self.spec(load).nbytes
            for load in (*job.loads, *job.equal)
        )

    @property
    def determinism(self) -> str:
        """The weakest class of its jobs."""
        return weakest(job.determinism for job in self.jobs)

    @property
    def draws(self) -> bool:
        """Whether any job draws random numbers, which depend on the digests of the inputs."""
        return any(step.draw for job in self.jobs for step in job.steps)

    @property
    def is_bound(self) -> bool:
        """Whether ranks are to be measured before the output has its layout; this one is the largest."""
        return any(job.bound for job in self.jobs)

    @property
    def keeps_primary(self) -> bool:
        """Whether every key is the primary's, or computed with the primary's as the first load."""
        primary = self.resolved.merge.primary()
        if self.resolved.output_format == "lora":
            return False
        return any(job.steps for job in self.jobs) and all(
            job.loads[0].model == primary for job in self.jobs if job.loads
        )

    @property
    def fates(self) -> Counter[str]:
        """How many keys have which fate."""
        return Counter(job.fate for job in self.jobs)

"""What of a model is quantised: fp8 weights with the scales beside them, and the formats that are not read.

Names, dtypes and shapes tell, so headers are enough. A scale belongs to how a tensor is stored, not to the
model: the tensor is code × scale, and scales and what else such files hold beside are no tensors of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from runner.errors import IncompatibleError, escape, quote
from runner.tensors import DTYPES, TensorSpec

# What numbers stored in fp8 are written as if the recipe says no dtype: it holds the range of any scale.
FOR_FP8 = "bfloat16"
SCALED = "F32"  # what code × scale is computed in, and what merges see such a tensor as
_SCALE_DTYPES = ("F32", "F16", "BF16")
_SCALE = re.compile(r"(?P<name>(?:.*[./])?)(?:scale_weight|weight_scale)", re.DOTALL)
_BESIDE = re.compile(r"(?P<name>(?:.*[./])?)(?:scale_input|input_scale(?:_ub)?|comfy_quant)", re.DOTALL)
_MARKER = re.compile(r"(?:.*[./])?scaled_fp8", re.DOTALL)

# How nearly all keys end, and none of those above and below.
_PLAIN = (".weight", ".bias")

_OF_SCALE = "the scale of an fp8 weight, applied where the weight is read"
_OF_INPUT = "of the arithmetic of an fp8 layer, no weight"
_OF_MARKER = "says that weights are scaled fp8"

# Formats whose tensors are told by what stands beside them; the first that fits names the format.
_UNREAD = (
    (
        "NF4 or FP4 of bitsandbytes",
        r".+\.((nested_)?absmax|(nested_)?quant_map|quant_state\.bitsandbytes__\w+)",
    ),
    ("int8 of bitsandbytes", r".+\.(SCB|weight_format)"),
    ("SVDQuant", r".+\.wscales"),
    ("GPTQ or AWQ", r".+\.(qweight|qzeros|g_idx)"),
    ("quanto", r".+\.weight\._(data|scale|packed)"),
    ("NVFP4", r".+\.weight_scale_2"),
    ("packed integers of compressed-tensors", r".+\.(weight_packed|weight_zero_point)"),
    ("fp8 with a scale for each block", r".+\.weight_scale_inv"),
)
_ANY_UNREAD = re.compile("|".join(pattern for _, pattern in _UNREAD))
_HINT = "give the same model in 16 or 32 bits, or in fp8 with a scale for each tensor or row"


@dataclass(frozen=True)
class Quantised:
    """What is stored quantised in a model.

    Attributes:
        scales: key of an fp8 weight → key of the numbers its codes are multiplied by: one, or one a row.
        beside: keys that are no tensors of the model → why.
    """

    scales: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)

    def tensors(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """The tensors of the model with the dtypes they are read in."""
        return {
            key: replace(spec, dtype=SCALED) if key in self.scales else spec
            for key, spec in specs.items()
            if key not in self.beside
        }


def quantised(label: str, specs: Mapping[str, TensorSpec]) -> Quantised:
    """What is stored quantised in a model.

    Args:
        label: names the model in an error.
        specs: of its tensors as stored.

    Raises:
        IncompatibleError: in a format that is not read, or with scales that are not understood.
    """
    odd = [key for key in specs if not key.endswith(_PLAIN)]
    _refuse_unread(label, specs, odd)
    scales: dict[str, str] = {}
    beside = {key: _OF_MARKER for key in odd if _MARKER.fullmatch(key)}
    marked = bool(beside)
    for key in odd:
        scale = specs[key]
        if (match := _SCALE.fullmatch(key)) and (weight := f"{match['name']}weight") in specs:
            spec = specs[weight]
            if not spec.is_fp8 and (marked or not spec.is_float):
                where = f"tensor {quote(weight)}, scale {quote(key)}"
                raise _refused(label, f"quantised as {spec.dtype} with a scale, which is not read ({where})")
            if spec.is_fp8:
                if weight in scales:
                    both = f"{quote(scales[weight])} and {quote(key)}"
                    raise _refused(label, f"tensor {quote(weight)} has two scales, {both}")
                _check_scale(label, weight, spec, scale)
                scales[weight], beside[key] = key, _OF_SCALE
    if scales or marked:
        beside |= {key: _OF_INPUT for key in odd if _BESIDE.fullmatch(key)}
    return Quantised(scales, beside)


def _check_scale(label: str, weight: str, spec: TensorSpec, scale: TensorSpec) -> None:
    """Raises: IncompatibleError unless it is one number, or one for each row."""
    rows = spec.shape[:1] + (1,) * (len(scale.shape) - 1)
    if scale.dtype not in _SCALE_DTYPES or (scale.elements != 1 and scale.shape != rows):
        expected = f"expected one number, or one for each row, in {', '.join(_SCALE_DTYPES)}"
        raise _refused(label, f"the scale of tensor {quote(weight)}, {spec}, is {scale}: {expected}")


def _refuse_unread(label: str, specs: Mapping[str, TensorSpec], odd: Sequence[str]) -> None:
    for title, pattern in _UNREAD if any(map(_ANY_UNREAD.fullmatch, odd)) else ():
        if found := [key for key in odd if re.fullmatch(pattern, key)]:
            raise _refused(label, f"quantised as {title}, which is not read (it has {quote(found[0])})")
    for key, spec in specs.items():
        if DTYPES[spec.dtype].kind == "packed" and DTYPES[spec.dtype].bits <= 8:
            raise _refused(label, f"quantised as {spec.dtype}, which is not read (tensor {quote(key)})")


def _refused(label: str, reason: str) -> IncompatibleError:
    return IncompatibleError(f"{escape(label)}: {reason}", tag="QUANTISED", hint=_HINT)

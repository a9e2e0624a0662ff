"""What a tensor is before anyone reads it: its dtype, shape and size. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Sums are taken over pieces of this many elements: a larger piece torch shares out among threads,
# which changes its last bits. Tiles are multiples of it.
SUM_ELEMENTS = 32768


@dataclass(frozen=True, slots=True)
class DType:
    """One element type of the safetensors format.

    Attributes:
        name: as the format spells it, "F16".
        bits: bits an element takes.
        torch: the attribute of torch with the same meaning, "float16"; None if torch has none.
        kind: "float", "integer" or "packed" (several elements to a byte).
        largest: the largest finite value of a float type.
    """

    name: str
    bits: int
    torch: str | None
    kind: str
    largest: float = math.inf


# In the order in which the safetensors library ranks them, low to high: files are sorted by it.
_TABLE = (
    DType("BOOL", 8, "bool", "integer"),
    DType("F4", 4, None, "packed"),
    DType("F6_E2M3", 6, None, "packed"),
    DType("F6_E3M2", 6, None, "packed"),
    DType("U8", 8, "uint8", "integer"),
    DType("I8", 8, "int8", "integer"),
    DType("F8_E5M2", 8, "float8_e5m2", "float", 57344.0),
    DType("F8_E4M3", 8, "float8_e4m3fn", "float", 448.0),
    DType("F8_E8M0", 8, "float8_e8m0fnu", "packed"),
    DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "float", 240.0),
    DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "float", 57344.0),
    DType("I16", 16, "int16", "integer"),
    DType("U16", 16, "uint16", "integer"),
    DType("F16", 16, "float16", "float", 65504.0),
    DType("BF16", 16, "bfloat16", "float", 3.3895313892515355e38),
    DType("I32", 32, "int32", "integer"),
    DType("U32", 32, "uint32", "integer"),
    DType("F32", 32, "float32", "float", 3.4028234663852886e38),
    DType("C64", 64, "complex64", "packed"),
    DType("F64", 64, "float64", "float", 1.7976931348623157e308),
    DType("I64", 64, "int64", "integer"),
    DType("U64", 64, "uint64", "integer"),
)

DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _TABLE}
DTYPE_RANK: dict[str, int] = {dtype.name: rank for rank, dtype in enumerate(_TABLE)}

# What a recipe may ask for as the type of the output, and what the format calls it.
OUTPUT_DTYPES: dict[str, str] = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as a file's header describes it.

    Attributes:
        dtype: name in DTYPES, "F16".
        shape: sizes of the dimensions; () for a scalar.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements: 1 for a scalar, 0 if any dimension is 0."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the data in a file."""
        return self.elements * DTYPES[self.dtype].bits // 8

    @property
    def is_float(self) -> bool:
        """Whether arithmetic on it means something: not for integers, masks and packed codes."""
        return DTYPES[self.dtype].kind == "float"

    @property
    def is_fp8(self) -> bool:
        """Whether its elements are floats of 8 bits."""
        return self.is_float and DTYPES[self.dtype].bits == 8

    def __str__(self) -> str:
        return f"{self.dtype} [{','.join(map(str, self.shape))}]"

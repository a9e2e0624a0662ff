"""The named block weights of supermerger and sd-meh, for a UNet of 25 blocks: computed from their formulas.

Where a block stands is i, from 0 (IN00) to 24 (OUT11), and t = i/24. BASE is 0 in all but ALL_B.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

Formula = Callable[[int, float], float]

COUNT = 25  # IN00…IN11, M00, OUT00…OUT11


def _smooth(x: float) -> float:
    return x * x * (3 - 2 * x)


def _fold(x: float) -> float:
    """X going up and down between 0 and 1."""
    x %= 2
    return x if x <= 1 else 2 - x


def _inside(*ranges: tuple[int, int], value: float = 1.0) -> Formula:
    """The value in ranges of blocks, ends included; 0 elsewhere."""
    return lambda i, t: value if any(low <= i <= high for low, high in ranges) else 0.0


def _reverse(formula: Formula) -> Formula:
    return lambda i, t: 1 - formula(i, t)


def _waves(n: int) -> Formula:
    """The smooth step, stretched and folded."""
    return lambda i, t: _fold(n * _smooth(t))


def _steps(n: int) -> Formula:
    """Smooth steps up and down, n of them."""
    return lambda i, t: _smooth(_fold(n * t))


def _soft_rings(i: int, t: float) -> float:
    return {5: 0.5, 6: 1.0, 7: 1.0, 8: 1.0, 9: 0.5}.get(i if i < 12 else i - 10, 0.0)


def _last_twelve(i: int, t: float) -> float:
    return 0.5 if i == 12 else float(i > 12)


def _fake_hermite(i: int, t: float) -> float:
    return ((19 / 3 * t - 19 / 2) * t + 25 / 6) * t


def _true_hermite(i: int, t: float) -> float:
    return ((77 / 12 * t - 77 / 8) * t + 25 / 6) * t + 1 / 24 if i else 0.0


# No formula is known.
_LOW_OFFSET = (
    *(0.0, 0.099515938464506, 0.1628809799382715, 0.2123209635416665, 0.249228395061729),
    *(0.274995780285494, 0.291015625, 0.298680434992284, 0.2993827160493825, 0.294514973958333),
    *(0.285469714506173, 0.273639443479938, 0.261513611593364, 0.24938777970679, 0.245727237654321),
    *(0.23763671875, 0.222901234567901, 0.224305796682099, 0.234635416666667, 0.247675106095678),
    *(0.273209876543211, 0.312024739583333, 0.360904706790124, 0.422634789737655, 0.5),
)

_FORMULAS: dict[str, Formula] = {
    "GRAD_V": lambda i, t: abs(1 - i / 12),
    "GRAD_A": lambda i, t: 1 - abs(1 - i / 12),
    "FLAT_25": lambda i, t: 0.25,
    "FLAT_75": lambda i, t: 0.75,
    **{f"WRAP{2 * n:02d}": _inside((0, n - 1), (COUNT - n, COUNT - 1)) for n in (4, 6, 7, 8)},
    "MID12_50": _inside((5, 18), value=0.5),
    "OUT07": _inside((18, 24)),
    "OUT12": _inside((13, 24)),
    "OUT12_5": _last_twelve,
    "RING08_SOFT": _soft_rings,
    "RING08_5": _inside((6, 9), (15, 18)),
    "RING10_5": _inside((5, 9), (15, 19)),
    "RING10_3": _inside((6, 10), (14, 18)),
    "SMOOTHSTEP": lambda i, t: _smooth(t),
    "REVERSE_SMOOTHSTEP": lambda i, t: 1 - _smooth(t),
    **{f"SMOOTHSTEP*{n}": _waves(n) for n in (2, 3, 4)},
    **{f"R_SMOOTHSTEP*{n}": _reverse(_waves(n)) for n in (2, 3, 4)},
    **{f"SMOOTHSTEP/{n}": _steps(n) for n in (2, 3, 4)},
    **{f"R_SMOOTHSTEP/{n}": _reverse(_steps(n)) for n in (2, 3, 4)},
    "COSINE": lambda i, t: (1 + math.cos(math.pi * t)) / 2,
    "REVERSE_COSINE": lambda i, t: (1 - math.cos(math.pi * t)) / 2,
    "FAKE_CUBIC_HERMITE": _fake_hermite,
    "FAKE_REVERSE_CUBIC_HERMITE": _reverse(_fake_hermite),
    "TRUE_CUBIC_HERMITE": _true_hermite,
    "TRUE_REVERSE_CUBIC_HERMITE": _reverse(_true_hermite),
    "LOW_OFFSET_CUBIC_HERMITE": lambda i, t: _LOW_OFFSET[i],
    "ALL_A": lambda i, t: 0.0,
    "ALL_B": lambda i, t: 1.0,
}

# sd-meh's names of those it calls otherwise.
_KINDS = ("", "R_")
_FRACTIONS = (("HALF", 2), ("ONE_THIRD", 3), ("ONE_FOURTH", 4))
_ALIASES = {
    **{f"{n}{kind}SMOOTHSTEP": f"{kind}SMOOTHSTEP*{n}" for n in (2, 3, 4) for kind in _KINDS},
    **{f"{word}_{kind}SMOOTHSTEP": f"{kind}SMOOTHSTEP/{n}" for word, n in _FRACTIONS for kind in _KINDS},
}

PRESETS: tuple[str, ...] = tuple(_FORMULAS)
PRESET_NAMES: tuple[str, ...] = (*_FORMULAS, *_ALIASES)


def preset(name: str) -> tuple[float, ...] | None:
    """BASE and the 25 blocks of a preset; None if there is none of that name.

    Args:
        name: of PRESET_NAMES, in any case; a dash is an underscore.
    """
    name = name.strip().upper().replace("-", "_")
    return _values(_ALIASES.get(name, name))


@functools.cache
def _values(name: str) -> tuple[float, ...] | None:
    formula = _FORMULAS.get(name)
    if formula is None:
        return None
    base = 1.0 if name == "ALL_B" else 0.0
    # Rounded, so that the last bit of a cosine, which depends on the system, decides nothing.
    return (base, *(round(formula(i, i / (COUNT - 1)), 14) for i in range(COUNT)))


def mixed(first: tuple[float, ...], second: tuple[float, ...], by: float) -> tuple[float, ...]:
    """Two presets mixed value by value: all of the first at 0, all of the second at 1."""
    return tuple((1 - by) * one + by * other for one, other in zip(first, second, strict=True))

"""The formulas of the methods that mix, exchange and add element by element, written out a second time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def columns(x: Array) -> Array:
    return x.reshape(-1, 1) if x.ndim < 2 else x.reshape(len(x), -1)


def cosine_of(u: Array, v: Array) -> float:
    lengths = math.sqrt(math.fsum(u.ravel() ** 2)) * math.sqrt(math.fsum(v.ravel() ** 2))
    return math.fsum((u * v).ravel()) / lengths if lengths else 0.0


def cosines(a: Array, b: Array) -> list[float]:
    return [cosine_of(*pair) for pair in zip(columns(a).T, columns(b).T, strict=True)]


def limits_of(similarities: Sequence[float]) -> tuple[float, float]:
    """The least and the largest, without the outer hundredths ("midpoint" between two ranks)."""

    def percentile(values: list[float], percent: float) -> float:
        at = percent / 100 * (len(values) - 1)
        return (values[math.floor(at)] + values[math.ceil(at)]) / 2

    values = sorted(similarities)
    low = percentile(values, 1)
    values = [value for value in values if value >= low]
    high = percentile(values, 99)
    values = [value for value in values if value <= high]
    return values[0], values[-1]


def mixed_columns(a: Array, b: Array, keep: Sequence[float]) -> Array:
    k = np.clip(np.array(keep), 0, 1)
    return (k * columns(a) + (1 - k) * columns(b)).reshape(a.shape)


def cosine_a_of(
    a: Array,
    b: Array,
    alpha: float = 0.5,
    range: str = "global",
    limits: tuple[float, float] | None = None,
) -> Array:
    if alpha == 1:
        return b
    each = cosines(a, b)
    if range == "none":
        return mixed_columns(a, b, [c - alpha for c in each])
    pairs = zip(columns(a).T, columns(b).T, strict=True)
    used = [c for c, (u, v) in zip(each, pairs, strict=True) if u.any() and v.any()]
    mean = sum(used) / len(used) if used else 0.0
    low, high = limits or limits_of(each)
    scaled = [((c + mean) / 2 - low) / (high - low) if high > low else 1.0 for c in each]
    return mixed_columns(a, b, [c - abs(alpha) for c in scaled])


def cosine_b_of(
    a: Array,
    b: Array,
    alpha: float = 0.5,
    range: str = "global",
    limits: tuple[float, float] | None = None,
) -> Array:
    if abs(alpha) == 1:
        return b if alpha == 1 else a
    each = [(c + cosine_of(a, b)) / 2 for c in cosines(a, b)]
    if range == "global":
        low, high = limits or limits_of(each)
        each = [(m - low) / (high - low) if high > low else 1.0 for m in each]
    return mixed_columns(a, b, [m - alpha for m in each])


def smooth_add_of(a: Array, b: Array, c: Array, alpha: float = 1.0, sigma: float = 1.0) -> Array:
    d = np.asarray(b - c)
    if d.ndim == 0:
        return a + alpha * d
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(d, 1, "edge"), (3,) * d.ndim)
    d = np.median(windows.reshape(*d.shape, -1), axis=-1)
    radius = int(4 * sigma + 0.5)
    bell = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2) if radius else np.ones(1)
    for axis in range(d.ndim):
        padding = [(radius, radius) if other == axis else (0, 0) for other in range(d.ndim)]
        wide = np.pad(d, padding, "symmetric")
        d = np.apply_along_axis(np.convolve, axis, wide, bell / bell.sum(), "valid")
    return a + alpha * d


def tensor_sum_of(a: Array, b: Array, alpha: float = 0.5, beta: float = 0.0, axis: str = "0") -> Array:
    if a.ndim == 0:
        return b if alpha > 0.5 else a
    along = 1 if axis == "auto" and a.ndim > 1 and a.shape[1] > 100 else 0
    n = a.shape[along]
    index = np.arange(n)
    if alpha + beta <= 1:
        of_b = (int(n * beta) <= index) & (index < int(n * (alpha + beta)))
    else:
        of_b = ~((int(n * (alpha + beta - 1)) <= index) & (index < int(n * beta)))
    shape = [1] * a.ndim
    shape[along] = n
    return np.where(of_b.reshape(shape), b, a)


def top_k_tensor_sum_of(a: Array, b: Array, width: float = 1.0, offset: float = 0.0) -> Array:
    values, n = sorted(a.ravel()), a.size
    sizes = sorted(abs(value) for value in values)
    order = sorted(range(n), key=lambda i: (b.ravel()[i], i))

    def bound(share: float) -> float:
        return sizes[round(share * n) - 1] if round(share * n) else -1.0

    result = a.ravel().copy()
    for value, index in zip(values, order, strict=True):
        if width + offset <= 1:
            inside = bound(offset) < abs(value) <= bound(width + offset)
        else:
            inside = not bound(width + offset - 1) < abs(value) <= bound(offset)
        if inside:
            result[index] = value
    return result.reshape(a.shape)


def extract_of(
    a: Array, b: Array, c: Array, alpha: float = 0.0, beta: float = 0.0, gamma: float = 1.0
) -> Array:
    result = []
    for one in zip(*(np.atleast_1d(x)[None] if x.ndim < 2 else x for x in (a, b, c)), strict=True):
        of_b, of_c = one[1] - one[0], one[2] - one[0]
        alike = ((cosine_of(of_b, of_c) + 1) / 2) ** gamma
        taken = (1 - beta) * alike + beta * (1 - alike)
        result.append(one[0] + ((1 - alpha) * of_b + alpha * of_c) * taken)
    return np.array(result).reshape(a.shape)


def add_perpendicular_of(a: Array, b: Array, c: Array, alpha: float = 1.0) -> Array:
    u, v = (a - c).ravel(), (b - c).ravel()
    along = math.fsum(u * v) / math.fsum(u * u)
    return a + alpha * (v - along * u).reshape(a.shape)


def clamp_of(a: Array, *models: Array, stiffness: float = 0.0) -> Array:
    result = np.empty(a.shape)
    for at in np.ndindex(a.shape):
        bounds = [float(model[at]) for model in models]
        mean = sum(bounds) / len(bounds)
        low = min(bounds) + stiffness * (max(x for x in bounds if x <= mean) - min(bounds))
        high = max(bounds) + stiffness * (min(x for x in bounds if x >= mean) - max(bounds))
        result[at] = min(max(float(a[at]), low), high)
    return result


def magmax_of(base: Array, *d: Array, scale: float = 1.0) -> Array:
    result = base.copy()
    for at in np.ndindex(base.shape):
        size = max(abs(one[at]) for one in d)
        result[at] += scale * next(one[at] for one in reversed(d) if abs(one[at]) == size)
    return result


def similarity_add_difference_of(
    a: Array, b: Array, c: Array, alpha: float = 0.5, beta: float = 0.5
) -> Array:
    largest = np.maximum(np.abs(a), np.abs(b))
    ratio = np.divide(a * b, largest**2, out=np.ones(a.shape), where=largest != 0)
    s = beta * (ratio + 1) / 2
    return (1 - s) * (a + alpha * (b - c)) + s * ((1 - alpha / 2) * a + alpha / 2 * b)


def multiply_difference_of(a: Array, b: Array, c: Array, alpha: float = 0.5, beta: float = 0.5) -> Array:
    sign = np.sign((1 - beta) * a + beta * b - c)
    return c + sign * np.abs(a - c) ** (1 - alpha) * np.abs(b - c) ** alpha


def euclidean_add_difference_of(a: Array, b: Array, c: Array, alpha: float = 0.5) -> Array:
    def unit(x: Array) -> Array:
        return x / np.linalg.norm(x) if x.any() else x

    d = np.sqrt((1 - alpha) * unit((a - c).ravel()) ** 2 + alpha * unit((b - c).ravel()) ** 2)
    s = ((1 - alpha) * a + alpha * b - c).ravel()
    if not d.any():
        return c
    moved: Array = np.copysign(d, s) * np.linalg.norm(s) / np.linalg.norm(d)
    return c + moved.reshape(a.shape)


def geometric_sum_of(a: Array, b: Array, alpha: float = 0.5) -> Array:
    product: Array = a.astype(complex) ** (1 - alpha) * b.astype(complex) ** alpha
    return product.real


def add_noise_of(a: Array, alpha: float) -> Array:
    from tests.methods.test_formulas import KEY, MERGE, SEED, stream

    words = [word >> 11 for word in stream(SEED, MERGE, "base", KEY, 2 * a.size)]
    noise = [
        math.sqrt(-2 * math.log((first + 1) / 2**53)) * math.cos(2 * math.pi * second / 2**53)
        for first, second in zip(words[::2], words[1::2], strict=True)
    ]
    return a + alpha * np.array(noise).reshape(a.shape)


def add_opposite_of(a: Array, b: Array, c: Array, alpha: float = 1.0) -> Array:
    below = np.abs(a - b) + np.abs(a + b - 2 * c)
    s = np.divide(np.abs(a - b), below, out=np.zeros(a.shape), where=below != 0)
    return a + 2 * alpha * s * (b - c)


def add_strict_opposite_of(a: Array, b: Array, c: Array, alpha: float = 1.0) -> Array:
    below = np.maximum(np.abs(a - c), np.abs(b - c)) ** 2
    above = np.maximum((c - a) * (b - c), 0)
    s = np.divide(above, below, out=np.zeros(a.shape), where=below != 0)
    return a + 2 * alpha * s * (b - c)


def ram_of(
    base: Array,
    *d: Array,
    epsilon: float = 1e-5,
    scale: float = 1.0,
    r: float = 0.0,
    alpha: float = 0.0,
) -> Array:
    result = base.copy()
    active = [np.abs(one) > epsilon for one in d]
    count = np.sum(active, axis=0)
    for one, mask in zip(d, active, strict=True):
        alone, shared = int((mask & (count == 1)).sum()), int((mask & (count > 1)).sum())
        factor = 1 + r * min(shared / alone, alpha) if alone else 1.0
        result += scale * np.where(mask, one * np.where(count == 1, factor, 1) / np.maximum(count, 1), 0)
    return result


def consensus_ta_of(
    base: Array, *d: Array, threshold: float = 0.4, k: float = 2, scale: float = 1.0
) -> Array:
    total = np.sum(d, axis=0)
    masks = [np.abs(one) > threshold * np.abs(total - one) for one in d]
    return base + scale * np.where(np.sum(masks, axis=0) >= k, total, 0)


REFERENCES: dict[str, Callable[..., Array]] = {
    "cosine_a": cosine_a_of,
    "cosine_b": cosine_b_of,
    "smooth_add": smooth_add_of,
    "tensor_sum": tensor_sum_of,
    "top_k_tensor_sum": top_k_tensor_sum_of,
    "extract": extract_of,
    "add_perpendicular": add_perpendicular_of,
    "clamp": clamp_of,
    "nearswap": lambda a, b, t: a + np.minimum(np.maximum(b - a, -t), t),
    "magmax": magmax_of,
    "similarity_add_difference": similarity_add_difference_of,
    "multiply_difference": multiply_difference_of,
    "euclidean_add_difference": euclidean_add_difference_of,
    "weighted_subtraction": lambda a, b, alpha=0.5, beta=1.0: (a - alpha * beta * b) / (1 - alpha * beta),
    "geometric_sum": geometric_sum_of,
    "add_noise": add_noise_of,
    "add_opposite": add_opposite_of,
    "add_strict_opposite": add_strict_opposite_of,
    "ram": ram_of,
    "ram_plus": lambda base, *d, r=0.1, alpha=0.2, **rest: ram_of(base, *d, r=r, alpha=alpha, **rest),
    "expo": lambda base, x, alpha=0.1: x + alpha * (x - base),
    "consensus_ta": consensus_ta_of,
}

# The columns are those of tests/methods/test_formulas.py.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (name, "ab", {"alpha": alpha, "range": word})
        for name, alphas in (("cosine_a", (0.0, 0.3, 1.0)), ("cosine_b", (-1.0, -0.4, 0.0, 0.3, 1.0)))
        for alpha in alphas
        for word in ("global", "none")
    ),
    *(("smooth_add", "abc", given) for given in ({}, {"alpha": 0.4, "sigma": 2.0}, {"sigma": 0.1})),
    *(
        ("tensor_sum", "ab", {"alpha": alpha, "beta": beta, "axis": axis})
        for alpha in (0.0, 0.3, 0.5, 0.7, 1.0)
        for beta in (0.0, 0.35, 0.6, 1.0)
        for axis in ("0", "auto")
    ),
    *(
        ("top_k_tensor_sum", "ab", {"width": width, "offset": offset})
        for width in (0.0, 0.4, 1.0)
        for offset in (0.0, 0.3, 0.8, 1.0)
    ),
    *(
        ("extract", "abc", given)
        for given in (
            {},
            {"alpha": 0.3, "beta": 0.2, "gamma": 2.5},
            {"alpha": 1.0, "beta": 1.0},
            {"gamma": 0.0},
        )
    ),
    *(("add_perpendicular", "abc", given) for given in ({}, {"alpha": 0.3})),
    *(
        ("clamp", roles, {"stiffness": stiffness})
        for roles in ("abc", "base")
        for stiffness in (0.0, 0.3, 1.0)
    ),
    *(("nearswap", "ab", {"t": t}) for t in (0.0, 0.3, 1.0, 100.0)),
    *(("magmax", roles, given) for roles in ("ab", "base") for given in ({}, {"scale": 0.5})),
    *(
        (name, "abc", given)
        for name in ("similarity_add_difference", "multiply_difference")
        for given in (
            {},
            {"alpha": 0.3, "beta": 0.8},
            {"alpha": 0.0, "beta": 1.0},
            {"alpha": 1.0, "beta": 0.0},
        )
    ),
    *(("euclidean_add_difference", "abc", given) for given in ({}, {"alpha": 0.2})),
    *(("weighted_subtraction", "ab", given) for given in ({}, {"alpha": 0.9, "beta": 0.4}, {"alpha": 0.0})),
    *(("geometric_sum", "ab", {"alpha": alpha}) for alpha in (0.0, 0.3, 0.5, 1.0)),
    *(("add_noise", "a", {"alpha": alpha}) for alpha in (0.0, 0.01)),
    *(
        (name, "abc", given)
        for name in ("add_opposite", "add_strict_opposite")
        for given in ({}, {"alpha": 0.3})
    ),
    *(
        (name, roles, given)
        for name in ("ram", "ram_plus")
        for roles in ("ab", "base")
        for given in ({}, {"epsilon": 0.9, "scale": 0.5})
    ),
    ("ram_plus", "base", {"epsilon": 0.9, "r": 2.0, "alpha": 0.7}),
    *(("expo", "ab", {"alpha": alpha}) for alpha in (-1.0, 0.0, 0.1, 0.7)),
    *(
        ("consensus_ta", roles, given)
        for roles in ("ab", "base")
        for given in ({}, {"threshold": 0.2, "k": 1, "scale": 0.5}, {"threshold": 0.6, "k": 3})
    ),
]

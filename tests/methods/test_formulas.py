"""Every method against its formula, written out a second time in float64 with NumPy and plain Python.

The references take the operands as the method does (differences where it takes differences) and use
nothing of runner: full sorts for selection, a Philox of their own for random numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file
from torch import Tensor

from runner.methods import METHODS, selection
from runner.methods.random import Random
from runner.methods.selection import largest
from runner.methods.selection import top as top_share
from runner.methods.sums import cosine, gram, row_dots
from runner.methods.tiles import WHOLE, Part, Tile, whole
from tests.build import merged
from tests.methods import formulas_elementwise, formulas_vectors

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = ((), (1,), (3,), (5, 1), (7, 9), (4, 3, 3, 3))
SEED, MERGE, KEY = 7, "merge", "unet.weight"
INFINITE = float("inf")


def run(name: str, *operands: Tensor, **parameters: Any) -> Tensor:
    method = METHODS[name, None]
    if method.draws:
        roles = ["base", *(f"x{number}" for number in range(1, len(operands)))]
        parameters.setdefault("random", Random(SEED, MERGE, roles, KEY, 0))
    result = method.function(*operands, **parameters)
    assert isinstance(result, Tensor)
    return result


def normal(shape: Sequence[int], count: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator, dtype=torch.float64) for _ in range(count)]


def dot(a: Tensor, b: Tensor) -> float:
    return gram(whole(a, b)).products[0][1]


def norm(a: Tensor) -> float:
    return gram(whole(a)).norm(0)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(result: Tensor, expected: Tensor | Array, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64).reshape(result.shape)
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


# The references.


def philox(key: tuple[int, int], count: int) -> list[int]:
    """The first words of Philox 4x64-10 (Salmon et al., 2011), its counter from 1 as in NumPy."""
    words: list[int] = []
    mask = 2**64 - 1
    for block in range(1, count // 4 + 2):
        c, k = [block, 0, 0, 0], list(key)
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [
                (second >> 64) ^ c[1] ^ k[0],
                second & mask,
                (first >> 64) ^ c[3] ^ k[1],
                first & mask,
            ]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        words += c
    return words[:count]


def stream(seed: int, merge: str, role: str, key: str, count: int) -> list[int]:
    """The words of one model's stream for one tensor."""
    text = f"runner-rng-1\0{seed}\0{merge}\0{role}\0{key}".encode()
    digest = hashlib.sha256(text).digest()
    return philox((int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")), count)


def kept(words: Sequence[int], probability: float) -> list[bool]:
    """Dropped if word >> 11 < floor(p · 2⁵³), p the probability of a drop: integers only."""
    bound = math.floor(Fraction(1 - probability) * 2**53)
    return [not (word >> 11) < bound for word in words]


def top(values: Array, density: float) -> Array:
    """The k = max(1, int(density·N)) largest magnitudes, of equals the first, by a full stable sort."""
    flat = np.abs(values).ravel()
    order = sorted(range(flat.size), key=lambda index: (-flat[index], index))
    mask = np.zeros(flat.size, dtype=bool)
    mask[order[: max(1, int(density * flat.size))]] = True
    return mask.reshape(values.shape)


def per_model(value: float | Sequence[float], count: int) -> list[float]:
    return [value] * count if isinstance(value, float) else list(value)


def elected(terms: Sequence[Array], weights: Sequence[float], vote: str, normalize: bool) -> Array:
    """Steps 2 and 3 of ties, one element at a time."""
    result = np.zeros(terms[0].shape)
    for index in np.ndindex(terms[0].shape):
        values = [float(term[index]) for term in terms]
        votes = sum(values) if vote == "mass" else sum((v > 0) - (v < 0) for v in values)
        sign = 1 if votes >= 0 else -1
        agreeing = [(v, abs(w)) for v, w in zip(values, weights, strict=True) if v * sign > 0]
        if agreeing:
            result[index] = sum(v for v, _ in agreeing) / (sum(w for _, w in agreeing) if normalize else 1)
    return result


def linear_of(*x: Array, weight: Any = 1.0, normalize: bool = True) -> Array:
    weights = per_model(weight, len(x))
    total = sum(weights) if normalize else 1
    return sum(w / total * one for w, one in zip(weights, x, strict=True))


def task_arithmetic_of(
    base: Array, *d: Array, weight: Any = 1.0, scale: float = 1.0, normalize: bool = False
) -> Array:
    weights = per_model(weight, len(d))
    total = sum(abs(w) for w in weights) if normalize else 1
    return base + scale * sum(w * one for w, one in zip(weights, d, strict=True)) / total


def ties_of(
    base: Array,
    *d: Array,
    weight: Any = 1.0,
    density: Any = 1.0,
    scale: float = 1.0,
    vote: str = "mass",
    trim: str = "tensor",
    normalize: bool = True,
) -> Array:
    weights, densities = per_model(weight, len(d)), per_model(density, len(d))
    terms = [
        np.where(top(one, share), w * one, 0) for one, w, share in zip(d, weights, densities, strict=True)
    ]
    return base + scale * elected(terms, weights, vote, normalize)


def masked(d: Sequence[Array], weights: list[float], densities: list[float], rescale: str) -> list[Array]:
    terms = []
    for number, (one, w, density) in enumerate(zip(d, weights, densities, strict=True), start=1):
        words = stream(SEED, MERGE, f"x{number}", KEY, one.size)
        mask = np.array(kept(words, density)).reshape(one.shape)
        left = math.fsum(np.abs(one[mask]))
        factor = {
            "inverse_p": 1 / density,
            "l1": math.fsum(np.abs(one).ravel()) / left if left else 1.0,
            "none": 1.0,
        }
        terms.append(np.where(mask, w * one * factor[rescale], 0))
    return terms


def dare_linear_of(
    base: Array,
    *d: Array,
    weight: Any = 1.0,
    density: Any = 1.0,
    scale: float = 1.0,
    rescale: str = "inverse_p",
    normalize: bool = False,
) -> Array:
    weights = per_model(weight, len(d))
    total = sum(abs(w) for w in weights) if normalize else 1
    return base + scale * sum(masked(d, weights, per_model(density, len(d)), rescale)) / total


def dare_ties_of(
    base: Array,
    *d: Array,
    weight: Any = 1.0,
    density: Any = 1.0,
    scale: float = 1.0,
    rescale: str = "inverse_p",
    vote: str = "mass",
    normalize: bool = False,
) -> Array:
    weights = per_model(weight, len(d))
    terms = masked(d, weights, per_model(density, len(d)), rescale)
    return base + scale * elected(terms, weights, vote, normalize)


def by_parts(per: str, function: Callable[..., Array], *x: Array) -> Array:
    """A function of vectors for the whole tensor, each row or each column of the matrix view."""
    if per == "tensor":
        return function(*(one.ravel() for one in x)).reshape(x[0].shape)
    rows = [one.reshape(1, -1) if one.ndim < 2 else one.reshape(len(one), -1) for one in x]
    if per == "column":
        rows = [one.T for one in rows]
    mixed = np.stack([function(*parts) for parts in zip(*rows, strict=True)])
    return (mixed.T if per == "column" else mixed).reshape(x[0].shape)


def cosine_between(u: Array, v: Array) -> float:
    norms = math.sqrt(math.fsum(u * u)) * math.sqrt(math.fsum(v * v))
    return max(-1.0, min(1.0, math.fsum(u * v) / norms)) if norms else 0.0


def model_stock_of(
    base: Array, *d: Array, per: str = "tensor", cosine: str = "pairs", clamp: bool = False
) -> Array:
    def moved(*vectors: Array) -> Array:
        n = len(vectors)
        pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if cosine != "adjacent" or j == i + 1]
        cosines = [cosine_between(vectors[i], vectors[j]) for i, j in pairs]
        c = sum(cosines) / len(pairs)
        if cosine == "angle":
            c = math.cos(sum(map(math.acos, cosines)) / len(pairs))
        below = 1 + (n - 1) * c
        t = n * c / below if abs(below) >= 1e-6 else 0.0
        if clamp:
            t = min(1.0, max(0.0, t))
        return t * sum(vectors) / n

    return base + by_parts(per, moved, *d)


def slerp_of(
    a: Array,
    b: Array,
    alpha: float,
    per: str = "tensor",
    magnitude: str = "raw",
    linear_above: float = 1.0,
) -> Array:
    def turned(u: Array, v: Array) -> Array:
        angle = math.acos(cosine_between(u, v))
        linear = math.sin(angle) < 1e-6 or abs(math.cos(angle)) > linear_above
        if not u.any() or not v.any() or linear:
            return (1 - alpha) * u + alpha * v
        of_u, of_v = (math.sin(share * angle) / math.sin(angle) for share in (1 - alpha, alpha))
        if magnitude == "raw":
            return of_u * u + of_v * v
        norm_u, norm_v = math.sqrt(math.fsum(u * u)), math.sqrt(math.fsum(v * v))
        return ((1 - alpha) * norm_u + alpha * norm_v) * (of_u * u / norm_u + of_v * v / norm_v)

    return by_parts(per, turned, a, b)


def train_difference_of(a: Array, b: Array, c: Array, alpha: float = 1.0) -> Array:
    far, near = np.abs(b - a), np.abs(b - c)
    share = np.divide(far, far + near, out=np.zeros(a.shape), where=far + near != 0)
    return a + 1.8 * alpha * share * (b - c)


def smooth(alpha: float) -> float:
    return alpha**2 * (3 - 2 * alpha)


def inverse(alpha: float) -> float:
    return 0.5 - math.sin(math.asin(1 - 2 * alpha) / 3)


REFERENCES: dict[str, Callable[..., Array]] = {
    "weighted_sum": lambda a, b, alpha: (1 - alpha) * a + alpha * b,
    "sigmoid": lambda a, b, alpha: a + smooth(alpha) * (b - a),
    "inv_sigmoid": lambda a, b, alpha: a + inverse(alpha) * (b - a),
    "add_difference": lambda a, b, c, alpha=1.0: a + alpha * (b - c),
    "triple_sum": lambda a, b, c, alpha=1 / 3, beta=1 / 3: (1 - alpha - beta) * a + alpha * b + beta * c,
    "sum_twice": lambda a, b, c, alpha=0.5, beta=0.5: (1 - beta) * ((1 - alpha) * a + alpha * b) + beta * c,
    "train_difference": train_difference_of,
    "add_lora": lambda a, *d, strength=1.0: (
        a + sum(s * one for s, one in zip(per_model(strength, len(d)), d, strict=True))
    ),
    "copy": lambda a, scale=1.0: scale * a,
    "linear": linear_of,
    "task_arithmetic": task_arithmetic_of,
    "ties": ties_of,
    "dare_linear": dare_linear_of,
    "dare_ties": dare_ties_of,
    "model_stock": model_stock_of,
    "slerp": slerp_of,
    **formulas_vectors.REFERENCES,
}

# Weights of means are exact in float32; see the test of weights that are not.
W, D = [0.75, -0.5, 1.25], [0.6, 0.3, 1.0]
ROLES = {"a": 1, "ab": 2, "abc": 3, "n": 3, "base": 4}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (name, "ab", {"alpha": alpha})
        for name in ("weighted_sum", "sigmoid", "inv_sigmoid")
        for alpha in (0.0, 0.25, 0.5, 0.9, 1.0)
    ),
    *(("weighted_sum", "ab", {"alpha": alpha}) for alpha in (-0.5, 1.5)),
    *(("add_difference", "abc", parameters) for parameters in ({}, {"alpha": 0.3}, {"alpha": -1.7})),
    *(
        (name, "abc", parameters)
        for name in ("triple_sum", "sum_twice")
        for parameters in ({}, {"alpha": 0.2, "beta": 0.7}, {"alpha": 0.9, "beta": 0.9})
    ),
    *(("train_difference", "abc", parameters) for parameters in ({}, {"alpha": 0.4}, {"alpha": 3.0})),
    *(("add_lora", "abc", parameters) for parameters in ({}, {"strength": [0.75, -0.5]})),
    *(("copy", "a", parameters) for parameters in ({}, {"scale": 0.3}, {"scale": 0.0})),
    ("linear", "n", {}),
    ("linear", "n", {"weight": [0.7, -0.4, 1.1]}),
    ("linear", "n", {"weight": [0.7, 0.0, 1.1]}),
    ("linear", "n", {"weight": 0.3, "normalize": False}),
    ("linear", "a", {"weight": 0.3}),
    *(
        (name, "base", {"weight": W, "scale": 0.8, "normalize": normalize})
        for name in ("task_arithmetic", "ties", "dare_linear", "dare_ties")
        for normalize in (False, True)
    ),
    *((name, "ab", {}) for name in ("task_arithmetic", "ties", "dare_linear", "dare_ties")),
    *(
        ("ties", "base", {"weight": W, "density": D, "vote": vote, "normalize": normalize})
        for vote in ("mass", "count")
        for normalize in (False, True)
    ),
    ("ties", "base", {"density": 0.7}),
    *(("ties", "base", {"density": D, "trim": trim}) for trim in ("tensor", "model")),
    ("ties", "base", {"density": 1e-6}),
    ("ties", "base", {"weight": [0.75, 0.0, 1.25], "density": 0.5}),
    *(
        (name, "base", {"weight": W, "density": D, "rescale": rescale, "normalize": normalize, "scale": 1.3})
        for name in ("dare_linear", "dare_ties")
        for rescale in ("inverse_p", "l1", "none")
        for normalize in (False, True)
    ),
    ("dare_ties", "base", {"density": 0.5, "vote": "count", "normalize": True}),
    ("dare_linear", "base", {"density": 1e-6}),
    *(
        ("model_stock", roles, {"per": per, "cosine": pairs, "clamp": clamp})
        for roles in ("abc", "base")
        for per in ("tensor", "row")
        for pairs in ("pairs", "adjacent", "angle")
        for clamp in (False, True)
    ),
    *(
        ("slerp", "ab", {"alpha": alpha, "per": per, "magnitude": magnitude})
        for alpha in (0.3, 1.0)
        for per in ("tensor", "row", "column")
        for magnitude in ("raw", "lerp")
    ),
    *(
        ("slerp", "ab", {"alpha": 0.3, "per": per, "linear_above": 0.5})
        for per in ("tensor", "row", "column")
    ),
    *formulas_vectors.CASES,
]

REFERENCES.update(formulas_elementwise.REFERENCES)
CASES += formulas_elementwise.CASES


def test_every_method_has_a_reference_and_every_choice_a_case() -> None:
    ours = {name: method for (name, tool), method in METHODS.items() if tool is None}
    assert set(ours) == set(REFERENCES) | set(PRODUCTS)
    cases = [*CASES, *(("extract_lora", "", {"solver": solver}) for solver in SOLVERS)]
    for name, method in ours.items():
        for parameter in method.parameters.values():
            found = [given.get(parameter.name, parameter.default) for case, _, given in cases if case == name]
            assert all(choice in found for choice in parameter.choices), f"{name}: {parameter.name}"


def nearest_of_rank(matrix: Array, rank: int) -> Array:
    """The sum of that many of the strongest directions of a matrix."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    nearest: Array = (left[:, :rank] * values[:rank]) @ right[:rank]
    return nearest


# Of methods that give factors: what their product is.
PRODUCTS: dict[str, Callable[..., Array]] = {
    "extract_lora": lambda base, model, rank: nearest_of_rank((model - base).reshape(len(base), -1), rank),
    "join_loras": lambda shape, *pairs, strength, rank: nearest_of_rank(
        sum(s * (up @ down) for s, (up, down) in zip(strength, pairs, strict=True)), rank or 10**9
    ),
}


SOLVERS = ("exact", "randomized")  # of extract_lora


def extracted(base: Tensor, model: Tensor, **parameters: Any) -> Tensor:
    """The change that a LoRA extracted from two models makes."""
    random = Random(SEED, MERGE, ("base", "model"), KEY, 0)
    found = METHODS["extract_lora", None].function(base, model, random=random, **parameters)
    change: Tensor = found.up @ found.down
    return change


@pytest.mark.parametrize("shape", [(7, 9), (9, 6), (4, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("rank", [1, 3, 50])
def test_the_product_of_extracted_factors(rank: int, shape: tuple[int, ...]) -> None:
    base, model = normal(shape, 2)
    expected = PRODUCTS["extract_lora"](base.numpy(), model.numpy(), rank)
    close(extracted(base, model, rank=rank), expected)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (40, 10, 3, 3)], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_extracts_a_change_of_that_rank_whole(solver: str, shape: tuple[int, ...]) -> None:
    base, model = normal(shape, 2)
    change = torch.as_tensor(PRODUCTS["extract_lora"](base.numpy(), model.numpy(), 5)).reshape(shape)
    close(extracted(base, base + change, rank=5, solver=solver), change.reshape(len(base), -1))


@pytest.mark.parametrize("rank", [0, 1, 3, 50])
def test_the_product_of_joined_factors(rank: int) -> None:
    pairs = [(normal((7, r), 1, r)[0], normal((r, 9), 1, r + 9)[0]) for r in (2, 3)]
    found = METHODS["join_loras", None].function((7, 9), *pairs, strength=(0.5, -2.0), rank=rank)
    given = [(up.numpy(), down.numpy()) for up, down in pairs]
    close(found.up @ found.down, PRODUCTS["join_loras"]((7, 9), *given, strength=(0.5, -2.0), rank=rank))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "roles", "parameters"), CASES, ids=str)
def test_the_formula(name: str, roles: str, parameters: dict[str, Any], shape: tuple[int, ...]) -> None:
    operands = normal(shape, ROLES[roles])
    expected = REFERENCES[name](*(one.numpy() for one in operands), **parameters)
    close(run(name, *operands, **parameters), expected, formulas_vectors.TOLERANCES.get(name, 1e-12))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "roles", "parameters"), [case for case in CASES if case[0] in ("ties", "slerp")], ids=str
)
def test_the_formula_in_single(
    name: str, roles: str, parameters: dict[str, Any], shape: tuple[int, ...]
) -> None:
    operands = [one.float() for one in normal(shape, ROLES[roles])]
    result = run(name, *operands, **parameters)
    assert result.dtype == torch.float32
    close(result, REFERENCES[name](*(one.double().numpy() for one in operands), **parameters), 2e-6)


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_a_mean_in_double_has_its_weights_in_double(name: str) -> None:
    operands = normal((7, 9), 4)
    parameters: dict[str, Any] = {"weight": [0.7, 0.4, 1.1], "normalize": True}
    expected = REFERENCES[name](*(one.numpy() for one in operands), **parameters)
    close(run(name, *operands, **parameters), expected)


# Ends (R4).

ENDS: list[tuple[str, dict[str, Any], int]] = [
    *(
        (name, {"alpha": end}, number)
        for name in ("weighted_sum", "sigmoid", "inv_sigmoid", "slerp")
        for end, number in ((0.0, 0), (1.0, 1))
    ),
    *((name, {"alpha": 0.0}, 0) for name in ("add_difference", "train_difference")),
    *((name, {"alpha": 0.0, "beta": 0.0}, 0) for name in ("triple_sum", "sum_twice")),
    *((name, {"alpha": 1.0, "beta": 0.0}, 1) for name in ("triple_sum", "sum_twice")),
    *((name, {"alpha": 0.0, "beta": 1.0}, 2) for name in ("triple_sum", "sum_twice")),
    ("sum_twice", {"alpha": 0.4, "beta": 1.0}, 2),
    ("copy", {"scale": 1.0}, 0),
    ("linear", {"weight": (0.0, 0.3, 0.0), "normalize": True}, 1),
    ("linear", {"weight": (0.0, 0.0, 1.0), "normalize": False}, 2),
    *(
        (name, {"weight": (1.0, 1.0), "scale": 0.0}, 0)
        for name in ("task_arithmetic", "ties", "dare_linear", "dare_ties")
    ),
]


@pytest.mark.parametrize(("name", "parameters", "number"), ENDS, ids=str)
def test_an_end_is_one_of_the_operands(name: str, parameters: dict[str, Any], number: int) -> None:
    method = METHODS[name, None]
    words: dict[str, Any] = {n: p.default for n, p in method.parameters.items() if p.choices}
    density = {n: (1.0, 1.0) for n in method.parameters if n == "density"}
    assert method.result_is(**{**words, **density, **parameters}) == number
    count = len(method.roles) + (0 if method.variadic is None else 3 - len(method.roles))
    operands = normal((7, 9), count)
    close(run(name, *operands, **parameters), operands[number])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("weighted_sum", {"alpha": 0.3}),
        ("copy", {"scale": 0.5}),
        ("linear", {"weight": (0.5, 0.5), "normalize": True}),
        ("linear", {"weight": (0.0, 0.5), "normalize": False}),
        ("triple_sum", {"alpha": 0.5, "beta": 0.5}),
        ("sum_twice", {"alpha": 0.0, "beta": 0.5}),
        ("task_arithmetic", {"weight": (1.0,), "scale": 1.0, "normalize": False}),
    ],
)
def test_between_the_ends_it_is_none_of_them(name: str, parameters: dict[str, Any]) -> None:
    assert METHODS[name, None].result_is(**parameters) is None


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_one_model_in_full_is_that_model(name: str) -> None:
    base, model = normal((7, 9), 2)
    close(run(name, base, model - base), model)


@pytest.mark.parametrize("normalize", [False, True])
def test_with_density_1_dare_is_what_it_is_without_masks(normalize: bool) -> None:
    operands = normal((7, 9), 4)
    parameters: dict[str, Any] = {"weight": W, "scale": 0.8, "normalize": normalize}
    for masks, plain in (("dare_linear", "task_arithmetic"), ("dare_ties", "ties")):
        close(run(masks, *operands, **parameters), run(plain, *operands, **parameters))


def test_the_numbers_of_the_catalogue() -> None:
    a, b = tensor(0), tensor(1)
    assert run("sigmoid", a, b, alpha=0.25).item() == 0.15625
    assert round(run("inv_sigmoid", a, b, alpha=0.25).item(), 5) == 0.32635
    for alpha in np.linspace(0, 1, 101):
        there = run("sigmoid", a, b, alpha=float(alpha)).item()
        assert abs(run("inv_sigmoid", a, b, alpha=there).item() - alpha) < 1e-9


# A coefficient of 0 (R4): what the model holds must not matter.


@pytest.mark.parametrize(
    ("name", "parameters", "unused"),
    [
        ("linear", {"weight": [0.5, 0.0, 0.5]}, 1),
        ("task_arithmetic", {"weight": [0.0, 0.5]}, 1),
        ("triple_sum", {"alpha": 0.0, "beta": 0.5}, 1),
        ("triple_sum", {"alpha": 0.5, "beta": 0.0}, 2),
        ("triple_sum", {"alpha": 0.5, "beta": 0.5}, 0),
        ("sum_twice", {"alpha": 0.5, "beta": 0.0}, 2),
        ("sum_twice", {"alpha": 0.0, "beta": 0.5}, 1),
        ("ties", {"weight": [0.0, 0.5]}, 1),
        ("dare_linear", {"weight": [0.0, 0.5], "density": 0.5}, 1),
        ("dare_ties", {"weight": [0.0, 0.5], "density": 0.5}, 1),
    ],
)
def test_an_unused_operand_does_not_leak(name: str, parameters: dict[str, Any], unused: int) -> None:
    operands = normal((7,), 3)
    expected = run(name, *operands, **parameters)
    operands[unused] = torch.full((7,), INFINITE, dtype=torch.float64)
    close(run(name, *operands, **parameters), expected)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "task_arithmetic",
        "ties",
        "dare_ties",
        "dare_linear",
    ],
)
def test_weights_of_0_give_the_base(name: str, normalize: bool) -> None:
    base, *deltas = normal((7,), 3)
    assert torch.equal(run(name, base, *deltas, weight=0.0, normalize=normalize), base)


# Degenerate tensors (R7).


@pytest.mark.parametrize("name", ["linear", "multislerp", "karcher", "geometric_median"])
def test_weights_that_cancel_are_refused(name: str) -> None:
    check = METHODS[name, None].check
    for weight in ((1.0, -1.0), (1.0, -1.0 + 1e-9)):
        assert "add up to 0" in str(check(weight=weight, normalize=True))
    assert check(weight=(1.0, -1.0 + 1e-6), normalize=True) is None


def test_linear_without_normalize_takes_weights_that_cancel() -> None:
    assert METHODS["linear", None].check(weight=(1.0, -1.0), normalize=False) is None
    a, b = normal((3,), 2)
    close(run("linear", a, b, weight=[1.0, -1.0], normalize=False), a - b)
    close(run("linear", a, b, weight=[1.0, -1.0 + 1e-6]), (a - b * (1 - 1e-6)) / 1e-6, 1e-9)


def test_train_difference_where_models_agree() -> None:
    a, b, c = normal((7, 9), 3)
    assert torch.equal(run("train_difference", a, a, c), a)
    assert torch.equal(run("train_difference", a, b, b), a)
    assert torch.equal(run("train_difference", a, a, a), a)  # 0 / 0
    close(run("train_difference", a, b, a, alpha=0.5), a + 0.45 * (b - a))
    far = run("train_difference", tensor(1e9), tensor(1), tensor(0)).item() - 1e9
    assert math.isclose(far, 1.8, rel_tol=1e-6)


def test_ties_where_the_votes_are_equal() -> None:
    base, x, y = tensor(0, 0, 0, 0), tensor(1, -2, 0, 3), tensor(-1, 2, 0, -1)
    close(run("ties", base, x, y), tensor(1, 2, 0, 3))
    close(run("ties", base, x, y, vote="count"), tensor(1, 2, 0, 3))
    close(run("ties", base, x, y, tensor(-1, -1, -1, -4), vote="count"), tensor(-1, -1.5, -1, -2.5))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_ties_of_equal_magnitudes_keeps_the_first(density: float) -> None:
    base, *deltas = (one.round() for one in normal((7, 9), 4))
    expected = ties_of(*(one.numpy() for one in (base, *deltas)), density=density)
    close(run("ties", base, *deltas, density=density), expected)
    ones = torch.ones(10, dtype=torch.float64)
    close(run("ties", 0 * ones, -ones, density=0.3), tensor(-1, -1, -1, 0, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_equal_models_give_the_base(name: str, density: float) -> None:
    base = normal((7, 9), 1)[0]
    zero = torch.zeros_like(base)
    parameters = {} if name == "task_arithmetic" else {"density": density}
    assert torch.equal(run(name, base, zero, zero, **parameters), base)


@pytest.mark.parametrize("magnitude", ["raw", "lerp"])
@pytest.mark.parametrize("per", ["tensor", "row", "column"])
def test_slerp_without_a_circle_is_the_weighted_sum(per: str, magnitude: str) -> None:
    a = normal((7, 9), 1)[0]
    zero = torch.zeros_like(a)
    for b in (a, 2.5 * a, -a, -0.4 * a, zero, a * (1 + 1e-15)):
        for one, other in ((a, b), (b, a)):
            result = run("slerp", one, other, alpha=0.3, per=per, magnitude=magnitude)
            close(result, 0.7 * one + 0.3 * other)
    assert torch.equal(run("slerp", zero, zero, alpha=0.3, per=per, magnitude=magnitude), zero)


@pytest.mark.parametrize("shape", [(), (1,), (5, 1)], ids=str)
def test_slerp_of_single_numbers_is_the_weighted_sum(shape: tuple[int, ...]) -> None:
    a, b = normal(shape, 2)
    close(run("slerp", a, b, alpha=0.3, per="row"), 0.7 * a + 0.3 * b)


def test_slerp_takes_the_circle_down_to_a_millionth() -> None:
    a, at_right = tensor(1, 0), tensor(0, 1)
    for angle in (1e-3, 1e-2, math.pi - 1e-2):
        b = math.cos(angle) * a + math.sin(angle) * at_right
        result = run("slerp", a, b, alpha=0.3)
        close(result, math.cos(0.3 * angle) * a + math.sin(0.3 * angle) * at_right, 1e-9)
        assert abs(norm(result) - 1) < 1e-9 < abs(norm(0.7 * a + 0.3 * b) - 1)
    b = math.cos(1e-7) * a + math.sin(1e-7) * at_right
    assert torch.equal(run("slerp", a, b, alpha=0.3), a * 0.7 + b * 0.3)


def test_slerp_of_rows_leaves_zero_rows_to_the_weighted_sum() -> None:
    a, b = normal((4, 3, 3, 3), 2)
    a[1], b[2], a[3], b[3] = 0, 0, 0, 0
    for magnitude in ("raw", "lerp"):
        result = run("slerp", a, b, alpha=0.3, per="row", magnitude=magnitude)
        close(result, slerp_of(a.numpy(), b.numpy(), 0.3, "row", magnitude))
        close(result[1:], (0.7 * a + 0.3 * b)[1:])


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_model_stock_from_parallel_to_opposing(per: str) -> None:
    base, d, e = normal((9,), 3)
    e -= d * (dot(d, e) / dot(d, d))
    zero = torch.zeros_like(d)

    def moved(*deltas: Tensor, **parameters: Any) -> Tensor:
        return run("model_stock", base, *deltas, per=per, **parameters) - base

    close(moved(d, 2 * d, 3 * d), 2 * d)  # parallel: the mean
    close(moved(d, d), d)
    close(moved(d, e), zero)  # orthogonal: the base
    close(moved(d, zero), zero)  # cosine 0
    close(moved(zero, zero, zero), zero)
    close(moved(d, -0.3 * d), zero)  # 1 + (n − 1)·c = 0
    close(moved(d, -0.3 * d, clamp=True), zero)
    opposing = -0.5 * d / norm(d) + math.sqrt(0.75) * e / norm(e)  # cosine −½: t = −2
    close(moved(d, opposing), -2 * (d + opposing) / 2)
    close(moved(d, opposing, clamp=True), zero)


@pytest.mark.parametrize("per", ["tensor", "row"])
def test_model_stock_of_single_numbers_may_be_wild(per: str) -> None:
    base, plus = tensor(10), tensor(1)
    close(run("model_stock", base, plus, plus, -plus, per=per), tensor(10 - 3 / 3))  # c = −⅓, t = −3
    close(run("model_stock", base, plus, plus, -plus, per=per, clamp=True), base)
    close(run("model_stock", base, plus, plus, -plus, per=per, cosine="adjacent"), base)  # c = 0


@pytest.mark.parametrize("power", [-60, -20, 20])
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_no_norm_is_too_small(per: str, power: int) -> None:
    """Scaling by a power of two scales the result: there is no absolute epsilon."""
    _, *deltas = normal((4, 80), 4)
    zero, factor = torch.zeros(4, 80, dtype=torch.float64), 2.0**power
    stock = run("model_stock", zero, *deltas, per=per)
    assert torch.equal(run("model_stock", zero, *(d * factor for d in deltas), per=per), stock * factor)
    turned = run("slerp", *deltas[:2], alpha=0.3, per=per)
    assert torch.equal(run("slerp", *(d * factor for d in deltas[:2]), alpha=0.3, per=per), turned * factor)


def test_rows_of_a_convolution_are_its_filters() -> None:
    operands = normal((4, 3, 3, 3), 4)
    for name, count in (("slerp", 2), ("model_stock", 4)):
        parameters = {"alpha": 0.3} if name == "slerp" else {}
        whole = run(name, *operands[:count], per="row", **parameters)
        for row in range(4):
            filters = [one[row] for one in operands[:count]]
            close(whole[row], run(name, *filters, **parameters))


# Where the executor restores a common value, the method must give it at every such element.


@pytest.mark.parametrize(
    "name",
    [
        "weighted_sum",
        "triple_sum",
        "sum_twice",
        "linear",
        "slerp",
    ],
)
def test_a_merge_of_float32_is_the_formula_where_elements_agree(name: str, tmp_path: Path) -> None:
    key = "model.diffusion_model.linear.weight"
    operands = [one.float() for one in normal((8, 8), 3)]
    for one in operands:
        one[:4] = operands[0][:4]
    roles = METHODS[name, None].roles or ("a", "b", "c")
    for role, one in zip(roles, operands, strict=False):
        save_file({key: one}, tmp_path / f"{role}.safetensors", {"format": "pt"})
    tree = {"method": name, "models": {role: f"{role}.safetensors" for role in roles}}
    result = merged(tree, tmp_path, tmp_path / "out")[key]
    defaults = {n: p.default for n, p in METHODS[name, None].parameters.items()}
    used = [one.double().numpy() for one in operands[: len(roles)]]
    close(result, REFERENCES[name](*used, **defaults), 1e-6)


# Selection (R9).


@settings(max_examples=200, deadline=None)
@given(
    values=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=3, max_side=7),
        elements=st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-45, -1e-45]),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
        ),
    ),
    density=st.one_of(st.floats(1e-6, 1), st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1 / 3, 2 / 3, 1.0])),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_largest_is_its_definition(dtype: torch.dtype, values: Array, density: float) -> None:
    mask = largest_of(torch.from_numpy(values.copy()).to(dtype), density)
    assert mask.dtype == torch.bool and mask.shape == values.shape
    assert np.array_equal(mask.numpy(), top(values, density))


def largest_of(values: Tensor, density: float, step: int | None = None) -> Tensor:
    """The mask of the largest share, found in tiles of `step` elements."""
    flat = values.reshape(-1)
    step = step or max(1, flat.numel())
    tiles = [
        Tile((flat[start : start + step],), part=Part(start=start)) for start in range(0, flat.numel(), step)
    ]
    ((found,),) = largest(tiles, lambda tile: tile.operands, [top_share(density)])
    masks = [found.mask(tile.operands[0], tile.part) for tile in tiles]
    return torch.cat(masks).reshape(values.shape) if masks else torch.zeros(values.shape, dtype=torch.bool)


@given(
    values=st.lists(st.sampled_from([0.0, 1.0, -1.0, 1.0000001, 2.0, 3e-40]), min_size=1, max_size=60),
    density=st.floats(1e-6, 1),
    step=st.integers(1, 61),
    kept=st.integers(0, 8),
)
def test_largest_depends_on_no_tiles_and_not_on_how_many_values_are_remembered(
    values: list[float], density: float, step: int, kept: int
) -> None:
    one = torch.tensor(values)
    with mock.patch.object(selection, "KEPT_VALUES", kept):
        found = largest_of(one, density, step)
    assert torch.equal(found, largest_of(one, density))


def test_several_sets_are_looked_for_at_once() -> None:
    values = torch.tensor([3.0, -1.0, 0.0, 2.0, -2.0])
    ((none, two, beyond),) = largest(
        whole(values), lambda tile: tile.operands, [lambda count, nonzero: [0, 2, count + nonzero]]
    )
    assert none.mask(values, WHOLE).tolist() == [False] * 5
    assert two.mask(values, WHOLE).tolist() == [True, False, False, True, False]
    assert beyond.mask(values, WHOLE).all()


def test_the_share_is_a_product_in_double_cut_to_an_integer() -> None:
    assert int(largest_of(torch.arange(90.0), 0.7).sum()) == 62  # .7·90 is 62.99999999999999
    assert int(largest_of(torch.arange(90.0), 1e-6).sum()) == 1
    assert largest_of(torch.tensor([-0.0, 0.0, 0.0]), 0.4).tolist() == [True, False, False]


# Random numbers (determinism.md, section 3).


def mask_of(role: str, count: int, probability: float, start: int = 0, **changes: Any) -> Tensor:
    names = {"seed": SEED, "merge": MERGE, "key": KEY, **changes}
    random = Random(names["seed"], names["merge"], ["base", role], names["key"], start)
    return random.keep(1, torch.empty(count), probability)


@pytest.mark.parametrize("probability", [1e-6, 0.1, 0.3, 0.5, 0.7, 1 - 2**-53, 0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_masks_are_integer_comparisons_of_philox_words(seed: int, probability: float) -> None:
    for role, key in (("x1", KEY), ("модель", "text_encoder.ключ")):
        expected = kept(stream(seed, MERGE, role, key, 203), probability)
        assert mask_of(role, 203, probability, seed=seed, key=key).tolist() == expected


def test_the_bound_itself_is_kept() -> None:
    """A word whose upper 53 bits are the bound is kept; with a bound one higher it is dropped."""
    upper = [word >> 11 for word in stream(SEED, MERGE, "x1", KEY, 16)]
    for index, bound in enumerate(upper):
        if bound >= 2**52:  # then 1 − p is exact
            assert mask_of("x1", 16, 1 - bound / 2**53)[index]
            assert not mask_of("x1", 16, 1 - (bound + 1) / 2**53)[index]


# Pinned: others would be another version of every method that draws.
GOLDEN_KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
GOLDEN_PHILOX = [
    0x2D2E7C09C193C5FA,
    0xD56C6AA2D11F06AA,
    0x184FCDF7F5474A23,
    0x367832D087008054,
    0x56FFD4CF84D16286,
]
GOLDEN_STREAM = [
    0x003C8912B05B5C2C,
    0x5E4B610B907781C7,
    0xE662B4B2B324C9B3,
    0x23B4EF2D2A2137A7,
    0x94F62E1BF07850F8,
]


def test_the_words_of_one_key() -> None:
    assert philox(GOLDEN_KEY, 5) == GOLDEN_PHILOX
    assert np.random.Philox(key=np.array(GOLDEN_KEY, dtype=np.uint64)).random_raw(5).tolist() == GOLDEN_PHILOX
    assert stream(0, "0" * 64, "style", "unet.conv_in.weight", 5) == GOLDEN_STREAM
    random = Random(0, "0" * 64, ["base", "style"], "unet.conv_in.weight", 0)
    expected = [word >= 2**63 for word in GOLDEN_STREAM]
    assert random.keep(1, torch.empty(5), 0.5).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(cuts=st.lists(st.integers(0, 1001), max_size=6), probability=st.floats(0.05, 0.95))
def test_any_cut_of_a_stream_is_the_whole(cuts: list[int], probability: float) -> None:
    ends = [0, *sorted(cuts), 1001]
    parts = [mask_of("x1", stop - start, probability, start) for start, stop in itertools.pairwise(ends)]
    assert torch.equal(torch.cat(parts), mask_of("x1", 1001, probability))


def test_a_mask_has_the_shape_of_what_it_masks() -> None:
    random = Random(SEED, MERGE, ["base", "x1"], KEY, 0)
    mask = random.keep(1, torch.empty(4, 3, 3, 3), 0.5)
    assert torch.equal(mask.flatten(), mask_of("x1", 108, 0.5))
    assert random.keep(1, torch.empty(()), 0.5).shape == ()


def test_streams_differ_by_everything_they_depend_on() -> None:
    masks = [
        mask_of("x1", 4000, 0.5),
        mask_of("x2", 4000, 0.5),
        mask_of("x1", 4000, 0.5, seed=SEED + 1),
        mask_of("x1", 4000, 0.5, merge="other"),
        mask_of("x1", 4000, 0.5, key="unet.bias"),
        mask_of("x1", 4000, 0.5, merge="", key=f"{MERGE}{KEY}"),
    ]
    for at, one in enumerate(masks):
        for other in masks[:at]:
            assert abs(float((one == other).double().mean()) - 0.5) < 5 * math.sqrt(0.25 / 4000)


@pytest.mark.parametrize("probability", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_the_share_that_is_kept_is_the_density(probability: float) -> None:
    count = 400_000
    deviation = math.sqrt(probability * (1 - probability) / count)
    mask = mask_of("x1", count, probability).double()
    assert abs(float(mask.mean()) - probability) < 5 * deviation
    neighbours = float((mask[1:] * mask[:-1]).mean())
    assert abs(neighbours - probability**2) < 10 * deviation


def test_dare_does_not_depend_on_the_other_models() -> None:
    """A model's mask comes with its role, not with its place."""
    base, d, e = normal((7, 9), 3)
    one = Random(SEED, MERGE, ["base", "x", "y"], KEY, 0)
    other = Random(SEED, MERGE, ["base", "y", "x"], KEY, 0)
    close(
        run("dare_linear", base, d, e, density=[0.5, 0.3], random=one),
        run("dare_linear", base, e, d, density=[0.3, 0.5], random=other),
    )


def test_dare_keeps_the_mean() -> None:
    base, delta = torch.zeros(400_000, dtype=torch.float64), torch.ones(400_000, dtype=torch.float64)
    assert abs(float(run("dare_linear", base, delta, density=0.2).mean()) - 1) < 0.02
    assert abs(float(run("dare_linear", base, delta, density=0.2, rescale="none").mean()) - 0.2) < 0.004


# Sums.


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 32767, 32768, 32769, 100_001, 32 * 32768 + 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dot_is_the_exact_sum_and_no_thread_changes_it(count: int, dtype: torch.dtype, threads: None) -> None:
    a, b = (one.to(dtype) for one in normal((count,), 2))
    found = set()
    for number in (1, 2):
        torch.set_num_threads(number)
        found.add((dot(a, b), norm(a), str(gram(whole(a, b)))))
    assert len(found) == 1
    products = (a.double() * b.double()).tolist()  # exact: 24 + 24 bits fit in 53
    result, exact = next(iter(found))[0], math.fsum(products)
    assert abs(result - exact) <= 2e-16 * 64 * math.fsum(map(abs, products))


def test_dot_of_doubles_is_exact_to_the_last_bits() -> None:
    a, b = normal((3000,), 2)
    exact = sum(Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    scale = float(a.norm() * b.norm())
    assert abs(Fraction(dot(a, b)) - exact) < Fraction(1e-15 * scale)
    assert gram(whole(a, b)).products == ((dot(a, a), dot(a, b)), (dot(b, a), dot(b, b)))


def test_dot_adds_pieces_without_losing_small_ones() -> None:
    """What cancels between pieces leaves the rest: the pieces are added with one rounding."""
    a = torch.zeros(3 * 32768)
    a[0], a[32768], a[-1] = 2.0**40, 1.0, 2.0**40
    b = torch.ones_like(a)
    b[-1] = -1
    assert dot(a, b) == 1.0


def test_dot_takes_any_layout() -> None:
    a, b = normal((30, 50), 2)
    assert dot(a.t(), b.t()) == dot(a.t().contiguous(), b.t().contiguous())


@pytest.mark.parametrize(
    "shape",
    [
        (2, 200_001),
        (40, 3000),
        (1, 32768),
        (1, 32769),
    ],
    ids=str,
)
def test_row_dots_do_not_depend_on_threads(shape: tuple[int, int], threads: None) -> None:
    found = set()
    for seed in range(4):
        a, b = normal(shape, 2, seed)
        for number in (1, 2):
            torch.set_num_threads(number)
            found.add((seed, tuple(row_dots(a, b).flatten().tolist())))
        close(row_dots(a, b), np.array([dot(*rows) for rows in zip(a, b, strict=True)]), 1e-11)
    assert len(found) == 4


def test_cosines_stay_in_their_range() -> None:
    assert cosine(1.0000000000000002, 1, 1) == 1 and cosine(-1.0000000000000002, 1, 1) == -1
    assert cosine(1, 0, 1) == cosine(1, 1, 0) == 0

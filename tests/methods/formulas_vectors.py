"""References for the methods on vectors and matrices, in float64 with NumPy; see test_formulas.py."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
SEED, MERGE, KEY = 7, "merge", "unet.weight"  # as in test_formulas.py


def per_model(value: float | Sequence[float], count: int) -> list[float]:
    return [float(value)] * count if isinstance(value, (int, float)) else list(value)


def words(role: str, count: int) -> list[int]:
    """The upper 53 bits of the words of one model's stream."""
    text = f"runner-rng-1\0{SEED}\0{MERGE}\0{role}\0{KEY}".encode()
    key = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype="<u8")
    return [int(word) >> 11 for word in np.random.Philox(key=key).random_raw(count)]


def descending(values: Array) -> list[int]:
    """Indices from the largest magnitude to the least; of equals the first comes first."""
    flat = np.abs(values).ravel()
    return sorted(range(flat.size), key=lambda index: (-flat[index], index))


def chosen(values: Array, start: int, stop: int) -> Array:
    """Which elements have these places among them."""
    mask = np.zeros(values.size, dtype=bool)
    mask[descending(values)[start:stop]] = True
    return mask.reshape(values.shape)


def elected(terms: Sequence[Array], weights: Sequence[float], vote: str, normalize: bool) -> Array:
    """What is left of weighted terms if each element takes the sign most of them have."""
    stack = np.stack(list(terms))
    votes = stack.sum(0) if vote == "mass" else np.sign(stack).sum(0)
    agree = np.sign(stack) == np.where(votes >= 0, 1, -1)
    shares = (agree * np.abs(np.array(weights)).reshape(-1, *[1] * terms[0].ndim)).sum(0)
    total: Array = (stack * agree).sum(0)
    return total / np.where(shares == 0, 1, shares) if normalize else total


def matrix(x: Array) -> Array:
    return x.reshape(1, -1) if x.ndim < 2 else x.reshape(len(x), -1)


def norm(x: Array) -> float:
    return math.sqrt(math.fsum((x * x).ravel()))


def angle_between(u: Array, v: Array) -> float:
    return math.acos(max(-1.0, min(1.0, math.fsum((u * v).ravel()) / norm(u) / norm(v))))


# Between models.


def nuslerp_of(
    a: Array, b: Array, weight: Any = 1.0, per: str = "tensor", base: Array | None = None
) -> Array:
    of_a, of_b = per_model(weight, 2)
    t = of_b / (of_a + of_b) if of_a + of_b else 0.5
    if base is not None:
        return base + nuslerp_of(a - base, b - base, weight, per)

    def turned(u: Array, v: Array) -> Array:
        if not u.any() or not v.any() or math.sin(angle_between(u, v)) < 1e-6:
            return (1 - t) * u + t * v
        angle = angle_between(u, v)
        return (math.sin((1 - t) * angle) * u + math.sin(t * angle) * v) / math.sin(angle)

    if per == "tensor":
        return turned(a, b)
    rows = [matrix(one) if per == "row" else matrix(one).T for one in (a, b)]
    mixed = np.stack([turned(*pair) for pair in zip(*rows, strict=True)])
    return (mixed if per == "row" else mixed.T).reshape(a.shape)


def sphere(function: Callable[..., Array]) -> Callable[..., Array]:
    """A reference for models, or for their differences from a base."""

    def reference(*x: Array, weight: Any = 1.0, base: Array | None = None, **parameters: Any) -> Array:
        weights = [one / sum(per_model(weight, len(x))) for one in per_model(weight, len(x))]
        if base is None:
            return function(x, weights, **parameters)
        return base + function([one - base for one in x], weights, **parameters)

    return reference


def multislerp_of(x: Sequence[Array], weights: Sequence[float]) -> Array:
    middle = sum(w * one / norm(one) for w, one in zip(weights, x, strict=True))
    return middle / norm(middle) * sum(w * norm(one) for w, one in zip(weights, x, strict=True))


def karcher_of(x: Sequence[Array], weights: Sequence[float], max_iter: int = 50, tol: float = 1e-9) -> Array:
    units = [one / norm(one) if one.any() else one for one in x]
    mean = sum(w * one for w, one in zip(weights, units, strict=True))
    mean = mean / norm(mean)
    for _ in range(max_iter):
        step = np.zeros(mean.shape)
        for w, unit in zip(weights, units, strict=True):
            if unit.any():
                angle = angle_between(mean, unit)
                across = unit - math.cos(angle) * mean
                step = step + w * across * (angle / math.sin(angle) if math.sin(angle) > 1e-12 else 1)
        length = norm(step)
        if length < tol:
            break
        mean = math.cos(length) * mean + math.sin(length) * step / length
    return mean * sum(w * norm(one) for w, one in zip(weights, x, strict=True))


def geometric_median_of(*x: Array, weight: Any = 1.0, max_iter: int = 100) -> Array:
    weights = [w / sum(per_model(weight, len(x))) for w in per_model(weight, len(x))]
    if len(x) == 2 and weights[0] == weights[1]:
        return (x[0] + x[1]) / 2
    for at, one in enumerate(x):  # the others do not pull it away
        units = [w * (o - one) / norm(o - one) for w, o in zip(weights, x, strict=True) if o is not one]
        if norm(sum(units)) <= weights[at] * (1 + 1e-12):
            return one
    shares, median = weights, sum(w * one for w, one in zip(weights, x, strict=True))
    for _ in range(max_iter):
        far = [norm(one - median) for one in x]
        pulls = [w / distance for w, distance in zip(weights, far, strict=True)]
        before, shares = shares, [pull / sum(pulls) for pull in pulls]
        median = sum(share * one for share, one in zip(shares, x, strict=True))
        if max(abs(s - o) for s, o in zip(shares, before, strict=True)) < 1e-10:
            break
    return median


# Task vectors.


def added(
    base: Array, terms: Sequence[Array], weights: Sequence[float], scale: float, normalize: bool
) -> Array:
    return base + scale * sum(terms) / (sum(map(abs, weights)) if normalize else 1)


def della_terms(
    d: Sequence[Array], weights: list[float], density: Any, epsilon: Any, rank: str, rescale: str
) -> list[Array]:
    terms = []
    densities, widths = per_model(density, len(d)), per_model(epsilon, len(d))
    for number, (one, w) in enumerate(zip(d, weights, strict=True)):
        if densities[number] == 1:
            terms.append(w * one)
            continue
        drawn = words(f"x{number + 1}", one.size)
        flat = one.ravel()
        length = one.size if rank == "tensor" or one.ndim < 2 else one[0].size
        term = np.zeros(one.size)
        for start in range(0, one.size, length):
            order = sorted(range(start, start + length), key=lambda index: (abs(flat[index]), index))
            for place, index in enumerate(order):
                spread = 2 * widths[number] * place / (length - 1) - widths[number] if length > 1 else 0
                p = densities[number] + spread
                if drawn[index] >= math.floor((1 - p) * 2**53):
                    term[index] = flat[index] / (p if rescale == "inverse_p" else 1)
        if rescale == "l1" and term.any():
            term *= np.abs(flat).sum() / np.abs(term).sum()
        terms.append(w * term.reshape(one.shape))
    return terms


def della_linear_of(
    base: Array,
    *d: Array,
    weight: Any = 1.0,
    density: Any = 0.5,
    epsilon: Any = 0.15,
    scale: float = 1.0,
    rank: str = "row",
    rescale: str = "inverse_p",
    normalize: bool = False,
) -> Array:
    weights = per_model(weight, len(d))
    return added(base, della_terms(d, weights, density, epsilon, rank, rescale), weights, scale, normalize)


def della_of(
    base: Array,
    *d: Array,
    weight: Any = 1.0,
    density: Any = 0.5,
    epsilon: Any = 0.15,
    scale: float = 1.0,
    rank: str = "row",
    rescale: str = "inverse_p",
    vote: str = "mass",
    normalize: bool = True,
) -> Array:
    weights = per_model(weight, len(d))
    terms = della_terms(d, weights, density, epsilon, rank, rescale)
    return base + scale * elected(terms, weights, vote, normalize)


def crumbs(d: Sequence[Array], weights: list[float], density: Any, gamma: Any) -> list[Array]:
    terms = []
    settings = zip(per_model(density, len(d)), per_model(gamma, len(d)), strict=True)
    for one, w, (share, outliers) in zip(d, weights, settings, strict=True):
        kept = max(1, int(share * one.size))
        first = max(0, one.size - kept - int(outliers * one.size))  # in ascending order
        terms.append(w * one * chosen(one, one.size - first - kept, one.size - first))
    return terms


def breadcrumbs_of(
    base: Array,
    *d: Array,
    weight: Any = 1.0,
    density: Any = 0.9,
    gamma: Any = 0.01,
    scale: float = 1.0,
    normalize: bool = False,
) -> Array:
    weights = per_model(weight, len(d))
    return added(base, crumbs(d, weights, density, gamma), weights, scale, normalize)


def breadcrumbs_ties_of(
    base: Array,
    *d: Array,
    weight: Any = 1.0,
    density: Any = 0.9,
    gamma: Any = 0.01,
    scale: float = 1.0,
    vote: str = "mass",
    normalize: bool = False,
) -> Array:
    weights = per_model(weight, len(d))
    return base + scale * elected(crumbs(d, weights, density, gamma), weights, vote, normalize)


def sce_of(base: Array, *d: Array, select_topk: float = 1.0, scale: float = 1.0) -> Array:
    stack = np.stack(d)
    variance = ((stack - stack.mean(0)) ** 2).mean(0)
    if select_topk < 1:
        stack = stack * chosen(variance, 0, int(select_topk * np.count_nonzero(variance)))
    squares = (stack**2).reshape(len(d), -1).mean(1)
    weights = squares / squares.sum() if squares.sum() else np.full(len(d), 1 / len(d))
    agree = np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1)
    shares = agree * weights.reshape(-1, *[1] * base.ndim)
    total = shares.sum(0)
    merged: Array = (stack * shares).sum(0) / np.where(total == 0, 1, total)
    return base + scale * merged


def trust_region_of(
    base: Array, *d: Array, weight: Any = 1.0, scale: float = 1.0, quantile: float = 0.99
) -> Array:
    pairs = itertools.permutations(d, 2)
    conflict = sum(np.abs(one) * np.abs(other) for one, other in pairs)
    dropped = conflict >= np.quantile(conflict, quantile)
    terms = [w * np.where(dropped, 0, one) for w, one in zip(per_model(weight, len(d)), d, strict=True)]
    return base + scale * sum(terms)


def arcee_fusion_of(base: Array, model: Array) -> Array:
    def softmax(rows: Array) -> Array:
        powers = np.exp(rows - rows.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True) + 1e-8

    p, q = softmax(matrix(model)), softmax(matrix(base))
    divergence = (p * np.log(p / q)).sum(1, keepdims=True)
    importance = (np.abs(matrix(model) - matrix(base)) * divergence).reshape(base.shape)
    ordered = np.sort(importance.ravel())
    lower, median, upper = (ordered[math.floor(q * (base.size - 1))] for q in (0.25, 0.5, 0.75))
    if not importance.any():
        return base
    return np.where(importance >= median + 1.5 * (upper - lower), model, base)


# Subspaces.

Triples = tuple[Array, Array, Array]


def svd(m: Array, least: float = 0.0) -> Triples:
    u, s, v = np.linalg.svd(m, full_matrices=False)
    kept = s > max(least, 1e-6 * s.max(initial=0))
    return u[:, kept], s[kept], v[kept].T


def polar(m: Array) -> Array:
    u, _, v = svd(m)
    return u @ v.T


def subspace(function: Callable[..., Array]) -> Callable[..., Array]:
    """A reference for matrices; of other tensors the mean."""

    def reference(
        base: Array, *d: Array, weight: Any = 1.0, scale: float = 1.0, exclude: str = "", **parameters: Any
    ) -> Array:
        terms = [w * one for w, one in zip(per_model(weight, len(d)), d, strict=True)]
        if base.ndim < 2:
            return base + scale * sum(terms) / len(d)
        return base + scale * function([matrix(one) for one in terms], **parameters).reshape(base.shape)

    return reference


def tsv_m_of(d: Sequence[Array]) -> Array:
    count = min(d[0].shape) // len(d)
    if not count:
        return sum(d) / len(d)
    triples = [svd(one) for one in d]
    u, v = (np.concatenate([one[side][:, :count] for one in triples], 1) for side in (0, 2))
    return polar(u) @ np.diag(np.concatenate([s[:count] for _, s, _ in triples])) @ polar(v).T


def iso_c_of(d: Sequence[Array]) -> Array:
    u, s, v = svd(sum(d))
    return s.mean() * u @ v.T


def iso_cts_of(d: Sequence[Array], common: float = 0.8) -> Array:
    q, tasks = min(d[0].shape), len(d)
    k = min(round((q - int(q * common)) / tasks), int(q / tasks))
    u, s, v = (one[..., : q - k * tasks] for one in svd(sum(d)))
    columns = [(u, s, v)]
    for one in d if k else ():
        of_rest = svd(one - u @ u.T @ one, 1e-6 * float(np.linalg.norm(one)))
        columns.append((of_rest[0][:, :k], of_rest[1][:k], of_rest[2][:, :k]))
    u, s, v = (np.concatenate([triple[side] for triple in columns], -1) for side in range(3))
    return s.mean() * polar(u) @ polar(v).T


def wudi_of(d: Sequence[Array]) -> Array:
    grams = [one.T @ one / np.linalg.norm(one) ** 2 for one in d if one.any()]
    seen = sum(one @ gram for one, gram in zip([one for one in d if one.any()], grams, strict=True))
    return seen @ np.linalg.pinv(sum(grams), 1e-12, hermitian=True)


def knots_of(d: Sequence[Array], density: Any = 1.0, inner: str = "ties") -> Array:
    u, s, v = svd(np.concatenate(d, 1))
    parts = np.split(np.diag(s) @ v.T, len(d), 1)
    terms = []
    for number, (part, share) in enumerate(zip(parts, per_model(density, len(d)), strict=True), start=1):
        if inner == "ties":
            terms.append(part * chosen(part, 0, max(1, int(share * part.size))))
        else:
            kept = [word >= int((1 - share) * 2**53) for word in words(f"x{number}", part.size)]
            terms.append(part * np.array(kept).reshape(part.shape) / share)
    return u @ elected(terms, [1.0] * len(d), "mass", inner == "ties")


def svc_of(a: Array, base: Array, *x: Array, weight: Any = 1.0, alpha: float = 1.0) -> Array:
    if a.ndim < 2:
        return a
    u, s, v = svd(matrix(a - base))
    result = np.zeros(matrix(a).shape)
    for r in range(len(s)):
        total = 0.0
        for one, w in zip(x, per_model(weight, len(x)), strict=True):
            along = w * u[:, r] @ matrix(one - base)
            share = s[r] * v[:, r] @ along / (along @ along) if along.any() else alpha
            total += max(alpha, share)
        result += len(x) / total * s[r] * np.outer(u[:, r], v[:, r])
    return base + result.reshape(a.shape)


def truncate_rank_of(
    base: Array, model: Array, rank: float = 8, ratio: float = 1, energy: float = 1, solver: str = "exact"
) -> Array:
    """`solver` plays no part: the randomized one is exact where it looks at all columns."""
    if base.ndim < 2:
        return model
    u, s, vt = np.linalg.svd(matrix(model - base), full_matrices=False)
    count = int(rank)
    if ratio < 1:
        count = round(ratio * len(s))
    if energy < 1:
        count = next(n for n in range(len(s) + 1) if (s[:n] ** 2).sum() >= energy * (s**2).sum())
    return base + (u[:, :count] @ np.diag(s[:count]) @ vt[:count]).reshape(base.shape)


def truncate_kronecker_of(base: Array, model: Array, ratio: float = 0.5) -> Array:
    if base.ndim < 2:
        return model
    delta = model - base
    rows, columns, rest = *delta.shape[:2], math.prod(delta.shape[2:])
    sizes = [
        (m, n)
        for m, n in itertools.product(range(1, rows + 1), range(1, columns + 1))
        if rows % m == columns % n == 0
    ]
    span = max(abs(math.log(m * n / math.sqrt(delta.size))) for m, n in sizes)
    m, n = min(
        sizes,
        key=lambda size: (
            round(abs(math.log(size[0] * size[1] / math.sqrt(delta.size)) - (2 * ratio - 1) * span), 9),
            round(sum(abs(math.log(a * a / b)) for a, b in zip(size, (rows, columns), strict=True)), 9),
        ),
    )
    inner = (rows // m, columns // n * rest)
    flat = matrix(delta)
    blocks = [
        flat[i * inner[0] : (i + 1) * inner[0], j * inner[1] : (j + 1) * inner[1]].ravel()
        for i in range(m)
        for j in range(n)
    ]
    u, s, vt = np.linalg.svd(np.stack(blocks), full_matrices=False)
    product = np.kron((u[:, 0] * s[0]).reshape(m, n), vt[0].reshape(inner))
    return base + product.reshape(base.shape)


def rotate_of(
    a: Array, b: Array, alignment: float = 1.0, alpha: float = 0.0, centralization: float = 1.0
) -> Array:
    if a.ndim < 2:
        return (1 - alpha) * a + alpha * b
    mean_a, mean_b = (centralization * matrix(one).mean(0) for one in (a, b))
    from_a, from_b = matrix(a) - mean_a, matrix(b) - mean_b
    rows, columns = from_a.shape
    u, _, vt = np.linalg.svd(from_a.T @ from_b)
    u, vt = u[:, : min(rows, columns)], vt[: min(rows, columns)]
    if 0 < alignment < 1 and np.linalg.det(u @ vt) < 0:
        u[:, -1] *= -1
    mixed = (1 - alpha) * from_a + alpha * from_b @ vt.T @ u.T
    if alignment == 1:
        mixed = mixed @ u @ vt
    elif alignment:
        values, vectors = np.linalg.eig(u @ vt)
        power = vectors @ np.diag(np.exp(1j * alignment * np.angle(values))) @ np.linalg.inv(vectors)
        mixed = mixed @ power.real
    return (mixed + (1 - alignment) * mean_a + alignment * mean_b).reshape(a.shape)


REFERENCES: dict[str, Callable[..., Array]] = {
    "nuslerp": nuslerp_of,
    "multislerp": sphere(multislerp_of),
    "karcher": sphere(karcher_of),
    "geometric_median": geometric_median_of,
    "della_linear": della_linear_of,
    "della": della_of,
    "breadcrumbs": breadcrumbs_of,
    "breadcrumbs_ties": breadcrumbs_ties_of,
    "sce": sce_of,
    "trust_region": trust_region_of,
    "arcee_fusion": arcee_fusion_of,
    "tsv_m": subspace(tsv_m_of),
    "iso_c": subspace(iso_c_of),
    "iso_cts": subspace(iso_cts_of),
    "wudi": subspace(wudi_of),
    "knots": subspace(knots_of),
    "svc": svc_of,
    "truncate_rank": truncate_rank_of,
    "truncate_kronecker": truncate_kronecker_of,
    "rotate": rotate_of,
}
# Iterations end, and singular vectors are found, a little differently.
TOLERANCES = {
    "model_stock": 1e-11,
    "geometric_median": 1e-6,
    "karcher": 1e-8,
    "wudi": 1e-8,
    **dict.fromkeys(("tsv_m", "iso_c", "iso_cts", "knots", "svc", "rotate"), 1e-9),
    **dict.fromkeys(("truncate_rank", "truncate_kronecker"), 1e-9),
}

W, D = [0.75, -0.5, 1.25], [0.6, 0.3, 1.0]
SUBSPACES = ("tsv_m", "iso_c", "iso_cts", "wudi", "knots")
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("nuslerp", "ab", {"weight": weight, "per": per})
        for weight in ([0.7, 0.3], [2.0, 0.5], [1.0, -1.0])
        for per in ("tensor", "row", "column")
    ),
    *(
        (name, roles, {"weight": weight})
        for name in ("multislerp", "karcher", "geometric_median")
        for roles, weight in (("n", 1.0), ("n", [0.7, 0.4, 1.1]), ("ab", [0.7, 0.4]))
    ),
    *(
        (name, "base", {"weight": W, "rank": rank, "rescale": rescale, "normalize": normalize, "scale": 0.8})
        for name in ("della_linear", "della")
        for rank in ("row", "tensor")
        for rescale in ("inverse_p", "l1", "none")
        for normalize in (False, True)
    ),
    *((name, "base", {"density": D, "epsilon": [0.1, 0.2, 0.15]}) for name in ("della_linear", "della")),
    ("della", "base", {"vote": "count", "density": 0.7, "epsilon": 0.0}),
    *(
        (
            name,
            "base",
            {"weight": W, "density": density, "gamma": gamma, "normalize": normalize, "scale": 0.8},
        )
        for name in ("breadcrumbs", "breadcrumbs_ties")
        for density, gamma in ((D, [0.2, 0.0, 0.1]), (0.9, 0.3), (0.1, 0.5))
        for normalize in (False, True)
    ),
    *((name, "ab", {}) for name in ("breadcrumbs", "breadcrumbs_ties", "sce", "arcee_fusion")),
    ("breadcrumbs_ties", "base", {"vote": "count", "density": 0.5, "gamma": 0.2}),
    *(("sce", "base", parameters) for parameters in ({}, {"select_topk": 0.4}, {"scale": -0.7})),
    *(("trust_region", "base", {"quantile": q, "weight": W, "scale": 0.8}) for q in (0.0, 0.3, 0.99, 1.0)),
    *((name, "base", {"weight": W, "scale": 0.8, "exclude": "none"}) for name in SUBSPACES),
    *((name, "abc", {}) for name in SUBSPACES),
    *(("iso_cts", "base", {"common": common}) for common in (0.0, 0.3, 0.6, 1.0)),
    *(("knots", "base", {"density": D, "inner": inner}) for inner in ("ties", "dare_ties")),
    *(("svc", "base", {"weight": [0.6, 0.9], "alpha": alpha}) for alpha in (0.3, 1.0)),
    *(
        ("truncate_rank", "ab", {"solver": solver, **given})
        for solver in ("exact", "randomized")
        for given in ({}, {"rank": 0.0}, {"rank": 2.7}, {"ratio": 0.4}, {"energy": 0.7}, {"energy": 0.0})
    ),
    *(("truncate_kronecker", "ab", {"ratio": ratio}) for ratio in (0.0, 0.3, 0.5, 1.0)),
    *(
        ("rotate", "ab", {"alignment": alignment, "alpha": alpha, "centralization": centralization})
        for alignment in (0.0, 1.0)
        for alpha in (0.0, 0.3, 1.0)
        for centralization in (0.0, 0.5, 1.0)
    ),
]

"""multislerp, karcher, geometric_median: one point in the middle of any number of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from runner.errors import RecipeError
from runner.methods.combination import Combination, all_equal, first_of, vectors
from runner.methods.registry import PerModel, Range, Weight, cancelling, each, method
from runner.methods.sums import Gram, gram
from runner.methods.tiles import Tile, Tiles, whole

if TYPE_CHECKING:
    from torch import Tensor

Coefficients = list[float]


def _normalised(weight: PerModel, count: int) -> list[float]:
    weights = each(weight, count)
    total = sum(weights)
    return [one / total for one in weights]


def _product(gram: Gram, x: Sequence[float], y: Sequence[float]) -> float:
    """⟨Σ x_i v_i, Σ y_j v_j⟩."""
    pairs = ((i, j) for i in range(len(x)) for j in range(len(y)))
    return math.fsum(x[i] * y[j] * gram.products[i][j] for i, j in pairs)


def _length(products: Gram, x: Sequence[float]) -> float:
    return math.sqrt(max(0.0, _product(products, x, x)))


def _units(products: Gram) -> list[float]:
    """1/‖v_i‖ of each vector; 0 if it is zero."""
    norms = [products.norm(i) for i in range(len(products.products))]
    return [1 / norm if norm else 0.0 for norm in norms]


def _middle(products: Gram, weights: Sequence[float]) -> tuple[Coefficients, float]:
    """The weighted sum of the unit vectors, and its length."""
    sum_of_units = [w * unit for w, unit in zip(weights, _units(products), strict=True)]
    return sum_of_units, _length(products, sum_of_units)


def _measure_multislerp(tiles: Tiles, weight: PerModel) -> Combination:
    products = gram(tiles, vectors)
    count = len(products.products)
    weights = _normalised(weight, count)
    if count == 1 or all_equal(products):
        return first_of(count)
    middle, length = _middle(products, weights)
    scale = math.fsum(w * products.norm(i) for i, w in enumerate(weights))
    if length == 0:
        if count > 2 and any(products.norm(i) for i in range(count)):
            raise RecipeError("multislerp: the directions of the models cancel; there is none between them")
        return Combination(tuple(weights), "opposite or zero vectors: weighted mean")
    return Combination(tuple(one / length * scale for one in middle))


@method(determinism="stable", scope="element", measure=_measure_multislerp, copies=(3, 4), check=cancelling)
def multislerp(
    *models: Weight, base: Weight | None = None, weight: PerModel = 1.0, measured: Combination | None = None
) -> Weight:
    """m/‖m‖·Σ w_i·‖x_i‖ with m = Σ w_i·x_i/‖x_i‖: the mean direction at the mean length.

    Args:
        models: tensors of the models, same shape.
        base: if given, the same of their differences from it, which it is added to.
        weight: of each model; they are divided by their sum.

    Source: mergekit, merge_methods/multislerp.py, of which this is the closed form.
    """
    measured = measured or _measure_multislerp(whole(*models, base=base), weight)
    return measured.of(models, base)


def _measure_karcher(tiles: Tiles, weight: PerModel, max_iter: float, tol: float) -> Combination:
    products = gram(tiles, vectors)
    count = len(products.products)
    weights = _normalised(weight, count)
    if count == 1 or all_equal(products):
        return first_of(count)
    units = _units(products)
    mean, length = _middle(products, weights)
    if length == 0:
        return Combination(tuple(weights), "opposite or zero vectors: weighted mean")
    mean = [one / length for one in mean]
    for _ in range(int(max_iter)):
        step = [0.0] * count
        for i, (weight_i, unit) in enumerate(zip(weights, units, strict=True)):
            cosine = math.fsum(one * products.products[i][j] for j, one in enumerate(mean)) * unit
            angle = math.acos(max(-1.0, min(1.0, cosine)))
            ratio = weight_i * (angle / math.sin(angle) if math.sin(angle) > 1e-12 else 1.0)
            if unit:
                step = [one - ratio * cosine * m for one, m in zip(step, mean, strict=True)]
                step[i] += ratio * unit
        length = _length(products, step)
        if length < tol:
            break
        turned = zip(mean, step, strict=True)
        mean = [math.cos(length) * m + math.sin(length) * one / length for m, one in turned]
    scale = math.fsum(w * products.norm(i) for i, w in enumerate(weights))
    return Combination(tuple(one * scale for one in mean))


@method(determinism="stable", scope="element", measure=_measure_karcher, copies=(3, 4), check=cancelling)
def karcher(
    *models: Weight,
    base: Weight | None = None,
    weight: PerModel = 1.0,
    max_iter: Annotated[float, Range(1, 10_000)] = 50,
    tol: Annotated[float, Range(0, 1)] = 1e-9,
    measured: Combination | None = None,
) -> Weight:
    """The Karcher mean: the direction with the least squared angles to all models, at their mean length.

    Args:
        models: tensors of the models, same shape. One that is zero counts for the length only.
        base: if given, the same of their differences from it, which it is added to.
        weight: of each model; they are divided by their sum.
        max_iter: steps at most.
        tol: length of a step that ends the search.

    Source: Karcher, Riemannian center of mass, 1977; mergekit, merge_methods/karcher.py.
    """
    measured = measured or _measure_karcher(whole(*models, base=base), weight, max_iter, tol)
    return measured.of(models, base)


def _from_the_first(tile: Tile) -> Sequence[Tensor]:
    """Differences from the first model: distances do not change, and lose less to rounding."""
    first = tile.operands[0].double()
    return [operand.double() - first for operand in tile.operands]


def _measure_median(tiles: Tiles, weight: PerModel, max_iter: float) -> Combination:
    products = gram(tiles, _from_the_first)
    count = len(products.products)
    weights = _normalised(weight, count)
    if count == 1 or all_equal(products):
        return first_of(count)
    if count == 2 and weights[0] == weights[1]:
        return Combination((0.5, 0.5))
    for at in range(count):  # a model is the median if the others do not pull it away together
        one = tuple(float(i == at) for i in range(count))
        _, pull, held = _pull(products, weights, one)
        if pull <= held * (1 + 1e-12):
            return Combination(one)
    shares = weights
    for _ in range(int(max_iter)):
        pulls, pull, held = _pull(products, weights, shares)
        total = math.fsum(pulls)
        to = [one / total for one in pulls]
        if held:  # at a model, which is not the median: a step away, against its own weight
            to = [one + held / pull * (at - one) for one, at in zip(to, shares, strict=True)]
        before, shares = shares, to
        if max(abs(one - other) for one, other in zip(shares, before, strict=True)) < 1e-10:
            break
    return Combination(tuple(shares))


def _pull(
    products: Gram, weights: Sequence[float], shares: Sequence[float]
) -> tuple[Coefficients, float, float]:
    """How models pull at the point m of these shares.

    Returns:
        w_i/‖x_i − m‖ of each model, 0 if it is m; the length of their pull, ‖Σ w_i·(x_i − m)/‖x_i − m‖‖;
        and the weight of the models that are m.
    """
    pulls = []
    for i, weight in enumerate(weights):
        distance = _length(products, [share - (j == i) for j, share in enumerate(shares)])
        pulls.append(weight / distance if distance else 0.0)
    total = math.fsum(pulls)
    held = math.fsum(weight for weight, one in zip(weights, pulls, strict=True) if one == 0)
    pull = _length(products, [one - total * at for one, at in zip(pulls, shares, strict=True)])
    return pulls, pull, held


@method(
    determinism="stable",
    scope="element",
    measure=_measure_median,
    at_least=2,
    copies=(4, 4),
    check=cancelling,
)
def geometric_median(
    *models: Weight,
    weight: Annotated[PerModel, Range(0, math.inf)] = 1.0,
    max_iter: Annotated[float, Range(1, 10_000)] = 100,
    measured: Combination | None = None,
) -> Weight:
    """The point m with the least Σ w_i·‖x_i − m‖: a mean that one outlier can not drag away.

    Args:
        models: tensors of two or more models, same shape.
        weight: of each model, 0 or more.
        max_iter: steps of Weiszfeld's algorithm at most; it ends when the shares stand still.

    Source: Weiszfeld, Tohoku Math. J. 43, 1937; Vardi and Zhang, PNAS 97, 2000, for what it does at a model;
    sd-mecha, geometric_median.
    """
    measured = measured or _measure_median(whole(*models), weight, max_iter)
    return measured.of(models, None)

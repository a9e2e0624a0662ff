"""Ends and edges of the methods on vectors and matrices; their formulas are in test_formulas.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.errors import RecipeError
from runner.methods import METHODS
from runner.methods.random import Random
from runner.methods.subspace import is_excluded, polar, svd
from runner.methods.tiles import Part, Tile
from tests.build import merged
from tests.methods import formulas_vectors as formulas
from tests.methods.test_formulas import KEY, MERGE, SEED, close, norm, normal, run, tensor

SUBSPACES = formulas.SUBSPACES
INFINITE = float("inf")


def streams(*roles: str) -> Random:
    return Random(SEED, MERGE, ["base", *roles], KEY, 0)


# All of them.


@pytest.mark.parametrize("shape", [(), (1,), (7, 9), (9, 4), (4, 3, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        *("della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "trust_region"),
        *SUBSPACES,
        *("arcee_fusion", "truncate_rank", "truncate_kronecker", "svc"),
    ],
)
def test_models_equal_to_the_base_give_the_base(name: str, shape: tuple[int, ...]) -> None:
    base = normal(shape, 1)[0]
    method = METHODS[name, None]
    others = [torch.zeros_like(base) if method.deltas else base] * (2 if method.variadic else 1)
    if name == "svc":
        others.append(base)
    assert torch.equal(run(name, base, *others), base)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher", "geometric_median", "rotate"])
def test_equal_models_give_the_model(name: str) -> None:
    a = normal((7, 9), 1)[0]
    assert torch.equal(run(name, a, a.clone()), a)


@pytest.mark.parametrize("name", ["della", "della_linear", "breadcrumbs", "breadcrumbs_ties", *SUBSPACES])
@pytest.mark.parametrize("shape", [(7,), (7, 9)], ids=str)
def test_a_model_of_weight_0_does_not_leak(name: str, shape: tuple[int, ...]) -> None:
    base, first, second = normal(shape, 3)
    expected = run(name, base, first, second, weight=[0.0, 0.5])
    broken = torch.full(shape, INFINITE, dtype=torch.float64)
    assert torch.equal(run(name, base, broken, second, weight=[0.0, 0.5]), expected)
    assert torch.equal(run(name, base, first, second, weight=0.0), base)


@pytest.mark.parametrize(
    ("name", "parameters", "number"),
    [
        *(("nuslerp", {"weight": (1.0, 0.0)}, 0), ("nuslerp", {"weight": (0.0, 0.3)}, 1)),
        *((name, {"weight": (1.0, 1.0), "scale": 0.0}, 0) for name in SUBSPACES),
        *((name, {"weight": (1.0, 1.0), "scale": 0.0}, 0) for name in ("breadcrumbs", "breadcrumbs_ties")),
        *((name, {"weight": (1.0, 1.0), "scale": 0.0}, 0) for name in ("della", "della_linear")),
        *(("sce", {"scale": 0.0}, 0), ("sce", {"select_topk": 0.0}, 0), ("trust_region", {"scale": 0.0}, 0)),
        ("rotate", {"alignment": 0.0, "alpha": 0.0}, 0),
        ("rotate", {"alignment": 1.0, "alpha": 1.0}, 1),
    ],
    ids=str,
)
def test_an_end_is_one_of_the_operands(name: str, parameters: dict[str, Any], number: int) -> None:
    method = METHODS[name, None]
    defaults = {n: (p.default,) * 2 if p.per_model else p.default for n, p in method.parameters.items()}
    assert method.result_is(**{**defaults, **parameters}) == number
    operands = normal((7, 9), 2 if method.variadic is None else 3)
    close(run(name, *operands, **parameters), operands[number])


@pytest.mark.parametrize("power", [-40, 40])
@pytest.mark.parametrize("name", [*SUBSPACES, "sce", "breadcrumbs", "della", "trust_region"])
def test_differences_of_any_size_are_treated_alike(name: str, power: int) -> None:
    """Scaled by a power of two they give the scaled result: there is no absolute epsilon."""
    deltas = normal((6, 8), 3)
    zero, factor = torch.zeros(6, 8, dtype=torch.float64), 2.0**power
    result = run(name, zero, *(delta * factor for delta in deltas))
    close(result / factor, run(name, zero, *deltas), 1e-9)


@pytest.mark.parametrize(
    "name", ["della", "breadcrumbs", "breadcrumbs_ties", "sce", "trust_region", "arcee_fusion", "iso_cts"]
)
def test_the_engine_gives_what_the_whole_tensor_gives_in_any_tiles(name: str, tmp_path: Path) -> None:
    shapes = {"model.diffusion_model.a.weight": (300, 250), "model.diffusion_model.b.bias": (70_000,)}
    roles = ["base", "model"] if len(METHODS[name, None].roles) == 2 else ["base", "x", "y"]
    for seed, role in enumerate(roles):
        tensors = {key: normal(shape, 1, seed)[0].float() for key, shape in shapes.items()}
        save_file(tensors, tmp_path / f"{role}.safetensors", {"format": "pt"})
    tree = {"method": name, "models": {role: f"{role}.safetensors" for role in roles}}
    small, large = (
        merged(tree, tmp_path, tmp_path / str(tile), tile_elements=tile) for tile in (32768, 1 << 20)
    )
    assert all(torch.equal(small[key], large[key]) for key in shapes)
    key = "model.diffusion_model.a.weight"
    if name not in ("della", "trust_region"):  # they need the stream and the whole model
        base, *others = (load_file(tmp_path / f"{role}.safetensors")[key] for role in roles)
        others = [other - base for other in others] if METHODS[name, None].deltas else others
        close(small[key], run(name, base, *others).double(), 1e-6)


# Points in the middle.


@pytest.mark.parametrize("per", ["tensor", "row", "column"])
def test_nuslerp_with_a_base_turns_differences(per: str) -> None:
    base, a, b = normal((4, 3, 3, 3), 3)
    given = {"weight": [0.7, 0.4], "per": per}
    expected = formulas.nuslerp_of(a.numpy(), b.numpy(), base=base.numpy(), **given)  # type: ignore[arg-type]
    close(run("nuslerp", a, b, base=base, **given), expected)


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_a_base_is_where_vectors_start(name: str) -> None:
    base, *models = normal((7, 9), 4)
    expected = formulas.REFERENCES[name](
        *(one.numpy() for one in models), weight=[0.7, 0.4, 1.1], base=base.numpy()
    )
    close(run(name, *models, base=base, weight=[0.7, 0.4, 1.1]), expected, 1e-8)
    close(run(name, models[0], base=base), models[0])


def test_multislerp_where_directions_cancel() -> None:
    (a,) = normal((7, 9), 1)
    close(run("multislerp", a, -a), torch.zeros_like(a))
    close(run("multislerp", 2 * a, -a), a / 2)
    zero = torch.zeros_like(a)
    close(run("multislerp", a, zero), a / 2)
    assert torch.equal(run("multislerp", zero, zero, zero), zero)
    turned = [tensor(1, 0), tensor(-1, 0), tensor(0, 1), tensor(0, -1)]
    with pytest.raises(RecipeError, match="cancel"):
        run("multislerp", *turned)


def test_karcher_of_two_is_their_bisector() -> None:
    a, b = normal((7, 9), 2)
    b *= norm(a) / norm(b)
    close(run("karcher", a, b), run("slerp", a, b, alpha=0.5), 1e-9)
    close(run("karcher", a, b, weight=[0.7, 0.3]), run("slerp", a, b, alpha=0.3), 1e-7)
    zero = torch.zeros_like(a)
    close(run("karcher", a, zero), a / 2)  # it has no direction, but a length


def test_karcher_has_the_least_squared_angles() -> None:
    models = normal((12,), 4)
    mean = run("karcher", *models)

    def spread(point: Tensor) -> float:
        angles = (formulas.angle_between(point.numpy(), model.numpy()) for model in models)
        return sum(angle**2 for angle in angles)

    for direction in normal((12,), 5, seed=8):
        assert spread(mean) < spread(mean + 1e-3 * direction)


def test_geometric_median_is_not_dragged_away() -> None:
    a, noise = normal((7, 9), 2)
    near = [a + 0.01 * shift * noise for shift in (-1, 0, 1)]
    close(run("geometric_median", *near, a + 1000 * noise), a, 0.1)
    assert torch.equal(
        run("geometric_median", a, a, a, a + noise), run("geometric_median", a, a, a, a + noise)
    )
    close(run("geometric_median", a, a, a, a + noise), a, 1e-3)
    close(run("geometric_median", a - noise, a, a + noise), a)  # the median is a model


def test_geometric_median_has_the_least_sum_of_distances() -> None:
    for seed in range(20):
        models = normal((3,), 5, seed=seed)
        weight = (torch.rand(5, generator=torch.Generator().manual_seed(seed)) + 0.2).tolist()
        median = run("geometric_median", *models, weight=weight, max_iter=5000)
        least = distances(median, models, weight)
        for direction in (*normal((3,), 20, seed=99), *(model - median for model in models)):
            assert least <= distances(median + 1e-3 * direction, models, weight) + 1e-6


def distances(point: Tensor, models: Sequence[Tensor], weight: Sequence[float]) -> float:
    return sum(w * float((one - point).norm()) for w, one in zip(weight, models, strict=True))


def test_geometric_median_leaves_a_model_it_comes_to_on_its_way() -> None:
    # The mean of the corners is the middle one, which is nearer to one of them than the median is.
    corners = [torch.tensor(one) for one in ([0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [5.0, 9.0])]
    middle = sum(corners) / 4
    weights = [1.0, 1.0, 1.0, 1.0, 1e-9]
    median = run("geometric_median", *corners, middle, weight=weights, max_iter=5000)
    close(median, run("geometric_median", *corners, max_iter=5000), 1e-3)
    assert not torch.allclose(median, middle, atol=0.1)


# Masks.


def test_della_refuses_what_is_no_probability() -> None:
    check = METHODS["della", None].check
    for density, epsilon in ((0.9, 0.1), (0.9, 0.15), (0.1, 0.1), (0.1, 0.2)):
        assert "probabilities from" in str(check(density=(density,), epsilon=(epsilon,)))
    assert check(density=(0.9, 1.0), epsilon=(0.05, 0.2)) is None


def test_della_of_density_1_keeps_all() -> None:
    operands = normal((7, 9), 4)
    close(run("della", *operands, density=1.0), run("ties", *operands))
    close(run("della_linear", *operands, density=1.0), run("task_arithmetic", *operands))


def test_della_without_spread_is_dare() -> None:
    operands = normal((7, 9), 4)
    given: dict[str, Any] = {"density": 0.4, "weight": [0.7, 0.4, 1.1]}
    expected = run("dare_linear", *operands, **given)
    for rank in ("row", "tensor"):
        close(run("della_linear", *operands, epsilon=0.0, rank=rank, **given), expected)


def test_della_keeps_large_changes_more_often_and_equal_ones_in_order() -> None:
    rows, length = 4000, 6
    zero = torch.zeros(rows, length, dtype=torch.float64)
    for delta in (torch.arange(length).double().expand(rows, length) + 1, zero + 1):
        kept = run("della_linear", zero, delta, density=0.5, epsilon=0.4, rescale="none") != 0
        shares = kept.double().mean(0)
        close(shares, torch.linspace(0.1, 0.9, length).double(), 0.05)
        mean = run("della_linear", zero, delta, density=0.5, epsilon=0.4).mean(0)
        close(mean / delta[0], torch.ones(length), 0.2)


def test_della_restores_the_sum_of_magnitudes() -> None:
    zero, delta = torch.zeros(7, 9, dtype=torch.float64), normal((7, 9), 1)[0]
    result = run("della_linear", zero, delta, rescale="l1")
    assert math.isclose(float(result.abs().sum()), float(delta.abs().sum()))


def test_breadcrumbs_keeps_the_middle() -> None:
    zero, delta = torch.zeros(10, dtype=torch.float64), tensor(1, -2, 3, -4, 5, -6, 7, -8, 9, -10)

    def kept(density: float, gamma: float) -> list[int]:
        result = run("breadcrumbs", zero, delta, density=density, gamma=gamma)
        return [int(abs(value)) for value in result[result != 0]]

    assert kept(0.5, 0.2) == [4, 5, 6, 7, 8]
    assert kept(0.9, 0.3) == [1, 2, 3, 4, 5, 6, 7, 8, 9]  # density wins: one outlier
    assert kept(1.0, 0.5) == list(range(1, 11))
    assert kept(0.3, 0.0) == [8, 9, 10]
    assert kept(0.01, 0.5) == [5]
    one = tensor(5)
    assert torch.equal(run("breadcrumbs", 0 * one, one, density=0.2, gamma=0.9), one)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_breadcrumbs_of_equal_magnitudes_follow_the_order(density: float) -> None:
    base, *deltas = (one.round() for one in normal((7, 9), 4))
    given = {"density": density, "gamma": 0.15}
    expected = formulas.breadcrumbs_of(*(one.numpy() for one in (base, *deltas)), **given)
    close(run("breadcrumbs", base, *deltas, **given), expected)


def test_breadcrumbs_without_outliers_is_trimming() -> None:
    operands = normal((7, 9), 4)
    given: dict[str, Any] = {"density": 0.4, "weight": [0.7, 0.4, 1.1], "normalize": True}
    close(run("breadcrumbs_ties", *operands, gamma=0.0, **given), run("ties", *operands, **given))


def test_sce_by_hand() -> None:
    zero = tensor(0, 0, 0, 0)
    first, second = tensor(2, 1, 0, 1), tensor(-1, 1, 0, 3)
    # Variances 2.25, 0, 0, 1: two are not zero. Squares 6 and 11.
    expected = tensor(2, 1, 0, (6 * 1 + 11 * 3) / 17)
    close(run("sce", zero, first, second), expected)
    close(run("sce", zero, first, second, select_topk=0.5), tensor(2, 0, 0, 0))
    close(run("sce", zero, first, second, select_topk=0.49), zero)


def test_sce_of_one_model() -> None:
    base, delta = normal((7, 9), 2)
    close(run("sce", base, delta), base + delta)
    assert torch.equal(run("sce", base, delta, select_topk=0.99), base)


def test_trust_region_looks_at_the_whole_model() -> None:
    large, small = tensor(3, 4, 5, 6), tensor(1, 2, 0, 1)
    tiles = [
        Tile((0 * one, one, one), part=Part(key, "unet", (4,))) for key, one in (("l", large), ("s", small))
    ]
    method = METHODS["trust_region", None]
    assert method.measure is not None
    threshold = method.measure(tiles, 0.5)  # 2·d²: 0 2 2 8 | 18 32 50 72
    assert threshold == 18
    results = [method.function(*tile.operands, measured=threshold) for tile in tiles]
    close(results[0], 0 * large)
    close(results[1], 2 * small)


def test_trust_region_without_conflict_is_task_arithmetic() -> None:
    base, first, second = normal((7, 9), 3)
    first[:4], second[4:] = 0, 0
    close(run("trust_region", base, first, second, quantile=0.0), base + first + second)


def test_arcee_fusion_takes_over_outliers_only() -> None:
    base = normal((20, 30), 1)[0]
    model = base + 1e-4
    model[3, 5] += 2
    result = run("arcee_fusion", base, model)
    assert torch.equal(result[3, 5], model[3, 5])
    changed = result != base
    assert 0 < int(changed.sum()) < 150
    assert torch.equal(result, torch.where(changed, model, base))
    column, other = normal((9, 1), 2)
    assert torch.equal(run("arcee_fusion", column, other), column)  # rows of one number do not diverge


# Subspaces.


def low_rank(rank: int, count: int, shape: tuple[int, int] = (12, 10)) -> list[Tensor]:
    left, right = normal((shape[0], rank), count), normal((rank, shape[1]), count, seed=9)
    return [one @ other for one, other in zip(left, right, strict=True)]


def rank_of(matrix: Tensor) -> int:
    return len(svd(matrix)[1])


def test_singular_vectors_are_as_many_as_the_numerical_rank() -> None:
    for matrix in (*low_rank(3, 2), *low_rank(2, 1, (4, 30))):
        for scale in (1e-150, 1.0, 1e150):
            u, s, v = svd(matrix * scale)
            assert len(s) == np.linalg.matrix_rank(matrix.numpy())
            close((u * s) @ v / scale, matrix)
    u, s, v = svd(torch.zeros(3, 5, dtype=torch.float64))
    assert u.shape == (3, 0) and s.shape == (0,) and v.shape == (0, 5)
    assert torch.equal(polar(torch.zeros(3, 2, dtype=torch.float64)), torch.zeros(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("name", SUBSPACES)
def test_low_rank_differences_do_not_bring_in_noise(name: str) -> None:
    """What baked LoRAs span is what the result spans: no vectors of the null space."""
    deltas = low_rank(2, 2)
    zero = torch.zeros_like(deltas[0])
    result = run(name, zero, *deltas)
    together = torch.cat(deltas, 1)
    assert rank_of(result) <= 4
    assert rank_of(torch.cat((together, result), 1)) == rank_of(together)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
def test_the_order_of_models_does_not_matter(name: str) -> None:
    base, *deltas = normal((8, 12), 4)
    close(run(name, base, *deltas), run(name, base, *reversed(deltas)), 1e-9)


def test_tsv_m_of_few_directions_is_the_mean() -> None:
    base, *deltas = normal((2, 9), 4)
    close(run("tsv_m", base, *deltas), base + sum(deltas) / 3)
    single = METHODS["tsv_m", None].function
    close(single(base, deltas[0]), base + deltas[0])


def test_iso_c_makes_all_directions_equally_strong() -> None:
    deltas = normal((8, 12), 3)
    zero = torch.zeros_like(deltas[0])
    values = torch.linalg.svdvals(run("iso_c", zero, *deltas))
    close(values, torch.linalg.svdvals(sum(deltas)).mean().expand(8), 1e-9)
    values = torch.linalg.svdvals(run("iso_cts", zero, *deltas, common=0.3))
    close(values, values.mean().expand(8), 1e-9)


def test_iso_cts_of_common_directions_only_is_iso_c() -> None:
    operands = normal((8, 12), 4)
    close(run("iso_cts", *operands, common=1.0), run("iso_c", *operands), 1e-9)
    assert torch.isfinite(run("iso_cts", *operands, common=0.0)).all()  # 8 directions for 3 models
    base, (delta,) = operands[0], low_rank(3, 1, (8, 12))  # what rounding leaves of it is no direction
    close(run("iso_cts", base, delta, delta, common=0.5), run("iso_c", base, delta, delta), 1e-9)


def test_wudi_is_the_least() -> None:
    deltas = normal((6, 9), 3)
    zero = torch.zeros_like(deltas[0])
    found = run("wudi", zero, *deltas)

    def disturbance(merged: Tensor) -> float:
        return sum(float(((merged - d) @ d.t()).square().sum() / d.square().sum()) for d in deltas)

    for direction in normal((6, 9), 4, seed=5):
        assert disturbance(found) <= disturbance(found + 1e-3 * direction)
    gradient = sum((found - d) @ d.t() @ d / d.square().sum() for d in deltas)
    close(gradient, zero, 1e-9)
    close(run("wudi", zero, zero, *deltas), found, 1e-9)  # a zero difference disturbs nothing


def test_knots_of_equal_models_is_the_model() -> None:
    base, delta = normal((8, 12), 2)
    close(run("knots", base, delta, delta), base + delta, 1e-9)


def test_svc_takes_back_what_counts_more_than_once() -> None:
    base, delta, other = normal((8, 12), 3)
    close(run("svc", base + 3 * delta, base, *[base + delta] * 3), base + delta, 1e-9)
    # Opposing differences: nothing of 0.1·d is shared, and with alpha 1 nothing grows.
    merged = base + 0.1 * delta
    close(run("svc", merged, base, base + delta, base - delta), merged, 1e-9)
    grown = run("svc", merged, base, base + delta, base - delta, alpha=0.5)
    close(grown, base + 0.2 * delta, 1e-9)
    bias = normal((7,), 3)
    assert torch.equal(run("svc", *bias), bias[0])
    assert torch.equal(run("svc", base, base, other), base)


@pytest.mark.parametrize("name", SUBSPACES)
def test_embeddings_get_the_mean(name: str) -> None:
    base, *deltas = normal((8, 12), 3)
    mean = base + 0.5 * (0.7 * deltas[0] + 0.4 * deltas[1]) / 2
    given: dict[str, Any] = {"weight": [0.7, 0.4], "scale": 0.5}
    place = Part("text_encoder/text_model.embeddings.token_embedding.weight", "text_encoder", (8, 12))
    close(run(name, base, *deltas, part=place, **given), mean)
    included = run(name, base, *deltas, part=place, exclude="none", **given)
    assert torch.equal(included, run(name, base, *deltas, **given))
    assert float((included - mean).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("key", "excluded"),
    [
        ("text_encoder/text_model.embeddings.position_embedding.weight", True),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", True),
        ("conditioner.embedders.1.model.positional_embedding", True),
        ("text_encoder_3/shared.weight", True),
        ("transformer/pos_embed", True),
        ("unet/time_embedding.linear_1.weight", False),
        ("transformer/pos_embed.proj.weight", False),
        ("unet/conv_in.weight", False),
    ],
)
def test_which_tensors_are_embeddings(key: str, excluded: bool) -> None:
    assert is_excluded(key, "embeddings") is excluded
    assert not is_excluded(key, "none")


# Low rank.


def test_truncate_rank_ends_are_the_operands() -> None:
    base, model = normal((7, 9), 2)
    assert torch.equal(run("truncate_rank", base, model, rank=7.0), model)
    assert torch.equal(run("truncate_rank", base, model, rank=0.0), base)
    assert torch.equal(run("truncate_rank", base, model, ratio=0.0), base)
    assert torch.equal(run("truncate_rank", base[0], model[0], rank=0.0), model[0])


def decaying(rows: int = 60, columns: int = 40) -> Tensor:
    left, right = normal((rows, columns), 1)[0], normal((columns, columns), 1, seed=4)[0]
    strength = torch.tensor([2.0**-k for k in range(columns)], dtype=torch.float64)
    return torch.linalg.qr(left).Q * strength @ torch.linalg.qr(right).Q


@pytest.mark.parametrize("turned", [False, True])
def test_randomized_truncation_is_nearly_the_best(turned: bool) -> None:
    model = decaying().t().contiguous() if turned else decaying()
    zero = torch.zeros_like(model)
    best = run("truncate_rank", zero, model, rank=5.0)
    near = run("truncate_rank", zero, model, rank=5.0, solver="randomized")
    assert rank_of(near) == rank_of(best) == 5
    least = norm(model - best)
    assert (1 - 1e-12) * least <= norm(model - near) < 1.0001 * least
    again = run("truncate_rank", zero, model, rank=5.0, solver="randomized")
    other = Random(SEED + 1, MERGE, ["base", "x1"], KEY, 0)
    assert torch.equal(again, near)
    assert not torch.equal(
        run("truncate_rank", zero, model, rank=5.0, solver="randomized", random=other), near
    )


def test_truncation_by_energy_takes_the_least_rank() -> None:
    model = decaying()
    for energy, rank in ((0.5, 1), (0.76, 2), (0.95, 3)):  # 3/4, 15/16, 63/64 of the squares
        assert rank_of(run("truncate_rank", 0 * model, model, energy=energy)) == rank


def test_truncate_kronecker_finds_a_product() -> None:
    small, large = normal((3, 2), 1)[0], normal((4, 5), 1, seed=2)[0]
    product = torch.kron(small, large)
    zero = torch.zeros_like(product)
    found = [run("truncate_kronecker", zero, product, ratio=ratio) for ratio in np.linspace(0, 1, 41)]
    assert any(float((one - product).abs().max()) < 1e-12 for one in found)


# rotate.


def rotation(size: int, seed: int = 6) -> Tensor:
    found = torch.linalg.qr(normal((size, size), 1, seed)[0]).Q
    return found * torch.linalg.det(found).sign()  # odd sizes: proper


@pytest.mark.parametrize("shape", [(9, 5), (5, 5), (5, 9), (4, 3, 3, 3)], ids=str)
def test_rotate_finds_a_rotation(shape: tuple[int, ...]) -> None:
    a = normal(shape, 1)[0]
    columns = a[0].numel()
    turned = (a.reshape(shape[0], -1) @ rotation(columns)).reshape(shape) + 0.3
    close(run("rotate", a, turned), turned, 1e-9)
    close(run("rotate", a, a - 0.2), a - 0.2, 1e-9)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)], ids=str)
def test_rotate_turns_and_does_not_stretch(shape: tuple[int, ...]) -> None:
    a, b = (one - one.mean(0) for one in normal(shape, 2))
    turned = run("rotate", a, b)
    assert math.isclose(norm(turned), norm(a))
    nearest = norm(turned - b)
    for seed in range(5):  # no other rotation comes nearer
        assert nearest < norm(a @ rotation(shape[1], seed) - b)


@pytest.mark.parametrize("size", [4, 5])
def test_part_of_a_rotation_can_be_repeated(size: int) -> None:
    a, b = (one - one.mean(0) for one in normal((9, size), 2))
    half, third = (run("rotate", a, b, alignment=share) for share in (0.5, 1 / 3))
    expected = formulas.rotate_of(a.numpy(), b.numpy(), alignment=0.5)
    close(half, expected, 1e-9)
    assert math.isclose(norm(half), norm(a)) and math.isclose(norm(third), norm(a))
    mixed = run("rotate", a, b, alignment=0.4, alpha=0.3, centralization=0.5)
    expected = formulas.rotate_of(a.numpy(), b.numpy(), alignment=0.4, alpha=0.3, centralization=0.5)
    close(mixed, expected, 1e-9)


def test_half_turns_are_divided_too() -> None:
    a = normal((9, 4), 1)[0]
    a -= a.mean(0)
    quarter = run("rotate", a, -a, alignment=0.5)
    assert math.isclose(norm(quarter), norm(a))
    assert abs(float((quarter * a).sum())) < 1e-9 * norm(a) ** 2  # at right angles to where it was
    fixed = a * tensor(-1, -1, 1, 1)
    close(run("rotate", a, fixed, alignment=0.5)[:, 2:], a[:, 2:], 1e-9)


def test_a_wide_matrix_is_turned_as_a_whole_only() -> None:
    a, b = normal((5, 9), 2)
    with pytest.raises(RecipeError, match=r"unet/wide.*fewer rows than columns"):
        run("rotate", a, b, alignment=0.5, part=Part("unet/wide", "unet", (5, 9)))


def test_rotate_has_nothing_to_turn_in_zeros() -> None:
    a = normal((9, 5), 1)[0]
    zero = torch.zeros_like(a)
    mean = a.mean(0)
    for alignment in (0.0, 0.5, 1.0):
        found = run("rotate", a, zero, alignment=alignment, alpha=0.3)
        close(found, 0.7 * (a - mean) + (1 - alignment) * mean)
        assert torch.isfinite(run("rotate", zero, a, alignment=alignment, alpha=0.3)).all()

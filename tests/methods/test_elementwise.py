"""Ends, edges and limits of the methods that mix, exchange and add element by element."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.errors import RecipeError
from runner.methods import METHODS
from runner.methods.random import Random
from runner.methods.sums import column_dots
from runner.methods.tiles import Part, Tile
from tests.build import merged, write_models
from tests.methods.formulas_elementwise import cosine_a_of, cosine_b_of, cosines, limits_of
from tests.methods.test_formulas import INFINITE, KEY, MERGE, SEED, close, norm, normal, run, stream, tensor

VAE = Part("decoder.weight", "vae", (7, 9))
ENDS: list[tuple[str, dict[str, Any], int]] = [
    ("cosine_b", {"alpha": -1.0}, 0),
    *(
        (name, {"alpha": 0.0}, 0)
        for name in (
            *("smooth_add", "add_perpendicular", "similarity_add_difference", "weighted_subtraction"),
            *("add_noise", "add_opposite", "add_strict_opposite"),
        )
    ),
    *(
        (name, {"alpha": end}, number)
        for name in ("tensor_sum", "geometric_sum", "euclidean_add_difference")
        for end, number in ((0.0, 0), (1.0, 1))
    ),
    *(("tensor_sum", {"alpha": end, "beta": 0.35}, int(end)) for end in (0.0, 1.0)),
    ("weighted_subtraction", {"alpha": 0.5, "beta": 0.0}, 0),
    ("top_k_tensor_sum", {"width": 0.0, "offset": 0.3}, 0),
    ("extract", {"alpha": 0.3, "beta": 1.0, "gamma": 0.0}, 0),
    ("extract", {"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, 1),
    ("extract", {"alpha": 1.0, "beta": 0.0, "gamma": 0.0}, 2),
    ("multiply_difference", {"alpha": 0.0, "beta": 0.0}, 0),
    ("multiply_difference", {"alpha": 1.0, "beta": 1.0}, 1),
    ("nearswap", {"t": 0.0}, 0),
    *((name, {"scale": 0.0}, 0) for name in ("magmax", "ram", "ram_plus", "consensus_ta")),
    ("expo", {"alpha": 0.0}, 1),
    ("expo", {"alpha": -1.0}, 0),
]
NEAR_ENDS: list[tuple[str, dict[str, Any]]] = [
    # For all alphas the VAE is a's, so that no end of cosine is b.
    *(("cosine_a", {"alpha": alpha}) for alpha in (0.0, 1.0)),
    *(("cosine_b", {"alpha": alpha}) for alpha in (0.0, 1.0)),
    ("multiply_difference", {"alpha": 0.0, "beta": 1.0}),
    ("extract", {"alpha": 0.0, "beta": 0.0, "gamma": 1.0}),
    ("extract", {"alpha": 0.0, "beta": 0.5, "gamma": 0.0}),
    ("top_k_tensor_sum", {"width": 1.0}),
    ("magmax", {"scale": 1.0}),
    ("expo", {"alpha": 0.1}),
    ("nearswap", {"t": 0.1}),
]


def with_defaults(name: str, given: dict[str, Any]) -> dict[str, Any]:
    return {**{n: p.default for n, p in METHODS[name, None].parameters.items()}, **given}


@pytest.mark.parametrize(("name", "given", "number"), ENDS, ids=str)
def test_an_end_is_one_of_the_operands(name: str, given: dict[str, Any], number: int) -> None:
    method = METHODS[name, None]
    assert method.result_is(**with_defaults(name, given)) == number
    operands = normal((7, 9), len(method.roles) + (2 if method.variadic else 0))
    close(run(name, *operands, **given), operands[number])


@pytest.mark.parametrize(("name", "given"), NEAR_ENDS, ids=str)
def test_what_is_no_end_is_computed(name: str, given: dict[str, Any]) -> None:
    assert METHODS[name, None].result_is(**with_defaults(name, given)) is None


OF_WEIGHTS = [
    *("cosine_a", "cosine_b", "smooth_add", "tensor_sum", "top_k_tensor_sum", "extract", "geometric_sum"),
    *("add_perpendicular", "clamp", "nearswap", "similarity_add_difference", "multiply_difference"),
    *("euclidean_add_difference", "weighted_subtraction", "add_opposite", "add_strict_opposite", "expo"),
]


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_a_model_merged_with_itself_is_itself(name: str, tmp_path: Path) -> None:
    weights = {
        "model.diffusion_model.linear.weight": normal((8, 6), 1)[0].float(),
        "model.diffusion_model.conv.weight": normal((4, 3, 3, 3), 1)[0].float(),
        "model.diffusion_model.linear.bias": normal((8,), 1)[0].float(),
    }
    save_file(weights, tmp_path / "one.safetensors", {"format": "pt"})
    method = METHODS[name, None]
    roles = method.roles if method.variadic is None else (*method.roles, "x", "y")
    tree: dict[str, Any] = {"method": name, "models": dict.fromkeys(roles, "one.safetensors")}
    for number in method.parameters.values():
        if not number.choices:
            tree[number.name] = 0.3
    result = merged(tree, tmp_path, tmp_path / "out")
    assert all(torch.equal(result[key], one) for key, one in weights.items())


@pytest.mark.parametrize("name", ["magmax", "ram", "ram_plus", "consensus_ta"])
def test_models_equal_to_the_base_give_the_base(name: str) -> None:
    base = normal((7, 9), 1)[0]
    assert torch.equal(run(name, base, 0 * base, 0 * base, 0 * base), base)


# cosine_a and cosine_b.


@pytest.mark.parametrize("name", ["cosine_a", "cosine_b"])
def test_the_vae_is_that_of_a_beside_a_range_over_the_model(name: str) -> None:
    a, b = normal((7, 9), 2)
    for alpha in (0.0, 0.5, 1.0):
        assert torch.equal(run(name, a, b, alpha=alpha, range="global", part=VAE), a)
    alone = run(name, a, b, alpha=0.5, range="none")
    assert torch.equal(run(name, a, b, alpha=0.5, range="none", part=VAE), alone)


@pytest.mark.parametrize("name", ["cosine_a", "cosine_b"])
def test_the_range_is_that_of_the_whole_model_without_the_vae(name: str) -> None:
    shapes = {"unet": (7, 9), "text_encoder": (5,), "unet2": (4, 3, 3, 3), "vae": (3, 300)}
    pairs = {key: normal(shape, 2, seed) for seed, (key, shape) in enumerate(shapes.items())}
    tiles = [Tile(tuple(pair), part=Part(key, key.strip("2"))) for key, pair in pairs.items()]
    measure = METHODS[name, None].measure
    assert measure
    low, high = measure(tiles)
    found: list[float] = []
    for key, pair in pairs.items():
        a, b = (one.numpy() for one in pair)
        each = cosines(a, b)
        if name == "cosine_b":
            whole = float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
            each = [(one + whole) / 2 for one in each]
        found += each if key != "vae" else []
    close(tensor(low, high), tensor(*limits_of(found)))
    reference = cosine_a_of if name == "cosine_a" else cosine_b_of
    for key in ("unet", "unet2", "text_encoder"):
        a, b = pairs[key]
        expected = reference(a.numpy(), b.numpy(), 0.3, limits=(low, high))
        close(run(name, a, b, alpha=0.3, measured=(low, high)), expected)
    assert measure(tiles[3:]) == (0.0, 0.0)  # nothing but a VAE


@pytest.mark.parametrize("name", ["cosine_a", "cosine_b"])
def test_a_merge_by_cosine_sees_the_whole_model(name: str, tmp_path: Path) -> None:
    models = write_models(tmp_path, torch.float32, a=1, b=2)
    models = {role: {k: one.double() for k, one in found.items()} for role, found in models.items()}
    tree = {"method": name, "models": {"a": "a.safetensors", "b": "b.safetensors"}, "alpha": 0.3}
    result = merged(tree, tmp_path, tmp_path / "out")
    vae = [key for key in models["a"] if key.startswith("first_stage_model")]
    pairs = {key: (models["a"][key], models["b"][key]) for key in models["a"]}
    tiles = [Tile(pair) for key, pair in pairs.items() if key not in vae]
    measure = METHODS[name, None].measure
    assert measure and vae
    for key, (a, b) in pairs.items():
        if key in vae:
            assert torch.equal(result[key].double(), a)
        else:
            close(result[key], run(name, a, b, alpha=0.3, measured=measure(tiles)), 1e-6)


@pytest.mark.parametrize("name", ["cosine_a", "cosine_b"])
def test_similar_columns_keep_a_and_others_take_b(name: str) -> None:
    a = normal((6, 4), 1)[0]
    b = a.clone()
    b[:, 1:3] = -a[:, 1:3].flip(0)
    result = run(name, a, b, alpha=0.0)
    close(result[:, [0, 3]], a[:, [0, 3]])
    assert not torch.allclose(result[:, 1:3], a[:, 1:3])


@pytest.mark.parametrize("name", ["cosine_a", "cosine_b"])
def test_columns_of_zeros_have_cosine_0(name: str) -> None:
    a, b = normal((6, 4), 2)
    a[:, 0], b[:, 1] = 0, 0
    for word in ("global", "none"):
        result = run(name, a, b, alpha=0.0, range=word)
        reference = cosine_a_of if name == "cosine_a" else cosine_b_of
        close(result, reference(a.numpy(), b.numpy(), 0.0, word))
        assert torch.equal(run(name, 0 * a, 0 * a, range=word), 0 * a)


@pytest.mark.parametrize("shape", [(1, 5), (2, 7), (40_001, 3), (300, 4000), (3, 0), (0, 3)], ids=str)
def test_column_dots_do_not_depend_on_threads(shape: tuple[int, int]) -> None:
    a, b = normal(shape, 2)
    before, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(column_dots(a, b))
    torch.set_num_threads(before)
    assert torch.equal(*found)
    exact = [math.fsum((a[:, column] * b[:, column]).tolist()) for column in range(shape[1])]
    close(found[0], tensor(*exact), 1e-11)
    assert torch.equal(column_dots(a.t().contiguous().t(), b), found[0])


# smooth_add.


def test_smooth_add_drops_single_values_and_keeps_the_mean_of_wide_ones() -> None:
    a = torch.zeros(40, 40, dtype=torch.float64)
    single = a.clone()
    single[20, 20] = 1e6
    assert torch.equal(run("smooth_add", a, single, a), a)
    close(run("smooth_add", a, a + 3, a, alpha=0.5), a + 1.5)


@pytest.mark.parametrize("shape", [(700, 40), (3, 5000), (11, 7, 3, 3), (9, 5, 1, 1)], ids=str)
def test_smooth_add_is_the_same_in_any_blocks(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = normal(shape, 3)
    whole = run("smooth_add", *operands)
    monkeypatch.setattr("runner.methods.smooth_add.WINDOW_ELEMENTS", 200)
    assert torch.equal(run("smooth_add", *operands), whole)


def test_smooth_add_of_one_number_adds_all_of_it() -> None:
    a, b, c = normal((), 3)
    close(run("smooth_add", a, b, c, alpha=0.5), a + 0.5 * (b - c))


# tensor_sum and top_k_tensor_sum.


def test_tensor_sum_cuts_products_in_double() -> None:
    a, b = torch.zeros(10, 1), torch.ones(10, 1)

    def rows(**given: Any) -> list[int]:
        return [index for index, value in enumerate(run("tensor_sum", a, b, **given)) if value]

    assert rows(alpha=0.59, beta=0.2) == [2, 3, 4, 5, 6]  # int(7.9) is not included
    assert rows(alpha=0.3, beta=0.7) == [7, 8, 9]
    assert rows(alpha=0.6, beta=0.7) == [0, 1, 7, 8, 9]  # 1.2999999999999998 − 1
    assert rows(alpha=0.5, beta=1.0) == [0, 1, 2, 3, 4]


def test_tensor_sum_auto_takes_the_second_axis_if_it_is_longer_than_100() -> None:
    for shape, along in (((320, 101), 1), ((320, 100), 0), ((320, 4, 3, 3), 0), ((4, 101, 3, 3), 1)):
        a, b = torch.zeros(shape), torch.ones(shape)
        result = run("tensor_sum", a, b, alpha=0.5, axis="auto")
        assert result.narrow(along, 0, int(shape[along] * 0.5)).all()
        assert int(result.count_nonzero()) == result.numel() // shape[along] * int(shape[along] * 0.5)


def test_tensor_sum_of_one_number_is_b_above_a_half() -> None:
    a, b = tensor(1)[0], tensor(2)[0]
    assert [float(run("tensor_sum", a, b, alpha=alpha)) for alpha in (0.0, 0.5, 0.51, 1.0)] == [1, 1, 2, 2]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 30),
    alpha=st.floats(0, 1),
    beta=st.floats(0, 1),
    axis=st.sampled_from(["0", "auto"]),
    step=st.integers(1, 30),
)
def test_tensor_sum_of_any_rows_is_that_of_the_whole(
    rows: int, alpha: float, beta: float, axis: str, step: int
) -> None:
    a = torch.arange(rows * 101.0).reshape(rows, 101)
    given = {"alpha": alpha, "beta": beta, "axis": axis}
    parts = [
        run(
            "tensor_sum", a[i : i + step], -a[i : i + step], part=Part("k", "", (rows, 101), i * 101), **given
        )
        for i in range(0, rows, step)
    ]
    assert torch.equal(torch.cat(parts), run("tensor_sum", a, -a, **given))


def test_top_k_takes_the_first_of_equal_ranks_first() -> None:
    a, b = tensor(4, 3, 2, 1), tensor(0, 0, 0, 0)
    close(run("top_k_tensor_sum", a, b), tensor(1, 2, 3, 4))
    close(run("top_k_tensor_sum", a, -a), tensor(1, 2, 3, 4))
    # The lower end of the window is out: magnitudes 2 < |v| ≤ 3.
    close(run("top_k_tensor_sum", a, b, width=0.25, offset=0.5), tensor(4, 3, 3, 1))


# extract and add_perpendicular.


def test_extract_of_like_unlike_and_opposite_rows() -> None:
    a = torch.zeros(3, 2, dtype=torch.float64)
    b = torch.tensor([[1.0, 0], [1, 0], [1, 0]], dtype=torch.float64)
    c = torch.tensor([[2.0, 0], [0, 3], [-1, 0]], dtype=torch.float64)
    close(run("extract", a, b, c), b * torch.tensor([[1.0], [0.5], [0.0]]))
    close(run("extract", a, b, c, beta=1.0), b * torch.tensor([[0.0], [0.5], [1.0]]))
    close(run("extract", a, b, c, beta=0.5, alpha=0.25), (0.75 * b + 0.25 * c) / 2)
    close(run("extract", a, b, c, gamma=0.0), b)
    close(run("extract", a, b, c, gamma=3.0), b * torch.tensor([[1.0], [0.125], [0.0]]))
    close(run("extract", a, b, a), b / 2)  # a row of zeros has cosine 0
    assert torch.equal(run("extract", a, a, a), a)


def test_rows_of_extract_are_filters() -> None:
    operands = normal((4, 3, 3, 3), 3)
    result = run("extract", *operands, gamma=2.0)
    for row in range(4):
        close(result[row], run("extract", *(one[row].flatten() for one in operands), gamma=2.0))


@pytest.mark.parametrize("power", [-60, 0, 20])
def test_add_perpendicular_adds_what_is_new(power: int) -> None:
    c, d, e = normal((7, 9), 3)
    d, e = d * 2.0**power, e * 2.0**power
    zero = 0 * c
    added = run("add_perpendicular", d, e, zero) - d
    assert abs(float((added * d).sum())) < 1e-12 * norm(d) * norm(e)
    close(run("add_perpendicular", d, 3 * d, zero), d)  # parallel
    close(run("add_perpendicular", zero, e, zero, alpha=0.5), e / 2)  # nothing to project on
    assert torch.equal(run("add_perpendicular", d, d, zero), d)


# clamp, nearswap, weighted_subtraction.


def test_clamp_holds_a_merge_between_its_models() -> None:
    a = tensor(-5, 0, 0.5, 1, 9)
    low, high = tensor(1, 0, 0, 0, 0), tensor(0, 1, 1, 1, 1)
    for stiffness in (0.0, 0.5, 1.0):  # of two models the nearest to the mean are the two
        close(run("clamp", a, low, high, stiffness=stiffness), tensor(0, 0, 0.5, 1, 1))


def test_stiff_bounds_are_nearest_to_the_mean() -> None:
    models = [tensor(x, x) for x in (0.0, 4.0, 5.0, 11.0)]  # mean 5
    for stiffness, low, high in ((0.0, 0, 11), (0.5, 2.5, 8), (1.0, 5, 5)):
        close(run("clamp", tensor(-9, 99), *models, stiffness=stiffness), tensor(low, high))


def test_nearswap_takes_b_exactly_where_it_is_near() -> None:
    a, b = tensor(0.1, 0.1, 0.1, -0.1), tensor(0.3, 0.7, -0.7, 0.1)
    result = run("nearswap", a, b, t=0.25)
    assert result[0] == b[0] and result[3] == b[3]
    close(result, tensor(0.3, 0.35, -0.15, 0.1))
    for dtype in (torch.float32, torch.float64):
        one, other = (x.to(dtype) for x in normal((400,), 2))
        assert torch.equal(run("nearswap", one, other, t=100.0), other)


def test_weighted_subtraction_undoes_a_weighted_sum() -> None:
    a, b = normal((7, 9), 2)
    for alpha in (0.1, 0.5, 0.9):
        close(run("weighted_subtraction", run("weighted_sum", a, b, alpha=alpha), b, alpha=alpha), a)


def test_weighted_subtraction_refuses_to_take_out_all_of_a_model() -> None:
    check = METHODS["weighted_subtraction", None].check
    assert check
    for alpha, beta in ((1.0, 1.0), (1.0, 0.9991)):
        assert re.search(r"alpha times beta .* 0\.999", check(alpha=alpha, beta=beta) or "")
    assert check(alpha=0.999, beta=1.0) is None
    a, b = normal((3,), 2)
    close(run("weighted_subtraction", a, b, alpha=0.999), (a - 0.999 * b) / 0.001, 1e-10)


# The methods of sd-meh and sd-mecha.


def test_similarity_add_difference_without_similarity_is_add_difference() -> None:
    a, b, c = normal((7, 9), 3)
    for alpha in (0.3, 1.0):
        close(
            run("similarity_add_difference", a, b, c, alpha=alpha, beta=0.0),
            run("add_difference", a, b, c, alpha=alpha),
        )
    zero, c = tensor(0, 0), tensor(1, 2)
    close(run("similarity_add_difference", zero, zero, c, alpha=0.5, beta=0.25), -0.5 * 0.75 * c)


@pytest.mark.parametrize("name", ["similarity_add_difference", "add_strict_opposite"])
def test_small_weights_count_as_large_ones_do(name: str) -> None:
    operands = [one.float() for one in normal((7, 9), 3)]
    small = [one * 2.0**-90 for one in operands]  # whose squares are 0 in float32
    assert torch.equal(run(name, *small), run(name, *operands) * 2.0**-90)


def test_multiply_difference_takes_0_to_the_0_for_1() -> None:
    a, b, c = tensor(3, 1), tensor(1, 5), tensor(1, 1)
    close(run("multiply_difference", a, b, c, alpha=0.0, beta=0.5), tensor(3, 1))
    close(run("multiply_difference", a, b, c, alpha=1.0, beta=0.5), tensor(1, 5))
    close(run("multiply_difference", a, b, c, alpha=0.5, beta=0.5), c)
    close(run("multiply_difference", -a, b, 0 * c, alpha=0.5, beta=0.0), tensor(-math.sqrt(3), -math.sqrt(5)))


def test_euclidean_add_difference_has_the_length_of_the_weighted_sum() -> None:
    a, b, c = normal((7, 9), 3)
    for alpha in (0.2, 0.5, 0.9):
        moved = run("euclidean_add_difference", a, b, c, alpha=alpha) - c
        total = (1 - alpha) * a + alpha * b - c
        assert math.isclose(norm(moved), norm(total), rel_tol=1e-12)
    assert torch.equal(run("euclidean_add_difference", c, c, c, alpha=0.3), c)
    close(run("euclidean_add_difference", a, c, c, alpha=0.3), c + 0.7 * (a - c))
    close(run("euclidean_add_difference", a, 2 * c - a, c, alpha=0.5), c)  # the sum is 0


def test_geometric_sum_of_signs() -> None:
    a, b = tensor(4, -4, 4, -4, 0, 4), tensor(9, -9, -9, 9, 9, 0)
    close(run("geometric_sum", a, b), tensor(6, -6, 0, 0, 0, 0))
    third = 4 ** (2 / 3) * 9 ** (1 / 3)
    close(run("geometric_sum", a, b, alpha=1 / 3), tensor(third, -third, third / 2, -third / 2, 0, 0))


def test_opposites_count_where_the_ancestor_is_between() -> None:
    a, b, c = tensor(-1, 1, 0, 1, 3), tensor(1, 1, 1, 2, -1), tensor(0, 0, 0, 0, 0)
    close(run("add_opposite", a, b, c), a + 2 * tensor(1, 0, 1 / 2, 1 / 4, 2 / 3) * b)
    close(run("add_strict_opposite", a, b, c), a + 2 * tensor(1, 0, 0, 0, 1 / 3) * b)
    for name in ("add_opposite", "add_strict_opposite"):
        assert torch.equal(run(name, a, a, a), a)  # 0 / 0


# Task vectors.


def test_magmax_of_equal_magnitudes_takes_the_later_model() -> None:
    base = tensor(10, 10, 10)
    close(run("magmax", base, tensor(1, -2, 0), tensor(-1, 1, 0)), tensor(9, 8, 10))
    close(run("magmax", base, tensor(-1, 1, 0), tensor(1, -2, 0), scale=0.5), tensor(10.5, 9, 10))


def test_ram_keeps_what_one_changed_and_averages_what_several_did() -> None:
    base, x, y = tensor(0, 0, 0, 0), tensor(2, 2, 0, 0), tensor(4, 0, 1e-6, 3)
    close(run("ram", base, x, y), tensor(3, 2, 0, 3))
    # x: one alone, one shared; y: one alone, one shared.
    close(run("ram_plus", base, x, y, r=0.5, alpha=0.2), tensor(3, 2 * 1.1, 0, 3 * 1.1))
    close(run("ram_plus", base, x, y, r=0.5, alpha=9.0), tensor(3, 3, 0, 4.5))
    close(run("ram_plus", base, x, x), tensor(2, 2, 0, 0))  # nothing alone


def test_consensus_keeps_what_enough_models_want() -> None:
    base, x, y, z = tensor(0, 0, 0), tensor(1, 1, 0), tensor(1, 0, 0), tensor(0.1, 0, 5)
    close(run("consensus_ta", base, x, y, z), tensor(2.1, 0, 0))
    close(run("consensus_ta", base, x, y, z, k=1), tensor(2.1, 1, 5))
    assert torch.equal(run("consensus_ta", base, x), base)  # one model is no consensus


# Normal numbers.


def noise(count: int, start: int = 0, role: int = 0) -> Tensor:
    random = Random(SEED, MERGE, ["base", "x1"], KEY, start)
    return random.normal(role, torch.empty(count))


def test_normal_numbers_are_those_of_box_and_muller() -> None:
    words = stream(SEED, MERGE, "x1", KEY, 20)
    expected = [
        math.sqrt(-2 * math.log(((words[i] >> 11) + 1) * 2.0**-53))
        * math.cos(2 * math.pi * (words[i + 1] >> 11) * 2.0**-53)
        for i in range(0, 20, 2)
    ]
    close(noise(10, role=1), tensor(*expected))


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 1000))
def test_normal_numbers_from_any_element_are_those_of_the_whole(start: int) -> None:
    assert torch.equal(noise(1001 - start, start), noise(1001)[start:])


def test_normal_numbers_are_normal() -> None:
    count = 400_000
    numbers = noise(count)
    assert torch.isfinite(numbers).all()
    assert abs(float(numbers.mean())) < 5 / math.sqrt(count)
    assert abs(float((numbers**2).mean()) - 1) < 5 * math.sqrt(2 / count)
    assert abs(float((numbers**4).mean()) - 3) < 5 * math.sqrt(96 / count)
    for limit, share in ((1, 0.6826895), (2, 0.9544997), (3, 0.9973002)):
        found = float((numbers.abs() < limit).double().mean())
        assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / count)
    assert abs(float((numbers[1:] * numbers[:-1]).mean())) < 5 / math.sqrt(count)
    assert abs(float((numbers * noise(count, role=1)).mean())) < 5 / math.sqrt(count)


# What recipes say.


def test_recipes_may_write_the_axis_as_a_number(tmp_path: Path) -> None:
    key = "model.diffusion_model.linear.weight"
    for role, one in zip("ab", normal((4, 200), 2), strict=True):
        save_file({key: one.float()}, tmp_path / f"{role}.safetensors", {"format": "pt"})
    tree = {"method": "tensor_sum", "models": {"a": "a.safetensors", "b": "b.safetensors"}}
    results = [
        merged({**tree, "axis": axis}, tmp_path, tmp_path / f"o{axis}")[key] for axis in (0, "0", "auto")
    ]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    b = load_file(tmp_path / "b.safetensors")[key]
    assert torch.equal(results[0][:2], b[:2]) and torch.equal(results[2][:, :100], b[:, :100])
    with pytest.raises(RecipeError, match="expected one of 0, auto; found 1"):
        merged({**tree, "axis": 1}, tmp_path, tmp_path / "wrong")


def test_a_range_without_an_end_says_so(tmp_path: Path) -> None:
    key = "model.diffusion_model.linear.weight"
    save_file({key: torch.ones(2, 2)}, tmp_path / "a.safetensors", {"format": "pt"})
    tree = {"method": "nearswap", "models": {"a": "a.safetensors", "b": "a.safetensors"}, "t": -1}
    with pytest.raises(RecipeError, match="expected 0 or more, found -1"):
        merged(tree, tmp_path, tmp_path / "out")


def test_an_operand_that_does_not_count_does_not_leak() -> None:
    a, b = normal((7,), 2)
    wrong = torch.full_like(a, INFINITE)
    assert torch.equal(run("tensor_sum", a, wrong, alpha=0.0), a)
    assert torch.equal(run("cosine_a", wrong, b, alpha=1.0), b)

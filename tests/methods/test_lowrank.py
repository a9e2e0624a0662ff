"""Joining is exact; compressing and extracting keep what the singular values say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner.lora.algebra import Kind
from runner.lora.deltas import change_rows
from runner.methods.lowrank import LowRank, compress, extract, join, rank_of_energy

close = torch.testing.assert_close


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(found: LowRank) -> Tensor:
    return found.up @ found.down


def with_values(values: list[float], rows: int, columns: int) -> Tensor:
    """A matrix of these singular values."""
    left, right = (
        torch.linalg.qr(draw(seed, size, len(values)))[0] for seed, size in ((1, rows), (2, columns))
    )
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.floats(-2, 2)), min_size=1, max_size=4))
def test_joined_changes_are_their_weighted_sum_and_their_ranks_add_up(parts: list[tuple[int, float]]) -> None:
    pairs = [(draw(n, 7, rank), draw(n + 9, rank, 5)) for n, (rank, _) in enumerate(parts)]
    joined = join(pairs, [weight for _, weight in parts])
    assert joined.rank == sum(rank for rank, _ in parts)
    summed = sum(weight * (up @ down) for (up, down), (_, weight) in zip(pairs, parts, strict=True))
    close(product(joined), summed, rtol=1e-12, atol=1e-12)


def left_of(change: Tensor, found: LowRank) -> float:
    """How much of a change is not in what was found: the length of that, as a share."""
    return float(torch.linalg.norm(change - product(found)) / torch.linalg.norm(change))


def test_an_extraction_of_a_rank_leaves_the_smaller_singular_values() -> None:
    change = with_values([8.0, 4.0, 1.0], 9, 6)
    for matrix in (change, change.T):
        for rank, left in ((1, 17**0.5), (2, 1.0), (3, 0.0), (5, 0.0)):
            found = extract(matrix, rank=rank)
            assert found.rank == min(rank, 3)
            assert left_of(matrix, found) == pytest.approx(left / 9, abs=1e-12)


def test_an_extraction_of_an_energy_has_the_least_rank_that_has_it() -> None:
    change = with_values([8.0, 4.0, 1.0], 9, 6)  # squares 64, 16, 1 of 81
    start = draw(4, 6, 5)
    for energy, rank in ((0.5, 1), (0.79, 1), (0.8, 2), (0.98, 2), (0.99, 3)):
        assert rank_of_energy(change, energy, 6) == rank
        assert rank_of_energy(change, energy, 6, start=start) == rank
    assert rank_of_energy(change, 0.99, 2) == 2
    assert rank_of_energy(torch.zeros_like(change), 0.99, 2) == 0


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (60, 60)])
def test_an_extraction_is_as_near_as_numpys_decomposition(shape: tuple[int, int]) -> None:
    change = draw(3, *shape)
    values = np.linalg.svd(change.numpy(), compute_uv=False)
    for rank in (1, 5, 39):
        left = float(((values[rank:] ** 2).sum() / (values**2).sum()) ** 0.5)
        assert left_of(change, extract(change, rank=rank)) == pytest.approx(left, rel=1e-10)
    assert left_of(change, extract(change, rank=60)) < 1e-12


def test_more_iterations_come_nearer_to_the_exact_extraction() -> None:
    change = with_values([0.97**n for n in range(80)], 120, 80)
    exact = left_of(change, extract(change, rank=10))
    start = draw(8, 80, 18)
    found = [left_of(change, extract(change, rank=10, start=start, iterations=n)) for n in (0, 2, 20)]
    assert exact <= found[2] < found[1] < found[0] < 1.1 * exact
    assert found[2] == pytest.approx(exact, rel=1e-6)


def test_a_convolution_is_extracted_by_its_rows() -> None:
    change = draw(5, 6, 4, 3, 3)
    found = extract(change)
    down = found.down.reshape(-1, 4, 3, 3)
    rows = change_rows(Kind.LORA, {"up": found.up, "down": down}, 0, 6)
    close(rows.reshape(change.shape), change, rtol=1e-10, atol=1e-12)


def test_both_factors_have_their_share_of_the_singular_values() -> None:
    found = extract(with_values([100.0, 25.0], 9, 6), rank=2)
    for factor in (found.up.T, found.down):
        close(torch.linalg.norm(factor, dim=1), torch.tensor([10.0, 5.0], dtype=torch.float64))


def test_a_compressed_pair_is_what_is_extracted_of_its_product() -> None:
    pair = join([(draw(1, 20, 3), draw(2, 3, 15)), (draw(3, 20, 4), draw(4, 4, 15))], [1.0, 0.3])
    for rank in (1, 3, 7):
        found, whole = compress(pair, rank=rank), extract(product(pair), rank=rank)
        close(product(found), product(whole), rtol=1e-9, atol=1e-10)
    # More ranks than rows: nothing is lost, and no rank kept that says nothing.
    wide = join([(draw(5, 3, 4), draw(6, 4, 5)), (draw(7, 3, 4), draw(8, 4, 5))], [1.0, 1.0])
    found = compress(wide)
    assert found.rank == 3
    close(product(found), product(wide), rtol=1e-10, atol=1e-10)


def test_no_change_is_a_pair_of_rank_one() -> None:
    found = extract(torch.zeros(4, 3, dtype=torch.float64))
    assert found.rank == 1
    assert not product(found).any()

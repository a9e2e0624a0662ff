"""Joining is exact; compressing and extracting keep what the singular values say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner.lora.algebra import Kind
from runner.lora.deltas import change_rows
from runner.methods.lowrank import LowRank, compress, extract, join, join_cores

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


def test_joined_changes_with_cores_are_their_weighted_sum() -> None:
    parts = [(draw(n, 7, n), draw(n + 9, 4 - n, 5), draw(n + 20, n, 4 - n, 3, 3)) for n in (1, 2, 3)]
    up, down, mid = join_cores(parts, [1.0, -0.5, 2.0])

    def whole(up: Tensor, down: Tensor, mid: Tensor) -> Tensor:
        return change_rows(Kind.TUCKER, {"up": up, "down": down, "mid": mid}, 0, 7)

    summed = sum(weight * whole(*part) for weight, part in zip((1.0, -0.5, 2.0), parts, strict=True))
    close(whole(up, down, mid), summed, rtol=1e-12, atol=1e-12)


def test_an_extraction_of_a_rank_leaves_the_smaller_singular_values() -> None:
    change = with_values([8.0, 4.0, 1.0], 9, 6)
    for rank, left in ((1, 17**0.5), (2, 1.0), (3, 0.0), (5, 0.0)):
        found = extract(change, rank=rank)
        assert found.rank <= rank
        residual = torch.linalg.norm(change - product(found)) / torch.linalg.norm(change)
        assert found.residual == pytest.approx(float(residual), abs=1e-12)
        assert found.residual == pytest.approx(left / 9, abs=1e-12)


def test_an_extraction_of_an_energy_has_the_least_rank_that_has_it() -> None:
    change = with_values([8.0, 4.0, 1.0], 9, 6)  # squares 64, 16, 1 of 81
    for energy, rank in ((0.5, 1), (0.79, 1), (0.8, 2), (0.98, 2), (0.99, 3)):
        assert extract(change, energy=energy).rank == rank
    assert extract(change, energy=0.99, rank=2).rank == 2
    close(product(extract(change, energy=1.0)), change, rtol=1e-12, atol=1e-12)


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
        assert found.residual == pytest.approx(whole.residual, abs=1e-10)
    # More ranks than rows: nothing is lost, and no rank kept that says nothing.
    wide = join([(draw(5, 3, 4), draw(6, 4, 5)), (draw(7, 3, 4), draw(8, 4, 5))], [1.0, 1.0])
    found = compress(wide)
    assert found.rank == 3
    close(product(found), product(wide), rtol=1e-10, atol=1e-10)


def test_no_change_is_a_pair_of_rank_one_without_residual() -> None:
    for found in (extract(torch.zeros(4, 3)), extract(torch.zeros(4, 3), energy=0.9)):
        assert (found.rank, found.residual) == (1, 0.0)
        assert not product(found).any()

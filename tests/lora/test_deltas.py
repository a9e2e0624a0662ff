"""Changes are those of LyCORIS and PEFT, and the same whether they are made whole or in rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.lora.adapters import Adapter, read_adapters
from runner.lora.algebra import Kind
from runner.lora.deltas import change_rows, dora_inputs, dora_rows
from runner.tensors import TensorSpec

EXPECTED = Path(__file__).parent / "oracles" / "expected.safetensors"
with safe_open(EXPECTED, "pt") as _file:
    CASES: dict[str, dict[str, Any]] = json.loads(_file.metadata()["cases"])
    RECORDED: dict[str, Tensor] = {key: _file.get_tensor(key) for key in _file.keys()}  # noqa: SIM118
every_case = pytest.mark.parametrize("case", CASES)


def specs_of(tensors: dict[str, Tensor]) -> dict[str, TensorSpec]:
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    return {key: TensorSpec(names[tensor.dtype], tuple(tensor.shape)) for key, tensor in tensors.items()}


def recorded(case: str) -> tuple[Tensor, Tensor, dict[str, Tensor], Adapter]:
    """The base, the changed weight, the file, and what is read of it."""
    start = f"{case}:adapter:"
    file = {key.removeprefix(start): tensor for key, tensor in RECORDED.items() if key.startswith(start)}
    base = RECORDED[f"{case}:base"]
    key = CASES[case]["key"]
    specs = specs_of({key: base, key.replace(".weight", ".bias"): base[:, 0]})
    specs[key.replace(".weight", ".bias")] = TensorSpec("F64", (base.shape[0],))
    found = read_adapters(ARCHITECTURES["sd1"], specs, specs_of(file), config=CASES[case]["config"])
    found.check(case)
    adapters = [adapter for adapter in found.adapters if adapter.shares[0].key == key]
    return base, RECORDED[f"{case}:changed"], file, adapters[0]


def changed(base: Tensor, file: dict[str, Tensor], adapter: Adapter, height: int) -> Tensor:
    """The base with the change, as many rows at a time as said, as an engine would do it."""
    matrix = base.reshape(base.shape[0], -1)
    factors = {role: file[key] for role, key in adapter.factors.items()}
    scale = adapter.scale(float(file[adapter.alpha]) if adapter.alpha else None)
    ranges = [(start, min(start + height, len(matrix))) for start in range(0, len(matrix), height)]
    changes = [change_rows(adapter.kind, factors, start, stop, scale) for start, stop in ranges]
    tiles = [matrix[start:stop] for start, stop in ranges]
    if adapter.magnitude:
        lengths = file[adapter.magnitude].reshape(-1)
        if adapter.by_rows:
            changes = [
                dora_rows(tile, change, lengths[start:stop])
                for (start, stop), tile, change in zip(ranges, tiles, changes, strict=True)
            ]
        else:
            tiles, changes = [matrix], [dora_inputs(matrix, torch.cat(changes), lengths)]
    return torch.cat([tile + change for tile, change in zip(tiles, changes, strict=True)]).reshape(base.shape)


@every_case
@pytest.mark.parametrize("height", [100, 1, 5])
def test_a_changed_weight_is_that_of_the_library_whose_file_it_is(case: str, height: int) -> None:
    base, expected, file, adapter = recorded(case)
    assert not torch.allclose(base, expected)
    torch.testing.assert_close(changed(base, file, adapter, height), expected, rtol=1e-12, atol=1e-12)


def test_every_kind_is_compared_but_those_that_are_the_change_itself() -> None:
    assert {recorded(case)[3].kind for case in CASES} == set(Kind) - {Kind.NORM, Kind.BIAS}


sizes = st.integers(1, 5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_are_those_of_the_whole_product_and_of_the_formula(data: st.DataObject) -> None:
    a, b, c, d, rank, k = (data.draw(sizes, name) for name in ("a", "b", "c", "d", "rank", "k"))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    out, inputs = a * b, c * d
    core = "i j k l, i p, j r -> p r k l"
    up, down, wide, mid = (
        draw(out, rank),
        draw(rank, inputs),
        draw(rank, inputs, k, k),
        draw(rank, rank, k, k),
    )
    pair = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": draw(out, rank), "hada_w2_b": draw(rank, inputs)}
    turned = {key: tensor.T if key.endswith("_a") else tensor for key, tensor in pair.items()}
    cores = {"hada_t1": mid, "hada_t2": draw(rank, rank, k, k)}
    one, two = draw(a, c), draw(b, d, k, k)
    two_a, two_b = draw(b, rank), draw(rank, d)
    cases: list[tuple[Kind, dict[str, Tensor], Tensor]] = [
        (Kind.LORA, {"up": up, "down": down}, up @ down),
        (
            Kind.LORA,
            {"up": up[:, :, None, None], "down": wide},
            torch.einsum("o r, r i k l -> o i k l", up, wide),
        ),
        (
            Kind.TUCKER,
            {"up": up[:, :, None, None], "down": down[:, :, None, None], "mid": mid},
            torch.einsum(core, mid, up.T, down),
        ),
        (Kind.LOHA, pair, (up @ down) * (pair["hada_w2_a"] @ pair["hada_w2_b"])),
        (
            Kind.LOHA,
            turned | cores,
            torch.einsum(core, mid, up.T, down)
            * torch.einsum(core, cores["hada_t2"], pair["hada_w2_a"].T, pair["hada_w2_b"]),
        ),
        (Kind.LOKR, {"lokr_w1": one, "lokr_w2": two}, torch.kron(one[:, :, None, None], two)),
        (
            Kind.LOKR,
            {"lokr_w1": one, "lokr_w2_a": two_a, "lokr_w2_b": two_b},
            torch.kron(one, two_a @ two_b),
        ),
        (Kind.DIFF, {"diff": wide}, wide),
        (Kind.NORM, {"w_norm": up[:, 0]}, up[:, 0]),
        (Kind.BIAS, {"diff_b": up[:, 0]}, up[:, 0]),
    ]
    for kind, factors, formula in cases:
        formula = formula.reshape(formula.shape[0], -1)
        start = data.draw(st.integers(0, len(formula) - 1))
        stop = data.draw(st.integers(start + 1, len(formula)))
        rows = change_rows(kind, factors, start, stop, 0.5)
        assert rows.shape == (stop - start, formula.shape[1])
        whole = change_rows(kind, factors, 0, len(formula), 0.5)
        torch.testing.assert_close(rows, whole[start:stop], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(rows, 0.5 * formula[start:stop], rtol=1e-12, atol=1e-13)


def test_rows_of_zeros_stay_zeros_whatever_length_they_shall_have() -> None:
    base = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    change = torch.zeros(2, 2)
    lengths = torch.tensor([10.0, 10.0])
    assert torch.equal(base + dora_rows(base, change, lengths), torch.tensor([[6.0, 8.0], [0.0, 0.0]]))
    base = base.T.contiguous()
    assert torch.equal(base + dora_inputs(base, change, lengths), torch.tensor([[6.0, 0.0], [8.0, 0.0]]))

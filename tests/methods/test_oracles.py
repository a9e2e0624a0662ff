"""What other mergers computed from the same tensors, recorded by oracles/make.py.

Where we differ on purpose, a test states the difference: theirs, from ours or from a formula.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from runner.methods import METHODS
from runner.methods.random import Random
from tests.methods.oracles.make import EXPECTED, inputs

THEIRS: dict[str, Tensor] = load_file(EXPECTED)
with safe_open(EXPECTED, "pt") as _file:
    CASES: dict[str, dict[str, Any]] = json.loads(_file.metadata()["oracles"])["cases"]
AGREED = [name for name, case in CASES.items() if not case["differs"]]
DIFFERENT = [name for name, case in CASES.items() if case["differs"]]


def models(name: str) -> list[Tensor]:
    case = CASES[name]
    return inputs(case["seed"], case["count"], case["shape"], case["near"])


def run(method: str, operands: list[Tensor], **parameters: Any) -> Tensor:
    """One of our methods on the tensors of models."""
    ours = METHODS[method, None]
    if parameters.pop("first_is_base", False):
        parameters["base"], *operands = operands
    if ours.deltas:
        operands = [operands[0], *(model - operands[0] for model in operands[1:])]
    if ours.draws:
        parameters["random"] = Random(0, "merge", [str(n) for n in range(len(operands))], "key", 0)
    result = ours.function(*operands, **parameters)
    assert isinstance(result, Tensor)
    return result


def run_case(name: str, **changes: Any) -> Tensor:
    """Our result for a case, some parameters changed."""
    return run(CASES[name]["method"], models(name), **{**CASES[name]["parameters"], **changes})


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_the_file_is_small_and_every_case_is_used() -> None:
    assert EXPECTED.stat().st_size < 200_000
    assert set(THEIRS) == set(CASES) == {*AGREED, *DIFFERENT}
    assert {f"test_{name.replace('/', '_').replace('-', '_')}" for name in DIFFERENT} <= set(globals())


@pytest.mark.parametrize("name", AGREED)
def test_a_peer_computes_the_same(name: str) -> None:
    same(run_case(name), THEIRS[name])


@pytest.mark.parametrize("name", [name for name in DIFFERENT if CASES[name]["count"] > 1])
def test_a_peer_computes_something_else(name: str) -> None:
    moved = max(float((model - models(name)[0]).abs().max()) for model in models(name))
    assert float((run_case(name) - THEIRS[name]).abs().max()) > 1e-4 * moved


# How they differ.


def test_mergekit_task_arithmetic_negative() -> None:
    name = "mergekit/task_arithmetic/negative"
    base, weights = models(name)[0], CASES[name]["parameters"]["weight"]
    ratio = sum(map(abs, weights)) / sum(weights)
    same(base + (run_case(name) - base) * ratio, THEIRS[name])


def test_mergekit_ties_negative() -> None:
    name = "mergekit/ties/negative"
    base, *others = models(name)
    parameters = CASES[name]["parameters"]
    total = run_case(name, normalize=False) - base
    signed, plain = torch.zeros_like(base), torch.zeros_like(base)
    for other, weight, density in zip(others, parameters["weight"], parameters["density"], strict=True):
        delta = weight * (other - base)
        order = delta.abs().flatten().argsort(descending=True)
        kept = torch.zeros(delta.numel(), dtype=torch.bool)
        kept[order[: int(density * delta.numel())]] = True
        agrees = kept.reshape(delta.shape) & (delta.sign() == torch.where(total >= 0, 1.0, -1.0))
        signed += agrees * torch.tensor(weight, dtype=torch.float64)
        plain += agrees * torch.tensor(abs(weight), dtype=torch.float64)
    same(base + total / signed.masked_fill(signed == 0, 1), THEIRS[name])
    same(base + total / plain.masked_fill(plain == 0, 1), run_case(name))


def test_mergekit_slerp_near() -> None:
    name = "mergekit/slerp/near"
    a, b = models(name)
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    assert 0.9995 < cosine < 1 - 1e-6
    same(run("weighted_sum", [a, b], alpha=0.3), THEIRS[name])
    distance = float((run_case(name) - THEIRS[name]).norm())
    assert 0 < distance <= math.acos(cosine) ** 2 / 8 * float(max(a.norm(), b.norm()))


def test_mergekit_model_stock_tiny() -> None:
    name = "mergekit/model_stock/tiny"
    base, *others = models(name)
    deltas = [other - base for other in others]
    shares = {}
    for floor in (0.0, 1e-6):
        cosine = sum(
            float((deltas[i] * deltas[j]).sum()) / max(float(deltas[i].norm() * deltas[j].norm()), floor)
            for i, j in ((0, 1), (0, 2), (1, 2))
        )
        shares[floor] = cosine / (1 + 2 * cosine / 3)
    assert shares[0.0] > 0.9 and shares[1e-6] < 0.2
    mean = (deltas[0] + deltas[1] + deltas[2]) / 3
    same(base + shares[1e-6] * mean, THEIRS[name])
    same(base + shares[0.0] * mean, run_case(name))


def by_kernel_rows(name: str) -> Tensor:
    """Our result with the rows of the kernels of a convolution for rows."""
    wide = [model.reshape(-1, model.shape[-1]) for model in models(name)]
    return run(CASES[name]["method"], wide, **CASES[name]["parameters"]).reshape(models(name)[0].shape)


def test_mergekit_model_stock_row_conv() -> None:
    same(by_kernel_rows("mergekit/model_stock/row/conv"), THEIRS["mergekit/model_stock/row/conv"])


def test_sd_mecha_model_stock_conv() -> None:
    same(by_kernel_rows("sd-mecha/model_stock/conv"), THEIRS["sd-mecha/model_stock/conv"])


def test_sd_mecha_slerp_opposite() -> None:
    (a,) = models("sd-mecha/slerp/opposite")
    same(run("slerp", [a, -a], alpha=0.3, magnitude="lerp"), 0.4 * a)
    assert float((THEIRS["sd-mecha/slerp/opposite"] - 0.4 * a).norm() / a.norm()) > 0.1


def test_sd_mecha_ties_draw() -> None:
    name = "sd-mecha/ties/draw"
    base, first, second = models(name)
    draw = (first - base).sign() + (second - base).sign() == 0
    assert 0 < int(draw.sum()) < draw.numel()
    same(torch.where(draw, base, run_case(name)), THEIRS[name])
    same(run_case(name)[draw], torch.maximum(first, second)[draw])


def test_sd_mecha_ties_trim() -> None:
    same(run_case("sd-mecha/ties/trim", density=0.6), THEIRS["sd-mecha/ties/trim"])


def test_sd_mecha_cosine_b_end() -> None:
    name = "sd-mecha/cosine_b/end"
    a, b = models(name)
    lengths = a.norm(dim=0) * b.norm(dim=0)
    alike = ((a * b).sum(0) / lengths + (a * b).sum() / (a.norm() * b.norm())) / 2
    keep = (alike + 1).clamp(0, 1)
    assert float(keep.min()) < 1
    same(keep * a + (1 - keep) * b, THEIRS[name])
    same(run_case(name), a)


def test_sd_mecha_add_perpendicular_zero() -> None:
    name = "sd-mecha/add_perpendicular/zero"
    (c,) = models(name)
    same(THEIRS[name], c)
    same(run("add_perpendicular", [c, -c, c], alpha=0.7), c - 1.4 * c)


def test_sd_mecha_tensor_sum_rounding() -> None:
    name = "sd-mecha/tensor_sum/rounding"
    a, b = models(name)
    same(torch.cat([b[:4], a[4:]]), THEIRS[name])
    same(torch.cat([b[:3], a[3:]]), run_case(name))


def test_sd_mecha_top_k_tensor_sum_offset() -> None:
    name = "sd-mecha/top_k_tensor_sum/offset"
    a, _ = models(name)
    bound = a.abs().flatten().sort().values[round(0.3 * a.numel()) - 1]
    differ = run_case(name) != THEIRS[name]
    assert int(differ.sum()) == 1
    same(THEIRS[name][differ].abs(), bound[None])
    same(run_case(name)[differ], a[differ])


def test_mergekit_nearswap_tiny() -> None:
    name = "mergekit/nearswap/tiny"
    a, b = models(name)
    assert float((b - a).abs().max()) < 1e-7
    torch.testing.assert_close(THEIRS[name] - a, (b - a) * 0.1, rtol=1e-6, atol=1e-15)
    assert torch.equal(run_case(name), b)


def test_peft_ties_weights() -> None:
    name = "peft/ties/weights"
    base, *others = models(name)
    # Trimmed without weights; the kept part of a model is what ties makes of it alone.
    kept = [run("ties", [base, other], density=0.6) - base for other in others]
    sign = torch.where(sum(kept) >= 0, 1.0, -1.0)
    agree = [delta.sign() == sign for delta in kept]
    count = torch.stack(agree).sum(0).clamp(min=1)
    weights = CASES[name]["parameters"]["weight"]
    total = sum(w * delta * mask for w, delta, mask in zip(weights, kept, agree, strict=True))
    same(base + total / count, THEIRS[name])


def test_peft_ties_one() -> None:
    base = models("peft/ties/one")[0]
    same(THEIRS["peft/ties/one"], base)
    assert not torch.equal(run_case("peft/ties/one"), base)


def test_mergekit_breadcrumbs_one() -> None:
    base = models("mergekit/breadcrumbs/one")[0]
    same(THEIRS["mergekit/breadcrumbs/one"], base)
    assert not torch.equal(run_case("mergekit/breadcrumbs/one"), base)


def test_mergekit_sce_tiny() -> None:
    base, *others = models("mergekit/sce/tiny")
    deltas = torch.stack([other - base for other in others])
    agree = deltas.sign() == torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    squares = deltas.square().flatten(1).mean(1)
    assert float(squares.sum()) < 1e-6
    for weights, found in (
        (torch.ones(3), THEIRS["mergekit/sce/tiny"]),
        (squares, run_case("mergekit/sce/tiny")),
    ):
        shares = agree * weights.reshape(3, 1, 1)
        same(base + (deltas * shares).sum(0) / shares.sum(0).clamp(min=1e-300), found)


def test_mergekit_nuslerp_row_conv() -> None:
    same(by_kernel_rows("mergekit/nuslerp/row/conv"), THEIRS["mergekit/nuslerp/row/conv"])


def test_mergekit_arcee_fusion_conv() -> None:
    same(by_kernel_rows("mergekit/arcee_fusion/conv"), THEIRS["mergekit/arcee_fusion/conv"])


def test_mergekit_arcee_fusion_point() -> None:
    base, model = models("mergekit/arcee_fusion/point")
    same(THEIRS["mergekit/arcee_fusion/point"], model)  # all importances are 0, and so is the threshold
    changed = run_case("mergekit/arcee_fusion/point") != base
    assert 0 < int(changed.sum()) < changed.numel() / 2


def test_sd_mecha_rotate_wide() -> None:
    a, b = models("sd-mecha/rotate/wide")
    a, ours, theirs = (
        a - a.mean(0),
        run_case("sd-mecha/rotate/wide") - b.mean(0),
        THEIRS["sd-mecha/rotate/wide"],
    )
    assert math.isclose(float(ours.norm()), float(a.norm()))
    assert abs(float((theirs - b.mean(0)).norm() / a.norm()) - 1) > 0.01
    assert float((ours + b.mean(0) - b).norm()) < float((theirs - b).norm())


def test_sd_mecha_rotate_conv() -> None:
    name = "sd-mecha/rotate/conv"
    kernels = [model.reshape(-1, 9) for model in models(name)]
    same(run("rotate", kernels, **CASES[name]["parameters"]).reshape(4, 3, 3, 3), THEIRS[name])

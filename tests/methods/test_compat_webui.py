"""What the web UI of AUTOMATIC1111 and supermerger computed, repeated: roundings, filters of keys, dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from runner.methods import METHODS
from runner.planning.plan import COPIED, KEPT, MERGED
from tests.build import merged, planned

UNET = "model.diffusion_model.out.2.weight"
VAE = "first_stage_model.decoder.conv.weight"
PROJECTION = "conditioner.embedders.1.model.text_projection"
BARE = "double_blocks.0.img_attn.qkv.weight"


@pytest.fixture
def models(tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    """Three models of half precision; b has a key more, c lacks one."""
    generator = torch.Generator().manual_seed(4)
    keys = (UNET, VAE, PROJECTION, BARE)
    found = {name: {key: torch.randn(40, generator=generator).half() for key in keys} for name in "abc"}
    found["b"]["model.extra.weight"] = torch.ones(2).half()
    del found["c"][VAE]
    for name, tensors in found.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return found


def tree(method: str, compat: str, **parameters: Any) -> dict[str, Any]:
    roles = METHODS[method, compat].roles
    models = {role: f"{role}.safetensors" for role in roles}
    return {"method": method, "compat": compat, "models": models, **parameters}


def test_the_web_ui_rounds_every_operation_in_the_dtype_of_the_files(
    models: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    a, b, c = (models[name][UNET] for name in "abc")
    result = merged(tree("weighted_sum", "a1111", alpha=0.3), tmp_path, tmp_path / "sum")
    assert torch.equal(result[UNET], (1 - 0.3) * a + 0.3 * b) and result[UNET].dtype == torch.float16
    result = merged(tree("add_difference", "a1111", alpha=0.7), tmp_path, tmp_path / "difference")
    assert torch.equal(result[UNET], a + 0.7 * (b - c))


def test_the_web_ui_merges_only_keys_with_model_in_them_and_leaves_what_another_lacks(
    models: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    plan = planned(tree("add_difference", "a1111"), tmp_path)
    assert {job.key: job.fate for job in plan.jobs} == {
        UNET: MERGED,
        PROJECTION: MERGED,
        VAE: KEPT,
        BARE: COPIED,
    }
    assert any("model.extra.weight" in keys for keys in plan.dropped.values())
    assert any(warning.startswith("compat a1111: ") for warning in plan.warnings)


def same_but_for_fused_roundings(one: Tensor, other: Tensor) -> bool:
    """torch's lerp rounds once where the processor multiplies and adds at once: rarely a unit of half."""
    near = torch.allclose(one.float(), other.float(), rtol=2**-10, atol=1e-6)
    return near and int((one != other).sum()) <= 2


def test_supermerger_mixes_in_single_precision_from_the_nearer_end(
    models: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    a, b, c = (models[name][UNET].float() for name in "abc")
    for alpha in (0.0, 0.2, 0.5, 0.9, 1.0):
        result = merged(tree("weighted_sum", "supermerger", alpha=alpha), tmp_path, tmp_path / f"{alpha}")
        expected = torch.lerp(a, b, alpha).half() if alpha < 1 else b.half()
        assert same_but_for_fused_roundings(result[UNET], expected)
        assert torch.equal(result[PROJECTION], models["a"][PROJECTION])  # no "weight", no "bias"
    result = merged(tree("sum_twice", "supermerger", alpha=0.3, beta=0.6), tmp_path, tmp_path / "twice")
    assert same_but_for_fused_roundings(result[UNET], torch.lerp(torch.lerp(a, b, 0.3), c, 0.6).half())


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.2), (0.7, 0.6), (0.4, -0.4)])
def test_supermergers_triple_sum_is_two_mixes_or_the_plain_sum(alpha: float, beta: float) -> None:
    generator = torch.Generator().manual_seed(4)
    a, b, c = (torch.randn(500, generator=generator) for _ in range(3))
    result = METHODS["triple_sum", "supermerger"].function(a, b, c, alpha=alpha, beta=beta)
    torch.testing.assert_close(result, (1 - alpha - beta) * a + alpha * b + beta * c, rtol=1e-5, atol=1e-6)


def test_supermerger_rounds_differences_in_the_dtype_of_b(
    models: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    method = METHODS["add_difference", "supermerger"].function
    a, b, c = (models[name][UNET] for name in "abc")
    result = method(a.float(), b, c.float(), alpha=0.5)
    assert torch.equal(result, a.float() + 0.5 * (b.float() - c.float()).half())

"""A file of adapters is told from a model, and said what it is without one."""

from __future__ import annotations

import pytest

from runner.architectures import ARCHITECTURES
from runner.lora.algebra import Kind
from runner.lora.names import Dialect, name_of
from runner.lora.summary import describe, detect_lora, likely_architectures
from runner.tensors import TensorSpec
from tests.architectures.test_layouts import CASES, back, folder, specs_made

Specs = dict[str, TensorSpec]


def spec(*shape: int) -> TensorSpec:
    return TensorSpec("F16", shape)


def pairs(case: str, dialect: Dialect, rank: int = 4) -> Specs:
    """An adapter for every matrix of a model's attention."""
    architecture = ARCHITECTURES[CASES[case].architecture]
    ends = {Dialect.KOHYA: ("lora_up", "lora_down")}.get(dialect, ("lora_B", "lora_A"))
    file: Specs = {}
    for key, each in folder(case).items():
        if len(each.shape) == 2 and "attn" in key and key.endswith(".weight"):
            name = name_of(architecture, dialect, key)
            file[f"{name}.{ends[0]}.weight"] = spec(each.shape[0], rank)
            file[f"{name}.{ends[1]}.weight"] = spec(rank, each.shape[1])
    return file


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_no_file_of_adapters(case: str) -> None:
    for specs in (folder(case), specs_made(back(case, folder(case)))):
        assert detect_lora(specs) is None
        assert describe(specs) is None


def test_a_model_with_an_adapter_inside_is_no_file_of_adapters() -> None:
    inside = {f"unet.conv_in.lora_{half}.weight": spec(4, 4) for half in "AB"}
    assert detect_lora(folder("sd1") | inside) is None
    assert detect_lora(inside | {"emb_params": spec(3, 768)}) is Dialect.DIFFUSERS


@pytest.mark.parametrize("dialect", [Dialect.KOHYA, Dialect.DIFFUSERS, Dialect.PEFT])
@pytest.mark.parametrize("case", CASES)
def test_a_file_of_adapters_is_one_of_its_dialect_and_architecture(case: str, dialect: Dialect) -> None:
    file = pairs(case, dialect)
    assert detect_lora(file) is dialect
    found = describe(file)
    assert found is not None
    assert found.dialect is dialect
    assert CASES[case].architecture in found.architectures
    assert likely_architectures(file)[0] == found.architectures[0]
    assert found.kinds == {Kind.LORA: len(file) // 2}
    assert found.ranks == {4: len(file) // 2}
    assert not found.unmatched
    assert not found.misfits
    if found.architectures == (CASES[case].architecture,):
        assert sum(found.components.values()) == len(file) // 2
    if case in ("sd1", "sd2", "sdxl", "sd35_large", "flux"):
        assert found.architectures[0] == CASES[case].architecture


def test_names_of_single_files_and_of_x_labs_are_told_apart() -> None:
    double = "double_blocks.0."
    assert (
        detect_lora({f"diffusion_model.{double}img_attn.qkv.lora_A.weight": spec(4, 8)})
        is Dialect.SINGLE_FILE
    )
    assert detect_lora({f"{double}img_attn.qkv.lora_A.weight": spec(4, 8)}) is Dialect.SINGLE_FILE
    assert detect_lora({f"{double}processor.qkv_lora1.down.weight": spec(4, 8)}) is Dialect.XLABS
    assert detect_lora({"unet.conv_in.alpha": spec()}) is None
    assert detect_lora({}) is None


def test_what_is_odd_is_said() -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    file = {
        f"{name}.lora_up.weight": spec(1280, 8),
        f"{name}.lora_down.weight": spec(8, 1280),
        f"{name}.alpha": spec(),
        f"{name}.dora_scale": spec(1280, 1),
        "lora_unet_conv_in.hada_w1_a": spec(320, 2),
        "lora_unet_conv_out.oft_blocks": spec(2, 2, 2),
        "lora_unet_nowhere.lora_up.weight": spec(1, 1),
        "lora_unet_nowhere.lora_down.weight": spec(1, 1),
        "emb_params": spec(3, 768),
    }
    found = describe(file, {"ss_network_module": "networks.lora", "ss_seed": "1"})
    assert found is not None
    assert found.architectures == ("sd1", "sd2", "sdxl", "sdxl_refiner")
    assert found.kinds == {Kind.LORA: 2}
    assert found.ranks == {1: 1, 8: 1}
    assert found.components == {"unet": 3}
    assert found.alphas == (f"{name}.alpha",)
    assert found.dora == 1
    assert set(found.unmatched) == {
        *("emb_params", "lora_unet_nowhere.lora_up.weight", "lora_unet_nowhere.lora_down.weight"),
    }
    assert found.misfits.keys() == {"lora_unet_conv_in", "lora_unet_conv_out"}
    assert found.settings == {"ss_network_module": "networks.lora"}

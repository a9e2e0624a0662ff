"""Every module of the real classes is found by its names, and by those diffusers makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as theirs

from runner.architectures import ARCHITECTURES
from runner.architectures.layouts import canonical
from runner.lora.names import Dialect, Module, Slot, dialect_of, find_module, module_names, name_of
from tests.architectures.test_layouts import CASES, back, folder, specs_made

every_case = pytest.mark.parametrize("case", CASES)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)

# What kohya's tools call the components, and what their keys begin with in single files.
KOHYA = {
    "unet": "lora_unet",
    "transformer": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}


def matrices(case: str) -> Iterator[str]:
    """Keys of the weights that adapters change."""
    for key, spec in folder(case).items():
        if len(spec.shape) in (2, 4) and key.endswith(".weight") and not key.startswith("vae/"):
            yield key


def module_of(case: str, name: str) -> Module | None:
    return find_module(ARCHITECTURES[CASES[case].architecture], name)


def underscored(key: str) -> str:
    component, _, inner = key.removesuffix(".weight").partition("/")
    return f"{KOHYA[component]}_{inner.replace('.', '_')}"


@every_case
def test_every_module_of_the_classes_is_found_by_its_name_with_dots_or_underscores(case: str) -> None:
    names = [underscored(key) for key in matrices(case)]
    assert len(set(names)) == len(names) > 0
    for key, name in zip(matrices(case), names, strict=True):
        spellings = [name, key.removesuffix(".weight").replace("/", ".")]
        spellings += [spellings[1].replace(".", ".base_model.model.", 1)]
        for spelling in spellings:
            found = module_of(case, spelling)
            assert found is not None, spelling
            assert found.weight == (Slot(key),)


@every_case
def test_every_module_of_a_single_file_is_found_by_its_name_there(case: str) -> None:
    architecture = ARCHITECTURES[CASES[case].architecture]
    parts = set(matrices(case))
    for key in specs_made(back(case, folder(case))):
        keys = canonical(architecture, "checkpoint", key)
        if not parts.issuperset(keys) or not key.endswith(("weight", "in_proj_weight")):
            continue
        whole = key[: -len("weight") - 1]
        prefix = next(start for start in architecture.prefixes if whole.startswith(start))
        inner = whole.removeprefix(prefix)
        names = [whole, f"{KOHYA[architecture.prefixes[prefix]]}_{inner.replace('.', '_')}"]
        if architecture.prefixes[prefix] == architecture.main:
            names += [inner, f"diffusion_model.{inner}"]
        for name in names:
            found = module_of(case, name)
            assert found is not None, name
            assert tuple(dict.fromkeys(slot.key for slot in sorted(found.weight, key=keys_in(keys)))) == keys
            assert {slot.key: 0 for slot in found.weight}.keys() == set(keys)
            # Every row of every part is there once.
            assert all(
                sum(slot.units for slot in found.weight if slot.key == part)
                == next(slot.of for slot in found.weight if slot.key == part)
                for part in keys
            )


def keys_in(keys: tuple[str, ...]):  # type: ignore[no-untyped-def]
    return lambda slot: keys.index(slot.key)


@every_architecture
def test_each_name_of_kohya_s_means_one_module_and_leads_back(name: str) -> None:
    architecture = ARCHITECTURES[name]
    modules = module_names(architecture)
    for written, module in modules.items():
        assert find_module(architecture, written) == module
        assert dialect_of(written) is Dialect.KOHYA
    for module in set(modules.values()):
        slots = module.weight or module.bias
        if len(slots) == 1 and slots[0].of == 1:
            for dialect in (Dialect.KOHYA, Dialect.DIFFUSERS, Dialect.PEFT):
                written = name_of(architecture, dialect, slots[0].key)
                assert find_module(architecture, written) == module
                assert dialect_of(written) is dialect


@every_architecture
def test_no_two_modules_have_the_same_name_with_underscores(name: str) -> None:
    """Names with dots that differ stay apart, or are the original's and diffusers' name of one module."""
    from runner.lora.names import _names

    names = _names(name)
    found: dict[tuple[str, str], Module] = {}
    for (component, inner), module in names.dotted.items():
        at = component, inner.replace(".", "_")
        if at in names.underscored:
            assert found.setdefault(at, module) == module, inner


def test_a_fused_layer_is_rows_of_several_tensors() -> None:
    module = module_of("flux", "lora_unet_single_blocks_7_linear1")
    block = "transformer/single_transformer_blocks.7"
    assert module is not None
    assert [slot.key for slot in module.weight] == [
        f"{block}.{name}.weight" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    swapped = module_of("sd3", "diffusion_model.final_layer.adaLN_modulation.1")
    assert swapped is not None
    assert [(slot.first, slot.units, slot.of) for slot in swapped.weight] == [(1, 1, 2), (0, 1, 2)]


def test_text_encoders_are_found_by_the_names_transformers_5_6_gives_them() -> None:
    for name in ("text_encoder.encoder.layers.3.mlp.fc1", "lora_te_encoder_layers_3_mlp_fc1"):
        assert module_of("sd1", name) == module_of("sd1", "lora_te_text_model_encoder_layers_3_mlp_fc1")


def test_t5_is_kohya_s_third_text_encoder_of_flux_too() -> None:
    for word in ("te2", "te3"):
        module = module_of("flux", f"lora_{word}_encoder_block_0_layer_0_SelfAttention_q")
        assert module is not None
        assert module.weight[0].key == "text_encoder_2/encoder.block.0.layer.0.SelfAttention.q.weight"
    assert module_of("sd3", "lora_te2_encoder_block_0_layer_0_SelfAttention_q") is None


def test_a_name_that_two_text_encoders_have_means_neither() -> None:
    inner = "base_model.model.text_model.encoder.layers.3.mlp.fc1"
    assert module_of("sdxl", inner) is None
    assert module_of("sd1", inner) == module_of("sd1", "lora_te_text_model_encoder_layers_3_mlp_fc1")
    assert module_of("sdxl", "base_model.model.conv_in") == module_of("sdxl", "lora_unet_conv_in")


# ---- As diffusers converts kohya's names.


def converted(names: list[str], blocks: object = None) -> dict[str, str]:
    """What diffusers calls the modules of these names: each has its number in its factor."""
    tensors: dict[str, torch.Tensor] = {}
    for number, name in enumerate(names):
        tensors[f"{name}.lora_down.weight"] = torch.tensor([float(number)])
        tensors[f"{name}.lora_up.weight"] = torch.zeros(1)
    if blocks is not None:
        tensors = theirs._maybe_map_sgm_blocks_to_diffusers(tensors, blocks)
    made, _ = theirs._convert_non_diffusers_lora_to_diffusers(tensors)
    ends = (".lora.down.weight", "_lora.down.weight", ".lora_linear_layer.down.weight")
    found = {}
    for key, tensor in made.items():
        for end in ends:
            if key.endswith(end):
                found[names[int(tensor)]] = key.removesuffix(end)
    return found


def transformer_blocks(case: str) -> list[str]:
    parts = ("transformer_blocks", "proj_in", "proj_out", "self_attn", "mlp")
    return [key for key in matrices(case) if any(part in key for part in parts)]


@pytest.mark.parametrize("case", ["sd1", "sdxl"])
def test_diffusers_means_the_same_modules_by_kohya_s_names(case: str) -> None:
    names = [underscored(key) for key in transformer_blocks(case)]
    made = converted(names)
    assert made.keys() == set(names)
    for key, name in zip(transformer_blocks(case), names, strict=True):
        found = module_of(case, made[name])
        assert found is not None, made[name]
        assert found.weight == (Slot(key),)


def test_diffusers_means_the_same_modules_by_the_names_of_the_original_code() -> None:
    architecture = ARCHITECTURES["sdxl"]
    names = []
    for key in specs_made(back("sdxl", folder("sdxl"))):
        if key.startswith("model.diffusion_model.") and key.endswith(".weight"):
            names.append(
                "lora_unet_" + key[len("model.diffusion_model.") : -len(".weight")].replace(".", "_")
            )
    wanted = set(transformer_blocks("sdxl"))
    modules = {name: find_module(architecture, name) for name in names}
    names = [name for name, module in modules.items() if module and module.weight[0].key in wanted]
    made = converted(names, type("Config", (), {"layers_per_block": 2}))
    assert made.keys() == set(names)
    assert len(names) > 500
    for name in names:
        assert find_module(architecture, made[name]) == modules[name], made[name]

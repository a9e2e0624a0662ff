"""Block weights as other tools write them, on the keys of whole models in both layouts."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.architectures import ARCHITECTURES, Place, expand_block, place
from runner.errors import Problems, RecipeError
from runner.methods import Parameter, Range
from runner.weighting.dialects import DIALECTS, layouts
from runner.weighting.parameter import Weighting, parse_weighting
from runner.weighting.pasted import KEYS
from runner.weighting.presets import preset
from runner.weighting.rules import Names
from tests.architectures.ldm import ldm_names
from tests.architectures.models import UNETS, model, unet
from tests.build import here

ALPHA = Parameter("alpha", 0.5, Range(0, 1, "ask"))
U = "model.diffusion_model."
SINGLE = {
    "sd1": ["model_ema.diffusion_modeltime_embed0weight", "model_ema.diffusion_modelout0weight"],
    "sdxl": ["conditioner.embedders.1.model.logit_scale", "model.diffusion_model.odd.weight"],
}
STRING = ",".join(map(str, (0.5, *(preset("SMOOTHSTEP") or ())[1:])))
GRAD_V = "0,1,0.9166666667,0.8333333333,0.75,0.6666666667,0.5833333333,0.5,0.4166666667,0.3333333333,0.25,"
GRAD_V += "0.1666666667,0.0833333333,0,0.0833333333,0.1666666667,0.25,0.3333333333,0.4166666667,0.5,"
GRAD_V += "0.5833333333,0.6666666667,0.75,0.8333333333,0.9166666667,1.0"


@functools.cache
def names(architecture: str, layout: str = "checkpoint", hook: bool = True) -> Names:
    """What a recipe can name in a whole model."""
    keys = [*model(architecture, layout), *(SINGLE.get(architecture, []) if layout == "checkpoint" else [])]
    known = ARCHITECTURES[architecture]
    places = {key: place(known, layout, key) for key in keys}
    if layout == "checkpoint":
        return Names(places, known)
    single = {f"unet/{key}": name for key, name in ldm_names(unet(architecture)).items()} if hook else {}
    return Names(places, known, single.get)


def parse(
    value: Any,
    architecture: str = "sd1",
    layout: str = "checkpoint",
    *,
    parameter: Parameter = ALPHA,
    extrapolate: bool = False,
    hook: bool = True,
) -> tuple[Weighting, Problems]:
    problems = Problems(here)
    found = names(architecture, layout, hook)
    return parse_weighting(parameter, value, ("alpha",), extrapolate, found, problems), problems


def values(
    value: Any, architecture: str = "sd1", layout: str = "checkpoint", **more: Any
) -> dict[str, float]:
    weighting, problems = parse(value, architecture, layout, **more)
    problems.raise_if_any()
    assert weighting.unused == ()
    return {key: weighting.at(key, at) for key, at in names(architecture, layout).places.items()}


def mistakes(value: Any, architecture: str = "sd1", layout: str = "checkpoint", **more: Any) -> list[str]:
    _, problems = parse(value, architecture, layout, **more)
    try:
        problems.raise_if_any()
    except RecipeError as error:
        return [line.removeprefix("test.yaml:1: ") for line in error.message.split("\n")]
    return []


def warnings(value: Any, architecture: str = "sd1", **more: Any) -> list[str]:
    _, problems = parse(value, architecture, **more)
    problems.raise_if_any()
    return [line.removeprefix("test.yaml:1: ") for line in problems.warnings]


def by_block(found: dict[str, float], architecture: str) -> dict[str, set[float]]:
    """The values in each block, with the module names of no account."""
    known = ARCHITECTURES[architecture].blocks
    result: dict[str, set[float]] = {}
    for key, at in names(architecture).places.items():
        block = next((block for block in at.blocks if block in known), None)
        if block:
            result.setdefault(block, set()).add(found[key])
    return result


# ---- A: one string, as each tool lays it on a model.

SD1_KEYS = {
    "time": f"{U}time_embed.0.weight",
    "in4": f"{U}input_blocks.4.1.proj_in.weight",
    "middle": f"{U}middle_block.1.norm.weight",
    "out3": f"{U}output_blocks.3.0.in_layers.2.weight",
    "head": f"{U}out.2.weight",
    "text": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "vae": "first_stage_model.decoder.conv_in.weight",
    "ema time": "model_ema.diffusion_modeltime_embed0weight",
    "ema": "model_ema.diffusion_modelout0weight",
}
SDXL_KEYS = {
    "time": f"{U}time_embed.0.weight",
    "label": f"{U}label_emb.0.0.weight",
    "in8": f"{U}input_blocks.8.1.proj_in.weight",
    "out8": f"{U}output_blocks.8.0.in_layers.0.weight",
    "head": f"{U}out.2.weight",
    "text": "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
    "projection": "conditioner.embedders.1.model.text_projection",
    "vae": "first_stage_model.decoder.conv_in.weight",
}
A_SD1 = {"time": 0, "in4": 2 / 27, "middle": 0.5, "out3": 20 / 27, "head": 1, "text": 0.5, "vae": 0.5}
A_SD1 |= {"ema time": 0, "ema": 0.5}
A_SDXL = {
    "time": 0,
    "label": 0,
    "in8": 7 / 27,
    "out8": 0.95703125,
    "head": 0.95703125,
    "text": 0.5,
    "vae": 0.5,
}
A: dict[tuple[str, str], dict[str, float]] = {
    ("sd1", "runner"): A_SD1,
    ("sd1", "supermerger"): A_SD1,
    ("sd1", "sd-meh"): A_SD1 | {"ema time": 0.5},
    ("sd1", "sd-mecha"): A_SD1 | {"time": 0.5, "ema time": 0.5},
    ("sd1", "chattiori"): A_SD1 | {"time": 1, "vae": 0, "ema time": 1},
    ("sdxl", "runner"): A_SDXL | {"projection": 0.5},
    ("sdxl", "supermerger"): A_SDXL | {"projection": 0},
    ("sdxl", "sd-meh"): A_SDXL | {"label": 0.5, "head": 1, "projection": 0.5},
    ("sdxl", "sd-mecha"): A_SDXL | {"time": 0.5, "label": 0.5, "projection": 0.5, "vae": 0.875},
    ("sdxl", "chattiori"): A_SDXL | {"time": 0, "label": 0, "projection": 0, "vae": 0},
}


def cut(text: str) -> str:
    """The numbers of the blocks SDXL has, of a string of 26."""
    numbers = dict(zip(ARCHITECTURES["sd1"].blocks, text.split(","), strict=True))
    return ",".join(numbers[block] for block in ARCHITECTURES["sdxl"].blocks)


@pytest.mark.parametrize(("architecture", "dialect"), A)
def test_a_string_means_what_it_means_in_its_tool(architecture: str, dialect: str) -> None:
    value: dict[str, Any] = {"mbw": STRING, "dialect": dialect, "default": 0.0625}
    if (architecture, dialect) == ("sdxl", "sd-mecha"):
        value |= {"mbw": cut(STRING), "VAE": 0.875}
    keys = SD1_KEYS if architecture == "sd1" else SDXL_KEYS
    found = values(value, architecture)
    assert {name: found[keys[name]] for name in A[architecture, dialect]} == pytest.approx(
        A[architecture, dialect], abs=1e-6
    )


def test_runner_is_the_dialect_if_none_is_named() -> None:
    for architecture in ("sd1", "sdxl"):
        value = {"mbw": STRING, "default": 0}
        assert values(value, architecture) == values({**value, "dialect": "runner"}, architecture)


def test_what_a_tool_leaves_is_left_until_the_recipe_names_it() -> None:
    value = {"mbw": STRING, "dialect": "chattiori", "default": 0.0625}
    vae, time = SDXL_KEYS["vae"], SDXL_KEYS["time"]
    assert values({**value, "BASE": 0.25}, "sdxl")[vae] == 0
    assert values({**value, "VAE": 0.25}, "sdxl")[vae] == 0.25
    assert values({**value, "vae": 0.25}, "sdxl")[vae] == 0.25
    assert values({**value, "TIME": 0.25}, "sdxl")[time] == 0.25
    assert values({**value, "*text_projection": 0.25}, "sdxl")[SDXL_KEYS["projection"]] == 0.25


def test_the_unet_keys_no_tool_knows_fall_where_it_lets_them() -> None:
    odd = f"{U}odd.weight"
    assert names("sdxl").places[odd] == Place("unet", ())
    value = {"mbw": STRING, "default": 0.0625}
    found = {name: values({**value, "dialect": name}, "sdxl")[odd] for name in ("sd-meh", "supermerger")}
    assert found == {"sd-meh": 0.5, "supermerger": 0.0625}
    mecha = {"mbw": cut(STRING), "default": 0.0625, "dialect": "sd-mecha"}
    assert values(mecha, "sdxl")[odd] == pytest.approx(0.95703125)


# ---- B: 26 numbers on SDXL.

B = (0, 1, 11 / 12, 5 / 6, 0.75, 2 / 3, 7 / 12, 0.5, 5 / 12, 1 / 3)
B += (0, 1 / 12, 1 / 6, 0.25, 1 / 3, 5 / 12, 0.5, 7 / 12, 2 / 3, 0.75)


@pytest.mark.parametrize("given", ["GRAD_V", "grad-v", GRAD_V, [float(n) for n in GRAD_V.split(",")]])
@pytest.mark.parametrize("dialect", ["runner", "supermerger", "chattiori"])
def test_26_numbers_on_sdxl_lose_those_of_blocks_it_has_not(given: Any, dialect: str) -> None:
    value = {"mbw": given, "dialect": dialect, "default": 0}
    found = by_block(values(value, "sdxl"), "sdxl")
    for block, expected in zip(ARCHITECTURES["sdxl"].blocks, B, strict=True):
        assert max(found[block]) == pytest.approx(expected), block
    assert values(value, "sdxl")[SDXL_KEYS["head"]] == pytest.approx(0.75)
    assert warnings(value, "sdxl") == [
        "alpha.mbw: the numbers in places 11, 12, 13, 24, 25, 26 of 26 are not used in Stable Diffusion XL"
    ]


# ---- C: elemental entries.

C = {
    f"{U}output_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": 0.5,
    f"{U}output_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": 0.2,
    f"{U}output_blocks.4.1.transformer_blocks.0.ff.net.0.proj.weight": 0.111,
}


@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
def test_elemental_entries_replace_block_weights_and_the_last_wins(layout: str) -> None:
    text = "OUT04:attn:0.5, OUT04:attn2.to_k:0.2"
    value = {"default": 0.75, "mbw": [0.111] * 26, "elemental": text}
    found = values(value, layout=layout)
    read = names("sd1", layout).single_file_name
    by_name = {read(key): number for key, number in found.items()}
    assert {key: by_name[key] for key in C} == C
    assert set(found.values()) == {0.5, 0.2, 0.111}
    turned = values({**value, "elemental": "OUT04:attn2.to_k:0.2\nOUT04:attn:0.5"}, layout=layout)
    assert set(turned.values()) == {0.5, 0.111}


def test_not_inverts_all_the_names_that_follow() -> None:
    found = values({"default": 0.111, "elemental": "NOT OUT04 OUT05:attn:1"})
    for key, at in names("sd1").places.items():
        outside = not {"OUT04", "OUT05"} & set(at.blocks)
        assert found[key] == (1 if outside and "attn" in key else 0.111), key
    assert found["first_stage_model.decoder.mid_block.attentions.0.to_k.weight"] == 0.111
    found = values({"default": 0.111, "elemental": "OUT05:NOT attn proj:0.2"})
    for key, at in names("sd1").places.items():
        chosen = "OUT05" in at.blocks and "attn" not in key and "proj" not in key
        assert found[key] == (0.2 if chosen else 0.111), key


def test_an_entry_without_blocks_or_words_is_for_all() -> None:
    assert set(values({"default": 0, "elemental": "::0.25"}).values()) == {0.25}
    found = values({"default": 0, "elemental": ":norm:0.25, IN04-IN05 TIME::0.5"})
    for key, at in names("sd1").places.items():
        expected = 0.5 if {"IN04", "IN05", "TIME"} & set(at.blocks) else 0.25 if "norm" in key else 0
        assert found[key] == expected, key


def test_a_key_pattern_beats_an_elemental_entry_and_nothing_else_does() -> None:
    key = f"{U}output_blocks.4.1.norm.weight"
    value = {"default": 0, "OUT04": 0.25, "unet": {"OUT04": 0.5}, "elemental": "OUT04:norm:1"}
    assert values(value)[key] == 1
    assert values({**value, f"{U}output_blocks.4.*": 0.75})[key] == 0.75


def test_entries_leave_what_the_dialect_leaves_unless_they_name_it() -> None:
    value = {"mbw": STRING, "dialect": "chattiori", "default": 0}
    vae = SD1_KEYS["vae"]
    assert values({**value, "elemental": "::0.25"})[vae] == 0
    assert values({**value, "elemental": "NOT IN00::0.25"})[vae] == 0
    assert values({**value, "elemental": "VAE::0.25"})[vae] == 0.25


def test_a_folder_needs_single_file_names_only_where_words_are_compared() -> None:
    bare = {"layout": "diffusers", "hook": False}
    assert mistakes({"default": 0, "elemental": "OUT04::0.5"}, **bare) == []
    (line,) = mistakes({"default": 0, "elemental": "OUT04:attn:0.5"}, **bare)
    assert line.startswith('alpha.elemental: "OUT04:attn:0.5" is read by the names of a single file')
    assert mistakes({"default": 0, "elemental": "OUT04:attn:0.5"}, layout="diffusers") == []
    assert len(mistakes({"default": 0, "elemental": "CLIP:attn:0.5"}, layout="diffusers")) == 1


ELEMENTAL_MISTAKES: list[tuple[Any, str]] = [
    ("OUT4x:attn:0.5", 'alpha.elemental: "OUT4x:attn:0.5": unknown block "OUT4x", did you mean "OUT04"?'),
    ("OUT04:attn", "alpha.elemental: expected BLOCKS:ELEMENTS:RATIO, as in OUT04:attn2:0.5; found"),
    ("OUT04:attn:2", 'alpha.elemental: "OUT04:attn:2": expected 0 to 1, found 2; say extrapolate: true'),
    ("OUT04:attn:R", 'alpha.elemental: "OUT04:attn:R": letters for random numbers need their seed'),
    (0.5, "alpha.elemental: expected entries such as"),
]


@pytest.mark.parametrize(("text", "expected"), ELEMENTAL_MISTAKES)
def test_a_mistake_in_an_entry_names_it(text: Any, expected: str) -> None:
    (line,) = mistakes({"default": 0, "elemental": text})
    assert line.startswith(expected)


def test_an_entry_that_selects_nothing_is_told() -> None:
    weighting, problems = parse({"default": 0, "elemental": "OUT04:nothing:0.5, OUT04::1"})
    assert not problems
    message = '"OUT04:nothing:0.5" selects no tensor of these models'
    assert weighting.unused == ((("alpha", "elemental"), message),)


# ---- D: sliders.


@pytest.mark.parametrize("prefix", ["output_blocks.3.", "output_blocks.3"])
@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
def test_comfyui_has_sliders_that_are_the_share_of_the_first_model(prefix: str, layout: str) -> None:
    value = {"dialect": "comfyui", "mbw": {"default": 1, prefix: 0.25}, "default": 0.0625}
    found = values(value, "sdxl", layout)
    for key, at in names("sdxl", layout).places.items():
        assert found[key] == (0.75 if "OUT03" in at.blocks else 0), key


def test_the_longest_prefix_wins() -> None:
    sliders = {"out": 0.75, "output_blocks.1.": 0.5, "output_blocks.10.": 0.25, "default": 1}
    found = values({"dialect": "comfyui", "mbw": sliders, "default": 0})
    assert found[f"{U}out.2.weight"] == 0.25
    assert found[f"{U}output_blocks.1.0.in_layers.0.weight"] == 0.5
    assert found[f"{U}output_blocks.10.0.in_layers.0.weight"] == 0.75
    assert found[f"{U}output_blocks.11.0.in_layers.0.weight"] == 0.25
    assert found[f"{U}middle_block.1.norm.weight"] == 0
    beside = {"dialect": "comfyui", "mbw": sliders, "default": 0, "M00": 0.125, "text_encoder": 0.375}
    assert values(beside)[f"{U}middle_block.1.norm.weight"] == 0.125
    assert values(beside)[SD1_KEYS["text"]] == 0.375


def test_sliders_are_a_mapping_and_each_moves_something() -> None:
    (line,) = mistakes({"dialect": "comfyui", "mbw": STRING, "default": 0})
    assert line.startswith("alpha.mbw: expected comfyui's sliders by prefix, as in {default: 1,")
    weighting, _ = parse({"dialect": "comfyui", "mbw": {"default": 1, "outputs.3": 0.5}, "default": 0})
    assert weighting.unused == (
        (("alpha", "mbw", "outputs.3"), '"outputs.3" selects no tensor of these models'),
    )
    (line,) = mistakes({"mbw": {"default": 1}, "default": 0})
    assert line.startswith("alpha.mbw: expected numbers or the name of a preset, found")


# ---- E: the two layouts.


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("architecture", UNETS)
def test_a_unet_has_the_same_values_in_both_layouts(architecture: str, dialect: str) -> None:
    known = ARCHITECTURES[architecture]
    count = min(layouts(dialect, known))
    numbers = [at / count for at in range(count)]
    given: Any = {"default": 1, "middle_block.1.": 0.25} if dialect == "comfyui" else numbers
    base = {} if dialect == "comfyui" else {"base": 0.875}
    value = {"mbw": given, "dialect": dialect, **base, "default": 0}
    single, folder = values(value, architecture), values(value, architecture, "diffusers")
    for key, name in ldm_names(unet(architecture)).items():
        assert single[name] == folder[f"unet/{key}"], key


def test_an_upsampler_belongs_to_the_block_before_it() -> None:
    for architecture in ("sd1", "sdxl"):
        found = values({"default": 0, "OUT05": 1}, architecture, "diffusers")
        assert found["unet/up_blocks.1.upsamplers.0.conv.weight"] == 1


# ---- Counts.

FITTING = {
    ("sd1", "runner"): {26, 25},
    ("sd2", "supermerger"): {26, 25},
    ("sdxl_refiner", "chattiori"): {26, 25},
    ("sd1", "sd-meh"): {26, 25},
    ("sdxl", "runner"): {26, 25, 21, 20, 19, 110},
    ("sdxl", "supermerger"): {26, 25, 21, 20, 19, 110},
    ("sdxl", "chattiori"): {26, 25, 21, 20, 19},
    ("sdxl", "sd-meh"): {26, 25},
    ("sdxl", "sd-mecha"): {21, 20, 19},
    ("flux", "runner"): {61},
    ("sd3", "runner"): {30},
    ("sd35_large", "runner"): {44},
}
WITH_BASE = {25, 19}


@pytest.mark.parametrize("count", [1, 2, 12, 17, 19, 20, 21, 24, 25, 26, 27, 30, 44, 61, 109, 110, 111])
@pytest.mark.parametrize(("architecture", "dialect"), FITTING)
def test_only_the_counts_of_the_table_fit(architecture: str, dialect: str, count: int) -> None:
    value = {"mbw": [0.5] * count, "dialect": dialect, "default": 0}
    found = mistakes(value, architecture)
    if count not in FITTING[architecture, dialect]:
        (line,) = found
        title = ARCHITECTURES[architecture].title
        assert line.startswith(f"alpha.mbw: {count} numbers do not fit {title}: expected ")
        assert all(re.search(rf"\b{fit}\b", line) for fit in FITTING[architecture, dialect])
    elif count in WITH_BASE:
        main = ARCHITECTURES[architecture].main
        assert found == [f"alpha.mbw: {count} numbers leave out BASE, all but {main}: add base: NUMBER"]
        assert mistakes({**value, "base": 1}, architecture) == []
    else:
        assert found == []


@pytest.mark.parametrize(
    ("architecture", "given", "hint"),
    [
        ("sd1", [1] * 20, "; a string for Stable Diffusion XL?"),
        ("sd1", [1] * 61, "; a string for Flux.1?"),
        ("flux", [1] * 26, "; a string for Stable Diffusion 1.x?"),
        ("sd1", [1] * 12, "; block weights of a LoRA?"),
        ("sdxl", [1] * 17, "; block weights of a LoRA?"),
        ("sd1", ",".join(["0,5"] * 26), "; decimal commas? write decimal points"),
        ("sd1", ",".join(["0.5"] * 52), "expected 26 or 25 with base:"),
        ("flux", "GRAD_V", "; a string for Stable Diffusion 1.x?"),
    ],
)
def test_a_count_that_does_not_fit_says_what_it_may_be(architecture: str, given: Any, hint: str) -> None:
    (line,) = mistakes({"mbw": given, "default": 0}, architecture)
    assert line.endswith(hint)


def test_25_numbers_and_base_are_26() -> None:
    without = STRING.partition(",")[2]
    for architecture in ("sd1", "sdxl"):
        whole = values({"mbw": STRING, "default": 0}, architecture)
        assert values({"mbw": without, "base": 0.5, "default": 0}, architecture) == whole


def test_base_replaces_the_first_number() -> None:
    assert values({"mbw": "ALL_B", "base": 0.25})[SD1_KEYS["text"]] == 0.25
    assert values({"mbw": "ALL_B", "base": 0.25})[SD1_KEYS["middle"]] == 1
    assert mistakes({"base": 0.5, "default": 0})[0].startswith("alpha.base: goes with the numbers")
    (line,) = mistakes({"mbw": [0.5] * 61, "base": 0.5, "default": 0}, "flux")
    assert line == "alpha.base: Flux.1 has no BASE: leave it out"


def test_the_21st_number_is_the_vae_of_sdxl() -> None:
    numbers = [*([0.25] * 20), 0.75]
    for dialect, expected in (("runner", 0.75), ("sd-mecha", 0.75), ("supermerger", 0.25), ("chattiori", 0)):
        value = {"mbw": numbers, "dialect": dialect, "default": 0}
        assert values(value, "sdxl")[SDXL_KEYS["vae"]] == expected, dialect
    assert warnings({"mbw": numbers, "default": 0}, "sdxl") == []
    (line,) = warnings({"mbw": numbers, "dialect": "supermerger", "default": 0}, "sdxl")
    assert "places 21 of 21 are not used" in line


def test_every_number_of_a_transformer_is_one_block() -> None:
    for architecture in ("flux", "sd3", "sd35_large"):
        known = ARCHITECTURES[architecture]
        numbers = [at / 64 for at in range(len(known.blocks))]
        found = by_block(values({"mbw": numbers, "default": 0}, architecture), architecture)
        expected = {block: {number} for block, number in zip(known.blocks, numbers, strict=True)}
        assert found == {block: value for block, value in expected.items() if block in found}
        assert {"IN", "OUT"} < set(found)
    left = values({"mbw": [0.5] * 61, "default": 1}, "flux")
    assert {left[key] for key, at in names("flux").places.items() if at.component == "vae"} == {0}


# ---- The 110 of SDXL.

PARTS = {
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": 0,
    "conditioner.embedders.1.model.text_projection": 1,
    f"{U}input_blocks.0.0.weight": 3,
    f"{U}input_blocks.1.0.in_layers.0.weight": 4,
    f"{U}input_blocks.3.0.op.weight": 6,
    f"{U}input_blocks.4.0.in_layers.0.weight": 7,
    f"{U}input_blocks.4.1.proj_in.weight": 8,
    f"{U}input_blocks.4.1.transformer_blocks.1.norm1.weight": 10,
    f"{U}input_blocks.8.1.transformer_blocks.9.norm1.weight": 39,
    f"{U}middle_block.0.in_layers.0.weight": 40,
    f"{U}middle_block.1.norm.weight": 41,
    f"{U}middle_block.1.transformer_blocks.3.norm1.weight": 45,
    f"{U}middle_block.2.in_layers.0.weight": 52,
    f"{U}output_blocks.0.0.in_layers.0.weight": 53,
    f"{U}output_blocks.0.1.proj_in.weight": 54,
    f"{U}output_blocks.0.1.transformer_blocks.0.norm1.weight": 55,
    f"{U}output_blocks.1.0.in_layers.0.weight": 65,
    f"{U}output_blocks.2.2.conv.weight": 89,
    f"{U}output_blocks.5.2.conv.weight": 102,
    f"{U}output_blocks.8.0.in_layers.0.weight": 105,
    f"{U}out.2.weight": 106,
    f"{U}time_embed.0.weight": 107,
    f"{U}label_emb.0.0.weight": 108,
    "first_stage_model.decoder.conv_in.weight": 109,
}


@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
def test_110_numbers_are_one_for_each_module(layout: str) -> None:
    found = values({"mbw": [at / 128 for at in range(110)], "default": 0}, "sdxl", layout)
    if layout == "diffusers":
        single = {name: found[f"unet/{key}"] for key, name in ldm_names(unet("sdxl")).items()}
        assert {key: single[key] * 128 for key in PARTS if key.startswith(U)} == {
            key: at for key, at in PARTS.items() if key.startswith(U)
        }
    else:
        assert {key: found[key] * 128 for key in PARTS} == PARTS
        assert len({found[key] for key in found if key.startswith(U)}) == 110 - 4 + 1


def test_a_part_can_be_named_and_beats_its_block() -> None:
    value = {"default": 0, "unet": 0.1, "M00": 0.25, "MID103": 0.5, "IN410-IN511": 0.75, "OUT9": 1}
    found = values({**value, "OUT00": 0.3, "OUT00_1": 0.4}, "sdxl")
    assert found[f"{U}middle_block.1.transformer_blocks.3.norm1.weight"] == 0.5
    assert found[f"{U}middle_block.1.transformer_blocks.4.norm1.weight"] == 0.25
    assert found[f"{U}input_blocks.4.1.transformer_blocks.0.norm1.weight"] == 0.75
    assert found[f"{U}input_blocks.5.1.proj_in.weight"] == 0.75
    assert found[f"{U}input_blocks.4.1.proj_in.weight"] == 0.1
    assert found[f"{U}out.0.weight"] == 1
    assert found[f"{U}output_blocks.0.0.in_layers.0.weight"] == 0.3
    assert found[f"{U}output_blocks.0.1.proj_in.weight"] == 0.4
    assert found[f"{U}output_blocks.0.1.transformer_blocks.0.norm1.weight"] == 0.3


def test_a_block_of_sd1_that_is_a_part_of_sdxl_is_warned_of() -> None:
    (line,) = warnings({"default": 0, "OUT10": 0.5}, "sdxl")
    assert line.startswith("alpha.OUT10: in Stable Diffusion XL this is output_blocks.1.0")
    assert warnings({"default": 0, "OUT10": 0.5}, "sd1") == []
    assert mistakes({"default": 0, "IN09": 0.5}, "sdxl") != []


def test_names_in_entries_beside_110_numbers_are_those_of_the_110() -> None:
    numbers = [0.25] * 110
    key, other = f"{U}output_blocks.0.0.in_layers.0.weight", f"{U}output_blocks.0.1.proj_in.weight"
    found = values({"mbw": numbers, "default": 0, "elemental": "OUT00::1"}, "sdxl")
    assert (found[key], found[other]) == (1, 0.25)
    found = values({"mbw": numbers[:20], "default": 0, "elemental": "OUT00::1"}, "sdxl")
    assert (found[key], found[other]) == (1, 1)


# ---- Presets, and what stands beside.


def test_presets_are_mixed_value_by_value() -> None:
    value = {"mbw": "ALL_B", "mix": {"preset": "all-a", "by": 0.25}}
    assert set(values(value).values()) == {0.75}
    value = {"mbw": ["0.0"] * 25, "base": 0, "mix": {"preset": "ALL_B", "by": 0.25}}
    assert mistakes(value)[0].startswith("alpha.mix: a preset is mixed with 26 numbers")
    value = {"mbw": [0] * 25, "base": 0.5, "mix": {"preset": "ALL_B", "by": 0.25}}
    assert set(values(value).values()) == {0.25, 0.5}


PASTED_MISTAKES: list[tuple[Any, str]] = [
    ({"mbw": "GRAD_W"}, 'alpha.mbw: unknown preset "GRAD_W", did you mean "GRAD_'),
    ({"mbw": "smoothstp"}, 'alpha.mbw: unknown preset "smoothstp", did you mean "SMOOTHSTEP"?'),
    ({"mbw": "ALL_X"}, 'alpha.mbw: unknown preset "ALL_X", did you mean "ALL_'),
    ({"mbw": "zzz"}, 'alpha.mbw: unknown preset "zzz" (GRAD_V and SMOOTHSTEP are some)'),
    ({"mbw": "R"}, "alpha.mbw: letters for random numbers need their seed"),
    ({"mbw": "0,5;1,0;0,25"}, 'alpha.mbw: decimal commas ("0,5"); write decimal points: 0.5'),
    ({"mbw": 0.5}, "alpha.mbw: expected numbers or the name of a preset, found 0.5"),
    ({"mbw": [0.5] * 25 + ["x"]}, 'alpha.mbw.25: OUT11: expected a number, found "x"'),
    ({"mbw": [0.5] * 25 + [2]}, "alpha.mbw.25: OUT11: expected 0 to 1, found 2; say extrapolate: true"),
    ({"mbw": STRING.replace("0.5", "1.5", 1)}, "alpha.mbw: BASE: expected 0 to 1, found 1.5; say"),
    ({"mbw": STRING, "dialect": "sdmecha"}, 'alpha.dialect: unknown dialect "sdmecha", did you mean "sd-me'),
    ({"mbw": STRING, "mix": "ALL_B"}, "alpha.mix: expected {preset: NAME, by: SHARE}, found"),
    ({"mbw": STRING, "mix": {"preset": "ALL_B", "by": 2}}, "alpha.mix.by: expected 0 to 1, found 2"),
    ({"mbw": STRING, "mix": {"preset": "ALL", "by": 1}}, 'alpha.mix.preset: unknown preset "ALL", did'),
    ({"mix": {"preset": "ALL_B", "by": 1}}, "alpha.mix: goes with the numbers or the preset of mbw"),
    ({"unet": {"mbw": STRING}}, "alpha.unet.mbw: is for the whole model: write it beside unet"),
    ({"mbv": STRING}, 'alpha.mbv: unknown component, block or key pattern, did you mean "mbw"?'),
]


@pytest.mark.parametrize(("value", "expected"), PASTED_MISTAKES)
def test_a_mistake_is_one_line_at_its_place(value: Any, expected: str) -> None:
    (line,) = mistakes({**value, "default": 0})
    assert line.startswith(expected)


def test_block_weights_need_blocks() -> None:
    problems = Problems(here)
    places = {"prior/layers.3.weight": place(None, "diffusers", "prior/layers.3.weight")}
    parse_weighting(ALPHA, {"mbw": STRING}, ("alpha",), False, Names(places, None), problems)
    with pytest.raises(RecipeError, match="need an architecture whose blocks are known"):
        problems.raise_if_any()


def test_numbers_outside_are_what_the_parameter_says() -> None:
    value = {"mbw": [1.5, *([0.5] * 25)]}
    assert warnings(value, extrapolate=True) == ["alpha.mbw.0: BASE: 1.5 is outside the usual 0 to 1"]
    scale = Parameter("scale", 1.0, Range(0, 1, "warn"))
    assert warnings(value, parameter=scale) == ["alpha.mbw.0: BASE: 1.5 is outside the usual 0 to 1"]


def test_what_the_recipe_names_beats_the_number_of_the_string() -> None:
    value = {"mbw": "ALL_B", "default": 0.1}
    found = values({**value, "unet": 0.2, "M00": 0.3, "IN04-IN08": 0.4, "TIME": 0.5, "*out.2.*": 0.6})
    named = {"M00": 0.3, **dict.fromkeys(("IN04", "IN05", "IN06", "IN07", "IN08"), 0.4), "TIME": 0.5}
    for key, at in names("sd1").places.items():
        if "out.2." in key:
            expected = 0.6
        elif key == SD1_KEYS["ema"]:
            expected = 0.2  # a component is narrower than BASE, and this is the UNet's
        else:
            expected = named.get(at.blocks[0], 1)
        assert found[key] == expected, key
    assert values({**value, "vae": 0.25})[SD1_KEYS["vae"]] == 0.25


def test_a_string_may_leave_out_what_has_no_number_only_with_a_default() -> None:
    weighting, _ = parse({"mbw": cut(STRING), "dialect": "sd-mecha"}, "sdxl")
    assert weighting.open is not None and weighting.open.startswith(("first_stage_model.", U))
    weighting, _ = parse({"mbw": STRING}, "sd1")
    assert weighting.open is None
    assert mistakes({"mbw": STRING}, parameter=Parameter("alpha", None, None)) == []


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=9), inside, max_size=3),
    max_leaves=6,
) | st.sampled_from([STRING, "GRAD_V", "comfyui", "sd-meh", "OUT04:attn:0.5", {"preset": "ALL_B", "by": 0.5}])


@given(tree=st.dictionaries(st.sampled_from([*KEYS, "unet", "vae", "IN00", "*"]), _ANYTHING) | _ANYTHING)
def test_whatever_a_recipe_says_is_read_or_told(tree: Any) -> None:
    weighting, problems = parse(tree)
    if not problems:
        assert all(0 <= number <= 1 for number in (weighting.default, *weighting.values.values()))


def test_a_dialect_is_also_for_what_the_recipe_names() -> None:
    tree = {"dialect": "sd-mecha", "BASE": 0.25, "IN00-OUT11": 0.5}
    found = values(tree)
    assert (found[SD1_KEYS["time"]], found[SD1_KEYS["in4"]]) == (0.25, 0.5)
    assert values({**tree, "TIME": 0.75})[SD1_KEYS["time"]] == 0.75
    assert values({**tree, "dialect": "runner"})[SD1_KEYS["time"]] == 0.5


@given(
    numbers=st.lists(st.floats(0, 1), min_size=26, max_size=26),
    dialect=st.sampled_from([name for name in DIALECTS if name != "comfyui"]),
)
def test_each_number_reaches_its_block_whatever_the_dialect(numbers: list[float], dialect: str) -> None:
    found = values({"mbw": ",".join(map(repr, numbers)), "dialect": dialect})
    for key, at in names("sd1").places.items():
        if at.component == "unet" and len(at.blocks) == 1 and not key.startswith("model_ema."):
            assert found[key] == numbers[ARCHITECTURES["sd1"].blocks.index(at.blocks[0])]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_numbers_stand_for_is_known_and_each_once(dialect: str, architecture: str) -> None:
    known = ARCHITECTURES[architecture]
    for count, layout in layouts(dialect, known).items():
        used = [name for name in layout if name]
        assert len(layout) == count and len(set(used)) == len(used)
        assert all(name == "SLOT25" or expand_block(known, name) == (name,) for name in used)

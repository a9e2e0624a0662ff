"""A file is read whole by its header, and what does not fit the base is refused before it is computed."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.errors import IncompatibleError, InputError, NumericError
from runner.lora.adapters import Adapter, Adapters, Share, read_adapters
from runner.lora.algebra import Kind, role_of
from runner.lora.deltas import change_rows
from runner.lora.names import find_module, module_names
from runner.models.view import view_of
from runner.tensors import TensorSpec
from tests.architectures.test_layouts import back, folder, specs_made
from tests.lora.test_deltas import specs_of

Shapes = dict[str, tuple[int, ...]]
SD1 = ARCHITECTURES["sd1"]
BASE = {
    "unet/conv_in.weight": TensorSpec("F16", (8, 4, 3, 3)),
    "unet/conv_in.bias": TensorSpec("F16", (8,)),
    "unet/time_embedding.linear_1.weight": TensorSpec("F16", (12, 6)),
    "unet/conv_norm_out.weight": TensorSpec("F16", (8,)),
    "unet/conv_norm_out.bias": TensorSpec("F16", (8,)),
    "unet/mid_block.attentions.0.proj_in.weight": TensorSpec("F16", (8, 6, 1, 1)),
}
CONV, LINEAR, NORM = "lora_unet_conv_in", "lora_unet_time_embedding_linear_1", "lora_unet_conv_norm_out"
POINT = "lora_unet_mid_block_attentions_0_proj_in"


def read(shapes: Shapes, base: Any = BASE, **more: Any) -> Adapters:
    return read_adapters(SD1, base, {key: TensorSpec("F16", shape) for key, shape in shapes.items()}, **more)


def only(shapes: Shapes, **more: Any) -> Adapter:
    found = read(shapes, **more)
    found.check("a.safetensors")
    (adapter,) = found.adapters
    assert set(adapter.keys) == set(shapes)
    return adapter


def pair(name: str = LINEAR, out: int = 12, rank: int = 2, inputs: tuple[int, ...] = (6,)) -> Shapes:
    return {f"{name}.lora_up.weight": (out, rank), f"{name}.lora_down.weight": (rank, *inputs)}


FITTING: list[tuple[Shapes, Kind, int | None, str]] = [
    (pair(), Kind.LORA, 2, "time_embedding.linear_1.weight"),
    (pair(CONV, 8, 3, (4, 3, 3)), Kind.LORA, 3, "conv_in.weight"),
    (pair(CONV, 8, 3, (36,)), Kind.LORA, 3, "conv_in.weight"),
    (pair(POINT, 8, 2, (6,)), Kind.LORA, 2, "mid_block.attentions.0.proj_in.weight"),
    (pair(POINT, 8, 2, (6, 1, 1)), Kind.LORA, 2, "mid_block.attentions.0.proj_in.weight"),
    (
        {
            f"{CONV}.lora_up.weight": (8, 2, 1, 1),
            f"{CONV}.lora_down.weight": (2, 4, 1, 1),
            f"{CONV}.lora_mid.weight": (2, 2, 3, 3),
        },
        *(Kind.TUCKER, 2, "conv_in.weight"),
    ),
    (
        {f"{LINEAR}.lokr_w1": (3, 2), f"{LINEAR}.lokr_w2_a": (4, 1), f"{LINEAR}.lokr_w2_b": (1, 3)},
        *(Kind.LOKR, 1, "time_embedding.linear_1.weight"),
    ),
    (
        {f"{CONV}.lokr_w1": (2, 2), f"{CONV}.lokr_w2": (4, 2, 3, 3)},
        *(Kind.LOKR, None, "conv_in.weight"),
    ),
    ({f"{CONV}.diff": (8, 4, 3, 3)}, Kind.DIFF, None, "conv_in.weight"),
    ({f"{CONV}.diff_b": (8,)}, Kind.BIAS, None, "conv_in.bias"),
    ({f"{NORM}.w_norm": (8,)}, Kind.NORM, None, "conv_norm_out.weight"),
    ({f"{NORM}.b_norm": (8,)}, Kind.BIAS, None, "conv_norm_out.bias"),
]


@pytest.mark.parametrize(("shapes", "kind", "rank", "key"), FITTING)
def test_factors_that_fit_are_an_adapter(shapes: Shapes, kind: Kind, rank: int | None, key: str) -> None:
    adapter = only(shapes)
    rows = BASE[f"unet/{key}"].shape[0]
    assert (adapter.kind, adapter.rank, adapter.by_rows) == (kind, rank, True)
    assert adapter.shares == (Share(f"unet/{key}", 0, rows, 0),)
    assert adapter.shape[0] == rows


HADA = {f"{LINEAR}.hada_w{n}_{x}": ((12, 2) if x == "a" else (2, 6)) for n in "12" for x in "ab"}
MISFITS: dict[str, tuple[Shapes, str]] = {
    "up without down": ({f"{LINEAR}.lora_up.weight": (12, 2)}, "no down"),
    "down without up": ({f"{LINEAR}.lora_down.weight": (2, 6)}, "no up"),
    "only alpha": ({f"{LINEAR}.alpha": ()}, "no factors"),
    "ranks differ": (
        {f"{LINEAR}.lora_up.weight": (12, 3), f"{LINEAR}.lora_down.weight": (2, 6)},
        "ranks differ: 3 and 2",
    ),
    "rank of 0": (pair(rank=0), "a rank of 0"),
    "other rows": (pair(out=11), "[11,6]"),
    "other inputs": (pair(inputs=(7,)), "[12,7]"),
    "transposed": (pair(out=6, inputs=(12,)), "[6,12]"),
    "as many elements": (pair(out=8, inputs=(9,)), "[8,9]"),
    "huge": (pair(out=2**40, rank=1, inputs=(2**40,)), "[1099511627776,1099511627776]"),
    "a kernel for a matrix": (pair(inputs=(6, 3, 3)), "[12,6,3,3]"),
    "another kernel": (pair(CONV, 8, 2, (4, 1, 1)), "[8,4,1,1]"),
    "up with a kernel": (
        {f"{CONV}.lora_up.weight": (8, 2, 3, 3), f"{CONV}.lora_down.weight": (2, 4, 1, 1)},
        "up [8,2,3,3] is no matrix",
    ),
    "numbers for matrices": (
        {f"{LINEAR}.lora_up.weight": (), f"{LINEAR}.lora_down.weight": (2, 6)},
        "up [] is no matrix",
    ),
    "a core of other ranks": (
        {
            f"{CONV}.lora_up.weight": (8, 2),
            f"{CONV}.lora_down.weight": (2, 4),
            f"{CONV}.lora_mid.weight": (2, 3, 3, 3),
        },
        "ranks differ: up 2, mid [2,3], down 2",
    ),
    "half a hadamard product": ({k: v for k, v in HADA.items() if "w2_b" not in k}, "no hada_w2_b"),
    "one core of two": (HADA | {f"{LINEAR}.hada_t1": (2, 2, 3, 3)}, "no hada_t2"),
    "halves that differ": (HADA | {f"{LINEAR}.hada_w2_a": (11, 2)}, "the halves differ"),
    "half a kronecker product": ({f"{LINEAR}.lokr_w1": (3, 2)}, "no lokr_w2_a, lokr_w2_b"),
    "a kronecker factor twice": (
        {f"{LINEAR}.lokr_{x}": (3, 2) for x in ("w1", "w1_a", "w2")},
        "lokr_w1_a too many",
    ),
    "two ranks of a kronecker product": (
        {
            f"{LINEAR}.lokr_w1_a": (3, 1),
            f"{LINEAR}.lokr_w1_b": (1, 2),
            f"{LINEAR}.lokr_w2_a": (4, 2),
            f"{LINEAR}.lokr_w2_b": (2, 3),
        },
        "ranks differ: 1 and 2",
    ),
    "two algebras": (pair() | HADA, "two algebras at once"),
    "a change and factors of it": (pair() | {f"{LINEAR}.diff": (12, 6)}, "two algebras at once"),
    "several alphas": (pair() | {f"{LINEAR}.alpha": (2,)}, "not one number"),
    "alpha of a whole change": ({f"{LINEAR}.diff": (12, 6), f"{LINEAR}.alpha": ()}, "beside a whole change"),
    "lengths of nothing": (pair() | {f"{LINEAR}.dora_scale": (5, 1)}, "no lengths"),
    "two kinds of lengths": (
        pair() | {f"{LINEAR}.dora_scale": (12, 1), f"{LINEAR}.lora_magnitude_vector": (12,)},
        "two kinds",
    ),
    "an algebra that is not implemented": ({f"{LINEAR}.oft_blocks": (2, 6, 6)}, "not implemented"),
    "a bias of the factors": (
        {
            f"unet.time_embedding.linear_1.lora_{x}": s
            for x, s in {"A.weight": (2, 6), "B.weight": (12, 2), "B.bias": (12,)}.items()
        },
        "not implemented",
    ),
    "a factor of two adapters": (
        {
            f"unet.time_embedding.linear_1.lora_{x}.weight": s
            for x, s in {"A.one": (2, 6), "B.one": (12, 2), "A.two": (2, 6)}.items()
        },
        "same role",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_does_not_fit_is_refused_with_the_reason(what: str) -> None:
    shapes, why = MISFITS[what]
    found = read(shapes)
    assert not found.adapters
    assert not found.unmatched
    (text,) = found.misfits.values()
    assert why in text
    with pytest.raises(IncompatibleError, match="ADAPTER") as raised:
        raise_tagged(found)
    assert raised.value.exit_code == 5


def raise_tagged(found: Adapters) -> None:
    try:
        found.check("a.safetensors")
    except IncompatibleError as error:
        error.args = (f"{error.tag} {error.message}",)
        raise


def test_integers_are_no_factors() -> None:
    specs = {key: TensorSpec("I8", shape) for key, shape in pair().items()}
    (why,) = read_adapters(SD1, BASE, specs).misfits.values()
    assert "no number to compute with" in why
    specs = {key: TensorSpec("F16", shape) for key, shape in pair().items()}
    assert read_adapters(SD1, BASE, specs | {f"{LINEAR}.alpha": TensorSpec("I64", ())}).adapters


def test_keys_without_a_module_are_listed_with_the_nearest_name() -> None:
    found = read(pair() | pair("lora_unet_time_embeding_linear_1") | {"first.weight": (1,)})
    assert found.unmatched.keys() == {*pair("lora_unet_time_embeding_linear_1"), "first.weight"}
    with pytest.raises(IncompatibleError) as raised:
        found.check("a.safetensors")
    lines = raised.value.message.split("\n")
    assert len(lines) == 3
    assert 'did you mean "lora_unet_time_embedding_linear_1"' in raised.value.message
    assert all(line.startswith("a.safetensors: ") for line in lines)


def test_a_change_of_a_bias_where_there_is_none_means_no_tensor() -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.diff_b"
    assert read({key: (8,)}).unmatched.keys() == {key}


def test_modules_the_base_has_not_are_refused_unless_they_may_be_left_out() -> None:
    text = pair("lora_te_text_model_encoder_layers_0_mlp_fc1")
    found = read(pair() | text)
    assert found.absent.keys() == text.keys()
    with pytest.raises(IncompatibleError, match="the base has no text_encoder/text_model"):
        found.check("a.safetensors")
    found.check("a.safetensors", partial=True)
    with pytest.raises(IncompatibleError, match="nothing in it changes this model"):
        read(text).check("a.safetensors", partial=True)


def test_a_tensor_is_changed_once() -> None:
    found = read(pair() | pair("unet.time_embedding.linear_1"))
    assert list(found.misfits.values()) == [
        f"changes unet/time_embedding.linear_1.weight, as {LINEAR} does",
    ]


def test_alpha_by_the_rank_is_the_scale_and_without_alpha_it_is_one() -> None:
    assert only(pair()).scale(None) == 1
    assert only(pair() | {f"{LINEAR}.alpha": ()}).scale(1.0) == 0.5
    whole = {f"{LINEAR}.lokr_w1": (3, 2), f"{LINEAR}.lokr_w2": (4, 3), f"{LINEAR}.alpha": (1,)}
    assert only(whole).scale(7.0) == 1
    for alpha in (float("nan"), float("inf"), 1e9):
        with pytest.raises(NumericError):
            only(pair()).scale(alpha)


def test_what_diffusers_says_of_scales_in_the_header_is_read() -> None:
    shapes = {
        "unet.time_embedding.linear_1.lora_A.weight": (2, 6),
        "unet.time_embedding.linear_1.lora_B.weight": (12, 2),
    }

    def scale(**settings: Any) -> float:
        text = json.dumps({f"unet.{key}": value for key, value in settings.items()})
        return only(shapes, metadata={"lora_adapter_metadata": text}).scale(None)

    assert scale(lora_alpha=8, r=4) == 4
    assert scale(lora_alpha=8, r=4, use_rslora=True) == 8 / 2**0.5
    assert scale(lora_alpha=8, r=4, alpha_pattern={"linear_1": 1, "linear_2": 16}) == 0.5
    assert scale(r=4) == 1
    # PEFT takes the first pattern that fits, and only whole parts of a name.
    assert scale(lora_alpha=8, r=4, alpha_pattern={"time_embedding.linear_1": 2, "linear_1": 1}) == 1
    assert scale(lora_alpha=8, r=4, alpha_pattern={"near_1": 2, "linear": 1}) == 4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested"),
        ('{"unet.lora_alpha": NaN}', "NaN"),
        ('{"unet.alpha_pattern": {"(a+)+$": 3}}', "regular expression"),
        ('{"unet.alpha_pattern": [1]}', "expected a mapping"),
    ],
)
def test_settings_that_cannot_be_read_are_an_error(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        read(pair(), metadata={"lora_adapter_metadata": text})


@pytest.mark.parametrize("settings", [{"lora_alpha": "8", "r": 2}, {"lora_alpha": True}, {"alpha": [1]}])
def test_settings_that_are_no_scale_are_a_misfit(settings: dict[str, Any]) -> None:
    (why,) = read(pair("time_embedding.linear_1"), config=settings).misfits.values()
    assert "no scale" in why


def test_a_file_of_peft_s_without_its_config_is_noted() -> None:
    shapes = {
        "base_model.model.time_embedding.linear_1.lora_A.weight": (2, 6),
        "base_model.model.time_embedding.linear_1.lora_B.weight": (12, 2),
    }
    assert len(read(shapes).notes) == 1
    assert read(shapes, config={"r": 2, "lora_alpha": 4}).notes == ()
    assert only(shapes, config={"r": 2, "lora_alpha": 4}).scale(None) == 2


names = st.text(st.characters(codec="utf-8"), max_size=30)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.builds(
            "{}{}".format,
            names | st.sampled_from([LINEAR, CONV, "unet.conv_in", "lora_te2_x"]),
            st.sampled_from(
                [
                    *(
                        ".lora_up.weight",
                        ".lora_down.weight",
                        ".lora_mid.weight",
                        ".alpha",
                        ".dora_scale",
                        ".diff",
                    ),
                    *(
                        ".lora_A.weight",
                        ".lora_B.x.weight",
                        ".hada_w1_a",
                        ".lokr_w1",
                        ".lokr_w2_b",
                        ".diff_b",
                        "",
                    ),
                ]
            ),
        ),
        st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
        min_size=1,
        max_size=6,
    )
)
def test_every_key_of_any_file_has_one_place(shapes: Shapes) -> None:
    found = read(shapes)
    placed = [key for adapter in found.adapters for key in adapter.keys]
    placed += [*found.unmatched, *found.absent]
    assert len(placed) == len(set(placed))
    left = set(shapes) - set(placed)
    assert bool(left) <= bool(found.misfits)
    assert all(any(key.startswith(name.rstrip("12")) for name in found.misfits) for key in left)
    for adapter in found.adapters:
        assert adapter.shape[0] == sum(share.rows for share in adapter.shares)


# ---- Whole models.


@pytest.mark.parametrize("case", ["sd1", "sd2", "sdxl", "sd3", "sd3.5 medium", "sd35_large", "flux"])
@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
def test_an_adapter_of_every_name_fits_the_real_shapes(case: str, layout: str) -> None:
    own = folder(case)
    name = {"sd3.5 medium": "sd3"}.get(case, case)
    architecture = ARCHITECTURES[name]
    specs = own if layout == "diffusers" else specs_made(back(case, own))
    base = view_of(architecture, layout, specs).specs
    assert base.keys() == own.keys()
    file: dict[str, TensorSpec] = {}
    wanted = 0
    for written, module in module_names(architecture).items():
        shapes = [base[slot.key].shape for slot in module.weight if slot.key in base]
        if len(shapes) != len(module.weight) or not shapes or len(shapes[0]) not in (2, 4):
            continue
        rows = sum(base[slot.key].shape[0] * slot.units // slot.of for slot in module.weight)
        file[f"{written}.lora_up.weight"] = TensorSpec("F16", (rows, 4))
        file[f"{written}.lora_down.weight"] = TensorSpec("F16", (4, *shapes[0][1:]))
        wanted += 1
    found = read_adapters(architecture, base, file)
    assert len(found.adapters) == wanted > 200
    assert not found.unmatched
    assert not found.absent
    assert all("as lora_" in why for why in found.misfits.values())  # both names of a module are in the file


# ---- Values, as diffusers takes rows of Flux' fused layers apart.


@functools.cache
def flux_base() -> dict[str, TensorSpec]:
    """Flux with all its rows and one column."""
    return {
        key: TensorSpec("F16", (spec.shape[0], *(1 for _ in spec.shape[1:])))
        for key, spec in folder("flux").items()
        if key.startswith("transformer/")
    }


def contributions(file: dict[str, Tensor], base: dict[str, TensorSpec]) -> dict[str, Tensor]:
    """The change of each tensor of the base, by its shares."""
    found = read_adapters(ARCHITECTURES["flux"], base, specs_of(file))
    found.check("a")
    changes: dict[str, Tensor] = {}
    for adapter in found.adapters:
        factors = {role: file[key] for role, key in adapter.factors.items()}
        scale = adapter.scale(float(file[adapter.alpha]) if adapter.alpha else None)
        for share in adapter.shares:
            rows = change_rows(adapter.kind, factors, share.start, share.start + share.rows, scale)
            zeros = torch.zeros(base[share.key].shape[0], rows.shape[1], dtype=rows.dtype)
            changes.setdefault(share.key, zeros)[share.first : share.first + share.rows] += rows
    return changes


def by_diffusers(made: dict[str, Tensor]) -> dict[str, Tensor]:
    changes = {}
    for key, down in made.items():
        if ".lora_A." in key:
            name = key.split(".lora_A.")[0].removeprefix("transformer.")
            changes[f"transformer/{name}.weight"] = made[key.replace("lora_A", "lora_B")] @ down
    return changes


def flux_file(names: list[str], up: str, down: str, alpha: bool) -> dict[str, Tensor]:
    """A pair of factors for each module of a name, whose rows all differ."""
    base, file = flux_base(), {}
    generator = torch.Generator().manual_seed(3)
    for number, written in enumerate(names):
        module = find_module(ARCHITECTURES["flux"], (role_of(written + up) or ("", ""))[0])
        assert module is not None, written
        rows = sum(base[slot.key].shape[0] * slot.units // slot.of for slot in module.weight)
        file[written + up] = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
        file[written + down] = torch.randn(2, 1, generator=generator, dtype=torch.float64)
        if alpha:
            file[f"{written}.alpha"] = torch.tensor(1.0 + number % 3, dtype=torch.float64)
    return file


def same(ours: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ours.keys() == others.keys()
    for key, change in ours.items():
        torch.testing.assert_close(change, others[key], rtol=1e-12, atol=1e-12)


def test_the_rows_of_kohya_s_flux_are_those_diffusers_takes() -> None:
    names = [
        written
        for written, module in module_names(ARCHITECTURES["flux"]).items()
        if written.startswith(("lora_unet_double_blocks", "lora_unet_single_blocks"))
        and module.weight
        and "norm" not in written
    ]
    assert len(names) == 19 * 10 + 38 * 3
    file = flux_file(names, ".lora_up.weight", ".lora_down.weight", alpha=True)
    final = flux_file(
        ["lora_unet_final_layer_adaLN_modulation_1"], ".lora_up.weight", ".lora_down.weight", alpha=False
    )
    made = theirs._convert_kohya_flux_lora_to_diffusers(dict(file | final))
    same(contributions(file | final, flux_base()), by_diffusers(made))


def test_the_rows_of_x_labs_flux_are_those_diffusers_takes() -> None:
    names = [
        f"double_blocks.{number}.processor.{part}_lora{stream}"
        for number in range(19)
        for part in ("qkv", "proj")
        for stream in (1, 2)
    ]
    names += [
        f"single_blocks.{number}.processor.{part}_lora" for number in range(38) for part in ("qkv", "proj")
    ]
    file = flux_file(names, ".up.weight", ".down.weight", alpha=False)
    made = theirs._convert_xlabs_flux_lora_to_diffusers(dict(file))
    same(contributions(file, flux_base()), by_diffusers(made))


@pytest.mark.parametrize("number", [10**400, -(10**400), math.nan, math.inf, "8", True])
@pytest.mark.parametrize("name", ["lora_alpha", "r"])
def test_a_number_that_no_scale_can_be_made_of_is_named(number: Any, name: str) -> None:
    names = {key.replace(LINEAR, "unet.time_embedding.linear_1"): shape for key, shape in pair().items()}
    peft = {key.replace("lora_up", "lora_B").replace("lora_down", "lora_A"): s for key, s in names.items()}
    found = read(peft, config={"lora_alpha": 8, "r": 2, name: number})
    if name == "lora_alpha":
        with pytest.raises(IncompatibleError, match="are no scale"):
            found.check("x")
    else:
        found.check("x")  # the rank is that of the factors

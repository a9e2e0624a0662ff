"""The maps between the layouts, held to diffusers' converters and to the classes they fill."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from runner.architectures import ARCHITECTURES, place
from runner.architectures.layouts import (
    COMPONENTS,
    Conversion,
    canonical,
    single_file_name,
    to_checkpoint,
    to_diffusers,
)
from runner.architectures.left import Kind
from runner.architectures.ties import Made, Piece, inverse
from runner.tensors import TensorSpec
from tests.architectures.ldm import PREFIX, ldm_names
from tests.architectures.models import TRANSFORMER_NAMES, TRANSFORMERS, UNETS, specs_of, under, vae
from tests.architectures.test_every_architecture import single_file

Specs = dict[str, TensorSpec]
Tensors = dict[str, torch.Tensor]
Convert = Callable[[Tensors], Tensors]

# ---- The classes, and how diffusers fills them.

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


def on_meta(build: Callable[[], nn.Module]) -> Specs:
    with torch.device("meta"):
        return specs_of(build())


def clip(config: dict[str, int], projection: bool = False) -> Specs:
    """A text encoder, named as every published folder names it, which transformers 5.6 reads too."""
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    specs = on_meta(lambda: kind(CLIPTextConfig(**config, projection_dim=config["hidden_size"])))
    outside = ("text_model.", "text_projection.")
    return {key if key.startswith(outside) else f"text_model.{key}": spec for key, spec in specs.items()}


def t5() -> Specs:
    specs = on_meta(
        lambda: T5EncoderModel(T5Config(**T5_XXL, vocab_size=32128, feed_forward_proj="gated-gelu"))
    )
    assert specs.pop("encoder.embed_tokens.weight") == specs["shared.weight"]  # one tensor
    return specs


def latent_vae() -> Specs:
    """A VAE of 16 channels, without convolutions next to the latent image."""
    return on_meta(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def convert_unet(config: dict[str, Any]) -> Convert:
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None, **config}
    return lambda tensors: theirs.convert_ldm_unet_checkpoint(tensors, config)


def convert_vae(tensors: Tensors) -> Tensors:
    levels = {"down_block_types": ("",) * 4, "up_block_types": ("",) * 4}
    return theirs.convert_ldm_vae_checkpoint(tensors, levels)


def convert_clip(prefix: str) -> Convert:
    return lambda tensors: theirs.convert_ldm_clip_checkpoint(tensors, prefix)


def convert_open_clip(prefix: str) -> Convert:
    def convert(tensors: Tensors) -> Tensors:
        hidden = tensors[f"{prefix}positional_embedding"].shape[1]
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden))
        return theirs.convert_open_clip_checkpoint(model, tensors, prefix=prefix)

    return convert


def transformer_of(convert: Convert) -> Convert:
    return lambda tensors: convert({key: each for key, each in tensors.items() if key.startswith(PREFIX)})


convert_sd3 = transformer_of(theirs.convert_sd3_transformer_checkpoint_to_diffusers)
convert_flux = transformer_of(theirs.convert_flux_transformer_checkpoint_to_diffusers)


@dataclass(frozen=True)
class Case:
    """A kind of model: its architecture, and by component the class's tensors and diffusers' converter."""

    architecture: str
    components: Mapping[str, tuple[Callable[[], Specs], Convert]]


def unet_case(name: str, texts: Mapping[str, tuple[Callable[[], Specs], Convert]], **more: Any) -> Case:
    config = UNETS[name] | more
    own = lambda: on_meta(lambda: UNet2DConditionModel(**config))  # noqa: E731
    return Case(name, {"unet": (own, convert_unet(config)), "vae": (vae, convert_vae), **texts})


def sd3_case(name: str, **config: Any) -> Case:
    own = lambda: on_meta(lambda: SD3Transformer2DModel(**config))  # noqa: E731
    return Case(
        name,
        {
            "transformer": (own, convert_sd3),
            "text_encoder": (lambda: clip(CLIP_L, True), convert_clip("text_encoders.clip_l.transformer.")),
            "text_encoder_2": (lambda: clip(CLIP_G, True), convert_clip("text_encoders.clip_g.transformer.")),
            "text_encoder_3": (t5, theirs.convert_sd3_t5_checkpoint_to_diffusers),
            "vae": (latent_vae, convert_vae),
        },
    )


def flux_case(guided: bool) -> Case:
    own = lambda: on_meta(lambda: FluxTransformer2DModel(guidance_embeds=guided))  # noqa: E731
    return Case(
        "flux",
        {
            "transformer": (own, convert_flux),
            "text_encoder": (lambda: clip(CLIP_L), convert_clip("text_encoders.clip_l.transformer.")),
            "text_encoder_2": (t5, theirs.convert_sd3_t5_checkpoint_to_diffusers),
            "vae": (latent_vae, convert_vae),
        },
    )


_FIRST = {"text_encoder": (lambda: clip(CLIP_L), theirs.convert_ldm_clip_checkpoint)}
_OPEN_H = {"text_encoder": (lambda: clip(CLIP_H), convert_open_clip("cond_stage_model.model."))}
_MEDIUM = {
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
_LARGE = {
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
}


def second(number: int) -> dict[str, tuple[Callable[[], Specs], Convert]]:
    convert = convert_open_clip(f"conditioner.embedders.{number}.model.")
    return {"text_encoder_2": (lambda: clip(CLIP_G, True), convert)}


CASES: dict[str, Case] = {
    "sd1": unet_case("sd1", _FIRST),
    "sd2": unet_case("sd2", _OPEN_H),
    "sd2 unclip": unet_case(
        *("sd2", _OPEN_H), class_embed_type="projection", projection_class_embeddings_input_dim=2048
    ),
    "sdxl": unet_case("sdxl", _FIRST | second(1)),
    "sdxl_refiner": unet_case("sdxl_refiner", second(0)),
    "sd3": sd3_case("sd3", **_MEDIUM),
    "sd3.5 medium": sd3_case(
        *("sd3",),
        **_MEDIUM | {"pos_embed_max_size": 384},
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    ),
    "sd35_large": sd3_case("sd35_large", **_LARGE, qk_norm="rms_norm"),
    "flux": flux_case(guided=True),
    "flux schnell": flux_case(guided=False),
}
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def folder(case: str) -> Specs:
    """The tensors of a whole folder of full size."""
    return {
        key: spec
        for component, (own, _) in CASES[case].components.items()
        for key, spec in under(f"{component}/", own()).items()
    }


@functools.cache
def small_folder(case: str) -> Specs:
    """The same tensors, a sixty-fourth as wide."""

    def small(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if key.startswith("transformer/") and CASES[case].architecture == "flux":
            # Diffusers knows one width of Flux: all rows, but one column.
            return (*shape[:1], *(1 for _ in shape[1:]))
        return tuple(size // 64 if size >= 64 else size for size in shape)

    return {key: TensorSpec("I32", small(key, spec.shape)) for key, spec in folder(case).items()}


def specs_made(conversion: Conversion) -> Specs:
    return {key: made.spec for key, made in conversion.made.items()}


def forth(case: str, specs: Specs) -> Conversion:
    return to_diffusers(ARCHITECTURES[CASES[case].architecture], specs)


def back(case: str, specs: Specs) -> Conversion:
    return to_checkpoint(ARCHITECTURES[CASES[case].architecture], specs)


def numbered(specs: Specs) -> Tensors:
    """Tensors of these shapes, no two elements of which are equal."""
    tensors, first = {}, 0
    for key, spec in specs.items():
        tensors[key] = torch.arange(first, first + spec.elements, dtype=torch.int32).reshape(spec.shape)
        first += spec.elements
    return tensors


def execute(made: Mapping[str, Made], tensors: Tensors) -> Tensors:
    """The results, as the pieces say."""
    return {key: torch.cat([cut_out(piece, tensors) for piece in each.pieces]) for key, each in made.items()}


def cut_out(piece: Piece, tensors: Tensors) -> torch.Tensor:
    source = tensors[piece.key]
    assert tuple(source.shape) == piece.source
    rows = source[piece.first : piece.first + piece.rows]
    return (rows.T if piece.transposed else rows).reshape(piece.shape)


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def converted_by_diffusers(case: str, tensors: Tensors) -> Tensors:
    return {
        f"{component}/{key}": tensor
        for component, (_, convert) in CASES[case].components.items()
        for key, tensor in convert(dict(tensors)).items()
    }


# ---- The maps are those of diffusers.


def test_every_architecture_has_a_map_of_every_component() -> None:
    assert COMPONENTS.keys() == ARCHITECTURES.keys() == {case.architecture for case in CASES.values()}
    for name, architecture in ARCHITECTURES.items():
        assert COMPONENTS[name].keys() == {architecture.main, *architecture.outside}
        assert set(architecture.prefixes.values()) == COMPONENTS[name].keys()


@every_case
def test_a_folder_and_its_single_file_have_each_tensor_of_the_classes_once(case: str) -> None:
    single = back(case, folder(case))
    assert not single.left
    again = forth(case, specs_made(single))
    assert not again.left
    assert specs_made(again) == folder(case)


@every_case
def test_diffusers_makes_the_tensors_of_the_classes_from_the_single_file(case: str) -> None:
    single = specs_made(back(case, folder(case)))
    meta = {key: torch.empty(spec.shape, device="meta") for key, spec in single.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in converted_by_diffusers(case, meta).items()}
    assert shapes == {key: spec.shape for key, spec in folder(case).items()}


@every_case
def test_each_element_goes_where_diffusers_takes_it_and_comes_back(case: str) -> None:
    single = specs_made(back(case, small_folder(case)))
    tensors = numbered(single)
    there = forth(case, single)
    made = execute(there.made, tensors)
    assert same(made, converted_by_diffusers(case, tensors))
    assert same(execute(back(case, specs_made(there)).made, made), tensors)
    assert same(execute(inverse(there.made, single), made), tensors)


@pytest.mark.parametrize("name", [*UNETS, *TRANSFORMERS])
def test_the_main_component_of_a_single_file_has_the_known_names(name: str) -> None:
    main = ARCHITECTURES[name].main
    own = {key.removeprefix(f"{main}/") for key in folder(name) if key.startswith(f"{main}/")}
    known = ldm_names(own).values() if name in UNETS else [PREFIX + key for key in TRANSFORMER_NAMES[name]]
    assert {key for key in specs_made(back(name, folder(name))) if key.startswith(PREFIX)} == set(known)


@pytest.mark.parametrize(("name", "family"), [("sd1", "sd15"), ("sdxl", "sdxl")])
def test_a_single_file_has_the_tensors_of_the_benchmarks(name: str, family: str) -> None:
    """They were written down apart, and proven with diffusers' converters apart."""
    assert single_specs(name) == single_file(family)


@every_case
def test_the_two_names_of_a_tensor_lead_to_each_other_and_to_the_same_blocks(case: str) -> None:
    architecture = ARCHITECTURES[CASES[case].architecture]
    single = back(case, folder(case)).made
    for key, made in single.items():
        keys = canonical(architecture, "checkpoint", key)
        assert set(keys) == {piece.key for piece in made.pieces}
        for part in keys:
            assert canonical(architecture, "diffusers", part) == (part,)
            assert single_file_name(architecture, part) == key
            assert place(architecture, "diffusers", part) == place(architecture, "checkpoint", key)


# ---- Other spellings.

OTHER_FILES: dict[str, tuple[str, Callable[[str], str]]] = {
    "sd1 as first published": ("sd1", lambda key: key.replace(".transformer.text_model.", ".transformer.")),
    "flux with the other prefix of its VAE": ("flux", lambda key: key.replace("vae.", "first_stage_model.")),
    "a T5 named after its second name": (
        *("flux",),
        lambda key: key.replace(".shared.", ".encoder.embed_tokens."),
    ),
}
OTHER_FOLDERS: dict[str, tuple[str, Callable[[str], str]]] = {
    "transformers 5.6": ("sdxl", lambda key: key.replace("text_encoder/text_model.", "text_encoder/")),
    "diffusers 0.16": (
        *("sd1",),
        lambda key: (
            key.replace("ons.0.to_q.", "ons.0.query.")
            .replace("ons.0.to_k.", "ons.0.key.")
            .replace("ons.0.to_v.", "ons.0.value.")
            .replace("ons.0.to_out.0.", "ons.0.proj_attn.")
        ),
    ),
}


def respelled(specs: Specs, spell: Callable[[str], str]) -> tuple[Specs, dict[str, str]]:
    names = {key: spell(key) for key in specs}
    return {names[key]: spec for key, spec in specs.items()}, names


def with_keys(made: Mapping[str, Made], names: Mapping[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """What the results are made of, the sources renamed."""
    return {
        key: [(names.get(piece.key, piece.key), piece.first, piece.rows) for piece in each.pieces]
        for key, each in made.items()
    }


@pytest.mark.parametrize("what", OTHER_FILES)
def test_an_older_single_file_is_read_as_a_newer_one(what: str) -> None:
    case, spell = OTHER_FILES[what]
    single = specs_made(back(case, folder(case)))
    specs, names = respelled(single, spell)
    assert specs.keys() != single.keys()
    found = forth(case, specs)
    assert not found.left
    assert with_keys(found.made, {}) == with_keys(forth(case, single).made, names)


@every_case
def test_a_main_component_without_prefix_is_read_as_one_with(case: str) -> None:
    single = {
        key: spec for key, spec in specs_made(back(case, folder(case))).items() if key.startswith(PREFIX)
    }
    specs, names = respelled(single, lambda key: key.removeprefix(PREFIX))
    found = forth(case, specs)
    assert not found.left
    assert with_keys(found.made, {}) == with_keys(forth(case, single).made, names)
    assert specs_made(found) == {
        key: spec
        for key, spec in folder(case).items()
        if key.startswith(ARCHITECTURES[CASES[case].architecture].main)
    }


@pytest.mark.parametrize("what", OTHER_FOLDERS)
def test_another_folder_is_read_as_those_that_are_written(what: str) -> None:
    case, spell = OTHER_FOLDERS[what]
    specs, names = respelled(folder(case), spell)
    assert specs.keys() != folder(case).keys()
    found = back(case, specs)
    assert not found.left
    assert with_keys(found.made, {}) == with_keys(back(case, folder(case)).made, names)
    architecture = ARCHITECTURES[CASES[case].architecture]
    for key, other in names.items():
        assert canonical(architecture, "diffusers", other) == (key,)
        assert single_file_name(architecture, other) == single_file_name(architecture, key)


def test_a_tensor_under_two_names_is_taken_once_and_reported_once() -> None:
    specs = folder("sd3") | {
        "text_encoder_3/encoder.embed_tokens.weight": folder("sd3")["text_encoder_3/shared.weight"]
    }
    found = back("sd3", specs)
    assert {key: left.kind for key, left in found.left.items()} == {
        "text_encoder_3/encoder.embed_tokens.weight": Kind.TWICE
    }
    assert found.made == back("sd3", folder("sd3")).made


def test_a_vae_whose_attention_is_linear_in_a_single_file_already_keeps_its_shape() -> None:
    key = "first_stage_model.encoder.mid.attn_1.q.weight"
    for shape in [(512, 512), (512, 512, 1), (512, 512, 1, 1)]:
        found = forth("sd1", {key: TensorSpec("F16", shape)})
        assert found.made["vae/encoder.mid_block.attentions.0.to_q.weight"].spec.shape == (512, 512)
        assert inverse(found.made, {key: TensorSpec("F16", shape)})[key].spec.shape == shape


# ---- What has no counterpart.

SCALAR, VECTOR = TensorSpec("F32", ()), TensorSpec("F32", (1000,))
WITHOUT: list[tuple[str, str, str, Kind]] = [
    ("sd1", "checkpoint", "model_ema.decay", Kind.EMA),
    ("sd1", "checkpoint", "model_ema.diffusion_modelinput_blocks00weight", Kind.EMA),
    ("sd1", "checkpoint", "alphas_cumprod", Kind.SCHEDULE),
    ("sd1", "checkpoint", "sqrt_recipm1_alphas_cumprod", Kind.SCHEDULE),
    (
        "sd1",
        "checkpoint",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        Kind.POSITION_IDS,
    ),
    ("sd1", "checkpoint", "cond_stage_model.transformer.embeddings.position_ids", Kind.POSITION_IDS),
    ("sd1", "diffusers", "text_encoder/text_model.embeddings.position_ids", Kind.POSITION_IDS),
    ("sd1", "diffusers", "text_encoder/embeddings.position_ids", Kind.POSITION_IDS),
    ("sd1", "diffusers", "safety_checker/concept_embeds", Kind.COMPONENT),
    ("sd1", "checkpoint", "model.diffusion_model.label_emb.0.0.weight", Kind.UNKNOWN),
    ("sd2", "checkpoint", "cond_stage_model.model.logit_scale", Kind.LOGIT_SCALE),
    ("sd2", "checkpoint", "cond_stage_model.model.text_projection", Kind.UNUSED),
    (
        *("sd2", "checkpoint"),
        "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
        Kind.UNUSED,
    ),
    ("sd2", "checkpoint", "cond_stage_model.model.transformer.resblocks.24.ln_1.weight", Kind.UNKNOWN),
    ("sdxl", "checkpoint", "conditioner.embedders.1.model.logit_scale", Kind.LOGIT_SCALE),
    ("sdxl", "checkpoint", "v_pred", Kind.MARKER),
    ("sdxl", "checkpoint", "ztsnr", Kind.MARKER),
    ("sdxl", "checkpoint", "edm_vpred.sigma_max", Kind.MARKER),
    ("sdxl", "checkpoint", "denoiser.sigmas", Kind.SCHEDULE),
    ("sdxl", "diffusers", "text_encoder_2/logit_scale", Kind.LOGIT_SCALE),
    ("sdxl", "checkpoint", "v_pred.weight", Kind.UNKNOWN),
    ("sd3", "checkpoint", "text_encoders.clip_l.logit_scale", Kind.LOGIT_SCALE),
    ("flux", "checkpoint", "text_encoders.clip_l.transformer.text_projection.weight", Kind.UNUSED),
    ("flux", "checkpoint", "text_encoders.t5xxl.logit_scale", Kind.LOGIT_SCALE),
    ("flux", "checkpoint", "model.diffusion_model.double_blocks.19.img_mod.lin.weight", Kind.UNKNOWN),
    ("flux", "checkpoint", "scaled_fp8", Kind.UNKNOWN),
    ("flux", "diffusers", "transformer/x_embedder.weight_scale", Kind.UNKNOWN),
]


@pytest.mark.parametrize(("case", "layout", "key", "kind"), WITHOUT)
def test_what_has_no_counterpart_is_reported_by_its_kind(
    case: str, layout: str, key: str, kind: Kind
) -> None:
    convert = forth if layout == "checkpoint" else back
    found = convert(case, {key: VECTOR})
    assert not found.made
    assert {each: left.kind for each, left in found.left.items()} == {key: kind}
    assert canonical(ARCHITECTURES[CASES[case].architecture], layout, key) == ()


def test_a_key_that_single_files_do_not_have_has_no_name_there() -> None:
    assert single_file_name(ARCHITECTURES["sd1"], "safety_checker/concept_embeds") is None
    assert single_file_name(ARCHITECTURES["sd1"], "unet/add_embedding.linear_1.weight") is None


def test_a_part_of_a_fused_tensor_without_the_others_is_incomplete_and_says_what_is_missing() -> None:
    specs = dict(folder("flux"))
    key = "transformer/single_transformer_blocks.0.proj_mlp.weight"
    del specs[key]
    found = back("flux", specs)
    block = "transformer/single_transformer_blocks.0.attn.to_"
    assert {each: left.kind for each, left in found.left.items()} == {
        f"{block}{of}.weight": Kind.INCOMPLETE for of in "qkv"
    }
    assert all(key in left.why for left in found.left.values())


F16 = functools.partial(TensorSpec, "F16")


def sd3_parts(name: str, *specs: TensorSpec) -> Specs:
    """Query, key and value of a block of Stable Diffusion 3."""
    keys = (f"transformer/transformer_blocks.0.attn.to_{of}.{name}" for of in "qkv")
    return dict(zip(keys, specs, strict=True))


MISFITS: list[tuple[str, str, Specs]] = [
    ("flux", "checkpoint", {"single_blocks.0.linear1.weight": F16((13, 2))}),
    ("flux", "checkpoint", {"double_blocks.0.img_attn.qkv.bias": F16(())}),
    ("flux", "checkpoint", {"final_layer.adaLN_modulation.1.bias": F16((3,))}),
    ("sdxl", "checkpoint", {"conditioner.embedders.1.model.text_projection": F16((4,))}),
    ("sd1", "checkpoint", {"first_stage_model.decoder.mid.attn_1.k.weight": F16((4, 4, 3, 3))}),
    ("sd1", "checkpoint", {"first_stage_model.decoder.mid.attn_1.k.weight": F16((4,))}),
    ("sd1", "diffusers", {"vae/decoder.mid_block.attentions.0.to_k.weight": F16((4, 4, 1, 1))}),
    ("sdxl", "diffusers", {"text_encoder_2/text_projection.weight": F16((4,))}),
    ("sd3", "diffusers", {"transformer/norm_out.linear.bias": F16((3,))}),
    ("sd3", "diffusers", sd3_parts("weight", F16((4, 4)), F16((4, 4)), TensorSpec("F32", (4, 4)))),
    ("sd3", "diffusers", sd3_parts("weight", F16((4, 4)), F16((4, 4)), F16((4, 2)))),
    ("sd3", "diffusers", sd3_parts("weight", F16((4, 4)), F16((4, 4)), F16((7, 4)))),
    ("sd3", "diffusers", sd3_parts("bias", F16(()), F16((1,)), F16((1,)))),
    ("sd3", "diffusers", sd3_parts("bias", F16(()), F16(()), F16(()))),
]


@pytest.mark.parametrize(("case", "layout", "specs"), MISFITS)
def test_shapes_that_a_map_cannot_be_applied_to_are_reported(case: str, layout: str, specs: Specs) -> None:
    found = (forth if layout == "checkpoint" else back)(case, specs)
    assert not found.made
    assert {key: left.kind for key, left in found.left.items()} == dict.fromkeys(specs, Kind.MISFIT)


# ---- Whatever is dropped, renamed, added or misshapen: nothing is guessed, nothing is lost unsaid.


def accounted(found: Conversion, specs: Specs) -> None:
    """Each element of each tensor is in one result, or the tensor is left and has a reason."""
    used: Counter[str] = Counter()
    for made in found.made.values():
        assert sum(piece.elements for piece in made.pieces) == made.spec.elements
        for piece in made.pieces:
            assert piece.source == specs[piece.key].shape
            used[piece.key] += piece.elements
    assert used.keys() | found.left.keys() == specs.keys()
    assert not used.keys() & found.left.keys()
    assert all(used[key] == specs[key].elements for key in used)


def whole_model(case: str, layout: str) -> Specs:
    return folder(case) if layout == "diffusers" else single_specs(case)


@functools.cache
def single_specs(case: str) -> Specs:
    return specs_made(back(case, folder(case)))


@functools.cache
def whole_conversion(case: str, layout: str) -> Conversion:
    return (forth if layout == "checkpoint" else back)(case, whole_model(case, layout))


everything = pytest.mark.parametrize(
    ("case", "layout"),
    [(case, layout) for case in ("sdxl", "sd3.5 medium", "flux") for layout in ("checkpoint", "diffusers")],
)


@everything
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_what_is_left_of_a_model_is_converted_or_reported(
    case: str, layout: str, data: st.DataObject
) -> None:
    whole = whole_model(case, layout)
    dropped = data.draw(st.sets(st.sampled_from(sorted(whole)), max_size=9))
    specs = {key: spec for key, spec in whole.items() if key not in dropped}
    convert = forth if layout == "checkpoint" else back
    found, full = convert(case, specs), whole_conversion(case, layout)
    accounted(found, specs)
    assert {left.kind for left in found.left.values()} <= {Kind.INCOMPLETE}
    # What is made is made as before; what is not made needs what was dropped.
    assert found.made == {
        key: made for key, made in full.made.items() if not dropped & {piece.key for piece in made.pieces}
    }


@everything
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_renamed_tensor_is_reported_and_not_guessed(case: str, layout: str, data: st.DataObject) -> None:
    whole = whole_model(case, layout)
    convert = forth if layout == "checkpoint" else back
    key = data.draw(st.sampled_from(sorted(whole)))
    at = data.draw(st.integers(0, len(key)))
    other = key[:at] + data.draw(st.text("abcxyz019._/", min_size=1, max_size=4)) + key[at:]
    specs = dict(whole)
    specs[other] = specs.pop(key)
    found = convert(case, specs)
    accounted(found, specs)
    if not canonical(ARCHITECTURES[CASES[case].architecture], layout, other):
        assert found.left[other].kind in (Kind.UNKNOWN, Kind.COMPONENT)
        assert found.made == {
            at: made
            for at, made in whole_conversion(case, layout).made.items()
            if key not in {piece.key for piece in made.pieces}
        }


@everything
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_tensor_nobody_knows_changes_nothing(case: str, layout: str, data: st.DataObject) -> None:
    whole = whole_model(case, layout)
    convert = forth if layout == "checkpoint" else back
    extra = data.draw(st.text(max_size=20)) + data.draw(
        st.sampled_from(["", ".weight", "\n", *sorted(whole)[:5]])
    )
    specs = {extra: SCALAR} | whole if extra not in whole else dict(whole)
    found = convert(case, specs)
    accounted(found, specs)
    assert found.made == whole_conversion(case, layout).made


@everything
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_tensor_of_any_shape_is_converted_or_reported(case: str, layout: str, data: st.DataObject) -> None:
    specs = dict(whole_model(case, layout))
    convert = forth if layout == "checkpoint" else back
    shapes = st.lists(st.integers(0, 14), max_size=4).map(tuple)
    for key in data.draw(st.sets(st.sampled_from(sorted(specs)), min_size=1, max_size=20)):
        specs[key] = TensorSpec("F16", data.draw(shapes))
    found = convert(case, specs)
    accounted(found, specs)
    assert {left.kind for left in found.left.values()} <= {Kind.MISFIT}
    assert specs_made(Conversion(inverse(found.made, specs), {})) == {
        key: spec for key, spec in specs.items() if key not in found.left
    }


# ---- Reading ranges.


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_of_a_tensor_is_read_from_where_its_elements_lie(data: st.DataObject) -> None:
    single = single_of_small_sd3()
    tensors, made = numbered(single), forth("sd3", single).made
    key = data.draw(
        st.sampled_from(sorted(key for key, each in made.items() if "norm" in key or "attn" in key))
    )
    whole = execute({key: made[key]}, tensors)[key].flatten()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    parts = [tensors[at].flatten()[skip : skip + count] for at, skip, count in made[key].reads(start, stop)]
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int32), *parts]), whole[start:stop])


@functools.cache
def single_of_small_sd3() -> Specs:
    small = {key: spec for key, spec in small_folder("sd3").items() if ".23." in key or "norm_out" in key}
    return specs_made(back("sd3", small))


def test_only_a_transposed_tensor_must_be_made_whole() -> None:
    made = forth("sdxl", single_specs("sdxl")).made
    assert [key for key, each in made.items() if each.transposed] == ["text_encoder_2/text_projection.weight"]


# ---- By hand.


@pytest.mark.parametrize(
    ("name", "layout", "key", "expected"),
    [
        (
            "sd1",
            "checkpoint",
            f"{PREFIX}output_blocks.5.2.conv.bias",
            ["unet/up_blocks.1.upsamplers.0.conv.bias"],
        ),
        (
            "sd1",
            "checkpoint",
            f"{PREFIX}output_blocks.2.1.conv.bias",
            ["unet/up_blocks.0.upsamplers.0.conv.bias"],
        ),
        (
            "sd1",
            "checkpoint",
            f"{PREFIX}middle_block.2.in_layers.0.bias",
            ["unet/mid_block.resnets.1.norm1.bias"],
        ),
        (
            "sd1",
            "checkpoint",
            "first_stage_model.decoder.up.3.block.2.nin_shortcut.bias",
            ["vae/decoder.up_blocks.0.resnets.2.conv_shortcut.bias"],
        ),
        (
            *(
                "sdxl",
                "checkpoint",
                "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_bias",
            ),
            [f"text_encoder_2/text_model.encoder.layers.31.self_attn.{of}_proj.bias" for of in "qkv"],
        ),
        (
            "sdxl",
            "diffusers",
            "text_encoder/final_layer_norm.bias",
            ["text_encoder/text_model.final_layer_norm.bias"],
        ),
        (
            "flux",
            "checkpoint",
            "single_blocks.9.norm.key_norm.scale",
            ["transformer/single_transformer_blocks.9.attn.norm_k.weight"],
        ),
        ("sd3", "checkpoint", "pos_embed", ["transformer/pos_embed.pos_embed"]),
        ("sd3", "checkpoint", "nothing", []),
    ],
)
def test_a_key_is_of_these_in_a_folder(name: str, layout: str, key: str, expected: list[str]) -> None:
    assert canonical(ARCHITECTURES[name], layout, key) == tuple(expected)

"""Folders made of single files alone: their built-in configs, held to the classes that read them."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import save_file

from runner.architectures import ARCHITECTURES
from runner.architectures.configs import PIPELINES
from runner.demo.models import demo_model
from runner.errors import IncompatibleError
from runner.planning.plan import Plan
from runner.tensors import TensorSpec
from tests.architectures.models import specs_of
from tests.architectures.test_layouts import CASES, single_specs
from tests.build import header_only, merge, planned
from tests.stored import as_single_file, equal, read

Specs = dict[str, TensorSpec]
V_PRED = {"v_pred": TensorSpec("F32", (0,))}
UNET = "model.diffusion_model."
ZERO_SNR = {**V_PRED, "ztsnr": TensorSpec("F32", (0,))}


def plan_of(path: Path, **fields: Any) -> Plan:
    """The plan of a copy of a single file to a folder."""
    tree = {"method": "copy", "models": {"a": path.name}, "output": {"format": "diffusers"}, **fields}
    return planned(tree, path.parent)


def texts_of(plan: Plan) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in plan.layout.texts.items() if name.endswith(".json")}


def said(architecture: str) -> dict[str, str]:
    """What a recipe has to say of a model of an architecture."""
    return {"prediction_type": "v_prediction"} if architecture == "sd2" else {}


@functools.cache
def built(library: str, name: str, text: str) -> Specs:
    """The tensors of a class filled by a config, under the names that folders have."""
    config = json.loads(text)
    with torch.device("meta"):
        if library == "diffusers":
            return specs_of(getattr(diffusers, name).from_config(config))
        kind = getattr(transformers, name)
        specs = specs_of(kind(kind.config_class.from_dict(config)))
    if name == "T5EncoderModel":
        specs.pop("encoder.embed_tokens.weight", None)  # another name of the first
        return specs
    outside = ("text_model.", "text_projection.")
    return {key if key.startswith(outside) else f"text_model.{key}": spec for key, spec in specs.items()}


def with_channels(specs: Specs, key: str, channels: int) -> Specs:
    """A model that takes in more."""
    shape = specs[key].shape
    return {**specs, key: TensorSpec(specs[key].dtype, (shape[0], channels, *shape[2:]))}


@functools.cache
def single(case: str) -> Specs:
    """The tensors of a single file."""
    return single_specs(case)


# Models that take in more: the case, the layer, its channels, the class of the pipeline.
VARIANTS = {
    "sd1 inpainting": ("sd1", f"{UNET}input_blocks.0.0.weight", 9, "StableDiffusionInpaintPipeline"),
    "sd1 pix2pix": ("sd1", f"{UNET}input_blocks.0.0.weight", 8, "StableDiffusionInstructPix2PixPipeline"),
    "sd2 inpainting": ("sd2", f"{UNET}input_blocks.0.0.weight", 9, "StableDiffusionInpaintPipeline"),
    "sdxl inpainting": ("sdxl", f"{UNET}input_blocks.0.0.weight", 9, "StableDiffusionXLInpaintPipeline"),
    "flux fill": ("flux", f"{UNET}img_in.weight", 384, "FluxFillPipeline"),
}


def model(name: str) -> tuple[str, Specs, str]:
    """Its architecture, its tensors in a single file, and the class of its pipeline."""
    if name in VARIANTS:
        case, key, channels, kind = VARIANTS[name]
        return CASES[case].architecture, with_channels(single(case), key, channels), kind
    architecture = CASES[name].architecture
    return architecture, single(name), str(PIPELINES[architecture].classes[None])


MODELS = [*(case for case in CASES if case != "sd2 unclip"), *VARIANTS]


def test_every_architecture_has_built_in_configs_of_every_component() -> None:
    assert PIPELINES.keys() == ARCHITECTURES.keys()
    for name, architecture in ARCHITECTURES.items():
        assert PIPELINES[name].components.keys() == {architecture.main, *architecture.outside}


@pytest.mark.parametrize("name", MODELS)
def test_the_classes_filled_by_built_in_configs_have_the_tensors_of_the_folder(
    name: str, tmp_path: Path
) -> None:
    architecture, specs, kind = model(name)
    plan = plan_of(header_only(tmp_path / "model.safetensors", specs), **said(architecture))
    texts = texts_of(plan)
    index = texts["model_index.json"]
    written: dict[str, Specs] = {}
    for file in plan.layout.files:
        for key, (_, spec) in file.tensors.items():
            component, _, inner = key.partition("/")
            written.setdefault(component, {})[inner] = spec
    assert index["_class_name"] == kind
    assert written.keys() == PIPELINES[architecture].components.keys()
    for component, own in written.items():
        library, cls = index[component]
        assert built(library, cls, json.dumps(texts[f"{component}/config.json"])) == own, component
        stem = "model" if library == "transformers" else "diffusion_pytorch_model"
        names = [file.name for file in plan.layout.files if file.name.startswith(f"{component}/")]
        assert all(file.startswith(f"{component}/{stem}") for file in names)
    check_words(texts)


def known_words(library: str, name: str) -> set[str]:
    if library == "diffusers":
        return set(inspect.signature(getattr(diffusers, name).__init__).parameters)
    return set(getattr(transformers, name).config_class().to_dict()) | {"torch_dtype"}


def check_words(texts: dict[str, Any]) -> None:
    """Whether classes have a parameter for each word of the configs, and get all that they need."""
    index = texts["model_index.json"]
    kind = index["_class_name"]
    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    assert {word for word in index if not word.startswith("_")} <= parameters.keys()
    required = {
        word
        for word, parameter in parameters.items()
        if parameter.default is parameter.empty
        and word not in ("self", *getattr(diffusers, kind)._optional_components)
    }
    assert required <= index.keys()
    for part, value in index.items():
        if isinstance(value, list) and value != [None, None]:
            config = texts[f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"]
            assert value[1] in (config.get("_class_name"), *config.get("architectures", ()))
            assert {word for word in config if not word.startswith("_")} <= known_words(*value), part


# ---- What the model predicts.


@pytest.mark.parametrize(
    ("case", "extra", "fields", "expected"),
    [
        ("sd1", {}, {}, ("PNDMScheduler", "epsilon", False)),
        ("sd1", V_PRED, {}, ("DDIMScheduler", "v_prediction", False)),
        ("sd1", ZERO_SNR, {}, ("DDIMScheduler", "v_prediction", True)),
        ("sd2", {}, {"prediction_type": "epsilon"}, ("PNDMScheduler", "epsilon", False)),
        ("sd2", {}, {"prediction_type": "v_prediction"}, ("DDIMScheduler", "v_prediction", False)),
        ("sdxl", {}, {}, ("EulerDiscreteScheduler", "epsilon", False)),
        ("sdxl", ZERO_SNR, {}, ("EulerDiscreteScheduler", "v_prediction", True)),
        (
            "sdxl",
            ZERO_SNR,
            {"prediction_type": "v_prediction"},
            ("EulerDiscreteScheduler", "v_prediction", True),
        ),
        ("sdxl", V_PRED, {"prediction_type": "epsilon"}, ("EulerDiscreteScheduler", "epsilon", False)),
    ],
)
def test_the_scheduler_is_that_of_what_the_model_predicts(
    case: str, extra: Specs, fields: dict[str, str], expected: tuple[str, str, bool], tmp_path: Path
) -> None:
    path = header_only(tmp_path / "m.safetensors", {**single(case), **extra})
    config = texts_of(plan_of(path, **fields))["scheduler/scheduler_config.json"]
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    zero = getattr(scheduler.config, "rescale_betas_zero_snr", False)
    assert (config["_class_name"], scheduler.config.prediction_type, zero) == expected
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert float(scheduler.betas[0]) == pytest.approx(0.00085, rel=1e-3)
    assert scheduler.config.steps_offset == 1


def test_stable_diffusion_2_has_to_say_what_it_predicts(tmp_path: Path) -> None:
    path = header_only(tmp_path / "m.safetensors", single("sd2"))
    with pytest.raises(IncompatibleError, match="does not say which") as caught:
        plan_of(path)
    assert "prediction_type: epsilon" in str(caught.value.hint)
    spec = {"modelspec__architecture": "stable-diffusion-v2-768-v"}
    path = header_only(tmp_path / "v.safetensors", single("sd2"), **spec)
    texts = texts_of(plan_of(path))
    assert texts["scheduler/scheduler_config.json"]["prediction_type"] == "v_prediction"
    assert texts["unet/config.json"]["sample_size"] == 96
    assert texts_of(plan_of(path, prediction_type="epsilon"))["unet/config.json"]["sample_size"] == 64


@pytest.mark.parametrize(
    ("case", "shift", "moves"), [("flux", 3.0, True), ("flux schnell", 1.0, False), ("sd3", 3.0, False)]
)
def test_flow_models_have_their_shift(case: str, shift: float, moves: bool, tmp_path: Path) -> None:
    texts = texts_of(plan_of(header_only(tmp_path / "m.safetensors", single(case))))
    config = texts["scheduler/scheduler_config.json"]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    assert (scheduler.config.shift, scheduler.config.use_dynamic_shifting) == (shift, moves)


# ---- What is refused, and what is said.


def test_a_model_of_other_sizes_is_refused_and_the_first_is_named(cache: Path, tmp_path: Path) -> None:
    tensors = as_single_file("sd1", read(demo_model("photo", cache)))
    save_file(tensors, tmp_path / "small.safetensors")
    with pytest.raises(
        IncompatibleError, match=r"unet/conv_in\.weight is 320×any×3×3; found 8×4×3×3"
    ) as caught:
        plan_of(tmp_path / "small.safetensors")
    assert "output.config: FOLDER" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        (
            "sd1",
            lambda specs: with_channels(specs, f"{UNET}input_blocks.0.0.weight", 5),
            "Stable Diffusion 1.x depth",
        ),
        ("sd2 unclip", lambda specs: specs, "has 686 tensors; found 690"),
        (
            "sd1",
            lambda specs: without(specs, f"{UNET}time_embed.0.bias"),
            "unet has 686 tensors; found 685",
        ),
        (
            "sd1",
            lambda specs: without(specs, f"{UNET}out.2.weight"),
            r"unet/conv_out\.weight is 4×320×3×3; it is missing",
        ),
        (
            "sdxl",
            lambda specs: specs | {"edm_vpred.sigma_max": TensorSpec("F32", ())},
            "predicts v with EDM's sigmas",
        ),
    ],
)
def test_a_model_that_no_config_fits_is_refused(case: str, change: Any, message: str, tmp_path: Path) -> None:
    path = header_only(tmp_path / "m.safetensors", change(single(case)))
    with pytest.raises(IncompatibleError, match=message):
        plan_of(path, **said(CASES[case].architecture))


def without(specs: Specs, key: str) -> Specs:
    return {name: spec for name, spec in specs.items() if name != key}


def test_a_transformer_alone_makes_a_folder_that_says_what_it_lacks(tmp_path: Path) -> None:
    specs = {key: spec for key, spec in single("flux").items() if key.startswith(UNET)}
    plan = plan_of(header_only(tmp_path / "m.safetensors", specs))
    index = texts_of(plan)["model_index.json"]
    lacking = ["tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae"]
    assert [index[name] for name in lacking] == [[None, None]] * 5
    assert any(f"the folder has no {', '.join(lacking)}" in warning for warning in plan.warnings)
    assert any("vae=..." in warning and "output.config" in warning for warning in plan.warnings)


def test_a_folder_with_built_in_files_opens_with_a_tokenizer_and_says_so_without(
    cache: Path, tmp_path: Path
) -> None:
    photo = demo_model("photo", cache)
    save_file(as_single_file("sd1", read(photo)), tmp_path / "photo.safetensors")
    # The demo model is too narrow for the configs; those of its components come with them.
    tree = {
        "method": "copy",
        "models": {"a": "photo.safetensors"},
        "components": {name: str(photo / name) for name in ("unet", "vae", "text_encoder")},
        "output": {"format": "diffusers"},
    }
    path, _ = merge(tree, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"expected .*tokenizer"):
        diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(photo / "tokenizer")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        path, tokenizer=tokenizer, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a castle", height=64, width=64, num_inference_steps=1, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
    own = read(photo)
    assert equal(read(path), own)
    # What a user completes, and what is merged again, is a folder as any other.
    again, _ = merge({"method": "copy", "models": {"a": str(path)}}, tmp_path, tmp_path / "again")
    assert read(again).keys() == own.keys()

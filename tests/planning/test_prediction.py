"""What models predict, which of them mix, and that every output says what it predicts."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers.schedulers
import pytest
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.architectures.configs import TAKE_ZERO_SNR
from runner.demo.models import demo_model
from runner.errors import IncompatibleError
from runner.imports.own import read as read_recipe_of
from runner.planning.plan import BUFFER
from runner.planning.prediction import Prediction, predictions, summary
from runner.provenance.record import canonical_recipe
from runner.recipe.structure import Source
from runner.resolve.sources import open_model
from tests.architectures.models import main_component
from tests.build import data_of, merge, metadata_of, planned, resolved

V_PRED = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
UNET, VAE = "model.diffusion_model.x", "first_stage_model.y"
SCHEDULER = "scheduler/scheduler_config.json"


def config_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / SCHEDULER).read_text())
    assert isinstance(found, dict)
    return found


def with_scheduler(folder: Path, to: Path, **changes: object) -> Path:
    """The same pipeline with another scheduler, its config as diffusers writes it."""
    shutil.copytree(folder, to)
    text = json.dumps({**config_of(folder), **changes}, indent=2, sort_keys=True) + "\n"
    (to / SCHEDULER).write_text(text)
    return to


V_CONFIG = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
EDM_CONFIG = {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}
SIGMAS = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A pipeline of SDXL that says epsilon, one that says v, and the single files of both."""
    root = tmp_path_factory.mktemp("sdxl")
    (root / "photo").symlink_to(demo_model("sdxl_photo", cache))
    with_scheduler(root / "photo", root / "photo_v", **V_CONFIG)
    merge(copy("photo", "checkpoint", "plain"), root, root)
    tensors = load_file(root / "plain.safetensors")
    save_file(tensors, root / "plain.safetensors")
    save_file({**tensors, **V_PRED}, root / "v.safetensors")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Models of two or three tensors, of no known architecture: folders and single files of every kind."""
    root = tmp_path_factory.mktemp("small")
    scheduler = config_of(demo_model("sdxl_photo", cache))
    folders = {"epsilon": {}, "v": V_CONFIG, "v_plain": {"prediction_type": "v_prediction"}}
    more = {"edm": EDM_CONFIG, "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}
    for seed, (name, changes) in enumerate({**folders, **more}.items()):
        for component in ("unet", "vae"):
            (root / name / component).mkdir(parents=True)
            weights = {"x": torch.full((4, 4), seed + 1.0)}
            save_file(weights, root / name / component / "diffusion_pytorch_model.safetensors")
        (root / name / "scheduler").mkdir()
        text = json.dumps({**scheduler, **changes}, indent=2, sort_keys=True) + "\n"
        (root / name / SCHEDULER).write_text(text)
        index = {"_class_name": "P", **{part: ["diffusers", "X"] for part in ("unet", "vae", "scheduler")}}
        (root / name / "model_index.json").write_text(json.dumps(index))
    files: dict[str, dict[str, Tensor]] = {"bare": {}, "marked": V_PRED, "edm": SIGMAS}
    for seed, (name, tensors) in enumerate(files.items()):
        weights = {key: torch.full((4, 4), seed + 1.0) for key in (UNET, VAE)}
        save_file({**weights, **tensors}, root / f"{name}.safetensors")
    said = {"modelspec.prediction_type": "epsilon"}
    save_file({UNET: torch.ones(4, 4), VAE: torch.ones(4, 4)}, root / "said.safetensors", said)
    return root


def copy(
    a: str | Path, layout: str, name: str = "out", config: str | None = None, **more: Any
) -> dict[str, Any]:
    output = {"name": name, "format": layout, **({"config": config} if config else {})}
    return {"method": "copy", "models": {"a": str(a)}, "output": output, **more}


def mix(a: str | Path, b: str | Path, **more: Any) -> dict[str, Any]:
    return {"method": "weighted_sum", "models": {"a": str(a), "b": str(b)}, **more}


def says(path: Path) -> str:
    """What job=inspect says that a model predicts."""
    return summary(predictions(open_model(Source(str(path)), Path(), Path(), offline=True)))


def markers(path: Path) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in load_file(path).items() if key in V_PRED}


def header(path: Path) -> dict[str, str]:
    file = path / "unet" / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    return metadata_of(file)


def data(path: Path) -> bytes:
    """A weight file without its header."""
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


# From one layout to the other


def test_markers_become_the_config_of_a_scheduler_that_diffusers_reads(sdxl: Path, tmp_path: Path) -> None:
    folder, _ = merge(copy("v.safetensors", "diffusers", config="photo"), sdxl, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.rescale_betas_zero_snr is True
    euler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    assert euler.config.prediction_type == "v_prediction" and euler.config.rescale_betas_zero_snr is True
    assert says(folder) == f"v, zero terminal SNR ({SCHEDULER})"
    assert config_of(folder) == {**config_of(sdxl / "photo"), **V_CONFIG}
    assert header(folder)["modelspec.prediction_type"] == header(folder)["modelspec.predict_key"] == "v"


def test_from_a_folder_to_a_single_file_and_back_and_again_nothing_is_lost(
    sdxl: Path, tmp_path: Path
) -> None:
    single, _ = merge(copy("photo_v", "checkpoint"), sdxl, tmp_path / "1")
    stored = load_file(single)
    assert [(stored[key].dtype, stored[key].shape) for key in V_PRED] == [(torch.float32, (0,))] * 2
    assert says(single) == "v, zero terminal SNR (tensors v_pred, ztsnr)"
    assert header(single)["modelspec.predict_key"] == "v"
    back, _ = merge(copy(single, "diffusers", config="photo_v"), sdxl, tmp_path / "2")
    assert (back / SCHEDULER).read_bytes() == (sdxl / "photo_v" / SCHEDULER).read_bytes()
    for file in sorted((sdxl / "photo_v").glob("*/*.safetensors")):
        assert data(back / file.relative_to(sdxl / "photo_v")) == data(file)
    again, _ = merge(copy(back, "checkpoint"), sdxl, tmp_path / "3")
    assert data(again) == data(single)


def test_an_epsilon_model_has_no_markers_and_keeps_its_scheduler(sdxl: Path) -> None:
    plan = planned(copy("photo", "checkpoint"), sdxl)
    assert not V_PRED.keys() & plan.layout.files[0].tensors.keys()
    assert b'"modelspec.prediction_type":"epsilon"' in plan.layout.files[0].header
    # Whoever lends the other files: the result predicts what its models do.
    plan = planned(copy("plain.safetensors", "diffusers", config="photo_v"), sdxl)
    written = json.loads(plan.layout.texts[SCHEDULER])
    assert written == {**config_of(sdxl / "photo"), "rescale_betas_zero_snr": False}


def test_markers_of_other_tools_keep_their_shape(small: Path, tmp_path: Path) -> None:
    ones = {key: torch.ones(1) for key in V_PRED}
    save_file({**load_file(small / "bare.safetensors"), **ones}, tmp_path / "a.safetensors")
    out, _ = merge(mix(tmp_path / "a.safetensors", "marked.safetensors"), small, tmp_path / "out")
    assert markers(out) == {"v_pred": (1,), "ztsnr": (1,)}


# What mixes


def refusal(tree: Mapping[str, Any], models: Path) -> str:
    with pytest.raises(IncompatibleError) as raised:
        planned(tree, models)
    assert raised.value.tag == "PREDICTION"
    first, *_ = raised.value.lines()
    assert "\n" not in raised.value.message and not first.endswith("…")
    return raised.value.message


def test_a_mix_of_epsilon_and_v_is_refused_with_both_and_how_they_are_known(sdxl: Path) -> None:
    message = refusal(mix("v.safetensors", "photo"), sdxl)
    assert "v.safetensors predicts v, zero terminal SNR (tensors v_pred, ztsnr)" in message
    assert f"photo predicts epsilon ({SCHEDULER})" in message
    assert "prediction_type: epsilon or v_prediction" in message


def test_a_single_file_of_sdxl_without_markers_is_epsilon(sdxl: Path) -> None:
    message = refusal(mix("v.safetensors", "plain.safetensors"), sdxl)
    assert "plain.safetensors predicts epsilon (no tensor v_pred)" in message


def test_a_difference_counts_too(small: Path) -> None:
    roles = {"a": "v", "b": "epsilon", "c": "epsilon"}
    tree = {"method": "add_difference", "models": roles}
    assert f"epsilon predicts epsilon ({SCHEDULER})" in refusal(tree, small)
    plan = planned({**tree, "prediction_type": "v_prediction"}, small)
    assert plan.prediction == Prediction("v", "prediction_type in the recipe", zero_snr=True)


@pytest.mark.parametrize("stated", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("v", "epsilon"),
        ("epsilon", "v"),
        ("marked.safetensors", "said.safetensors"),
        ("said.safetensors", "marked.safetensors"),
    ],
)
def test_a_stated_type_mixes_and_the_output_says_it(
    small: Path, tmp_path: Path, a: str, b: str, stated: str
) -> None:
    refusal(mix(a, b), small)
    path, _ = merge(mix(a, b, prediction_type=stated), small, tmp_path)
    v = stated == "v_prediction"
    assert json.loads(header(path)["runner.recipe"])["prediction_type"] == stated
    if path.is_file():
        assert markers(path) == ({"v_pred": (0,), "ztsnr": (0,)} if v else {})
        assert says(path) == ("v, zero terminal SNR (tensors v_pred, ztsnr)" if v else "unknown")
    else:
        assert config_of(path)["prediction_type"] == stated
        assert config_of(path).get("rescale_betas_zero_snr", False) is v
        assert says(path) == f"{'v, zero terminal SNR' if v else 'epsilon'} ({SCHEDULER})"


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(
    "models",
    [("v", "v_plain"), ("v_plain", "v"), ("v", "v"), ("v_plain", "v_plain")],
    ids="-".join,
)
def test_a_stated_end_of_the_noise_schedule_is_said_by_folders(
    small: Path, tmp_path: Path, models: tuple[str, str], zero: bool
) -> None:
    path, _ = merge(mix(*models, zero_terminal_snr=zero), small, tmp_path)
    assert config_of(path)["prediction_type"] == "v_prediction"
    assert config_of(path).get("rescale_betas_zero_snr", False) is zero
    assert json.loads(header(path)["runner.recipe"])["zero_terminal_snr"] is zero
    plan = planned(mix(*models, zero_terminal_snr=zero), small)
    assert plan.prediction == Prediction(
        "v", f"{models[0]}: {SCHEDULER}; zero_terminal_snr in the recipe", zero_snr=zero
    )
    against = {name for name in models if (name == "v") is not zero}
    warned = {one.split()[0] for one in plan.warnings if "predicts" in one}
    assert warned == against


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("a", ["marked", "bare"])
def test_a_stated_end_of_the_noise_schedule_is_said_by_single_files(
    small: Path, tmp_path: Path, a: str, zero: bool
) -> None:
    said = {"prediction_type": "v_prediction", "zero_terminal_snr": zero}
    path, _ = merge(mix(f"{a}.safetensors", "bare.safetensors", **said), small, tmp_path)
    assert markers(path) == ({"v_pred": (0,), "ztsnr": (0,)} if zero else {"v_pred": (0,)})


def test_diffusers_reads_the_stated_end_of_the_noise_schedule(sdxl: Path, tmp_path: Path) -> None:
    said = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
    folder, _ = merge(copy("photo", "diffusers", **said), sdxl, tmp_path)
    scheduler = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    # What is left of the image at the last step: nothing but what keeps it from a division by 0.
    assert float(scheduler.alphas_cumprod[-1]) == 2**-24
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(5)
    assert scheduler.timesteps[0] == 999
    stated = {**V_CONFIG, "timestep_spacing": "trailing"}
    assert config_of(folder) == {**config_of(sdxl / "photo"), **stated}


@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("config", [{"prediction_type": "v_prediction"}, V_CONFIG], ids=["plain", "zero"])
def test_a_scheduler_that_does_not_take_the_stated_end_of_the_noise_schedule_is_refused(
    small: Path, tmp_path: Path, name: str, config: dict[str, object]
) -> None:
    folder = with_scheduler(small / "v_plain", tmp_path / "odd", _class_name=name, **config)
    tree = mix(folder, "v_plain", zero_terminal_snr=True)
    assert f'"{name}", which does not take it' in refusal(tree, small)
    with pytest.raises(IncompatibleError) as raised:
        planned(tree, small)
    assert "output.config: FOLDER" in str(raised.value.hint)
    plan = planned({**tree, "output": {"config": str(small / "v_plain")}}, small)
    assert json.loads(plan.layout.texts[SCHEDULER])["rescale_betas_zero_snr"] is True
    # As long as the recipe does not ask for it, what is there is left.
    untouched = planned(mix(folder, "v_plain"), small)
    assert json.loads(untouched.layout.texts[SCHEDULER]) == config_of(folder)


def test_the_schedulers_that_take_the_end_of_the_noise_schedule_are_those_of_diffusers() -> None:
    classes = {name: getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers)}
    found = {
        name
        for name, one in classes.items()
        if isinstance(one, type) and "rescale_betas_zero_snr" in inspect.signature(one.__init__).parameters
    }
    assert found == TAKE_ZERO_SNR


@pytest.mark.parametrize(
    ("models", "said", "words"),
    [
        (("epsilon", "epsilon"), {}, "the result predicts epsilon"),
        (("v", "v"), {"prediction_type": "epsilon"}, "the result predicts epsilon"),
        (("flow", "flow"), {}, "the result predicts flow"),
        (("edm", "edm"), {}, "the result predicts EDM"),
        (("bare.safetensors", "bare.safetensors"), {}, "no model says what it predicts"),
    ],
)
def test_what_does_not_predict_v_has_no_zero_terminal_snr(
    small: Path, models: tuple[str, str], said: dict[str, str], words: str
) -> None:
    message = refusal(mix(*models, **said, zero_terminal_snr=True), small)
    assert "zero_terminal_snr" in message and words in message
    if models[0] == "epsilon":
        plan = planned(mix(*models, zero_terminal_snr=False), small)
        assert plan.prediction is not None and plan.prediction.zero_snr is False


def test_what_is_stated_against_a_model_is_warned_of(small: Path) -> None:
    plan = planned(mix("v", "epsilon", prediction_type="epsilon"), small)
    (warning,) = (one for one in plan.warnings if "predicts" in one)
    assert warning.startswith(f"v predicts v, zero terminal SNR ({SCHEDULER}); the result is taken for")
    plan = planned(mix("v", "v_plain"), small)
    (warning,) = (one for one in plan.warnings if "predicts" in one)
    assert warning.startswith("v_plain predicts v") and "without zero terminal SNR" in warning
    assert not [one for one in planned(mix("v", "v"), small).warnings if "predicts" in one]


def test_only_models_that_the_unet_is_made_of_count(small: Path, tmp_path: Path) -> None:
    path, _ = merge(mix("v", "epsilon", alpha={"default": 0, "vae": 0.5}), small, tmp_path / "1")
    assert says(path) == f"v, zero terminal SNR ({SCHEDULER})"
    path, _ = merge(mix("v", "epsilon", alpha={"default": 0.5, "unet": 1}), small, tmp_path / "2")
    assert says(path) == f"epsilon ({SCHEDULER})"
    path, _ = merge(mix("epsilon", "epsilon", components={"unet": "v"}), small, tmp_path / "3")
    assert says(path) == f"v, zero terminal SNR ({SCHEDULER})"
    path, _ = merge(mix("v", "v_plain", components={"vae": "epsilon"}), small, tmp_path / "4")
    assert says(path) == f"v, zero terminal SNR ({SCHEDULER})"


def test_models_that_say_nothing_mix_with_anything(small: Path, tmp_path: Path) -> None:
    plan = planned(mix("bare.safetensors", "said.safetensors"), small)
    assert plan.prediction == Prediction("epsilon", "said.safetensors: modelspec.prediction_type")
    path, _ = merge(mix("bare.safetensors", "marked.safetensors"), small, tmp_path)
    assert says(path) == "v, zero terminal SNR (tensors v_pred, ztsnr)"
    assert planned(mix("bare.safetensors", "bare.safetensors"), small).prediction is None


def test_what_is_left_out_and_what_is_added_is_in_the_plan(small: Path) -> None:
    plan = planned(copy("marked.safetensors", "checkpoint", prediction_type="epsilon"), small)
    said = "left out: the result predicts epsilon (prediction_type in the recipe)"
    assert plan.dropped[said] == ("v_pred", "ztsnr")
    plan = planned(copy("bare.safetensors", "checkpoint", prediction_type="v_prediction"), small)
    (job,) = (job for job in plan.jobs if job.key == "v_pred")
    assert (job.loads, job.fate, job.content) == ((), BUFFER, b"")
    assert "ztsnr" not in plan.layout.files[0].tensors


# EDM and flow


def test_markers_of_edm_are_copied_and_not_made(small: Path, tmp_path: Path) -> None:
    path, _ = merge(mix("edm.safetensors", "bare.safetensors"), small, tmp_path / "1")
    assert all(torch.equal(load_file(path)[key], value) for key, value in SIGMAS.items())
    assert says(path) == "v with EDM's sigmas (tensor edm_vpred.sigma_max)"
    assert "with EDM's sigmas" in refusal(mix("edm.safetensors", "marked.safetensors"), small)
    assert "bare.safetensors has none" in refusal(mix("bare.safetensors", "edm.safetensors"), small)
    plain, _ = merge(copy("edm.safetensors", "checkpoint", prediction_type="epsilon"), small, tmp_path / "2")
    assert not SIGMAS.keys() & load_file(plain).keys()


def test_a_pipeline_of_edm_is_no_home_for_other_models(small: Path) -> None:
    assert EDMEulerScheduler.from_config(config_of(small / "edm")).config.prediction_type == "epsilon"
    assert says(small / "edm") == f'EDM ({SCHEDULER}: "EDMEulerScheduler")'
    assert "edm predicts EDM" in refusal(mix("edm", "epsilon"), small)
    assert "is made for EDM" in refusal(mix("edm", "epsilon", prediction_type="epsilon"), small)
    plan = planned(mix("edm", "edm"), small)
    assert plan.layout.texts[SCHEDULER] == (small / "edm" / SCHEDULER).read_bytes()


def test_what_predicts_flow_cannot_be_stated_otherwise(small: Path) -> None:
    assert "leave it out" in refusal(copy("flow", "diffusers", prediction_type="epsilon"), small)
    assert "flow predicts flow" in refusal(mix("flow", "v"), small)


# Stable Diffusion 2


def sd2(path: Path, seed: int, **more: Tensor) -> Path:
    """A tiny UNet of Stable Diffusion 2, as its single files have it."""
    generator = torch.Generator().manual_seed(seed)
    specs = main_component("sd2", "checkpoint", tiny=True)
    tensors = {key: torch.randn(spec.shape, generator=generator).half() for key, spec in specs.items()}
    save_file({**tensors, **more}, path)
    return path


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single files of Stable Diffusion 2 by the steps of their training."""
    root = tmp_path_factory.mktemp("sd2")
    for name, steps in {"base": 875000, "invoke": 220000, "v": 110000, "own": 4321}.items():
        sd2(root / f"{name}.safetensors", steps, global_step=torch.tensor(steps))
    sd2(root / "none.safetensors", 1)
    torch.save(
        {"global_step": 875000, "state_dict": load_file(root / "none.safetensors")}, root / "base.ckpt"
    )
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base.safetensors", "epsilon (global_step 875000)"),
        ("base.ckpt", "epsilon (global_step 875000)"),
        ("invoke.safetensors", "epsilon (global_step 220000)"),
        ("v.safetensors", "v (global_step 110000)"),
        ("own.safetensors", "unknown"),
        ("none.safetensors", "unknown"),
    ],
)
def test_single_files_of_stable_diffusion_2_are_known_by_their_steps(
    second: Path, name: str, expected: str
) -> None:
    assert says(second / name) == expected


@pytest.mark.parametrize(
    ("tree", "expected", "spec"),
    [
        (mix("base.safetensors", "none.safetensors"), 875000, "512"),
        (mix("base.ckpt", "none.safetensors"), 875000, "512"),
        (mix("invoke.safetensors", "base.safetensors"), 220000, "512"),
        (mix("v.safetensors", "none.safetensors"), 110000, "768-v"),
        (mix("own.safetensors", "none.safetensors", prediction_type="epsilon"), 875000, "512"),
        (mix("base.safetensors", "none.safetensors", prediction_type="v_prediction"), None, "768-v"),
        (mix("own.safetensors", "none.safetensors"), 4321, None),
    ],
)
def test_the_header_of_stable_diffusion_2_says_what_it_predicts_and_so_do_its_steps(
    second: Path, tmp_path: Path, tree: dict[str, Any], expected: int | None, spec: str | None
) -> None:
    path, _ = merge(tree, second, tmp_path)
    written = load_file(path)
    assert (int(written["global_step"]) if "global_step" in written else None) == expected
    said = metadata_of(path)
    name = said["modelspec.architecture"]
    assert name == ("stable-diffusion-v2" if spec is None else f"stable-diffusion-v2-{spec}")
    assert ("v_pred" in written) == (spec == "768-v")
    assert said["modelspec.resolution"] == {"768-v": "768x768"}.get(str(spec), "512x512")


def test_the_steps_that_diffusers_takes_for_epsilon_are_written(second: Path, tmp_path: Path) -> None:
    path, outcome = merge(copy("base.ckpt", "checkpoint"), second, tmp_path)
    step = load_file(path)["global_step"]
    assert (step.dtype, step.shape, int(step)) == (torch.int64, (), 875000)
    assert says(path) == "epsilon (global_step 875000)"
    assert outcome.contents == [hashlib.sha256(data_of(path)).hexdigest()]
    assert outcome.tensors["global_step"] == hashlib.sha256(step.numpy().tobytes()).hexdigest()


def test_epsilon_and_v_of_stable_diffusion_2_do_not_mix(second: Path) -> None:
    assert "predicts v (global_step 110000)" in refusal(mix("base.safetensors", "v.safetensors"), second)


# What else knows of it


def test_the_stated_type_is_part_of_the_recipe_and_comes_back_from_the_header(small: Path) -> None:
    stated, plain = (
        canonical_recipe(resolved(mix("v", "v", **more), small).recipe)
        for more in ({"prediction_type": "epsilon"}, {})
    )
    assert stated == {**plain, "prediction_type": "epsilon"}
    assert read_recipe_of(stated, "x").tree["prediction_type"] == "epsilon"
    zero = canonical_recipe(resolved(mix("v", "v", zero_terminal_snr=False), small).recipe)
    assert zero == {**plain, "zero_terminal_snr": False}
    assert read_recipe_of(zero, "x").tree["zero_terminal_snr"] is False


def test_a_lora_says_what_the_models_it_is_taken_from_predict(second: Path) -> None:
    models = {"base": "base.safetensors", "model": "none.safetensors"}
    tree = {"method": "extract_lora", "models": models, "rank": 1}
    plan = planned(tree, second)
    assert b'"modelspec.prediction_type":"epsilon"' in plan.layout.files[0].header
    assert b'"modelspec.architecture":"stable-diffusion-v2-512/lora"' in plan.layout.files[0].header
    refusal({**tree, "models": {**models, "model": "v.safetensors"}}, second)

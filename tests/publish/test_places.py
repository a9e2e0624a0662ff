"""Where programs look for models, by what a model is."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import UsageError
from runner.publish.places import place_of
from runner.publish.target import (
    CHECKPOINT,
    DENOISER,
    LORA,
    PIPELINE,
    TEXT_ENCODER,
    VAE,
    Model,
    Target,
    kind_of,
)


def model(kind: str) -> Model:
    return Model(Path("/runs/mix.safetensors"), kind, {})


@pytest.mark.parametrize(
    ("output_format", "components", "kind"),
    [
        ("checkpoint", ["unet", "vae", "text_encoder"], CHECKPOINT),
        ("checkpoint", ["model"], CHECKPOINT),
        ("checkpoint", [], CHECKPOINT),
        ("checkpoint", ["unet"], DENOISER),
        ("checkpoint", ["transformer"], DENOISER),
        ("checkpoint", ["vae"], VAE),
        ("checkpoint", ["text_encoder", "text_encoder_2"], TEXT_ENCODER),
        ("lora", ["unet"], LORA),
        ("diffusers", ["unet"], PIPELINE),
    ],
)
def test_a_model_is_what_its_format_and_components_say(
    output_format: str, components: list[str], kind: str
) -> None:
    assert kind_of(output_format, components) == kind


@pytest.mark.parametrize(
    ("kind", "a1111", "comfyui"),
    [
        (CHECKPOINT, "Stable-diffusion", "checkpoints"),
        (LORA, "Lora", "loras"),
        (VAE, "VAE", "vae"),
        (DENOISER, "Stable-diffusion", "diffusion_models"),
        (TEXT_ENCODER, "text_encoder", "text_encoders"),
    ],
)
def test_each_kind_has_its_folder(kind: str, a1111: str, comfyui: str, tmp_path: Path) -> None:
    for folder in ("Stable-diffusion", a1111, comfyui):
        (tmp_path / "models" / folder).mkdir(parents=True, exist_ok=True)
    for name, folder in (("a1111", a1111), ("comfyui", comfyui)):
        place = place_of(Target(name, tmp_path), model(kind))
        assert place == tmp_path / "models" / folder / "mix.safetensors"
    assert place_of(Target("folder", tmp_path), model(kind)) == tmp_path / "mix.safetensors"


@pytest.mark.parametrize("name", ["a1111", "comfyui"])
def test_a_folder_is_refused_where_single_files_are_loaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="loads single files, and the result is a folder") as caught:
        place_of(Target(name, tmp_path), model(PIPELINE))
    assert "output.format=checkpoint" in str(caught.value.hint)
    assert place_of(Target("folder", tmp_path), model(PIPELINE)).parent == tmp_path


def test_the_paths_of_comfyui_are_honoured(tmp_path: Path) -> None:
    (tmp_path / "big" / "ckpt").mkdir(parents=True)
    (tmp_path / "big" / "old_unet").mkdir()
    text = "a:\n  base_path: big\n  checkpoints: |\n    none\n    ckpt\n  unet: old_unet\n"
    (tmp_path / "extra_model_paths.yaml").write_text(text)
    for root in (tmp_path, tmp_path / "extra_model_paths.yaml"):
        target = Target("comfyui", root)
        assert place_of(target, model(CHECKPOINT)).parent == tmp_path / "big" / "ckpt"
        assert place_of(target, model(DENOISER)).parent == tmp_path / "big" / "old_unet"
        with pytest.raises(UsageError, match="no folder for loras"):
            place_of(target, model(LORA))
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    own = place_of(Target("comfyui", tmp_path), model(CHECKPOINT)).parent
    assert own == tmp_path / "models" / "checkpoints"


def test_default_folders_of_comfyui_come_before_its_own_the_last_first(tmp_path: Path) -> None:
    for folder in ("models/loras", "models/checkpoints", "fast", "faster", "new", "old"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "extra_model_paths.yaml").write_text(
        "a:\n  is_default: true\n  checkpoints: |\n    fast\n    faster\n    none\n"
        "  diffusion_models: new\n  unet: old\n"
        "b:\n  is_default: false\n  checkpoints: new\n  loras: new\n"
    )
    for kind, folder in ((CHECKPOINT, "faster"), (LORA, "models/loras"), (DENOISER, "old")):
        assert place_of(Target("comfyui", tmp_path), model(kind)).parent == tmp_path / folder
    (tmp_path / "faster").rmdir()
    alone = Target("comfyui", tmp_path / "extra_model_paths.yaml")
    assert place_of(alone, model(CHECKPOINT)).parent == tmp_path / "fast"
    assert place_of(alone, model(LORA)).parent == tmp_path / "new"


def test_a_root_that_is_missing_or_another_programs_is_told(tmp_path: Path) -> None:
    for name, root, words in (
        ("a1111", None, "publish.root=FOLDER is missing"),
        ("a1111", tmp_path / "none", "no such folder"),
        ("a1111", tmp_path, "has no models/Stable-diffusion"),
        ("comfyui", tmp_path, "no folder for checkpoints"),
    ):
        with pytest.raises(UsageError, match=words):
            place_of(Target(name, root), model(CHECKPOINT))
    (tmp_path / "models" / "Stable-diffusion").mkdir(parents=True)
    with pytest.raises(UsageError, match="Lora") as caught:
        place_of(Target("a1111", tmp_path), model(LORA))
    assert "mkdir -p" in str(caught.value.hint)

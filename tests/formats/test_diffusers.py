"""Diffusers folders: what is read, what is carried on, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.checkpoint import Checkpoint
from runner.demo.models import demo_model
from runner.errors import IncompatibleError, InputError
from runner.formats import READERS
from runner.formats.diffusers import DiffusersFolder

FOLDER = DiffusersFolder()


@pytest.fixture
def photo(tmp_path: Path, cache: Path) -> Path:
    """A copy of a demo model that a test may damage."""
    return Path(shutil.copytree(demo_model("photo", cache), tmp_path / "photo"))


def open_folder(path: Path, variant: str | None = None) -> Checkpoint:
    return FOLDER.open(path, "photo", variant)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(names: list[str]) -> dict[str, torch.Tensor]:
    return {name: torch.ones(2) for name in names}


def test_keys_are_component_and_name(photo: Path) -> None:
    checkpoint = open_folder(photo)
    assert {key.partition("/")[0] for key in checkpoint.tensors} == {"unet", "vae", "text_encoder"}
    assert "unet/conv_in.weight" in checkpoint.tensors
    assert checkpoint.pipeline == "StableDiffusionPipeline"


def test_files_without_weights_are_carried_on_and_code_is_not(photo: Path) -> None:
    (photo / "unet" / "evil.py").write_text("raise SystemExit")
    (photo / "unet" / "pickle.bin").write_bytes(b"\x80\x02")
    others = set(open_folder(photo).others)
    assert {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json"} <= others
    assert not any(name.endswith((".py", ".bin", ".safetensors")) for name in others)


def test_a_path_in_a_config_is_not_carried_on(photo: Path) -> None:
    edit(photo / "unet" / "config.json", _name_or_path="/home/someone/secret", auto_map={"x": "y.py"})
    checkpoint = open_folder(photo)
    layout = FOLDER.layout("x", checkpoint.specs, checkpoint, {}, None)
    config = json.loads(layout.texts["unet/config.json"])
    assert "_name_or_path" not in config and "auto_map" not in config and config["_class_name"]


def test_an_output_layout_of_an_input_is_the_input(photo: Path) -> None:
    checkpoint = open_folder(photo)
    layout = FOLDER.layout("copy", checkpoint.specs, checkpoint, {}, None)
    assert {file.name for file in layout.files} == {
        path.relative_to(photo).as_posix() for path in photo.rglob("*.safetensors")
    }
    assert layout.texts["scheduler/scheduler_config.json"] == (
        (photo / "scheduler" / "scheduler_config.json").read_bytes()
    )


def test_shards_are_split_by_size_and_read_back_as_one(photo: Path, tmp_path: Path) -> None:
    checkpoint = open_folder(photo)
    layout = FOLDER.layout("copy", checkpoint.specs, checkpoint, {}, 200_000)
    unet = [file for file in layout.files if file.name.startswith("unet/")]
    assert len(unet) > 1
    assert unet[0].name == f"unet/diffusion_pytorch_model-00001-of-{len(unet):05d}.safetensors"
    index = json.loads(layout.texts["unet/diffusion_pytorch_model.safetensors.index.json"])
    assert index["weight_map"]["conv_in.weight"] in {Path(file.name).name for file in unet}
    copy = tmp_path / "copy"
    shutil.copytree(photo, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, text in layout.texts.items():
        (copy / name).write_bytes(text)
    for file in layout.files:
        (copy / file.name).write_bytes(file.header + bytes(file.nbytes - len(file.header)))
    assert FOLDER.open(copy, "copy", None).specs == checkpoint.specs


def test_a_variant_is_taken_when_asked_for_or_the_only_one(photo: Path) -> None:
    unet = photo / "unet"
    save_file(weights(["half"]), unet / "diffusion_pytorch_model.fp16.safetensors")
    assert "unet/conv_in.weight" in open_folder(photo).tensors
    assert "unet/half" in open_folder(photo, "fp16").tensors
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    assert "unet/half" in open_folder(photo).tensors


def test_two_variants_and_no_plain_files_are_ambiguous(photo: Path) -> None:
    unet = photo / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    for variant in ("fp16", "non_ema"):
        save_file(weights(["x"]), unet / f"diffusion_pytorch_model.{variant}.safetensors")
    with pytest.raises(InputError, match="several variants") as caught:
        open_folder(photo)
    assert "variant: fp16" in str(caught.value.hint)


def test_an_unknown_variant_names_the_nearest(photo: Path) -> None:
    save_file(weights(["x"]), photo / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(InputError, match='did you mean "fp16"'):
        open_folder(photo, "fp61")


def index_text(weight_map: Any) -> str:
    return json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map})


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"x": "../../secret.safetensors"}, "bare name"),
        ({"x": "/etc/passwd"}, "bare name"),
        ({"x": "C:\\secret.safetensors"}, "bare name"),
        ({"x": "pytorch_model.bin"}, "bare name"),
        ({"x": "missing.safetensors"}, "no such file"),
        ({"x": "shard.safetensors", "y": "shard.safetensors"}, "the index only"),
        (["x"], "expected a mapping"),
        ({"x": 3}, "expected a mapping"),
    ],
)
def test_an_index_cannot_lie(photo: Path, weight_map: Any, reason: str) -> None:
    unet = photo / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    save_file(weights(["x"]), unet / "shard.safetensors")
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(index_text(weight_map))
    with pytest.raises(InputError, match=reason):
        open_folder(photo)


def test_a_single_file_and_an_index_together_are_refused(photo: Path) -> None:
    (photo / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(index_text({}))
    with pytest.raises(InputError, match="both"):
        open_folder(photo)


def test_a_link_out_of_the_folder_is_refused(photo: Path, tmp_path: Path) -> None:
    file = photo / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(tmp_path / "elsewhere.safetensors")
    file.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="symbolic link"):
        open_folder(photo)


def test_a_snapshot_of_the_hub_cache_links_to_its_blobs(photo: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "rev"
    shutil.copytree(photo, snapshot)
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    file = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(blobs / "abc")
    file.symlink_to(blobs / "abc")
    assert open_folder(snapshot).specs == open_folder(photo).specs


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": ["evil", "Pipeline"]}, "_class_name"),
        ({"unet": ["diffusers", "a b"]}, "unet"),
        ({"unet": ["diffusers", "UNet2DConditionModel", "more"]}, "unet"),
        ({"../up": ["diffusers", "UNet2DConditionModel"]}, "no identifier"),
        ({"gone": ["diffusers", "UNet2DConditionModel"]}, "gone"),
    ],
)
def test_a_model_index_names_classes_and_folders_only(
    photo: Path, changes: dict[str, Any], reason: str
) -> None:
    edit(photo / "model_index.json", **changes)
    with pytest.raises(InputError, match=reason):
        open_folder(photo)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors", "/x.safetensors", "./x.safetensors", "a/x.safetensors", "a\\x.safetensors",
        "C:x.safetensors", "C:\\x.safetensors", "\\\\server\\share\\x.safetensors", "x.safetensors:stream",
        "..safetensors", ".safetensors", "", ".", "..", "x.safetensors\0", "x.safetensors/", "~x.safetensors",
        "x.SAFETENSORS", "ｘ.safetensors", "x.bin", "x.safetensors.pkl", "%2e%2e%2fx.safetensors",
    ],
)  # fmt: skip
def test_a_shard_has_a_bare_name_on_every_system(photo: Path, name: str) -> None:
    unet = photo / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    save_file(weights(["x"]), photo / "x.safetensors")
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(index_text({"x": name}))
    with pytest.raises(InputError, match="weight_map"):
        open_folder(photo)


@pytest.mark.parametrize("library", ["evil", "os", "photo", "numpy", "diffuser", "builtins"])
def test_classes_are_of_known_libraries(photo: Path, library: str) -> None:
    edit(photo / "model_index.json", unet=[library, "UNet2DConditionModel"])
    with pytest.raises(InputError, match=rf'unet: expected a class .*"{library}\.UNet2DConditionModel"'):
        open_folder(photo)


def test_what_diffusers_pipelines_define_themselves_is_known(photo: Path) -> None:
    edit(photo / "model_index.json", vae=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert "vae/decoder.conv_in.weight" in open_folder(photo).tensors


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN}', '{"a": 1, "a": 2}', "\ufeff{}"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_a_broken_config_is_refused_when_the_folder_is_opened(photo: Path, name: str, text: str) -> None:
    (photo / name).write_text(text)
    with pytest.raises(InputError, match=f"photo/{name}: "):
        open_folder(photo)


def test_code_is_dropped_from_configs_at_any_depth(photo: Path) -> None:
    edit(photo / "unet" / "config.json", inner={"list": [{"auto_map": {"A": "evil.py"}, "kept": 1}]})
    edit(photo / "model_index.json", auto_map={"A": "evil.py"}, trust_remote_code=True)
    checkpoint = open_folder(photo)
    texts = FOLDER.layout("x", checkpoint.specs, checkpoint, {}, None).texts
    assert not any(b"auto_map" in text or b"trust_remote_code" in text for text in texts.values())
    assert json.loads(texts["unet/config.json"])["inner"] == {"list": [{"kept": 1}]}


@pytest.mark.parametrize("target", ["/etc/hostname", "../../outside.json", "loop.json", "/dev/zero"])
def test_a_link_among_the_carried_files_stays_inside(photo: Path, target: str) -> None:
    (photo.parent / "outside.json").write_text("{}")
    (photo / "unet" / "loop.json").symlink_to(target)
    with pytest.raises(InputError, match=r"photo/unet/loop\.json: a symbolic link that"):
        open_folder(photo)


def test_a_folder_that_is_a_link_to_elsewhere_is_refused(photo: Path) -> None:
    (photo / "vae").rename(photo.parent / "vae")
    (photo / "vae").symlink_to(photo.parent / "vae")
    with pytest.raises(InputError, match="symbolic link"):
        open_folder(photo)


def test_the_blobs_of_a_cache_may_not_be_a_link_themselves(photo: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "rev"
    shutil.copytree(photo, snapshot)
    (tmp_path / "private").mkdir()
    (tmp_path / "models--x" / "blobs").symlink_to(tmp_path / "private")
    file = snapshot / "unet" / "config.json"
    file.rename(tmp_path / "private" / "abc")
    file.symlink_to(tmp_path / "models--x" / "blobs" / "abc")
    with pytest.raises(InputError, match="symbolic link"):
        open_folder(snapshot)


def test_a_carried_file_has_at_most_64_mib(photo: Path) -> None:
    with (photo / "unet" / "large.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(InputError, match=r"large\.json: 67108865 bytes"):
        open_folder(photo)


def test_names_that_are_one_on_other_systems_are_refused(photo: Path) -> None:
    for name in ("Extra.json", "extra.json"):
        (photo / "unet" / name).write_text("{}")
    checkpoint = open_folder(photo)
    with pytest.raises(IncompatibleError, match="differ by case alone") as caught:
        FOLDER.layout("x", checkpoint.specs, checkpoint, {}, None)
    assert caught.value.lines()[0].startswith("runner: error[E-CASE]: ")


def test_a_wrong_total_size_is_a_warning(photo: Path) -> None:
    unet = photo / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "shard.safetensors")
    keys = load_file(unet / "shard.safetensors")
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(index_text(dict.fromkeys(keys, "shard.safetensors")))
    (warning,) = open_folder(photo).warnings
    assert "total_size 8, its tensors have" in warning
    size = sum(tensor.nbytes for tensor in keys.values())
    edit(index, metadata={"total_size": size})
    assert open_folder(photo).warnings == ()


def test_plain_pickles_are_read_before_another_variant_and_it_is_said(photo: Path) -> None:
    unet = photo / "unet"
    tensors = load_file(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(tensors, unet / "diffusion_pytorch_model.bin")
    save_file(weights(["half"]), unet / "diffusion_pytorch_model.fp16.safetensors")
    checkpoint = open_folder(photo)
    assert "unet/conv_in.weight" in checkpoint.tensors
    assert checkpoint.warnings == (
        "photo/unet: diffusion_pytorch_model.bin is read, a pickle; as safetensors there is variant fp16",
    )
    assert "unet/half" in open_folder(photo, "fp16").tensors


def test_a_component_that_lacks_the_variant_is_named(photo: Path) -> None:
    save_file(weights(["half"]), photo / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert open_folder(photo, "fp16").warnings == (
        'photo/text_encoder: no variant "fp16": its plain weights are read',
        'photo/vae: no variant "fp16": its plain weights are read',
    )


def pickled(folder: Path) -> Path:
    """Turns the weights of a folder into pickles, as diffusers and transformers wrote them once."""
    for file in folder.rglob("*.safetensors"):
        stem = file.stem.replace("model", "pytorch_model") if file.stem == "model" else file.stem
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()
    return folder


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    files = [file.path.read_bytes() for file in checkpoint.files]
    return {
        key: files[stored.file][stored.offset : stored.offset + stored.spec.nbytes]
        for key, stored in checkpoint.tensors.items()
    }


def test_pickled_weights_are_read_as_the_same_tensors(photo: Path, cache: Path) -> None:
    checkpoint = open_folder(pickled(photo))
    original = open_folder(demo_model("photo", cache))
    assert checkpoint.title == "diffusers folder, pickles" and original.title is None
    assert checkpoint.specs == original.specs
    assert contents(checkpoint) == contents(original)
    layout = FOLDER.layout("copy", checkpoint.specs, checkpoint, {}, None)
    expected = FOLDER.layout("copy", original.specs, original, {}, None)
    assert (layout.files, layout.texts) == (expected.files, expected.texts)


def test_pickles_are_read_only_where_there_is_nothing_better(photo: Path) -> None:
    (photo / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    (photo / "text_encoder" / "pytorch_model.fp16.bin").write_bytes(b"never read")
    assert open_folder(photo).title is None


@pytest.mark.parametrize(
    ("name", "variant"),
    [("diffusion_pytorch_model.fp16.bin", "fp16"), ("diffusion_pytorch_model.non_ema.bin", None)],
)
def test_a_variant_may_be_pickled(photo: Path, name: str, variant: str | None) -> None:
    unet = pickled(photo) / "unet"
    (unet / "diffusion_pytorch_model.bin").rename(unet / name)
    assert "unet/conv_in.weight" in open_folder(photo, variant).tensors


@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "pytorch_model"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_may_be_pickled(photo: Path, cache: Path, name: str, variant: str | None) -> None:
    unet = pickled(photo) / "unet"
    tensors = torch.load(unet / "diffusion_pytorch_model.bin", weights_only=True)
    (unet / "diffusion_pytorch_model.bin").unlink()
    suffix = f".{variant}" if variant else ""
    weight_map = {}
    for number in range(2):
        part = {key: tensors[key] for key in list(tensors)[number::2]}
        shard = f"{name}-{number + 1:05d}-of-00002{suffix}.bin"
        torch.save(part, unet / shard)
        weight_map |= dict.fromkeys(part, shard)
    (unet / f"{name}.bin.index{suffix}.json").write_text(index_text(weight_map))
    checkpoint = open_folder(photo, variant)
    assert contents(checkpoint) == contents(open_folder(demo_model("photo", cache)))


def test_an_index_of_pickles_names_pickles_only(photo: Path) -> None:
    unet = photo / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "shard.safetensors")
    index = unet / "diffusion_pytorch_model.bin.index.json"
    index.write_text(index_text({"x": "shard.safetensors"}))
    with pytest.raises(InputError, match=r"no bare name of a \.bin file"):
        open_folder(photo)


def test_content_and_suffix_of_weights_agree(photo: Path) -> None:
    vae = photo / "vae"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"expected a file of torch\.save"):
        open_folder(photo)


def test_a_component_without_weights_is_refused(photo: Path) -> None:
    (photo / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="found none"):
        open_folder(photo)


def test_a_folder_without_an_index_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_folder(tmp_path)
    assert "model_index.json" in caught.value.message


def test_every_reader_refuses_what_is_not_there(tmp_path: Path) -> None:
    for entry in READERS:
        with pytest.raises(InputError):
            entry.open(tmp_path / "nothing", "nothing", None)

"""The demo models against the libraries that open them, and against their own promises."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from runner.demo.models import DEMO_MODELS, demo_model
from runner.errors import InputError, OutputError

# Digest of everything in a model's folder. If it changes on purpose, raise _REVISION in demo/models.py: else
# machines that made the models before keep other bytes under the same name.
DIGESTS = {
    "base": "6704233460f294e390d6b38040d2059781cebea932b76ec4753c05f1e874c32e",
    "photo": "162410aedf7bbbbd2031b924b947cce0ef7f2eaa4b0666234ab571879dcc176a",
    "anime": "a1bfd7d1ee538b2aa4e0d692b67a59e86b7ae9f90f7be3bce9c45256a78ca33b",
    "sdxl_base": "55e8d3a1efc50f0f2c283e813f3349a624ecc710a3058d428ddcd22cb13d6fa6",
    "sdxl_photo": "c9e6254343d7765ec9ca389d6734059761a3da5608ecdad639bd45966813ff9b",
    "sdxl_anime": "7bcdd5fd1e0d213214f92cd0b520d16616475904eb58d2deec02b47857eef09b",
}

# The numbers of tensors of the models everybody merges: Stable Diffusion 1.5 and SDXL base.
REAL_TENSORS = {
    "base": {"text_encoder": 196, "unet": 686, "vae": 248},
    "sdxl_base": {"text_encoder": 196, "text_encoder_2": 517, "unet": 1680, "vae": 248},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def weights_of(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in sorted(folder.rglob("*.safetensors"))}


def digest_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(
            f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes()
        )
    return digest.hexdigest()


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_every_byte_of_a_demo_model_is_the_same_everywhere_and_for_ever(name, cache):
    assert digest_of(demo_model(name, cache)) == DIGESTS[name]


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_weight_files_are_the_bytes_safetensors_writes(name, cache):
    for path in weights_of(demo_model(name, cache)).values():
        tensors = safetensors.numpy.load_file(path)
        assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
        assert path.read_bytes() == safetensors.numpy.save(tensors, metadata={"format": "pt"})


@pytest.mark.parametrize("name", REAL_TENSORS)
def test_a_demo_model_has_as_many_tensors_as_the_model_it_stands_for(name, cache):
    weights = weights_of(demo_model(name, cache))
    counts = {part: len(safetensors.numpy.load_file(path)) for part, path in weights.items()}
    assert counts == REAL_TENSORS[name]


@pytest.mark.parametrize("name", REAL_TENSORS)
def test_keys_and_shapes_are_those_of_the_classes_built_from_the_configs(name, cache):
    import diffusers
    import torch
    import transformers

    folder = demo_model(name, cache)
    index = json.loads((folder / "model_index.json").read_text())
    for part, path in weights_of(folder).items():
        library, class_name = index[part]
        config = json.loads((folder / part / "config.json").read_text())
        with torch.device("meta"):
            if library == "diffusers":
                model = getattr(diffusers, class_name).from_config(config)
            else:
                model = getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
        expected = {classic(class_name, key): tuple(value.shape) for key, value in model.state_dict().items()}
        with safe_open(path, "np") as file:
            assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == expected  # noqa: SIM118


def classic(class_name: str, key: str) -> str:
    """A key as files have it: the newest transformers drop a prefix of CLIPTextModel in memory."""
    return f"text_model.{key.removeprefix('text_model.')}" if class_name == "CLIPTextModel" else key


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
@pytest.mark.parametrize("name", REAL_TENSORS)
def test_diffusers_loads_every_tensor_and_makes_an_image(name, dtype, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from diffusers import DiffusionPipeline

    folder = demo_model(name, cache)
    chosen = {} if dtype is None else {"torch_dtype": getattr(torch, dtype)}
    pipeline = DiffusionPipeline.from_pretrained(folder, **chosen)
    pipeline.set_progress_bar_config(disable=True)

    for part, path in weights_of(folder).items():
        model = getattr(pipeline, part)
        loaded = {classic(type(model).__name__, key): value for key, value in model.state_dict().items()}
        stored = safetensors.numpy.load_file(path)
        assert loaded.keys() == stored.keys()
        for key, value in stored.items():
            assert np.array_equal(loaded[key].numpy(), value), f"{part}: {key}"

    noise = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "generator": noise}
    picture = np.asarray(pipeline("a cat", output_type="np", **settings).images[0])
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()
    assert picture.std() > 0.05


@pytest.mark.parametrize("tokenizer", ["tokenizer", "tokenizer_2"])
def test_tokenizers_spell_a_text_byte_by_byte(tokenizer, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import CLIPTokenizer

    read = CLIPTokenizer.from_pretrained(demo_model("sdxl_base", cache) / tokenizer)
    pad = 513 if tokenizer == "tokenizer" else 0
    vocabulary = read.get_vocab()
    assert read("Hi ö", padding="max_length", max_length=8).input_ids == [
        512,
        vocabulary["h"],
        vocabulary["i</w>"],
        vocabulary["Ã"],  # the two bytes of ö
        vocabulary["¶</w>"],
        513,
        pad,
        pad,
    ]
    assert (len(read), read.model_max_length) == (514, 77)


@pytest.mark.parametrize("family", ["", "sdxl_"])
def test_fine_tunes_differ_from_their_base_a_little_and_each_in_its_own_way(family, cache):
    base, photo, anime = (weights_of(demo_model(family + name, cache)) for name in ("base", "photo", "anime"))
    for part in base:
        old, new, other = (safetensors.numpy.load_file(model[part]) for model in (base, photo, anime))
        flat = {key: value.astype(np.float64).ravel() for key, value in old.items()}
        deltas = np.concatenate([new[key].ravel() - flat[key] for key in flat])
        others = np.concatenate([other[key].ravel() - flat[key] for key in flat])
        size = np.linalg.norm(np.concatenate(list(flat.values())))
        assert 0.02 < np.linalg.norm(deltas) / size < 0.2
        assert 0.02 < np.linalg.norm(others) / size < 0.2
        assert abs(deltas @ others) < 0.05 * np.linalg.norm(deltas) * np.linalg.norm(others)
        assert all(np.any(new[key] != old[key]) for key in old)


def test_making_a_demo_model_imports_no_torch(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from runner.demo.models import demo_model\n"
        "assert 'numpy' not in sys.modules\n"
        "demo_model('photo', pathlib.Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_demo_model_is_made_once(tmp_path):
    folder = demo_model("base", tmp_path)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert demo_model("base", tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_makers_at_the_same_time_end_with_one_complete_model_and_nothing_else(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: demo_model("base", tmp_path), range(4)))
    assert len(folders) == 1
    folder = folders.pop()
    assert digest_of(folder) == DIGESTS["base"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_name_that_is_not_there_is_told_with_the_nearest(tmp_path):
    with pytest.raises(
        InputError, match='demo:sdxl_animee: no such demo model, did you mean "sdxl_anime"'
    ) as caught:
        demo_model("sdxl_animee", tmp_path)
    assert caught.value.hint == "there are base, photo, anime, sdxl_base, sdxl_photo, sdxl_anime, lora"


@pytest.mark.parametrize("name", ["../base", "", "base/../photo", "/etc"])
def test_a_name_cannot_lead_out_of_the_cache(name, tmp_path):
    with pytest.raises(InputError, match="no such demo model"):
        demo_model(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    occupied = tmp_path / "cache"
    occupied.write_text("a file")
    with pytest.raises(OutputError, match=r"demo:base: cannot be made in .*cache: "):
        demo_model("base", occupied)

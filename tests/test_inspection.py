"""job=inspect: what is said of every kind of file, where two differ, and how far apart they are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.architectures import ARCHITECTURES
from runner.config import Job
from runner.demo.models import demo_model
from runner.engine.compute import Moved
from runner.engine.distance import relative
from runner.errors import InputError, UsageError
from runner.inspection.job import inspect
from runner.inspection.metadata import metadata_lines
from runner.tensors import TensorSpec
from tests import command
from tests.architectures.models import main_component, model
from tests.build import SHAPES, header_only, merge, merged, random_tensors
from tests.formats import torch_files
from tests.runs import settings

V_PRED = {"v_pred": TensorSpec("F32", (0,)), "ztsnr": TensorSpec("F32", (0,))}


class Look:
    """Inspects a file and keeps what was printed, by section."""

    def __init__(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.cache = cache
        self.capsys = capsys

    def __call__(self, source: Path | str, other: Path | str | None = None, **changes: Any) -> str:
        names = Job.__dataclass_fields__.keys() & changes.keys()
        job = Job(
            "inspect",
            source=Path(source),
            other=None if other is None else Path(other),
            **{name: changes.pop(name) for name in names},
        )
        stated = {"threads": 2, "digests": "remember", "hub": "offline", **changes}
        inspect(settings(Path(), job=job, cache_dir=self.cache, **stated))
        return self.capsys.readouterr().out


@pytest.fixture
def look(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> Look:
    """Demo models of the session; digests are remembered for one test only."""
    (tmp_path / "cache").mkdir()
    (cache / "demo").mkdir(exist_ok=True)
    (tmp_path / "cache" / "demo").symlink_to(cache / "demo")
    return Look(tmp_path / "cache", capsys)


def folder_only(root: Path, specs: Mapping[str, TensorSpec], **scheduler: object) -> Path:
    """The same of a diffusers folder."""
    components: dict[str, dict[str, TensorSpec]] = {}
    for key, spec in specs.items():
        component, _, inner = key.partition("/")
        components.setdefault(component, {})[inner] = spec
    index = {name: ["diffusers", "Model"] for name in components}
    for component, inner_specs in components.items():
        header_only(root / component / "diffusion_pytorch_model.safetensors", inner_specs)
    if scheduler:
        index["scheduler"] = ["diffusers", "DDIMScheduler"]
        (root / "scheduler").mkdir()
        (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **index}))
    return root


def fact(text: str, name: str) -> str:
    """One of the facts at the head of a report."""
    (line,) = re.findall(rf"^  {name} +(.*)$", text, re.MULTILINE)
    return str(line)


def section(text: str, head: str) -> list[str]:
    """The lines of a section, or none."""
    parts = {part.partition("\n")[0]: part.splitlines()[1:] for part in text.split("\n\n")}
    return parts.get(head, [])


# What a file is


@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_is_named_with_its_components_and_counts(
    look: Look, tmp_path: Path, name: str, layout: str
) -> None:
    specs = model(name, layout)
    write = header_only if layout == "checkpoint" else folder_only
    text = look(write(tmp_path / "model.safetensors", specs))
    architecture = ARCHITECTURES[name]
    assert fact(text, "architecture") == architecture.title
    *rows, last = section(text, "components")
    assert last.split()[1] == str(len(specs))
    assert last.split()[2] == f"{sum(spec.elements for spec in specs.values()):,}"
    assert {architecture.main, "vae"} <= {row.split()[0] for row in rows}


@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
def test_a_variant_and_what_is_absent_are_named(look: Look, tmp_path: Path, layout: str) -> None:
    write = header_only if layout == "checkpoint" else folder_only
    text = look(write(tmp_path / "model.safetensors", main_component("sd1", layout, tiny=True, channels=9)))
    assert fact(text, "architecture") == "Stable Diffusion 1.x inpainting"
    assert fact(text, "without") == "text_encoder, vae"


@pytest.mark.parametrize(
    ("demo", "title", "pipeline"),
    [
        ("demo:base", "Stable Diffusion 1.x", "StableDiffusionPipeline"),
        ("demo:sdxl_base", "Stable Diffusion XL", "StableDiffusionXLPipeline"),
    ],
)
def test_demo_models(look: Look, demo: str, title: str, pipeline: str) -> None:
    text = look(demo)
    assert text.startswith(f"{demo}\n  format        diffusers folder, ")
    assert (fact(text, "architecture"), fact(text, "pipeline")) == (title, pipeline)
    assert fact(text, "prediction") == "epsilon (scheduler/scheduler_config.json)"
    assert not section(text, "no counterpart in a single file")


def test_dtypes_and_sizes_are_counted_by_component(look: Look, tmp_path: Path) -> None:
    tensors = {
        "vae.a": torch.zeros(2, 3),
        "vae.b": torch.zeros(5).half(),
        "vae.c": torch.zeros(7).half(),
        "model.diffusion_model.x": torch.zeros(4, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert section(look(tmp_path / "x.safetensors"), "components") == [
        "  component  tensors  parameters  size  dtypes",
        "  model            1           0  32 B  I64",
        "  vae              3          18  48 B  F16 (2), F32 (1)",
        "  all              4          18  80 B  F16 (2), F32 (1), I64 (1)",
    ]


@pytest.mark.parametrize("form", ["zip", "old", "by hand"])
def test_pickles_are_looked_into_without_running_them(look: Look, tmp_path: Path, form: str) -> None:
    path = tmp_path / "model.ckpt"
    if form == "by hand":
        path.write_bytes(torch_files.zipped(torch_files.state(weight=torch_files.tensor()), {"0": bytes(16)}))
    else:
        buffer = io.BytesIO()
        torch.save({"weight": torch.ones(4)}, buffer, _use_new_zipfile_serialization=form == "zip")
        path.write_bytes(buffer.getvalue())
    text = look(path, hashes=True)
    assert fact(text, "format").startswith("pickle, single file, 1 weight file, ")
    assert fact(text, "architecture") == "unknown"
    assert fact(text, "sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "AutoV3" not in text


def test_shards_variants_and_pickles_of_a_folder(look: Look, tmp_path: Path) -> None:
    root = folder_only(
        tmp_path / "pipe", {"unet/a": TensorSpec("F16", (2,)), "vae/b": TensorSpec("F16", (2,))}
    )
    header_only(root / "vae" / "diffusion_pytorch_model.fp16.safetensors", {"b": TensorSpec("F16", (3,))})
    (root / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for key, name in zip("ac", names, strict=True):
        header_only(root / "unet" / name, {key: TensorSpec("F16", (2,))})
    index = {"weight_map": dict(zip("ac", names, strict=True))}
    (root / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    unet, vae = section(look(root), "files")[1:]
    assert unet.split(maxsplit=1)[1] == f"{names[0]} ... (2 shards)"
    assert vae.split() == [
        "vae",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    ]
    assert section(look(root, variant="fp16"), "components")[2].split()[2] == "3"
    (root / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (root / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    torch.save({"b": torch.zeros(2)}, root / "vae" / "diffusion_pytorch_model.bin")
    assert fact(look(root), "format").startswith("diffusers folder, pickles, 3 weight files")


# What it predicts


@pytest.mark.parametrize(
    ("extra", "metadata", "expected"),
    [
        ({}, {}, "unknown"),
        (V_PRED, {}, "v, zero terminal SNR (tensors v_pred, ztsnr)"),
        ({"v_pred": V_PRED["v_pred"]}, {}, "v (tensor v_pred)"),
        ({"ztsnr": V_PRED["ztsnr"]}, {}, "unknown"),
        (
            {"edm_vpred.sigma_max": TensorSpec("F32", ())},
            {},
            "v with EDM's sigmas (tensor edm_vpred.sigma_max)",
        ),
        ({}, {"modelspec__prediction_type": "epsilon"}, "epsilon (modelspec.prediction_type)"),
        ({}, {"modelspec__architecture": "stable-diffusion-v2-768-v/lora"}, "v (modelspec.architecture)"),
        (
            {},
            {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"},
            "v, zero terminal SNR (ss_v_parameterization)",
        ),
        ({}, {"modelspec__predict_key": "\x1b[31m"}, '"\\u001b[31m" (modelspec.predict_key)'),
        (
            {"v_pred": V_PRED["v_pred"]},
            {"modelspec__prediction_type": "epsilon"},
            "v (tensor v_pred); but modelspec.prediction_type says epsilon",
        ),
    ],
)
def test_what_a_single_file_predicts(
    look: Look, tmp_path: Path, extra: dict[str, TensorSpec], metadata: dict[str, str], expected: str
) -> None:
    path = header_only(tmp_path / "m.safetensors", {"x": TensorSpec("F16", (1,)), **extra}, **metadata)
    assert fact(look(path), "prediction") == expected


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"prediction_type": "v_prediction"}, "v (scheduler/scheduler_config.json)"),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            "v, zero terminal SNR (scheduler/scheduler_config.json)",
        ),
        ({"_class_name": "DDIMScheduler"}, "epsilon (scheduler/scheduler_config.json says nothing else)"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            'flow (scheduler/scheduler_config.json: "FlowMatchEulerDiscreteScheduler")',
        ),
        ({"prediction_type": ["x"]}, '["x"] (scheduler/scheduler_config.json)'),
    ],
)
def test_what_a_folder_predicts(
    look: Look, tmp_path: Path, scheduler: dict[str, object], expected: str
) -> None:
    root = folder_only(tmp_path / "pipe", {"unet/a": TensorSpec("F16", (2,))}, **scheduler)
    assert fact(look(root), "prediction") == expected


def test_what_has_no_counterpart_is_listed_by_kind(look: Look, tmp_path: Path) -> None:
    extra = {
        "model_ema.decay": TensorSpec("F32", ()),
        "betas": TensorSpec("F32", (1000,)),
        "alphas_cumprod": TensorSpec("F32", (1000,)),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": TensorSpec("I64", (1, 77)),
        "something.else": TensorSpec("F16", (1,)),
        **V_PRED,
    }
    path = header_only(tmp_path / "m.safetensors", {**main_component("sd1", "checkpoint"), **extra})
    text = look(path)
    rows = section(text, "no counterpart in a diffusers folder")[1:]
    assert {row.split()[0]: int(row.split()[1]) for row in rows} == {
        "ema": 1,
        "marker": 2,
        "position_ids": 1,
        "schedule": 2,
        "unknown": 1,
    }
    assert any(row.split()[:3] == ["unet", "(EMA)", "1"] for row in section(text, "components"))


# Metadata

DIGESTS = {name: hashlib.sha256(name.encode()).hexdigest() for name in "abcd"}


def webui(a: str, b: str | None = None, alpha: float = 0.3) -> dict[str, object]:
    """A record as A1111 leaves it."""
    return {
        "type": "webui",
        "primary_model_hash": DIGESTS[a],
        "secondary_model_hash": b and DIGESTS[b],
        "tertiary_model_hash": None,
        "interp_method": "Weighted sum",
        "multiplier": alpha,
        "bake_in_vae": "",
    }


def with_metadata(folder: Path, metadata: Mapping[str, str]) -> Path:
    save_file({"x": torch.zeros(1)}, folder / "m.safetensors", dict(metadata))
    return folder / "m.safetensors"


def test_the_ancestors_of_a_merge_are_a_tree(look: Look, tmp_path: Path) -> None:
    models = {
        DIGESTS["a"]: {"name": "a.ckpt", "legacy_hash": "0" * 8, "sd_merge_recipe": webui("c", "d", 0.7)},
        DIGESTS["b"]: {"name": "b.ckpt", "legacy_hash": "0" * 8, "sd_merge_recipe": None},
        DIGESTS["c"]: {"name": "c.ckpt", "sd_merge_recipe": json.dumps(webui("a", "b"))},
    }
    path = with_metadata(
        tmp_path,
        {"sd_merge_recipe": json.dumps(webui("a", "b")), "sd_merge_models": json.dumps(models)},
    )
    short = {name: digest[:10] for name, digest in DIGESTS.items()}
    text = look(path)
    assert section(text, "merge history") == [
        "  Weighted sum, multiplier 0.3  [webui]",
        f"    A  a.ckpt  {short['a']}, itself merged:",
        "       Weighted sum, multiplier 0.7  [webui]",
        f"         A  c.ckpt  {short['c']}, itself merged:",
        "            Weighted sum, multiplier 0.3  [webui]",
        f"              A  a.ckpt  {short['a']}  (and so on)",
        f"              B  b.ckpt  {short['b']}",
        f"         B  (no name)  {short['d']}",
        f"    B  b.ckpt  {short['b']}",
    ]
    assert section(text, "recipe") == ["  sd_merge_recipe: job=import writes it as a recipe"]


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {
                "type": "sd-webui-supermerger",
                "mode": "Weight sum",
                "base_alpha": 0.5,
                "mbw": True,
                "model_a": "x",
            },
            "  Weight sum, base_alpha 0.5, by block  [sd-webui-supermerger]",
        ),
        (
            {"type": "merge-models-chattiori", "merge_method": "Weighted Sum", "alpha_info": "0.45"},
            "  Weighted Sum, alpha_info 0.45  [merge-models-chattiori]",
        ),
        ({"type": ["?"], "multiplier": {"a": "\n"}}, '  merge, multiplier {"a": "\\\\n"}  [[\'?\']]'),
    ],
)
def test_records_of_other_tools(look: Look, tmp_path: Path, record: dict[str, object], line: str) -> None:
    path = with_metadata(tmp_path, {"sd_merge_recipe": json.dumps(record)})
    assert section(look(path), "merge history")[0] == line.replace("\\\\", "\\")


def test_ancestors_without_end_are_cut(look: Look, tmp_path: Path) -> None:
    models = {
        DIGESTS[name]: {"name": name, "sd_merge_recipe": webui(*other)}
        for name, other in (("a", "bc"), ("b", "cd"), ("c", "db"), ("d", "ab"))
    }
    path = with_metadata(
        tmp_path,
        {"sd_merge_recipe": json.dumps(webui("a", "b")), "sd_merge_models": json.dumps(models)},
    )
    assert len(section(look(path), "merge history")) <= 61


def test_our_own_recipe_is_shown_as_it_is_imported(look: Look, tmp_path: Path) -> None:
    tree = {
        "method": "weighted_sum",
        "models": {"a": "demo:base", "b": "demo:photo"},
        "alpha": 0.25,
        "output": {"format": "checkpoint", "name": "mix"},
    }
    path, _ = merge(tree, tmp_path, tmp_path / "out", cache=look.cache)
    text = look(path)
    recipe = section(text, "recipe")
    assert recipe[0] == "  method: weighted_sum"
    assert "  alpha: 0.25" in recipe
    spec = dict(line.split(maxsplit=1) for line in section(text, "ModelSpec"))
    assert (spec["title"], spec["architecture"]) == ("mix", "stable-diffusion-v1")


def test_a_recipe_of_ours_that_is_none_is_said_to_be_none(look: Look, tmp_path: Path) -> None:
    path = with_metadata(tmp_path, {"runner.recipe": '{"method": "${oc.env:HOME}", "models": [7]}'})
    (line,) = section(look(path), "recipe")
    assert line.startswith("  runner.recipe cannot be read: ")


def test_training_is_told_in_short(look: Look, tmp_path: Path) -> None:
    tags = {"10_me": {"solo": 7, "hat": 2}, "20_you": {"solo": 3}}
    path = with_metadata(
        tmp_path,
        {"ss_network_dim": "16", "ss_seed": "1", "ss_tag_frequency": json.dumps(tags), "ss_x": "y"},
    )
    assert section(look(path), "training") == [
        "  network_dim  16",
        "  tags         solo 10, hat 2",
        "  and 2 more",
    ]


def test_metadata_of_strangers_is_escaped_and_cut(look: Look, tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07\u202e\n  sha256  forged"
    metadata = {
        "modelspec.title": hostile,
        hostile: hostile,
        "sd_merge_recipe": json.dumps({**webui("a"), "type": hostile, "interp_method": hostile}),
        "sd_merge_models": json.dumps({DIGESTS["a"]: {"name": hostile}}),
        "ss_output_name": hostile,
        "ss_tag_frequency": json.dumps({"x": {hostile: 1}}),
        "sshs_model_hash": hostile,
        "runner.recipe": json.dumps({"method": hostile, "models": []}),
        "huge": "x" * (9 << 20),
        "mecha_recipe": "y" * (9 << 20),
        **{f"other{number}": "z" * 1000 for number in range(500)},
    }
    text = look(with_metadata(tmp_path, metadata))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert not any(line.startswith("  sha256") for line in text.splitlines())
    assert len(text) < 30_000
    assert max(map(len, text.splitlines())) < 600
    assert section(text, "other metadata")[-1].startswith("  and 4")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1, "a": 2}', "[" * 5000, "nothing", "9" * 5000])
def test_json_that_is_none_is_no_error(look: Look, tmp_path: Path, text: str) -> None:
    names = ("sd_merge_recipe", "sd_merge_models", "ss_tag_frequency", "runner.recipe")
    assert "cannot be read" in look(with_metadata(tmp_path, dict.fromkeys(names, text)))


_NAMES = ("sd_merge_recipe", "sd_merge_models", "ss_tag_frequency", "runner.recipe", "modelspec.title", "x")
_FIELDS = ("type", "method", "mode", "multiplier", "primary_model_hash", "model_b", "models", "name", "a")
_TEXT = strategies.text('\x1b\n\t\u202e\u2028\ud800${"[/é0a', max_size=9)
_VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | _TEXT,
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.sampled_from(_FIELDS) | _TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(strategies.dictionaries(strategies.sampled_from(_NAMES), _VALUES.map(json.dumps)))
def test_whatever_metadata_says_is_printable_lines(metadata: dict[str, str]) -> None:
    for head, lines in metadata_lines(metadata, "m.safetensors"):
        assert lines
        assert all(line.isprintable() for line in (head, *lines))


# Hashes


def test_hashes_are_those_of_their_definitions(look: Look, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"x": torch.arange(600_000, dtype=torch.float32)}, path, {"sshs_model_hash": "ab"})
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    sha256 = hashlib.sha256(content).hexdigest()
    text = look(path, hashes=True)
    assert fact(text, "sha256") == sha256
    assert fact(text, "AutoV1").split()[0] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert fact(text, "AutoV2") == sha256[:10]
    assert fact(text, "AutoV3") == hashlib.sha256(data).hexdigest()[:12]
    assert fact(text, "sshs_model_hash") == "ab  (the header says so)"


def test_a_small_file_has_the_legacy_hash_of_nothing(look: Look, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors")
    assert fact(look(tmp_path / "m.safetensors"), "AutoV1").startswith("e3b0c442")


def test_sha256_is_remembered_and_not_computed_unasked(look: Look, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    os.utime(path, (1, 1))
    assert "job.hashes=true" in look(path)
    assert "sha256" in look(path, hashes=True)
    text = look(path)
    assert fact(text, "sha256") == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "AutoV3" not in text
    assert "job.hashes=true" in look(path, digests="fresh")


@pytest.mark.parametrize(("right", "verdict"), [(True, ", rightly)"), (False, ", but it is another)")])
def test_a_hash_in_the_header_is_compared_with_the_data(
    look: Look, tmp_path: Path, right: bool, verdict: str
) -> None:
    claim = hashlib.sha256(bytes(4)).hexdigest() if right else "0" * 64
    path = with_metadata(tmp_path, {"modelspec.hash_sha256": f"0x{claim}"})
    assert fact(look(path, hashes=True), "modelspec.hash_sha256").endswith(verdict)


def test_a_folder_has_a_digest_of_its_own(look: Look) -> None:
    lines = section(look("demo:base", hashes=True), "hashes")
    listed = "".join(f"{line.split()[1]}  {line.split()[0]}\n" for line in lines[1:-1])
    assert lines[-1] == f"  of the folder: {hashlib.sha256(listed.encode()).hexdigest()}"


@pytest.mark.parametrize("hashes", [False, True])
def test_the_folder_of_a_component_is_a_folder_with_its_files_and_digest(look: Look, hashes: bool) -> None:
    unet = demo_model("base", look.cache) / "unet"
    lines = section(look(unet, hashes=hashes), "hashes")
    weights = "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256((unet / weights).read_bytes()).hexdigest()
    if hashes:
        assert lines[1].split()[:2] == [weights, digest]
        whole = hashlib.sha256(f"{digest}  {weights}\n".encode()).hexdigest()
        assert lines[-1] == f"  of the folder: {whole}"
    assert section(look(unet), "files")[1].split() == ["unet", weights]


def test_the_shards_of_a_component_by_itself_are_listed_and_hashed(look: Look, tmp_path: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for key, name in zip("ac", names, strict=True):
        header_only(tmp_path / "vae" / name, {key: TensorSpec("F16", (2,))})
    index = {"weight_map": dict(zip("ac", names, strict=True))}
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    text = look(tmp_path / "vae", hashes=True)
    assert [line.split()[0] for line in section(text, "hashes")[1:-1]] == names
    assert section(text, "files")[1].split(maxsplit=1) == ["vae", f"{names[0]} ... (2 shards)"]


def test_a_unet_by_itself_is_no_other_component_and_lacks_the_rest(look: Look) -> None:
    text = look(demo_model("base", look.cache) / "unet")
    assert fact(text, "without") == "text_encoder, vae"
    assert [line.split()[0] for line in section(text, "components")[1:]] == ["unet"]


# Adapters


@pytest.mark.parametrize(
    ("ends", "kind"),
    [
        ({"lora_down.weight": (4, 320), "lora_up.weight": (320, 4), "alpha": ()}, "lora (1)"),
        (
            {f"hada_w{n}_{part}": (320, 4) if part == "a" else (4, 320) for n in (1, 2) for part in "ab"},
            "loha (1)",
        ),
        ({"lokr_w1": (4, 4), "lokr_w2": (80, 80)}, "lokr (1)"),
    ],
)
def test_adapters_are_recognised(
    look: Look, tmp_path: Path, ends: dict[str, tuple[int, ...]], kind: str
) -> None:
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    specs = {f"{module}.{end}": TensorSpec("F16", shape) for end, shape in ends.items()}
    text = look(header_only(tmp_path / "lora.safetensors", specs, ss_network_dim="8"))
    lines = [" ".join(line.split()) for line in section(text, "adapter")]
    assert f"kinds {kind}" in lines and "names kohya" in lines and "ss_network_dim 8" in lines
    assert "changes unet 1" in lines
    assert fact(text, "architecture").startswith("none: an adapter")


def test_the_demo_lora_is_for_the_demo_models(look: Look) -> None:
    lines = [" ".join(line.split()) for line in section(look("demo:lora"), "adapter")]
    assert "for sd1, sd2" in lines and "ranks 2 (176)" in lines


def test_a_model_is_no_adapter(look: Look) -> None:
    assert not section(look("demo:sdxl_base"), "adapter")


# Two models


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two files that differ in a key each, a shape and a dtype."""
    a, b = random_tensors(1), random_tensors(2)
    del a["first_stage_model.decoder.conv.weight"]
    del b["cond_stage_model.transformer.weight"]
    b["model.diffusion_model.column.weight"] = torch.zeros(6, 1).half()
    b["model.diffusion_model.norm.bias"] = b["model.diffusion_model.norm.bias"].float()
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_keys_shapes_and_dtypes_that_differ(look: Look, pair: tuple[Path, Path]) -> None:
    text = look(*pair)
    counts = {line.split()[0]: line.split()[1:] for line in section(text, "tensors by component")[1:]}
    assert counts == {
        "model": ["7", "0", "0", "1", "1"],
        "text_encoder": ["0", "1", "0", "0", "0"],
        "vae": ["0", "0", "1", "0", "0"],
        "all": ["7", "1", "1", "1", "1"],
    }
    found = {head: section(text, head) for head in ("only in a", "only in b", "other shape", "other dtype")}
    assert {head: lines[0].split() for head, lines in found.items()} == {
        "only in a": ["cond_stage_model.transformer.weight", "F16", "[16,16]"],
        "only in b": ["first_stage_model.decoder.conv.weight", "F16", "[3,3]"],
        "other shape": ["model.diffusion_model.column.weight", "F16", "[5,1]", "→", "F16", "[6,1]"],
        "other dtype": ["model.diffusion_model.norm.bias", "F16", "→", "F32"],
    }


def test_equal_models_differ_in_nothing(look: Look) -> None:
    text = look("demo:base", "demo:base", distances=True)
    assert [part.partition("\n")[0] for part in text.split("\n\n")[1:]] == [
        "tensors by component",
        "distance |b - a| / |a|",
    ]
    *_, last = section(text, "distance |b - a| / |a|")
    assert last.split() == ["all", "1130", "1130", "0", "%"]


def test_layouts_that_differ_are_no_difference(look: Look, tmp_path: Path) -> None:
    tree = {"method": "copy", "models": {"a": "demo:sdxl_base"}, "output": {"format": "checkpoint"}}
    path, _ = merge(tree, tmp_path, tmp_path / "out", cache=look.cache)
    text = look("demo:sdxl_base", path, distances=True)
    *_, last = section(text, "tensors by component")
    assert last.split()[2:] == ["0", "0", "0", "0"]
    *_, last = section(text, "distance |b - a| / |a|")
    assert last.split()[3:] == ["0", "%"]


def test_what_belongs_to_a_layout_is_told_apart(look: Look, tmp_path: Path) -> None:
    specs = model("sd1", "checkpoint", tiny=True)
    a = header_only(tmp_path / "a.safetensors", {**specs, "betas": TensorSpec("F32", (1000,))})
    b = header_only(tmp_path / "b.safetensors", {**specs, **V_PRED})
    text = look(a, b)
    assert section(text, "only in a, of its layout or training") == ["  1 schedule"]
    assert section(text, "only in b, of its layout or training") == ["  2 marker"]
    assert not section(text, "only in a")


def test_of_two_architectures_the_stored_names_are_compared(look: Look) -> None:
    lines = section(look("demo:base", "demo:sdxl_base"), "tensors by component")
    assert lines[-1] == "  of different architectures: compared by the names in the files"
    assert ["text_encoder_2", "0", "0", "517", "0", "0"] in [line.split() for line in lines]


def percents(text: str) -> dict[str, float]:
    """Component, or block below it → distance."""
    lines = section(text, "distance |b - a| / |a|")[1:]
    return {line.split()[0]: float(line.split()[-2]) for line in lines if line.endswith("%")}


def norms(a: Mapping[str, Tensor], b: Mapping[str, Tensor], keys: list[str]) -> float:
    """The distance of some tensors in percent, computed in float64."""
    difference = sum(float((b[key].double() - a[key].double()).square().sum()) for key in keys)
    return 100 * (difference / sum(float(a[key].double().square().sum()) for key in keys)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_distances_are_those_of_float64(look: Look, tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = {**SHAPES, "model.diffusion_model.large.weight": (500, 333)}
    a, b = random_tensors(1, dtype, shapes), random_tensors(2, torch.float16, shapes)
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    texts = {
        look(tmp_path / "a.safetensors", tmp_path / "b.safetensors", distances=True, **settings)
        for settings in ({"threads": 1}, {"threads": 3, "tile_elements": 65536})
    }
    (text,) = texts
    found = percents(text)
    components = {"model": "model.", "vae": "first_stage_model.", "text_encoder": "cond_", "all": ""}
    for component, prefix in components.items():
        keys = [key for key in a if key.startswith(prefix)]
        assert found[component] == pytest.approx(norms(a, b, keys), rel=1e-3)


@pytest.mark.parametrize("other", ["same names", "another architecture"])
def test_distances_of_scaled_fp8_are_those_of_what_the_codes_stand_for(
    look: Look, tmp_path: Path, other: str
) -> None:
    shapes = {"x.weight": (300, 200), "y.weight": (7, 5)}
    plain = random_tensors(1, torch.float32, shapes)
    codes, values = dict[str, Tensor](), dict[str, Tensor]()
    for key, tensor in plain.items():
        scale = tensor.abs().max() / 448
        codes[key] = (tensor / scale).to(torch.float8_e4m3fn)
        codes[f"{key.removesuffix('weight')}scale_weight"] = scale
        values[key] = codes[key].float() * scale
    save_file(codes, tmp_path / "fp8.safetensors")
    if other == "another architecture":  # compared by the names that are stored
        tree = {"method": "copy", "models": {"a": "demo:base"}, "output": {"format": "checkpoint"}}
        plain |= merged(tree, tmp_path, tmp_path / "out", cache=look.cache)
    save_file(plain, tmp_path / "plain.safetensors")
    text = look(tmp_path / "plain.safetensors", tmp_path / "fp8.safetensors", distances=True)
    assert percents(text)["other"] == pytest.approx(norms(plain, values, [*shapes]), rel=1e-3)


def test_distances_by_block_are_those_of_its_tensors(look: Look, tmp_path: Path) -> None:
    files = {}
    for name in ("base", "anime"):
        tree = {"method": "copy", "models": {"a": f"demo:{name}"}, "output": {"format": "checkpoint"}}
        files[name] = merged(tree, tmp_path, tmp_path / name, cache=look.cache)
    found = percents(look("demo:base", "demo:anime", distances=True))
    for block in ("input_blocks.4.", "middle_block."):
        keys = [key for key in files["base"] if key.startswith(f"model.diffusion_model.{block}")]
        name = {"input_blocks.4.": "IN04", "middle_block.": "M00"}[block]
        assert found[name] == pytest.approx(norms(files["base"], files["anime"], keys), rel=1e-3)


def test_distances_are_how_far_a_merge_moves(look: Look, tmp_path: Path) -> None:
    tree = {
        "method": "add_difference",
        "models": {"a": "demo:base", "b": "demo:photo", "c": "demo:base"},
        "alpha": 1.0,
    }
    _, outcome = merge(tree, tmp_path, tmp_path / "out", cache=look.cache)
    found = percents(look("demo:base", "demo:photo", distances=True))
    for component, (difference, original) in outcome.moved.items():
        assert f"{100 * (difference / original) ** 0.5:.4g}" == f"{found[component]:.4g}"


def test_what_is_not_finite_is_said_to_be(look: Look, tmp_path: Path) -> None:
    save_file({"x": torch.tensor([1.0]), "n": torch.tensor([1])}, tmp_path / "a.safetensors")
    save_file({"x": torch.tensor([float("nan")]), "n": torch.tensor([2])}, tmp_path / "b.safetensors")
    lines = section(
        look(tmp_path / "a.safetensors", tmp_path / "b.safetensors", distances=True), "distance |b - a| / |a|"
    )
    assert lines[1].endswith("not finite")
    assert lines[2] == "  not compared: 1 without floating-point numbers"


def test_the_distance_from_nothing_is_no_number() -> None:
    assert relative([Moved([1.0], [0.0])]) is None
    assert relative([Moved([0.0], [0.0])]) == 0
    assert relative([Moved([1.0, 3.0], [8.0]), Moved([0.0], [8.0])]) == 0.5


def test_every_tensor_is_listed_if_that_is_asked_for(look: Look, pair: tuple[Path, Path]) -> None:
    lines = section(look(pair[0], keys="all"), "tensors")
    assert len(lines) == len(load_file(pair[0])) + 1
    assert ["model.diffusion_model.conv.weight", "F16", "[8,4,3,3]", "model"] in [
        line.split() for line in lines
    ]
    demo = section(look("demo:base", keys="all"), "tensors")
    assert any(line.split() == ["unet/conv_in.weight", "F16", "[8,4,3,3]", "unet", "IN00"] for line in demo)
    both = look("demo:base", "demo:sdxl_base", keys="all")
    assert len(section(both, "only in a")) == 268
    each = section(look(*pair, keys="all", distances=True), "distance of each tensor")
    assert {line.split()[0] for line in each[1:]} == {
        key for key in load_file(pair[0]).keys() & load_file(pair[1]).keys() if "empty" not in key
    } - {"model.diffusion_model.column.weight"}


# The command


def run(folder: Path, *arguments: str) -> command.Done:
    return command.run(folder, "job=inspect", *arguments)


def test_the_command_says_what_a_file_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(tmp_path, "source=a.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a.safetensors\n  format        single file, 1 weight file, ")
    done = run(tmp_path, "source=a.safetensors", "job.other=b.safetensors", "job.distances=true")
    assert (done.returncode, done.stderr) == (0, "")
    assert "distance |b - a| / |a|" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "source=FILE is missing"),
        (("source=nothing.safetensors",), 4, "nothing.safetensors: no such file"),
        (("source=.",), 4, "model_index.json: no such file"),
        (("source=notes.txt",), 4, "notes.txt: "),
        (("source=demo:bsae",), 4, 'did you mean "base"?'),
        (("source=a.safetensors", "job.other=nothing"), 4, "nothing: no such file"),
        (("source=a.safetensors", "job.variant=fp16"), 4, "this is a single file"),
        (("source=a.safetensors", "job.distances=true"), 2, "job.distances: from what?"),
        (("source=a.safetensors", "job.hashes=maybe"), 2, "job.hashes: expected true or false"),
        (("source=a.safetensors", "job.keys=some"), 2, "job.keys: expected summary or all"),
    ],
)
def test_mistakes_are_one_line(
    pair: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "notes.txt").write_text("notes, which are no model of any kind\n")
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    first, *hints = done.stderr.splitlines()
    assert message in first
    assert all(hint.startswith("hint: ") for hint in hints)


def test_a_file_that_ends_early_is_an_error(look: Look, pair: tuple[Path, Path]) -> None:
    os.truncate(pair[0], pair[0].stat().st_size - 1)
    with pytest.raises(InputError, match="truncated"):
        look(pair[0])


def test_distances_need_a_second_model(look: Look) -> None:
    with pytest.raises(UsageError):
        look("demo:base", distances=True)


def test_torch_is_imported_for_distances_only(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    code = """
import sys
from runner.__main__ import run
a = ["job=inspect", "source=a.safetensors"]
codes = [run(a), run([*a, "job.other=b.safetensors", "job.keys=all"]), run([*a, "job.hashes=true"])]
sys.exit(f"{codes} {[name for name in ('torch', 'diffusers', 'rich', 'numpy') if name in sys.modules]}")
"""
    done = command.python(tmp_path, code)
    assert done.stderr.splitlines()[-1] == "[0, 0, 0] []", done.stderr

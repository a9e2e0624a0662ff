"""Components taken whole from a source of their own: whatever form the source has, the same result."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.demo.models import demo_model
from runner.describe import describe
from runner.digests import InputDigests
from runner.errors import IncompatibleError, RecipeError, RunnerError
from runner.place import Devices, place
from runner.planning.plan import COPIED, MERGED
from runner.provenance.record import RunRecord
from runner.recipe.canonical import canonical_recipe
from tests.build import merge, merged, planned, random_tensors
from tests.stored import Tensors, as_single_file, equal, read

WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model"}
PREFIXES = {
    "vae": "first_stage_model.",
    "unet": "model.diffusion_model.",
    "text_encoder": "cond_stage_model.",
}
SDXL_PREFIXES = {
    **PREFIXES,
    "text_encoder": "conditioner.embedders.0.",
    "text_encoder_2": "conditioner.embedders.1.",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Demo models as folders and as single files."""
    root = tmp_path_factory.mktemp("models")
    for name in ("photo", "anime", "base", "sdxl_photo", "sdxl_anime", "sdxl_base"):
        (root / name).symlink_to(demo_model(name, cache))
        tensors = as_single_file("sdxl" if "sdxl" in name else "sd1", read(root / name))
        save_file(tensors, root / f"{name}.safetensors", {"format": "pt"})
    return root


def kind(name: str) -> str:
    return "sdxl_" if name.startswith("sdxl") else ""


def whole_file(models: Path, name: str, component: str, out: Path) -> Path:
    return models / f"{name}.safetensors"


def whole_folder(models: Path, name: str, component: str, out: Path) -> Path:
    return models / name


def component_folder(models: Path, name: str, component: str, out: Path) -> Path:
    return models / name / component


def weight_file(models: Path, name: str, component: str, out: Path) -> Path:
    return models / name / component / f"{WEIGHTS.get(component, 'model')}.safetensors"


def with_prefix(models: Path, name: str, component: str, out: Path) -> Path:
    prefix = (SDXL_PREFIXES if kind(name) else PREFIXES)[component]
    tensors = read(models / f"{name}.safetensors")
    save_file({key: t for key, t in tensors.items() if key.startswith(prefix)}, out)
    return out


def without_prefix(models: Path, name: str, component: str, out: Path) -> Path:
    tensors = load_file(with_prefix(models, name, component, out))
    prefix = (SDXL_PREFIXES if kind(name) else PREFIXES)[component]
    save_file({key.removeprefix(prefix): tensor for key, tensor in tensors.items()}, out)
    return out


FORMS: list[Callable[[Path, str, str, Path], Path]] = [
    whole_file,
    whole_folder,
    component_folder,
    weight_file,
    with_prefix,
    without_prefix,
]


read_once = functools.cache(read)  # what no test changes


@pytest.fixture(scope="module")
def plain(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Tensors]:
    """The merge of a family into an output format, with no component replaced."""

    @functools.cache
    def made(family: str, output: str) -> Tensors:
        tree = recipe(models, f"{family}photo", f"{family}anime.safetensors", output={"format": output})
        return read(merge(tree, models, tmp_path_factory.mktemp("plain"))[0])

    return made


def recipe(models: Path, a: str, b: str, **more: Any) -> dict[str, Any]:
    return {"method": "weighted_sum", "alpha": 0.3, "models": {"a": a, "b": b}, **more}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize(
    ("family", "components"),
    [("", ["vae", "text_encoder"]), ("", ["unet"]), ("sdxl_", ["text_encoder_2", "vae"])],
)
@pytest.mark.parametrize("output", ["diffusers", "checkpoint"])
def test_a_component_is_the_sources_to_the_bit_in_whatever_form_it_comes(
    form: Callable[[Path, str, str, Path], Path],
    family: str,
    components: list[str],
    output: str,
    models: Path,
    plain: Callable[[str, str], Tensors],
    tmp_path: Path,
) -> None:
    a, b, c = (f"{family}{name}" for name in ("photo", "anime", "base"))
    sources = {name: str(form(models, c, name, tmp_path / f"{name}.safetensors")) for name in components}
    tree = recipe(models, a, f"{b}.safetensors", output={"format": output})
    baked, _ = merge({**tree, "components": sources}, models, tmp_path / "baked")
    expected = plain(family, output)
    if output == "checkpoint":
        own = read_once(models / f"{c}.safetensors")
        prefixes = [(SDXL_PREFIXES if family else PREFIXES)[name] for name in components]
    else:
        own = read_once(models / c)
        prefixes = [f"{name}/" for name in components]
    assert all(any(key.startswith(prefix) for key in expected) for prefix in prefixes)
    replaced = {key for key in expected if key.startswith(tuple(prefixes))}
    assert not any(torch.equal(expected[key], own[key]) for key in replaced if expected[key].numel() > 64)
    assert equal(read(baked), {**expected, **{key: own[key] for key in replaced}})


def test_the_merges_own_tensors_of_that_component_are_not_read(models: Path) -> None:
    plan = planned(recipe(models, "photo", "anime", components={"vae": "base"}), models)
    for job in plan.jobs:
        if job.place.component == "vae":
            assert (job.fate, [load.model for load in job.loads], job.steps) == (COPIED, [2], ())
        else:
            assert (job.fate, [load.model for load in job.loads]) == (MERGED, [0, 1])


def test_what_a_replaced_component_lacks_in_another_model_does_not_matter(
    models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "no_vae"
    shutil.copytree(models / "anime", folder)
    shutil.rmtree(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    tree = recipe(models, "photo", str(folder))
    with pytest.raises(IncompatibleError, match="all of vae"):
        planned(tree, models)
    assert planned({**tree, "components": {"vae": "base"}}, models).fates[COPIED] > 0


def test_a_component_the_models_lack_is_added(models: Path, tmp_path: Path) -> None:
    tensors = {
        key: t for key, t in read(models / "photo.safetensors").items() if not key.startswith("first_")
    }
    save_file(tensors, tmp_path / "bare.safetensors")
    tree = {
        "method": "copy",
        "models": {"a": str(tmp_path / "bare.safetensors")},
        "components": {"vae": str(models / "base" / "vae")},
    }
    found = merged(tree, models, tmp_path / "out")
    base = read(models / "base.safetensors")
    assert equal(found, tensors | {key: t for key, t in base.items() if key.startswith("first_stage_model.")})


def test_a_source_that_is_one_of_the_models_is_opened_once(models: Path) -> None:
    plan = planned(recipe(models, "photo", "anime", components={"vae": "anime", "unet": "photo"}), models)
    assert len(plan.resolved.models) == 2
    assert dict(plan.resolved.components) == {"vae": 1, "unet": 0}


def test_several_components_of_one_file_alone(models: Path, tmp_path: Path) -> None:
    """A file without prefixes is read once for each component it is said to be."""
    vae = models / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    text = models / "base" / "text_encoder"
    tree = recipe(models, "photo", "anime", components={"vae": str(vae), "text_encoder": str(text)})
    path, _ = merge(tree, models, tmp_path / "out")
    base, found = read(models / "base"), read(path)
    replaced = {key for key in found if key.startswith(("vae/", "text_encoder/"))}
    assert all(torch.equal(found[key], base[key]) for key in replaced)


def test_the_dtype_is_the_sources_unless_the_recipe_says_one(models: Path, tmp_path: Path) -> None:
    wide = {key: t.float() for key, t in load_file(weight_file(models, "base", "vae", Path())).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    tree = recipe(models, "photo", "anime", components={"vae": str(tmp_path / "wide.safetensors")})

    def dtypes(**more: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for job in planned({**tree, **more}, models).jobs:
            found.setdefault(job.place.component, set()).add(job.spec.dtype)
        return found

    assert dtypes() == {"vae": {"F32"}, "unet": {"F16"}, "text_encoder": {"F16"}}
    bfloat = dtypes(output={"dtype": {"vae": "bfloat16"}})
    assert bfloat == {"vae": {"BF16"}, "unet": {"F16"}, "text_encoder": {"F16"}}
    assert dtypes(output={"dtype": "float16"})["vae"] == {"F16"}


def test_the_config_of_a_folder_comes_with_its_weights(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(models / "base" / "vae", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5, "_name_or_path": "/x"}))
    path, _ = merge(
        recipe(models, "photo", "anime", components={"vae": str(folder)}), models, tmp_path / "out"
    )
    written = json.loads((path / "vae" / "config.json").read_text())
    assert written == {**config, "scaling_factor": 0.5}


def test_tensors_of_no_use_are_left_out_and_said(models: Path, tmp_path: Path) -> None:
    tensors = load_file(without_prefix(models, "base", "vae", tmp_path / "vae.safetensors"))
    save_file({**tensors, "loss.logvar": torch.ones(1)}, tmp_path / "vae.safetensors")
    tree = recipe(models, "photo", "anime", components={"vae": str(tmp_path / "vae.safetensors")})
    plan = planned(tree, models)
    (reason,) = plan.dropped
    assert reason.startswith("components.vae: ") and "of no use" in reason
    assert [key.endswith("loss.logvar") for key in plan.dropped[reason]] == [True]


def test_position_ids_come_from_the_source_or_are_left_out(models: Path, tmp_path: Path) -> None:
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    tensors = read(models / "photo.safetensors")
    save_file({**tensors, ids: torch.arange(77)[None]}, tmp_path / "ids.safetensors")
    tree = recipe(models, str(tmp_path / "ids.safetensors"), "anime.safetensors")
    without = planned({**tree, "components": {"text_encoder": "base.safetensors"}}, models)
    assert ids not in {job.key for job in without.jobs}
    assert [ids] in [list(keys) for keys in without.dropped.values()]
    own = planned({**tree, "components": {"text_encoder": str(tmp_path / "ids.safetensors")}}, models)
    assert ids in {job.key for job in own.jobs}


def refused(tree: dict[str, Any], models: Path) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        planned(tree, models)
    return caught.value


def test_missing_tensors_and_other_shapes_are_all_listed(models: Path, tmp_path: Path) -> None:
    tensors = load_file(weight_file(models, "base", "vae", Path()))
    gone = [key for key in tensors if key.startswith("encoder.mid_block")]
    short = {key: t for key, t in tensors.items() if key not in gone}
    short["decoder.conv_in.weight"] = torch.ones(4, 4)
    save_file(short, tmp_path / "short.safetensors")
    error = refused(
        recipe(models, "photo", "anime", components={"vae": str(tmp_path / "short.safetensors")}), models
    )
    shapes, missing = error.message.split("\n")
    assert "components.vae" in shapes and "the first is [4, 4], there [" in shapes
    assert f"tensors that photo has are missing ({len(gone)} tensors: vae/encoder.mid_block" in missing
    assert error.hint and "whole" in error.hint and "force" not in error.hint


def test_another_architecture_and_a_file_of_something_else_are_refused(models: Path, tmp_path: Path) -> None:
    error = refused(recipe(models, "photo", "anime", components={"vae": "sdxl_base"}), models)
    assert error.message == (
        'components.vae: "sdxl_base" is Stable Diffusion XL, the result is Stable Diffusion 1.x'
    )
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    error = refused(
        recipe(models, "photo", "anime", components={"vae": str(tmp_path / "x.safetensors")}), models
    )
    assert "has no tensor of the vae of Stable Diffusion 1.x" in error.message
    unet = {"unet": str(models / "base" / "vae")}
    assert (
        "has no tensor of the unet"
        in refused(recipe(models, "photo", "anime", components=unet), models).message
    )


def test_what_is_wrong_in_the_recipe_is_said_at_its_place(models: Path) -> None:
    for components, message in {
        "vae": "expected sources",
        ("vea", "base"): "no such component, did you mean",
        ("vae", 3): "expected a path, demo:NAME",
        ("vae", "nowhere.safetensors"): "nowhere.safetensors",
    }.items():
        given = components if isinstance(components, str) else dict([components])
        assert message in refused(recipe(models, "photo", "anime", components=given), models).message
    inner = recipe(models, "photo", "anime", components={"vae": "base"})
    tree = {"method": "weighted_sum", "models": {"a": "photo", "b": inner}}
    with pytest.raises(RecipeError, match="at the top of the recipe"):
        planned(tree, models)


def test_none_takes_back_what_a_recipe_above_says(models: Path) -> None:
    plan = planned(recipe(models, "photo", "anime", components={"vae": None}), models)
    assert not plan.resolved.components


def test_the_plan_the_recipe_and_the_record_name_the_source(models: Path) -> None:
    vae = models / "base" / "vae" / "diffusion_pytorch_model.safetensors"
    tree = recipe(models, "photo", "anime", components={"vae": {"source": str(vae), "variant": None}})
    plan = planned(tree, models)
    placement = place(plan, Devices(("cpu",)), None, 1, 32768)
    text = describe(plan, placement, 1 << 40, all_keys=True)
    (line,) = (line for line in text.splitlines() if line.lstrip().startswith("components.vae"))
    assert "single file, vae alone" in line
    assert canonical_recipe(plan.resolved.recipe)["components"] == {"vae": {"source": vae.name}}
    record = RunRecord([], [])
    with InputDigests(plan.resolved.files, None, 1) as digests:
        record.read(plan.resolved, digests.wait())
    (entry,) = (one for one in record.deterministic["inputs"] if one["roles"] == ["components.vae"])
    assert entry["source"] == vae.name and len(entry["sha256"]) == 64


def test_an_unknown_architecture_has_its_components_by_their_well_known_names(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        save_file(random_tensors(seed), tmp_path / f"{name}.safetensors")
    c = random_tensors(3)
    prefix = "first_stage_model."
    bare = {key.removeprefix(prefix): t for key, t in c.items() if key.startswith(prefix)}
    save_file(bare, tmp_path / "vae.safetensors")
    tree = recipe(tmp_path, "a.safetensors", "b.safetensors")
    for number, source in enumerate(("c.safetensors", "vae.safetensors")):
        found = merged({**tree, "components": {"vae": source}}, tmp_path, tmp_path / f"out{number}")
        assert torch.equal(found[f"{prefix}decoder.conv.weight"], c[f"{prefix}decoder.conv.weight"])


@pytest.mark.parametrize(
    "form", [weight_file, component_folder, without_prefix], ids=lambda form: form.__name__
)
@pytest.mark.parametrize("family", ["", "sdxl_"])
def test_a_unet_alone_is_recognised_and_merges_by_its_blocks(
    form: Callable[[Path, str, str, Path], Path], family: str, models: Path, tmp_path: Path
) -> None:
    a, b = (
        str(form(models, f"{family}{name}", "unet", tmp_path / f"{name}.safetensors"))
        for name in ("photo", "anime")
    )
    alpha = {"default": 0.3, "M00": 0.7, "IN01": 0}
    found = merged({**recipe(models, a, b), "alpha": alpha}, models, tmp_path / "out")
    whole, _ = merge(
        {**recipe(models, f"{family}photo", f"{family}anime"), "alpha": alpha}, models, tmp_path / "whole"
    )
    unet: Tensors = {
        key.removeprefix("unet/"): tensor for key, tensor in read(whole).items() if key.startswith("unet/")
    }
    if form is without_prefix:
        single = as_single_file("sdxl" if family else "sd1", {f"unet/{key}": t for key, t in unet.items()})
        unet = {key.removeprefix("model.diffusion_model."): tensor for key, tensor in single.items()}
    assert equal(found, unet)


def test_unets_alone_in_either_naming_merge_with_each_other(models: Path, tmp_path: Path) -> None:
    a = weight_file(models, "photo", "unet", Path())
    b = without_prefix(models, "anime", "unet", tmp_path / "anime.safetensors")
    same = weight_file(models, "anime", "unet", Path())
    mixed = merged(recipe(models, str(a), str(b)), models, tmp_path / "1")
    assert equal(mixed, merged(recipe(models, str(a), str(same)), models, tmp_path / "2"))

"""What becomes of every key: fates, policies, expressions, and whole plans as golden text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from runner.compose import DATA_ROOT
from runner.describe import describe
from runner.errors import IncompatibleError
from runner.place import Devices, place
from runner.planning.plan import BUFFER, COPIED, KEPT, MERGED, Plan
from runner.recipe.guard import read_recipe
from runner.tensors import TensorSpec
from tests.architectures.models import model
from tests.build import planned

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"
RECIPES = sorted((DATA_ROOT / "recipes").rglob("*.yaml"))
GONE = torch.zeros(0)  # stands for a key that a model lacks
UNET, VAE = "model.diffusion_model.x", "first_stage_model.y"


def save(folder: Path, name: str, **tensors: Tensor) -> None:
    base = {UNET: torch.ones(4, 4), VAE: torch.ones(4)}
    there = {key: tensor for key, tensor in {**base, **tensors}.items() if tensor is not GONE}
    save_file(there, folder / f"{name}.safetensors")


def save_header(path: Path, specs: Mapping[str, TensorSpec]) -> None:
    """A checkpoint whose data lies in the order of `specs`, and is a hole: enough for a plan."""
    entries, at = {}, 0
    for key, spec in specs.items():
        entries[key] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (at, at + spec.nbytes)}
        at += spec.nbytes
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + at)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in "abc":
        save(tmp_path, name)
    return tmp_path


def tree(method: str = "weighted_sum", roles: str = "ab", **changes: Any) -> dict[str, Any]:
    return {"method": method, "models": {role: f"{role}.safetensors" for role in roles}, **changes}


def fates(plan: Plan) -> dict[str, str]:
    return {job.key: job.fate for job in plan.jobs}


def unfit(folder: Path, recipe: dict[str, Any]) -> IncompatibleError:
    with pytest.raises(IncompatibleError) as caught:
        planned(recipe, folder)
    return caught.value


@pytest.mark.parametrize("alpha", [0, {"default": 0, "vae": 0}])
def test_a_model_of_which_nothing_is_in_the_result_is_named(tmp_path: Path, alpha: object) -> None:
    for name in "abc":
        save(tmp_path, name)
    inner = {"method": "weighted_sum", "models": {"a": "b.safetensors", "b": "c.safetensors"}, "alpha": alpha}
    tree = {"method": "weighted_sum", "models": {"a": "a.safetensors", "b": inner}, "alpha": 0.5}

    def idle(tree: Mapping[str, Any]) -> list[str]:
        return [one for one in planned(tree, tmp_path).warnings if "nothing of it" in one or "itself" in one]

    assert idle(tree) == [
        '"c.safetensors" has no effect: with these parameters nothing of it is in the result'
    ]
    assert (
        idle({**tree, "models": {"a": "a.safetensors", "b": {**inner, "alpha": {"default": 0, "vae": 0.1}}}})
        == []
    )
    (itself,) = idle({**tree, "alpha": 0})
    assert itself.startswith('the result is "a.safetensors" itself')


def test_the_parameters_decide_what_is_merged_and_what_is_copied(models: Path) -> None:
    plan = planned(tree(alpha={"default": 0.3, "vae": 0}), models)
    assert fates(plan) == {UNET: MERGED, VAE: COPIED}
    plan = planned(tree(alpha={"default": 0.3, "vae": 1}), models)
    (vae,) = (job for job in plan.jobs if job.key == VAE)
    assert [load.model for load in vae.loads] == [1] and not vae.steps


def test_a_model_that_has_no_part_in_a_key_need_not_have_it(models: Path) -> None:
    save(models, "b", **{VAE: GONE})
    assert fates(planned(tree(alpha={"default": 0.3, "vae": 0}), models)) == {UNET: MERGED, VAE: COPIED}
    save(models, "b", **{"first_stage_model.extra": torch.ones(1)})
    assert fates(planned(tree(alpha={"default": 0.3, "vae": 0}), models)) == {UNET: MERGED, VAE: COPIED}


def test_a_model_that_is_not_used_is_not_read(models: Path) -> None:
    both, one = planned(tree(alpha=0.3), models), planned(tree(alpha=0), models)
    assert {load.model for job in both.jobs for load in job.loads} == {0, 1}
    assert {load.model for job in one.jobs for load in (*job.loads, *job.equal)} == {0}
    assert one.bytes_read * 2 == both.bytes_read == 2 * (16 + 4) * 4


def test_keys_that_do_not_fit_are_counted_and_the_first_are_named(models: Path) -> None:
    for name in "ab":
        save(models, name, **{f"model.diffusion_model.{n}": torch.ones(1) for n in range(6)})
    save(models, "b")
    first = ", ".join(f"model.diffusion_model.{n}" for n in range(3))
    assert unfit(models, tree()).message == (
        f"b.safetensors: keys of a.safetensors are missing (6 tensors: {first}, ...)"
    )
    assert unfit(models, tree()).exit_code == 5


def test_an_inpainting_model_against_a_plain_one_is_called_so(tmp_path: Path) -> None:
    for name, channels in (("a", 9), ("b", 4)):
        specs = model("sd1", "checkpoint", tiny=True, channels=channels)
        save_header(tmp_path / f"{name}.safetensors", specs)
    kinds, shapes = unfit(tmp_path, tree()).message.split("\n")
    assert kinds == (
        "models of different kinds: a.safetensors is Stable Diffusion 1.x inpainting, "
        "b.safetensors is Stable Diffusion 1.x"
    )
    assert shapes.startswith("b.safetensors: 4 input channels where a.safetensors has 9; ")
    kept = planned(tree(shapes="keep"), tmp_path)
    assert kept.fates[KEPT] == 1 and len(*kept.deviations.values()) == 1


def test_a_missing_key_is_refused_with_both_files_and_kept_if_the_recipe_says_so(models: Path) -> None:
    save(models, "b", **{VAE: GONE})
    error = unfit(models, tree())
    assert error.message == "b.safetensors: keys of a.safetensors are missing (1 tensor, all of vae)"
    assert "force: true" in str(error.hint)
    for policy in ({"missing": "keep"}, {"force": True}):
        plan = planned(tree(**policy), models)
        assert fates(plan) == {UNET: MERGED, VAE: KEPT}
        assert plan.deviations == {"missing in b.safetensors: kept": (VAE,)}
        assert any("1 tensor, all of vae" in warning for warning in plan.warnings)


def test_an_extra_key_is_refused_dropped_or_kept(models: Path) -> None:
    save(models, "b", more=torch.ones(3))
    assert "keys that a.safetensors lacks (1 tensor, all of other)" in unfit(models, tree()).message
    plan = planned(tree(extra="drop"), models)
    assert "more" not in fates(plan)
    assert plan.dropped == {"b.safetensors: keys that a.safetensors lacks": ("more",)}
    plan = planned(tree(extra="keep"), models)
    assert fates(plan)["more"] == COPIED
    assert plan.deviations == {"b.safetensors: keys that a.safetensors lacks, kept": ("more",)}


def test_another_shape_is_refused_or_kept(models: Path) -> None:
    save(models, "b", **{UNET: torch.ones(4, 5)})
    message = unfit(models, tree()).message
    assert "other shapes than in a.safetensors" in message and "the first is [4, 5], there [4, 4]" in message
    for policy in ({"shapes": "keep"}, {"force": True}):
        plan = planned(tree(**policy), models)
        assert fates(plan) == {UNET: KEPT, VAE: MERGED}
        assert plan.deviations == {"another shape in b.safetensors: kept": (UNET,)}


def test_floats_against_integers_are_refused(models: Path) -> None:
    save(models, "b", **{UNET: torch.ones(4, 4, dtype=torch.int64)})
    assert "other kinds of dtype" in unfit(models, tree()).message


def test_everything_that_does_not_fit_is_told_at_once(models: Path) -> None:
    save(models, "b", **{UNET: torch.ones(4, 5), VAE: GONE, "more": torch.ones(1)})
    assert len(unfit(models, tree()).message.split("\n")) == 3


def test_integers_must_agree_and_are_copied(models: Path) -> None:
    for name in "ab":
        save(models, name, ids=torch.arange(3))
    (job,) = (job for job in planned(tree(), models).jobs if job.key == "ids")
    assert job.fate == BUFFER and not job.steps and [load.model for load in job.equal] == [1]
    (job,) = (job for job in planned(tree(integers="keep"), models).jobs if job.key == "ids")
    assert not job.equal


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(torch.arange(2), id="shorter"),
        pytest.param(torch.arange(4), id="longer"),
        pytest.param(torch.arange(3.0), id="floats"),
        pytest.param(GONE, id="missing"),
    ],
)
def test_integers_that_do_not_fit_are_refused_as_floats_are(other: Tensor, models: Path) -> None:
    save(models, "a", ids=torch.arange(3))
    save(models, "b", ids=other)
    assert "b.safetensors" in unfit(models, tree()).message


def test_schedules_and_markers_come_from_the_primary_in_its_dtype(models: Path) -> None:
    save(models, "a", betas=torch.ones(5), v_pred=torch.ones(1), alphas_cumprod=torch.ones(5))
    plan = planned(tree(output={"dtype": "float16"}), models)
    for key in ("betas", "v_pred", "alphas_cumprod"):
        (job,) = (job for job in plan.jobs if job.key == key)
        assert (job.fate, job.spec.dtype, job.loads[0].model) == (BUFFER, "F32", 0)


def test_ema_copies_are_dropped_with_a_warning_or_kept(models: Path) -> None:
    ema = "model_ema.diffusion_modelx"
    for name in "ab":
        save(models, name, **{ema: torch.ones(2)})
    plan = planned(tree(), models)
    assert ema not in fates(plan) and list(plan.dropped.values()) == [(ema,)]
    assert fates(planned(tree(ema="keep"), models))[ema] == MERGED


def test_ema_copies_that_only_another_model_has_are_nobodys_loss(models: Path) -> None:
    save(models, "b", **{"model_ema.diffusion_modelx": torch.ones(2)})
    plan = planned(tree(), models)
    assert not plan.dropped and not plan.warnings


def test_a_model_that_stands_twice_is_loaded_once(models: Path) -> None:
    inner = tree("add_difference", "abc")
    plan = planned(tree(models={"a": "a.safetensors", "b": inner}), models)
    assert [job.steps[1].arguments for job in plan.jobs] == [(0, 3)] * 2
    assert [[load.model for load in job.loads] for job in plan.jobs] == [[0, 1, 2]] * 2


def test_the_primary_of_a_nested_merge_decides_the_dtype(models: Path) -> None:
    save(models, "c", **{UNET: torch.ones(4, 4).half(), VAE: torch.ones(4).bfloat16()})
    inner = tree(models={"a": "c.safetensors", "b": "b.safetensors"})
    plan = planned(tree(models={"a": inner, "b": "a.safetensors"}), models)
    assert {job.key: job.spec.dtype for job in plan.jobs} == {UNET: "F16", VAE: "BF16"}
    assert plan.resolved.primary.checkpoint.label == "c.safetensors"


@pytest.mark.parametrize("policy", ["keep", "error"])
def test_a_key_is_noted_once_however_often_its_merge_stands_in_the_recipe(policy: str, models: Path) -> None:
    save(models, "b", **{VAE: GONE})
    models_of = {"a": tree(), "b": "c.safetensors", "c": tree()}
    recipe = tree("add_difference", models=models_of, missing=policy)
    if policy == "error":
        assert "1 tensor, all of vae" in unfit(models, recipe).message
    else:
        assert planned(recipe, models).deviations == {"missing in b.safetensors: kept": (VAE,)}


@pytest.mark.parametrize("policy", ["keep", "error"])
def test_what_does_not_fit_in_a_merge_that_has_no_part_in_a_key_does_not_matter(
    policy: str, models: Path
) -> None:
    save(models, "b", **{VAE: GONE})
    plan = planned(tree(models={"a": tree(), "b": "c.safetensors"}, alpha=1, missing=policy), models)
    assert fates(plan) == {UNET: COPIED, VAE: COPIED}
    assert not plan.deviations


def test_an_equal_sub_merge_is_computed_once(models: Path) -> None:
    inner = tree("add_difference", "abc", alpha=0.6)
    plan = planned(
        tree(models={"a": inner, "b": tree("weighted_sum", models={"a": inner, "b": "c.safetensors"})}),
        models,
    )
    job = plan.jobs[0]
    assert [step.method.name for step in job.steps] == ["add_difference", "weighted_sum", "weighted_sum"]
    assert len(job.loads) == 3


def test_the_keys_of_a_nested_merge_are_those_of_its_first_model(models: Path) -> None:
    save(models, "c", **{VAE: GONE})
    inner = tree("weighted_sum", models={"a": "c.safetensors", "b": "b.safetensors"}, extra="drop")
    message = unfit(models, tree(models={"a": "a.safetensors", "b": inner})).message
    assert message.startswith("models.b: keys of a.safetensors are missing")


def test_compat_leaves_a_component_whose_keys_differ_as_it_is_in_a_and_writes_float32(models: Path) -> None:
    save(models, "b", **{VAE: torch.ones(4), "first_stage_model.extra": torch.ones(1)})
    for name in "ab":
        path = models / f"{name}.safetensors"
        from safetensors.torch import load_file

        save_file({key: tensor.half() for key, tensor in load_file(path).items()}, path)
    plan = planned(tree(compat="diffusers"), models)
    assert fates(plan) == {UNET: MERGED, VAE: KEPT}
    assert {job.spec.dtype for job in plan.jobs} == {"F32"}
    assert any(warning.startswith("compat diffusers: ") for warning in plan.warnings)


def test_the_output_dtype_is_the_primarys_or_the_recipes_by_component(models: Path) -> None:
    assert {job.spec.dtype for job in planned(tree(), models).jobs} == {"F32"}
    plan = planned(tree(output={"dtype": {"default": "float16", "vae": "bfloat16"}}), models)
    assert {job.key: job.spec.dtype for job in plan.jobs} == {UNET: "F16", VAE: "BF16"}


def test_doubles_are_computed_in_double(models: Path) -> None:
    for name in "ab":
        save(models, name, **{UNET: torch.ones(4, 4, dtype=torch.float64)})
    computed = {job.key: job.compute for job in planned(tree(), models).jobs}
    assert computed == {UNET: "float64", VAE: "float32"}
    assert {job.compute for job in planned(tree(compute_dtype="float64"), models).jobs} == {"float64"}


def test_a_result_that_is_one_of_the_models_is_a_warning(models: Path) -> None:
    assert any('the result is "b.safetensors" itself' in w for w in planned(tree(alpha=1), models).warnings)
    assert not planned(tree(), models).warnings
    assert not planned({"method": "copy", "models": {"a": "a.safetensors"}}, models).warnings


def test_equal_recipes_and_inputs_give_equal_plans(models: Path) -> None:
    first, second = (planned(tree(alpha={"default": 0.3, "vae": 0}), models) for _ in range(2))
    assert first.jobs == second.jobs and first.layout == second.layout


@pytest.fixture
def orders(tmp_path: Path) -> list[Path]:
    """Two folders with the same models, whose tensors lie in opposite order."""
    keys = [f"model.diffusion_model.{n}" for n in range(6)] + [f"model_ema.{n}" for n in range(3)]
    folders = [tmp_path / "forward", tmp_path / "backward"]
    for folder, order in zip(folders, (keys, keys[::-1]), strict=True):
        folder.mkdir()
        save_header(folder / "a.safetensors", {key: TensorSpec("F16", (3,)) for key in order})
        some = {key: TensorSpec("F16", (3,)) for key in order if key[-1] not in "24"}
        save_header(folder / "b.safetensors", some)
    return folders


def test_the_order_of_keys_in_the_inputs_changes_no_job(orders: list[Path]) -> None:
    first, second = (planned(tree(missing="keep"), folder) for folder in orders)
    assert first.jobs == second.jobs and first.layout == second.layout


def test_the_order_of_keys_in_the_inputs_changes_no_list(orders: list[Path]) -> None:
    first, second = (planned(tree(missing="keep"), folder) for folder in orders)
    assert (first.dropped, first.deviations) == (second.dropped, second.deviations)
    assert first.warnings == second.warnings


def test_weights_of_each_model_reach_the_method_in_the_order_of_its_operands(models: Path) -> None:
    recipe = {
        "method": "task_arithmetic",
        "models": {"second": "b.safetensors", "base": "a.safetensors", "third": "c.safetensors"},
        "weight": {"third": 0.3, "second": {"default": 0.2, "vae": 0.7}},
    }
    steps = {job.key: dict(job.steps[0].parameters)["weight"] for job in planned(recipe, models).jobs}
    assert steps == {UNET: (0.2, 0.3), VAE: (0.7, 0.3)}


def test_every_golden_plan_has_its_recipe() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_plan_of_every_recipe_is_the_golden_one(path: Path, cache: Path, tmp_path: Path) -> None:
    """RUNNER_GOLDEN=write pytest tests/planning/test_planner.py writes them anew; then review the diff."""
    plan = planned(dict(read_recipe(path, path.stem).tree), tmp_path, cache)
    placement = place(plan, Devices(("cpu",)), 10**9, 2, 262144)
    text = describe(plan, placement, 10**9)
    text = re.sub(r"plan of \w+:", f"plan of {path.stem}:", text)
    golden = GOLDEN / f"{path.stem}.txt"
    if os.environ.get("RUNNER_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()

"""What is said of a draft: the program's own errors at their lines, its plan, and which models fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from runner.compose import DATA_ROOT, recipe_in
from runner.config import Job
from runner.errors import RecipeError
from runner.library.facts import Facts
from runner.methods import find_method
from runner.place import Devices
from runner.run import run
from runner.ui.asked import page_for
from runner.ui.check import Checked, check
from runner.ui.choices import (
    Choice,
    demo_choices,
    found_models,
    looked_at,
    primary_facts,
    why_no_component,
    why_not,
)
from runner.ui.draft import Draft
from tests.build import random_tensors, write_models
from tests.ui.settings import settings


def test_mistakes_have_their_lines(cache: Path) -> None:
    text = "method: weighted_sum\nmodels:\n  a: demo:photo\n  b: demo:anime\n"
    text += "alpha: 2\nbeta: 1\noutput: {dtype: f}\n"
    found = check(Draft("x", text), settings(cache, Path()))
    assert found.problems[0].line == 7
    text = text.replace("dtype: f", "dtype: float16")
    found = check(Draft("x", text), settings(cache, Path()))
    assert sorted(one.line or 0 for one in found.problems) == [5, 6] and not found.plan


def test_a_good_recipe_has_the_plan_of_job_plan_and_its_numbers_by_block(cache: Path) -> None:
    text = (DATA_ROOT / "recipes" / "anime_mix.yaml").read_text()
    found = check(Draft("anime_mix", text), settings(cache, Path()))
    assert not found.problems and found.plan.startswith("plan of anime_mix: weighted_sum@1 → anime_mix")
    component, blocks, values = found.curves["alpha",]
    assert component == "unet" and dict(zip(blocks, values, strict=True))["M00"] == 0.7
    assert found.curves["models", "b", "alpha"][2] == (0.6,) * 25
    assert found.components == ("text_encoder", "unet", "vae")


def test_the_plan_is_the_text_of_job_plan_with_what_is_said_of_the_origins(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (name, licence) in enumerate((("a", "mit"), ("b", "openrail"))):
        metadata = {"format": "pt", "modelspec.license": licence}
        save_file(random_tensors(number), tmp_path / f"{name}.safetensors", metadata)
    draft = Draft("mix", "method: weighted_sum\nmodels: {a: a.safetensors, b: b.safetensors}\n")
    own = replace(settings(cache, tmp_path), output_dir=tmp_path, placement=Devices((99,), {99: 1 << 30}))
    shown = check(draft, own).plan
    run(recipe_in(draft.file), replace(own, job=Job("plan")), tmp_path)
    texts = [re.sub(r"\S+ \S+ free", "… free", text) for text in (f"{shown}\n", capsys.readouterr().out)]
    assert texts[0] == texts[1] and '"mit" (a.safetensors); "openrail" (b.safetensors)' in texts[0]


def test_a_recipe_that_builds_on_another_is_checked_with_it(cache: Path) -> None:
    found = check(Draft("x", "defaults: [anime_mix, _self_]\nalpha: 0.1\n"), settings(cache, Path()))
    assert "→ anime_mix" in found.plan
    found = check(Draft("x", "defaults: [anime_mx, _self_]\nalpha: 0.1\n"), settings(cache, Path()))
    assert 'did you mean "anime_mix"?' in found.problems[0].text


@pytest.mark.parametrize("source", ["../secret.safetensors", "/etc/passwd", "~/x.safetensors", "sub/../../x"])
def test_in_a_browser_models_outside_the_folders_are_refused_unread(
    source: str, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    write_models(tmp_path, secret=1)
    text = f"method: weighted_sum\nmodels: {{a: '{source}', b: demo:anime}}\n"
    found = check(Draft("x", text), settings(cache, tmp_path / "models"), confined=True)
    assert [one.line for one in found.problems] == [2]
    assert "not in the folders of models" in found.problems[0].text


def test_in_a_browser_models_in_the_folders_are_read(cache: Path, tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2)
    text = "method: weighted_sum\nmodels: {a: a.safetensors, b: b.safetensors}\n"
    assert not check(Draft("x", text), settings(cache, tmp_path), confined=True).problems


def test_models_are_named_as_recipes_name_them_and_said_what_they_are(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_models(tmp_path / "sub", a=1)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    own = settings(cache, tmp_path)
    choices = {one.source: one for one in looked_at(found_models(own), own)}
    assert set(choices) == {"sub/a.safetensors", "broken.safetensors"}
    method = find_method("weighted_sum", None)
    assert why_not(choices["broken.safetensors"].facts, method, "b", None)
    assert choices["broken.safetensors"].title == "cannot be read"


SD1, XL = Facts("folder", "sd1"), Facts("folder", "sdxl")


@pytest.mark.parametrize(
    ("facts", "method", "primary", "reason"),
    [
        (SD1, "weighted_sum", SD1, ""),
        (None, "weighted_sum", SD1, ""),
        (XL, "weighted_sum", SD1, "Stable Diffusion XL, the first model is Stable Diffusion 1.x"),
        (Facts("lora", "sd1"), "weighted_sum", SD1, "a file of adapters: add_lora takes it"),
        (Facts("lora", "sd1"), "add_lora", SD1, ""),
        (SD1, "add_lora", SD1, "no file of adapters"),
        (Facts("vae", "sd1"), "weighted_sum", SD1, "a vae alone: the rest is missing (force: true)"),
        (
            Facts("checkpoint", "sd1", "inpainting"),
            "weighted_sum",
            SD1,
            "inpainting, the first model is plain (shapes: channels)",
        ),
    ],
)
def test_why_a_model_does_not_fit(facts: Facts | None, method: str, primary: Facts, reason: str) -> None:
    assert why_not(facts, find_method(method, None), "b", primary) == reason


@pytest.mark.parametrize(
    ("facts", "component", "reason"),
    [
        (None, "vae", ""),
        (SD1, "vae", ""),
        (SD1, "text_encoder", ""),
        (Facts("vae"), "vae", ""),
        (Facts("text_encoder"), "text_encoder_2", ""),
        (XL, "vae", "Stable Diffusion XL, the first model is Stable Diffusion 1.x"),
        (Facts("lora", "sd1"), "vae", "a lora has no vae"),
        (Facts("text_encoder", "sd1"), "vae", "a text encoder has no vae"),
        (Facts("vae", "sd1"), "unet", "a vae has no unet"),
        (Facts("checkpoint", problem="it is cut off"), "vae", "it is cut off"),
        (Facts("vae", problem="it is cut off"), "vae", "it is cut off"),
    ],
)
def test_why_a_model_does_not_give_a_component(facts: Facts | None, component: str, reason: str) -> None:
    assert why_no_component(facts, component, SD1) == reason


def test_the_demo_models_are_what_they_are_said_to_be(cache: Path) -> None:
    known = {one.source: one.facts for one in demo_choices() if one.facts}
    for name in ("demo:photo", "demo:sdxl_photo"):
        draft = Draft("x", f"method: weighted_sum\nmodels: {{a: {name}, b: {name}}}\n")
        facts = primary_facts(draft, (), known)
        plan = check(draft, settings(cache, Path())).plan
        assert facts is not None and ("Stable Diffusion XL" in plan) == (facts.architecture == "sdxl")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\udcff.ckpt", "no recipe can name it: not UTF-8"),
        ("a\x1b[2J.ckpt", r'no recipe can name it: a control character: "a\u001b[2J.ckpt"'),
        ("a\x7f.ckpt", r'no recipe can name it: a control character, "\u007f"'),
        ("${oc.env:HOME}.ckpt", "no recipe can name it: ${ is only for plain references"),
        ("é, \n\u200b.ckpt", ""),
    ],
)
@pytest.mark.parametrize(("what", "of"), [("model", "a"), ("component", "vae")])
def test_a_model_that_no_recipe_can_name_is_no_choice(what: str, of: str, name: str, reason: str) -> None:
    draft = Draft("x")
    page = page_for(what, of, draft, (), Checked(""), [Choice(name, None)])
    assert page is not None and page.rows is not None
    (row,) = (row for row in page.rows([Choice(name, None)]) if row.value == name)
    assert row.against.startswith(reason) and bool(row.against) is bool(reason)
    if reason:
        with pytest.raises(RecipeError):
            page.change(draft, name)
    else:
        path = ("models", of) if what == "model" else ("components", of)
        assert page.change(draft, name).value(path) == name

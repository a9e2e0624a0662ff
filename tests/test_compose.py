"""Composition through the real Hydra: inheritance, recipes as models, overrides, references."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runner.compose import (
    DATA_ROOT,
    MAX_FILES,
    ComposedRecipe,
    recipe_folders,
    recipe_in,
    recipe_names,
    recipe_of,
    register,
)
from runner.errors import KeyPath, RecipeError, UsageError
from runner.recipe.guard import read_recipe
from runner.recipe.parse import parse_recipe
from runner.recipe.references import MAX_REFERENCES
from tests.command import Done, run

Write = Callable[..., Path]

BASE = "method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\nalpha: 0.3\n"
MIX = "method: weighted_sum\nmodels: {a: demo:photo}\nalpha: 0.5\n"  # b is composed


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes recipes by name into a folder of RUNNER_RECIPES, which is the working folder too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNNER_RECIPES", str(tmp_path))

    def write(**recipes: str) -> Path:
        for name, text in recipes.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip("\n"))
        return tmp_path

    return write


def composed(choice: str, *overrides: str) -> ComposedRecipe:
    """A recipe as a job is given it."""
    register()
    with initialize_config_dir(str(DATA_ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"recipe={choice}", *overrides], return_hydra_config=True)
    assert config.hydra.runtime.choices["recipe"] == choice
    OmegaConf.set_readonly(config, True)
    return recipe_of(config, choice, [f"recipe={choice}", *overrides])


def refused(choice: str, *overrides: str) -> list[str]:
    """The problems of a recipe."""
    with pytest.raises(RecipeError) as caught:
        composed(choice, *overrides)
    return caught.value.message.split("\n")


def command(folder: Path, *arguments: str) -> Done:
    """A plan as a process of its own; no mistake of a recipe takes long."""
    return run(folder, "job=plan", *arguments, timeout=30)


def located(recipe: ComposedRecipe, *path: str | int) -> str:
    return str(recipe.locate(path))


# Inheritance


def test_a_recipe_without_parents_is_its_file(write: Write) -> None:
    write(mix=BASE)
    recipe = composed("mix")
    assert recipe.name == "mix"
    assert recipe.tree == {
        "method": "weighted_sum",
        "models": {"a": "demo:photo", "b": "demo:anime"},
        "alpha": 0.3,
    }
    assert [file.name for file in recipe.files] == ["mix"]


def test_a_child_changes_what_it_says_and_inherits_the_rest(write: Write) -> None:
    child = "defaults: [base, _self_]\nmodels: {b: demo:base}\nalpha: {default: 0.1, unet: 0.2}\n"
    write(base=BASE, child=child)
    recipe = composed("child")
    assert recipe.tree == {
        "method": "weighted_sum",
        "models": {"a": "demo:photo", "b": "demo:base"},
        "alpha": {"default": 0.1, "unet": 0.2},
    }
    assert [file.name for file in recipe.files] == ["base", "child"]


def test_what_a_recipe_says_itself_wins_unless_it_puts_itself_first(write: Write) -> None:
    write(base=BASE, last="defaults: [base]\nalpha: 0.9\n", first="defaults: [_self_, base]\nalpha: 0.9\n")
    assert composed("last").tree["alpha"] == 0.9
    assert [file.name for file in composed("last").files] == ["base", "last"]
    assert composed("first").tree["alpha"] == 0.3
    assert [file.name for file in composed("first").files] == ["first", "base"]


def test_parents_have_parents_and_later_ones_win(write: Write) -> None:
    write(
        grand=BASE,
        one="defaults: [grand]\nalpha: 0.1\nseed: 1\n",
        two="alpha: 0.2\n",
        child="defaults: [one, two]\n",
    )
    recipe = composed("child")
    assert (recipe.tree["alpha"], recipe.tree["seed"]) == (0.2, 1)
    assert [file.name for file in recipe.files] == ["grand", "one", "two", "child"]


def test_a_shipped_recipe_can_be_inherited(write: Write) -> None:
    write(mine="defaults: [weighted_sum]\nalpha: 0.5\n")
    recipe = composed("mine")
    assert recipe.tree["alpha"] == 0.5
    assert recipe.tree["output"]["name"] == "weighted_sum"


def test_a_scalar_gives_way_to_a_mapping_and_back(write: Write) -> None:
    write(base=BASE, map="defaults: [base]\nalpha: {default: 0.4}\n", flat="defaults: [map]\nalpha: 0.6\n")
    assert composed("map").tree["alpha"] == {"default": 0.4}
    assert composed("flat").tree["alpha"] == 0.6


def test_keys_with_dots_and_stars_survive(write: Write) -> None:
    write(base=BASE, child='defaults: [base]\nalpha: {unet: {"*.attn2.*": 0.2, "x[0]": 1}}\n')
    assert composed("child").tree["alpha"] == {"unet": {"*.attn2.*": 0.2, "x[0]": 1}}


def test_a_recipe_is_found_in_a_folder_below(write: Write) -> None:
    write(anime__base=BASE, anime__mix="defaults: [anime/base]\nalpha: 0.2\n")
    recipe = composed("anime/mix")
    assert recipe.name == "mix"
    assert recipe.tree["alpha"] == 0.2
    assert located(recipe, "alpha") == "anime/mix.yaml:2:1"
    assert located(recipe, "method") == "anime/base.yaml:1:1"


# Composition as a model


def test_a_recipe_can_stand_for_a_model_of_another(write: Write) -> None:
    style = "method: add_difference\nmodels: {a: demo:photo, b: demo:anime, c: demo:base}\nalpha: 0.6\n"
    mix = "defaults: [style@models.b]\nmethod: weighted_sum\nmodels: {a: demo:photo}\nalpha: 0.3\n"
    write(style=style, mix=mix)
    recipe = composed("mix")
    assert recipe.tree["models"]["b"] == {
        "method": "add_difference",
        "models": {"a": "demo:photo", "b": "demo:anime", "c": "demo:base"},
        "alpha": 0.6,
    }
    assert recipe.tree["alpha"] == 0.3
    parsed = parse_recipe(recipe.name, recipe.tree, recipe.locate)
    assert sorted(source.name for source in parsed.merge.sources()) == [
        "demo:anime",
        "demo:base",
        "demo:photo",
        "demo:photo",
    ]


def test_composed_recipes_nest_with_their_parents(write: Write) -> None:
    write(
        base=BASE,
        inner="defaults: [base]\nalpha: 0.1\n",
        style="defaults: [inner@models.a]\nmethod: weighted_sum\nmodels: {b: demo:base}\nalpha: 0.2\n",
        mix="defaults: [style@models.b]\nmethod: weighted_sum\nmodels: {a: demo:photo}\nalpha: 0.3\n",
    )
    recipe = composed("mix")
    assert recipe.tree["models"]["b"]["models"]["a"]["alpha"] == 0.1
    assert recipe.tree["models"]["b"]["models"]["a"]["models"] == {"a": "demo:photo", "b": "demo:anime"}
    assert located(recipe, "models", "b", "models", "a", "alpha") == "inner.yaml:2:1"
    assert located(recipe, "models", "b", "models", "a", "models", "b") == "base.yaml:2:25"
    assert located(recipe, "models", "b", "models", "b") == "style.yaml:3:10"
    assert located(recipe, "models", "b", "alpha") == "style.yaml:4:1"
    assert located(recipe, "alpha") == "mix.yaml:4:1"


def test_a_recipe_can_be_composed_twice_and_changed_in_place(write: Write) -> None:
    own = "method: weighted_sum\nmodels: {b: {alpha: 0.9}}\nalpha: 0.5\n"
    write(base=BASE, mix=f"defaults: [base@models.a, base@models.b]\n{own}")
    models = composed("mix").tree["models"]
    assert (models["a"]["alpha"], models["b"]["alpha"]) == (0.3, 0.9)


def test_the_command_line_puts_a_recipe_in_the_place_of_a_model(write: Write) -> None:
    other = BASE.replace("0.3", "0.7")
    write(base=BASE, other=other, mix=f"defaults: [base@models.b]\n{MIX}", plain=BASE)
    for choice, override in [
        ("mix", "recipe@recipe.models.b=other"),
        ("plain", "+recipe@recipe.models.b=other"),
    ]:
        recipe = composed(choice, override)
        assert recipe.tree["models"]["b"]["alpha"] == 0.7
        assert sorted(file.name for file in recipe.files) == sorted([choice, "other"])
        assert located(recipe, "models", "b", "alpha") == "other.yaml:3:1"
        assert located(recipe, "alpha") == f"{choice}.yaml:{4 if choice == 'mix' else 3}:1"


def test_the_command_line_can_reach_a_model_of_a_model(write: Write) -> None:
    write(base=BASE, other=BASE.replace("0.3", "0.7"), mix=f"defaults: [base@models.b]\n{MIX}")
    recipe = composed("mix", "+recipe@recipe.models.b.models.a=other")
    assert recipe.tree["models"]["b"]["models"]["a"]["alpha"] == 0.7
    assert [file.name for file in recipe.files] == ["base", "mix", "other"]


def test_a_recipe_from_the_command_line_passes_the_guard(write: Write) -> None:
    write(mix=BASE, broken="method: yes\n")
    assert refused("mix", "+recipe@recipe.models.b=broken") == [
        'broken.yaml:1:9: method: write true or false, or quote it; found "yes"'
    ]


@pytest.mark.parametrize("override", ["+recipe@recipe.output=base", "~recipe@recipe.models.b"])
def test_a_recipe_from_the_command_line_stands_for_a_model_only(write: Write, override: str) -> None:
    write(base=BASE, mix=f"defaults: [base@models.b]\n{MIX}")
    with pytest.raises(UsageError, match="in the place of a model"):
        composed("mix", override)


# Overrides


def test_fields_that_a_recipe_does_not_mention_can_be_overridden(write: Write) -> None:
    write(mix=BASE)
    overrides = ["recipe.seed=7", "recipe.output.name=x", "recipe.models.c=demo:base", "+recipe.author=me"]
    tree = composed("mix", *overrides).tree
    assert (tree["seed"], tree["output"], tree["author"]) == (7, {"name": "x"}, "me")
    assert tree["models"]["c"] == "demo:base"


def test_an_override_reaches_into_a_composed_recipe(write: Write) -> None:
    write(base=BASE, mix=f"defaults: [base@models.b]\n{MIX}")
    recipe = composed("mix", "recipe.models.b.alpha=0.8", "recipe.models.b.seed=2")
    assert (recipe.tree["models"]["b"]["alpha"], recipe.tree["models"]["b"]["seed"]) == (0.8, 2)
    assert located(recipe, "models", "b", "alpha") == "command line"
    assert located(recipe, "models", "b", "seed") == "command line"
    assert located(recipe, "models", "b", "method") == "base.yaml:1:1"


def test_a_field_can_be_removed(write: Write) -> None:
    write(mix=BASE)
    assert "alpha" not in composed("mix", "~recipe.alpha").tree


def test_a_value_is_located_where_it_was_written_last(write: Write) -> None:
    write(base=BASE, child="defaults: [base]\n\nalpha: {default: 0.1, unet: 0.2}\n")
    recipe = composed("child", "recipe.models.b=demo:base", "+recipe.seed=1", "recipe.output={name: x}")
    assert located(recipe, "method") == "base.yaml:1:1"
    assert located(recipe, "models", "a") == "base.yaml:2:10"
    assert located(recipe, "models", "b") == "command line"
    assert located(recipe, "seed") == "command line"
    assert located(recipe, "output", "name") == "command line"
    assert located(recipe, "alpha", "unet") == "child.yaml:3:23"
    # What stands nowhere is located at what it should stand in.
    assert located(recipe, "models", "c") == "base.yaml:2:1"
    assert located(recipe, "missing") == "child.yaml"


# References


def test_a_reference_stands_for_a_value_of_the_recipe(write: Write) -> None:
    write(
        mix="""
            method: weighted_sum
            models:
              a: demo:photo
              b: {method: "${...method}", models: {a: "${recipe.models.a}", b: x}, alpha: 0.5}
            alpha: {default: 0.25, unet: "${.default}"}
            seed: ${recipe.alpha.default}
            description: a ${.method} of ${recipe.models.a}
        """
    )
    tree = composed("mix").tree
    assert tree["alpha"] == {"default": 0.25, "unet": 0.25}
    assert tree["seed"] == 0.25
    assert tree["models"]["b"]["method"] == "weighted_sum"
    assert tree["models"]["b"]["models"]["a"] == "demo:photo"
    assert tree["description"] == "a weighted_sum of demo:photo"


def test_a_reference_sees_what_the_command_line_says(write: Write) -> None:
    write(mix=BASE.replace("0.3", '{default: 0.3, vae: "${.default}"}'))
    assert composed("mix", "recipe.alpha.default=0.7").tree["alpha"]["vae"] == 0.7
    assert composed("mix", "recipe.seed=${recipe.alpha.default}").tree["seed"] == 0.3


def test_a_reference_in_a_composed_recipe_is_relative_to_where_it_was_written(write: Write) -> None:
    base = BASE.replace("0.3", '{default: 0.3, vae: "${.default}"}')
    write(base=base, mix=f"defaults: [base@models.b]\n{MIX}")
    assert composed("mix").tree["models"]["b"]["alpha"]["vae"] == 0.3


def test_a_reference_is_replaced_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of a reference can look like a resolver; it stays a text."""
    monkeypatch.setenv("SECRET", "s3cr3t")
    write(mix=BASE + 'author: "$"\nlicense: "{oc.env:SECRET}"\ndescription: "${.author}${.license}"\n')
    assert composed("mix").tree["description"] == "${oc.env:SECRET}"


@pytest.mark.parametrize(
    "reference",
    [
        "${.nothing}",
        "${.models}",
        "${recipe.nonfinite}",
        "${recipe.nonfinite.0}",
        "${recipe}",
        "${.description}",
        "${.license}",
        "${threads}",
        "${models_dir}",
        "${hydra.run.dir}",
        "${.alpha.x}",
        "${.author.upper}",
        "${..recipe.alpha}",
    ],
)
def test_a_reference_to_anything_but_a_plain_value_is_refused(write: Write, reference: str) -> None:
    extra = "nonfinite: [x]\nauthor: me\nlicense: ${.author}\n"
    write(mix=BASE + extra + f"description: '{reference}'\n")
    found = refused("mix")
    assert all(": ${" in problem for problem in found)
    assert found[-1].startswith("mix.yaml:7:1: description: ")


@pytest.mark.parametrize("dots", [2, 3, 7])
def test_a_reference_with_more_dots_than_there_are_levels_is_refused(write: Write, dots: int) -> None:
    write(mix=BASE + f"description: '${{{'.' * dots}alpha}}'\n")
    refused("mix")


def test_references_in_a_circle_are_refused(write: Write) -> None:
    write(mix=BASE + "author: ${.license}\nlicense: ${.author}\n")
    assert len(refused("mix")) == 2


def test_references_that_multiply_are_refused_at_once(write: Write) -> None:
    levels = "".join(f"l{n}: '{f'${{recipe.l{n - 1}}}' * 10}'\n" for n in range(1, 9))
    write(mix=BASE + "l0: xxxxxxxxxx\n" + levels)
    found = refused("mix")
    assert len(found) == 70 and all("refers to no plain value" in problem for problem in found)


def test_there_are_not_many_references(write: Write) -> None:
    write(mix=BASE + f"description: '{'${.alpha}' * MAX_REFERENCES}'\n")
    assert composed("mix").tree["description"] == "0.3" * MAX_REFERENCES
    write(mix=BASE + f"description: '{'${.alpha}' * (MAX_REFERENCES + 1)}'\n")
    assert refused("mix") == ["101 references ${...}; at most 100"]


@pytest.mark.parametrize(
    "override",
    [
        "recipe.description=${oc.env:SECRET}",
        "recipe.description='${oc.env:SECRET}'",
        "recipe.description=x${oc.env:SECRET}",
        "+recipe.x='${oc.decode:${oc.env:SECRET}}'",
        "recipe.models.b=${oc.env:SECRET}",
        "recipe.alpha={default: '${oc.env:SECRET}'}",
        "recipe.nonfinite=['${oc.env:SECRET}']",
    ],
)
def test_resolvers_are_refused_on_the_command_line_too(
    write: Write, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    write(mix=BASE)
    (found,) = refused("mix", override)
    assert found.startswith("command line: ")
    assert "${ is only for plain references" in found
    assert "s3cr3t" not in found


# Where recipes are found


def test_the_users_folders_come_before_the_shipped_ones_in_their_order(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(one__mix=BASE.replace("0.3", "0.1"), two__mix=BASE.replace("0.3", "0.2"), two__weighted_sum=BASE)
    monkeypatch.setenv("RUNNER_RECIPES", f"{tmp_path / 'one'}{os.pathsep}{os.pathsep}two")
    assert recipe_folders() == [tmp_path / "one", tmp_path / "two", DATA_ROOT / "recipes"]
    assert composed("mix").tree["alpha"] == 0.1
    assert "output" not in composed("weighted_sum").tree
    assert composed("sigmoid").tree["method"] == "sigmoid"
    assert {"mix", "weighted_sum", "sigmoid"} <= set(recipe_names())


def test_names_of_recipes_in_folders_have_slashes(write: Write) -> None:
    write(anime__soft__mix=BASE)
    assert "anime/soft/mix" in recipe_names()


@pytest.mark.parametrize("suffix", [".yaml", ""])
def test_a_recipe_can_be_given_by_its_path(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.delenv("RUNNER_RECIPES")
    write(own__mine="defaults: [weighted_sum]\nalpha: 0.9\n")
    recipe = composed(f"{tmp_path}/own/mine{suffix}")
    assert recipe.name == "mine"
    assert (recipe.tree["alpha"], recipe.tree["method"]) == (0.9, "weighted_sum")
    assert located(recipe, "alpha") == "own/mine.yaml:2:1"
    assert [file.name for file in recipe.files] == ["weighted_sum", f"{tmp_path}/own/mine{suffix}"]


# What does not compose


def test_the_problems_of_all_files_are_told_and_of_one_twice_composed_once(write: Write) -> None:
    write(one="method: yes\n_target_: x\n", two="alpha: ${oc.env:HOME}\n")
    write(mix=f"defaults: [one, two@models.a, two@models.b]\n{BASE}")
    assert [problem.partition(": ")[0] for problem in refused("mix")] == [
        "one.yaml:1:9",
        "one.yaml:2:1",
        "two.yaml:1:8",
    ]


def doubling(levels: int) -> dict[str, str]:
    """Each recipe composes the next one twice."""
    recipes = {f"r{n}": f"defaults: [r{n + 1}@models.a, r{n + 1}@models.b]\n" for n in range(levels)}
    return {**recipes, f"r{levels}": BASE}


def test_a_recipe_is_composed_of_few_files(write: Write) -> None:
    write(**doubling(4))
    assert len(composed("r0").files) == MAX_FILES - 1
    write(**doubling(5))
    assert refused("r0") == ['recipe "r0": its defaults lead to more than 32 files']


@pytest.mark.parametrize(
    "recipes",
    [doubling(40), {f"r{n}": f"defaults: [r{n + 1}]\n" for n in range(1200)} | {"r1200": BASE}],
    ids=["doubling", "chain"],
)
def test_files_that_multiply_are_refused_at_once(write: Write, recipes: dict[str, str]) -> None:
    write(**recipes)
    started = time.process_time()
    (found,) = refused("r0")
    assert found.endswith("its defaults lead to more than 32 files")
    assert time.process_time() - started < 5


MISTAKES: dict[str, tuple[dict[str, str], int, str]] = {
    "a circle": ({"mix": "defaults: [two]\n", "two": "defaults: [mix]\n"}, 3, "lead back to itself"),
    "a circle of one": ({"mix": "defaults: [mix]\n"}, 3, "lead back to itself"),
    "a circle by composition": ({"mix": f"defaults: [mix@models.b]\n{BASE}"}, 3, "lead back to itself"),
    "a missing parent": ({"mix": "defaults: [bse]\n", "base": BASE}, 3, '"bse", did you mean "base"?'),
    "a missing style": ({"mix": "defaults: [no@models.b]\n"}, 3, 'no recipe "no"'),
    "a broken recipe": ({"mix": "method: [\n"}, 3, "mix.yaml:2:1: not YAML"),
    "a broken parent": ({"mix": "defaults: [base]\n", "base": "method: on\n"}, 3, "base.yaml:1:9: method:"),
    "an empty recipe": ({"mix": ""}, 3, "mix.yaml: empty"),
    "an unknown recipe": ({"mx": BASE}, 3, 'no recipe "mix", did you mean "mx"?'),
    "a text where models stand": (
        {"mix": "defaults: [weighted_sum]\nmodels: x\n"},
        3,
        "mix.yaml:2:1: models:",
    ),
    "missing values of OmegaConf": ({"mix": "method: ???\nmodels: ???\n"}, 3, "mix.yaml:2:1: models:"),
}


@pytest.mark.parametrize(("recipes", "code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_recipe_that_does_not_compose_is_told_in_one_line(
    write: Write, recipes: dict[str, str], code: int, words: str
) -> None:
    done = command(write(**recipes), "recipe=mix")
    assert (done.returncode, done.stdout) == (code, "")
    (line, *hints) = done.stderr.splitlines()
    assert line.startswith("runner: error[E-RECIPE]: ")
    assert words in line
    assert all(hint.startswith("hint: ") for hint in hints)


BUGS: dict[str, tuple[dict[str, str], str, str]] = {
    "a list where models stand": (
        {"mix": "defaults: [weighted_sum]\nmodels: [x]\n"},
        "mix.yaml:2:1",
        "Hydra's 'ConfigTypeError raised while composing' is told instead, without a place, exit code 2",
    ),
    "a reference that ends in a dot": (
        {"mix": BASE + "description: ${recipe.}\n"},
        "mix.yaml:4:",
        "the guard's pattern allows dots that omegaconf's grammar does not; its words, exit code 2",
    ),
    "a reference with two dots inside": (
        {"mix": BASE + "description: ${recipe..alpha}\n"},
        "mix.yaml:4:",
        "as above",
    ),
    "itself twice": (
        {"mix": "defaults: [_self_, _self_]\n" + BASE},
        "mix.yaml:1:",
        "the guard lets it through; Hydra's words, exit code 2",
    ),
    "a parent with a long name": (
        {"mix": f"defaults: [{'x' * 300}]\n"},
        "no recipe",
        "Path.is_file raises ENAMETOOLONG, exit code 1",
    ),
}


@pytest.mark.parametrize(("recipes", "words", "reason"), BUGS.values(), ids=BUGS)
def test_a_recipe_that_does_not_compose_is_told_with_its_place(
    write: Write, recipes: dict[str, str], words: str, reason: str
) -> None:
    done = command(write(**recipes), "recipe=mix")
    assert done.returncode == 3, reason
    assert words in done.stderr


def tree_of(recipe: ComposedRecipe, path: KeyPath) -> Any:
    found: Any = recipe.tree
    for part in path:
        found = found[part]
    return found


def test_every_value_of_every_shipped_recipe_is_located_in_its_file() -> None:
    for path in sorted((DATA_ROOT / "recipes").rglob("*.yaml")):
        recipe = composed(path.stem)
        lines = path.read_text().splitlines()
        for file in recipe.files:
            for key, place in file.locations.items():
                assert place.line and place.column
                if not isinstance(key[-1], int):  # an entry of a list stands for itself
                    assert lines[place.line - 1][place.column - 1 :].lstrip("\"'").startswith(key[-1])
                tree_of(recipe, key)


def in_memory(folder: Path, name: str) -> list[str]:
    """The problems of a recipe as the composer reads it."""
    with pytest.raises(RecipeError) as caught:
        recipe_in(read_recipe(folder / f"{name}.yaml", name))
    return caught.value.message.split("\n")


@pytest.mark.parametrize(
    ("below", "above", "said"),
    [
        ("{default: 0.3, vae: 0.2}", "[0.5]", "a list cannot be laid over a mapping"),
        ("[0.5]", "{default: 0.3}", "a mapping cannot be laid over a list"),
    ],
)
def test_a_list_and_a_mapping_over_each_other_are_one_line_that_says_where(
    write: Write, below: str, above: str, said: str
) -> None:
    folder = write(
        base=BASE.replace("0.3", below),
        child=f"defaults: [base]\nalpha: {above}\n",
        heir="defaults: [child]\n",
    )
    expected = f'child.yaml:2:1: "alpha": {said} of a recipe that it is laid over; write it as that does'
    for name in ("child", "heir"):
        assert refused(name) == in_memory(folder, name) == [expected]


def test_the_problems_of_a_file_are_told_before_values_that_do_not_fit(write: Write) -> None:
    folder = write(
        base=BASE.replace("0.3", "{default: 0.3}"),
        other=BASE.replace("0.3", "[0.5]"),
        third=BASE + "x: !!binary aGk=\n",
        child="defaults: [base, other, third]\n",
    )
    assert refused("child") == in_memory(folder, "child")
    assert "third.yaml:4" in refused("child")[0]


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ("alpha: 1", "alpha: ???"),
        ("alpha: ???", "alpha: 1"),
        ("alpha: ${.c}\nc: 0.5", "alpha: {default: 1}"),
        ("alpha: ${.c}\nc: {vae: 0.5}", "alpha: {default: 1}"),
        ("alpha: ${recipe.c}\nc: {vae: 0.5}", "alpha: {default: 1}"),
        ("alpha: {default: 1}", "alpha: ${.c}\nc: 0.5"),
        ("alpha: {default: 1}", "alpha: null"),
        ("alpha: null", "alpha: {default: 1}"),
        ("alpha: [1, 2, 3]", "alpha: [4]"),
        ("alpha: {vae: {default: 1}}", "alpha: {vae: {default: '???'}}"),
    ],
)
def test_values_are_laid_over_each_other_in_memory_as_hydra_does(
    write: Write, below: str, above: str
) -> None:
    folder = write(
        base=f"method: weighted_sum\nmodels: {{a: x, b: y}}\n{below}\n",
        child=f"defaults: [base]\n{above}\n",
    )
    assert recipe_in(read_recipe(folder / "child.yaml", "child")).tree == composed("child").tree


@pytest.mark.parametrize(
    ("below", "above"),
    [("alpha: ${.c}\nc: [1]", "alpha: {default: 1}"), ("alpha: ${.c}\nc: {vae: 1}", "alpha: [1]")],
)
def test_what_does_not_fit_behind_a_reference_is_refused(write: Write, below: str, above: str) -> None:
    folder = write(
        base=f"method: weighted_sum\nmodels: {{a: x, b: y}}\n{below}\n",
        child=f"defaults: [base]\n{above}\n",
    )
    done = command(folder, "recipe=child")
    for line in (done.stderr.splitlines()[0], *in_memory(folder, "child")):
        assert "what is laid over each other does not fit" in line
    assert done.returncode == 3


def test_a_list_over_a_mapping_of_a_model_on_the_command_line_is_one_line(write: Write) -> None:
    inner = BASE.replace("0.3", "{default: 0.3}").replace("\n", "\n    ")
    folder = write(
        mix=f"method: weighted_sum\nmodels:\n  a: demo:photo\n  b:\n    {inner}\n",
        other=BASE.replace("0.3", "[0.3]"),
    )
    done = command(folder, "recipe=mix", "+recipe@recipe.models.b=other")
    assert done.returncode == 3 and "does not fit" in done.stderr.splitlines()[0], done.stderr


def test_a_parent_of_a_parent_that_is_not_there_is_told_of_a_recipe_in_memory(write: Write) -> None:
    folder = write(child="defaults: [nowhere]\n", heir="defaults: [child]\nmethod: weighted_sum\n")
    for name in ("child", "heir"):
        assert in_memory(folder, name) == ['child.yaml: defaults: no recipe "nowhere"']

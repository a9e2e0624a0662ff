"""The same recipe gives the same values whichever layout the models are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.architectures import ARCHITECTURES
from runner.checkpoint import Checkpoint, Stored
from runner.errors import Location, Problems
from runner.methods import Parameter
from runner.models.model import Model
from runner.models.view import view_of
from runner.resolve.binding import names_of
from runner.tensors import TensorSpec
from runner.weighting.dialects import DIALECTS, layouts
from runner.weighting.parameter import parse_weighting
from runner.weighting.rules import Names
from tests.architectures.test_layouts import CASES, back, folder

RECIPES: dict[str, Any] = {
    "by component and block": {"default": 0.1, "vae": 0.2, "text_encoder": 0.3},
    "a list": {"default": 0.1, "MAIN": [0, 0.3, 1]},
    "entries": {"default": 0, "elemental": ":attn:0.5, :norm:0.25, :NOT bias weight scale:0.75"},
    "patterns of folders": {"default": 0, "*blocks.1.*norm*": 0.25},
    "patterns of single files": {"default": 0, "*blocks.7.*": 0.25},
    **{
        f"a string of {dialect}": {"mbw": [], "dialect": dialect, "default": 0}
        for dialect in DIALECTS
        if not DIALECTS[dialect].sliders
    },
}


def names(architecture: str, layout: str, specs: dict[str, TensorSpec]) -> Names:
    tensors = {key: Stored(0, 0, spec) for key, spec in specs.items()}
    found = ARCHITECTURES[architecture]
    view = view_of(found, layout, specs)
    model = Model((), Checkpoint(layout, layout, Path(), (), tensors), view, found, None)
    return names_of(model, (model,))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("case", CASES)
def test_a_tensor_has_the_same_value_in_a_folder_and_in_its_single_file(case: str, recipe: Any) -> None:
    architecture = CASES[case].architecture
    if "mbw" in recipe:
        count = max(one for one in layouts(recipe["dialect"], ARCHITECTURES[architecture]) if one < 100)
        recipe = {**recipe, "mbw": [number / count for number in range(count)]}
    main = ARCHITECTURES[architecture].main
    recipe = {main if name == "MAIN" else name: value for name, value in recipe.items()}
    single = {key: made.spec for key, made in back(case, folder(case)).made.items()}
    problems = Problems(lambda path: Location("test"))
    found = []
    for layout, specs in (("diffusers", dict(folder(case))), ("checkpoint", single)):
        known = names(architecture, layout, specs)
        present = {
            name: value
            for name, value in recipe.items()
            if name in known.components or name not in ("vae", "text_encoder")
        }
        weighting = parse_weighting(Parameter("alpha", 0.5, None), present, (), True, known, problems)
        found.append({key: weighting.at(key, known.places[key]) for key in known.places})
    problems.raise_if_any()
    in_folder, in_file = found
    assert len(set(in_file.values())) > 1
    assert in_folder == in_file

"""Recipes as sd-mecha and mergekit wrote or read them, and the models these tools made by them.

data/ was recorded with sd-mecha 1.1.8 and mergekit 0.1.5 from three models in the shape of SD1, of
which a few tensors are kept: "a/KEY" is a tensor of a model, "slerp.mecha/KEY" one of a result.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from runner.errors import InputError
from runner.imports import import_text
from runner.imports.recipe_text import recipe_text, unknown_names
from tests.build import merged

DATA = Path(__file__).parent / "data"
PEERS = load_file(DATA / "peers.safetensors")
RESULTS = sorted({name.partition("/")[0] for name in PEERS} - set("abc"))
REFUSED = {
    "dare_default.mecha": "without apply_stock",
    "pick.mecha": '"pick_component" is not offered here',
}
# What is approximate by more than rounding.
TOLERANCE = {"slerp.yaml": 3e-4, "model_stock.yaml": 1e-3, "median.mecha": 1e-4}


def tensors(name: str) -> dict[str, object]:
    return {key.partition("/")[2]: tensor for key, tensor in PEERS.items() if key.partition("/")[0] == name}


@pytest.mark.parametrize("path", sorted(DATA.glob("*.[my]*")), ids=lambda path: path.name)
def test_each_recorded_recipe_becomes_one_of_ours_or_says_why_not(path: Path) -> None:
    if path.name in REFUSED:
        with pytest.raises(InputError) as caught:
            import_text(path.read_text(), path.name)
        assert REFUSED[path.name] in str(caught.value)
    else:
        text = recipe_text(import_text(path.read_text(), path.name), path.name)
        assert text.startswith(f'# Imported from "{path.name}"')


@pytest.mark.parametrize("name", RESULTS)
def test_an_imported_recipe_makes_the_model_the_other_tool_made(name: str, tmp_path: Path) -> None:
    found = import_text((DATA / name).read_text(), name)
    if missing := list(unknown_names(found.tree)):
        # Another method than we have: said in the recipe.
        assert f"# refused: {missing[0].part}: {missing[0].text}" in recipe_text(found, name)
        return
    for model in "abc":
        save_file(tensors(model), tmp_path / f"{model}.safetensors")
    ours = merged({**found.tree, "compute_dtype": "float64"}, tmp_path, tmp_path / "out")
    theirs = tensors(name)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        difference = float((tensor.double() - theirs[key].double()).abs().max())  # type: ignore[attr-defined]
        assert difference <= TOLERANCE.get(name, 1e-6), key

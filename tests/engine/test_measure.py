"""What is measured before it is computed: the same bytes for any tiles, threads and budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runner.errors import NumericError, RecipeError
from runner.methods import METHODS
from runner.methods.ties import largest_deltas
from runner.methods.tiles import Part, Tile
from tests.build import merge, merged, planned, random_tensors

Tree = dict[str, Any]
KEY = "model.diffusion_model.middle_block.1.proj_in.weight"
SHAPES = {KEY: (1400, 401), "first.weight": (9, 4, 3, 3), "last.bias": (300,), "scalar": (), "none": (0, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three fine-tunes of one base, in half precision, with one tensor larger than a tile."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(1)
    base = {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    for name, size in (("base", 0.0), ("x", 0.1), ("y", 0.2), ("z", 0.3)):
        tensors = {
            key: (one + size * torch.randn(one.shape, generator=generator)).half()
            for key, one in base.items()
        }
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def of(method: str, **parameters: Any) -> Tree:
    """A merge of all models by a method."""
    roles = METHODS[method, None].roles
    names = ("x", "y") if "b" in roles else ("base", "x", "y", "z") if "base" in roles else ("x", "y", "z")
    models: Tree = {
        role: f"{name}.safetensors" for role, name in zip([*roles, *names[len(roles) :]], names, strict=True)
    }
    return {"method": method, "models": models, **parameters}


RECIPES: dict[str, Tree] = {
    "slerp": of("slerp", alpha=0.3),
    "slerp of rows": of("slerp", alpha=0.3, per="row"),
    "model_stock": of("model_stock"),
    "model_stock of rows": of("model_stock", per="row"),
    "ties": of("ties", density=0.4),
    "ties over the model": of("ties", density=0.4, trim="model"),
    "dare": of("dare_ties", density=0.5, rescale="l1"),
    "median": of("geometric_median"),
    "slerp in slerp": {
        "method": "slerp",
        "models": {"a": of("slerp", alpha=0.3), "b": of("model_stock")},
        "alpha": 0.6,
    },
    "rows in slerp": {
        "method": "slerp",
        "models": {"a": of("slerp", alpha=0.3, per="row"), "b": of("ties", density=0.5, trim="model")},
    },
    "the model in the model": {
        "method": "ties",
        "models": {
            "base": "base.safetensors",
            "one": of("ties", density=0.5, trim="model"),
            "other": of("slerp", alpha=0.3),
        },
        "density": 0.6,
        "trim": "model",
    },
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_settings_do_not_change_a_byte(recipe: Tree, folder: Path, tmp_path: Path) -> None:
    digests = set()
    for number, (tile, threads, budget) in enumerate(
        [(32768, 1, None), (32768, 3, None), (65536, 2, None), (1 << 20, 2, None), (32768, 4, 110 << 20)]
    ):
        out = tmp_path / str(number)
        _, outcome = merge(recipe, folder, out, tile_elements=tile, threads=threads, host_budget=budget)
        digests.update(outcome.contents)
    assert len(digests) == 1


@pytest.mark.parametrize("method", ["slerp", "model_stock", "ties", "geometric_median"])
def test_a_tensor_larger_than_the_budget_is_measured_in_tiles(
    method: str, folder: Path, tmp_path: Path
) -> None:
    tree = of(method, **({"density": 0.4} if method == "ties" else {}))
    large, small = (
        merge(tree, folder, tmp_path / name, tile_elements=32768, threads=2, host_budget=budget)
        for name, budget in (("large", None), ("small", 4_500_000))
    )
    assert 1400 * 401 * 4 * 3 > 4_500_000
    assert large[1].contents == small[1].contents


def test_the_threshold_of_the_whole_model_is_found_over_all_its_tensors(folder: Path, tmp_path: Path) -> None:
    tree = of("ties", density=0.4, trim="model")
    del tree["models"]["y"], tree["models"]["z"]
    result = merged(tree, folder, tmp_path / "out", tile_elements=32768)
    base, x = (
        {key: one.float() for key, one in load(folder / f"{name}.safetensors").items()}
        for name in ("base", "x")
    )
    deltas = torch.cat([(x[key] - base[key]).flatten() for key in SHAPES])
    threshold = deltas.abs().sort(descending=True).values[int(0.4 * deltas.numel()) - 1]
    kept = 0
    for key in SHAPES:
        delta = x[key] - base[key]
        moved = result[key] != base[key].half()
        assert torch.equal(moved | (delta.abs() == threshold), delta.abs() >= threshold)
        assert torch.equal(result[key][moved], x[key][moved].half())
        kept += int(moved.sum())
    assert kept == int(0.4 * deltas.numel())


def load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_what_methods_find_unusual_is_noted_with_the_keys(folder: Path, tmp_path: Path) -> None:
    _, outcome = merge(of("slerp", alpha=0.3), folder, tmp_path / "out")
    assert outcome.notes == {"zero, parallel or opposite vectors: weighted sum": ["scalar"]}


def test_an_error_while_measuring_ends_the_merge(tmp_path: Path) -> None:
    for name, one in (("x", [1.0, 0.0]), ("y", [-1.0, 0.0]), ("z", [0.0, 0.0])):
        save_file({"w": torch.tensor(one)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(RecipeError, match="cancel"):
        merge(of("multislerp"), tmp_path, tmp_path / "out", threads=2)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("tree", "wrong"),
    [
        (of("multislerp", weight={"x": 1, "y": -1, "z": 0}), "multislerp: the weights add up to 0"),
        (of("linear", weight={"x": 1, "y": -1, "z": 0}), "or normalize: false"),
        (of("weighted_subtraction", alpha=1, beta=1), "alpha times beta is 1, expected at most 0.999"),
        (of("della", density=0.9, epsilon=0.2), "from 0.7 to 1.1"),
        (of("della", density={"default": 0.5, KEY: 0.9}, epsilon=0.2), "proj_in"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused_in_the_plan(
    folder: Path, tree: Tree, wrong: str
) -> None:
    with pytest.raises(RecipeError, match=wrong):
        planned(tree, folder)


def test_largest_deltas_of_several_tensors_share_one_threshold() -> None:
    base = torch.zeros(3)
    tiles = [
        Tile((base, torch.tensor([1.0, 5.0, 2.0])), part=Part("a")),
        Tile((base, torch.tensor([2.0, 9.0, 2.0])), part=Part("b")),
    ]
    (found,) = largest_deltas(tiles, (0.5,))
    assert found is not None and found.threshold == 2
    masks = [found.mask(tile.operands[1], tile.part).tolist() for tile in tiles]
    assert masks == [[False, True, True], [False, True, False]]


def test_the_threshold_of_a_model_is_one_for_tensors_of_single_and_double_precision(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    dtypes = {"a": torch.float32, "b": torch.float64}
    base, moved = (
        {
            key: torch.randn(1000, generator=generator, dtype=torch.float64).to(one)
            for key, one in dtypes.items()
        }
        for _ in range(2)
    )
    beyond = torch.tensor([1e300, 1e-300, 3.5e38], dtype=torch.float64)  # what float32 can hold
    base["b"][:3], moved["b"][:3] = 0, beyond
    save_file(base, tmp_path / "base.safetensors")
    save_file(moved, tmp_path / "moved.safetensors")
    sizes = {key: (moved[key] - base[key]).abs() for key in dtypes}
    for count in (1, 2, 600, 1999, 2000):
        tree = {
            "method": "ties",
            "models": {"base": "base.safetensors", "other": "moved.safetensors"},
            "density": (count + 0.5) / 2000 if count < 2000 else 1,
            "trim": "model",
        }
        result = merged(tree, tmp_path, tmp_path / "out")
        threshold = (
            torch.cat([one.double() for one in sizes.values()]).sort(descending=True).values[count - 1]
        )
        for key, size in sizes.items():
            assert torch.equal(result[key] != base[key], size >= threshold), (count, key)


@pytest.mark.parametrize("name", sorted(name for name, tool in METHODS if not tool))
@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "allowed"])
def test_what_is_not_finite_is_never_an_error_of_ours(name: str, allowed: bool, tmp_path: Path) -> None:
    method = METHODS[name, None]
    if method.adapters or method.result == "factors":
        return  # of adapters, which are no models
    shapes = {"a.weight": (90, 401), "b.weight": (30, 40), "c.bias": (30,)}
    roles = [*method.roles, *("p", "q", "r")[: 0 if method.variadic is None else 3 - len(method.roles)]]
    for seed, role in enumerate(roles):
        tensors = random_tensors(seed, shapes=shapes)
        if seed:  # signs that differ: where sums of both are undefined
            tensors["a.weight"][0, 0] = torch.inf
            tensors["a.weight"][80, 400] = -torch.inf if seed == 1 else torch.inf
            tensors["b.weight"][1, 1] = torch.nan
            tensors["c.bias"][3] = torch.inf
        save_file(tensors, tmp_path / f"{role}.safetensors")
    given = {one: 0.5 for one, parameter in method.parameters.items() if parameter.default is None}
    given |= {"density": 0.5} if "density" in method.parameters else {}
    tree = {"method": name, "models": {role: f"{role}.safetensors" for role in roles}, **given}
    try:
        result = merged(
            {**tree, "nonfinite": ["*"] if allowed else []}, tmp_path, tmp_path / "out", tile_elements=32768
        )
    except NumericError as error:
        assert error.tag == "NONFINITE"
        assert ("which this method cannot look past" in str(error)) == allowed
        assert "NaN or Inf, first at element" in str(error)
    else:
        assert allowed or all(one.isfinite().all() for one in result.values())


def test_merges_that_differ_below_are_measured_each_on_its_own(folder: Path, tmp_path: Path) -> None:
    def one(alpha: Any) -> Tree:
        moved = {
            "method": "weighted_sum",
            "models": {"a": "x.safetensors", "b": "y.safetensors"},
            "alpha": alpha,
        }
        models = {"base": "base.safetensors", "moved": moved}
        return {"method": "ties", "models": models, "density": 0.5, "trim": "model"}

    # The last two are equal in all tensors but one.
    alphas: list[Any] = [0.1, 0.8, {"default": 0.8, KEY: 0.2}]
    parts = [merged(one(alpha), folder, tmp_path / str(at)) for at, alpha in enumerate(alphas)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        tree = {"method": "weighted_sum", "models": {"a": one(alphas[first]), "b": one(alphas[second])}}
        both = merged(tree, folder, tmp_path / f"{first}{second}")
        for key, tensor in both.items():
            mean = (parts[first][key].float() + parts[second][key].float()) / 2
            torch.testing.assert_close(tensor.float(), mean, rtol=2**-9, atol=1e-3)


def test_a_negative_weight_of_a_median_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"weight\.x: expected 0 or more, found -1"):
        planned(of("geometric_median", weight={"x": -1, "y": 1, "z": 1}), folder)

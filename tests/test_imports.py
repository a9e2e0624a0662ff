"""Imports point one way, and only the rooms that compute know torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import runner

ROOT = Path(runner.__file__).parent
# Each room may import from those before it, and from its own.
LAYERS = (
    {"errors", "tensors", "tables"},
    {"disk"},
    {"checkpoint", "methods"},
    {"formats", "architectures", "digests"},
    {"recipe", "lora", "demo", "write"},
    {"stated"},
    {"family"},
    {"weighting", "models"},
    {"library"},
    {"resolve"},
    {"planning"},
    {"place"},
    {"engine"},
    {"progress"},
    {"imports"},
    {"provenance"},
    {"publish"},
    {"signing"},
    {"describe"},
    {"compose", "config"},
    {"earlier", "locking"},
    {"inspection", "listing"},
    {"catalogue"},
    {"build"},
    {"run", "sweep", "completion"},
    {"ui"},
    {"proof"},
    {"jobs"},
    {"interrupts"},
    {"__main__"},
)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


@cache
def modules() -> dict[str, Path]:
    return {
        ".".join(("runner", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in ROOT.rglob("*.py")
    }


@cache
def imported(path: Path, top_level: bool = False) -> frozenset[str]:
    """Names of the modules a file imports: anywhere, or only when it is itself imported."""
    known = modules()
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text()), top_level):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path.name}:{node.lineno}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & known.keys() or {node.module}
    return frozenset(found)


def statements(tree: ast.AST, top_level: bool) -> Iterator[ast.AST]:
    """All nodes below one; at the top level without the bodies of functions and of `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if top_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from (other, *statements(other, top_level))
            continue
        yield node
        yield from statements(node, top_level)


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room(name) for name in modules()} - {"__init__"}
    assert rooms == set().union(*LAYERS)


def test_imports_point_one_way() -> None:
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for name, path in modules().items():
        ours = room(name)
        if ours == "__init__":
            continue
        for other in imported(path):
            if not other.startswith("runner."):
                continue
            theirs = room(other)
            assert theirs == ours or rank[theirs] <= rank[ours], f"{name} imports {other}"
            if rank[theirs] == rank[ours] and theirs != ours:
                assert (theirs, ours) == ("tensors", "errors"), f"{name} imports {other}"


def test_no_imports_go_round() -> None:
    known = modules()
    graph = {
        name.removesuffix(".__init__"): {
            other
            for other in imported(path, top_level=True)
            if other in known or f"{other}.__init__" in known
        }
        for name, path in known.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def ours(module: str) -> set[str]:
    return {other for other in imported(ROOT / f"{module}.py") if other.partition(".")[0] == "runner"}


def test_the_ground_floor_knows_nothing_above_it() -> None:
    assert ours("tensors") == ours("errors") == set()
    assert ours("disk/files") == {"runner.errors"}
    assert ours("disk/partials") == {"runner.errors"}
    assert ours("checkpoint") == {"runner.disk.files", "runner.tensors"}
    below = ("checkpoint", "errors", "disk.files", "disk.hashes", "disk.partials", "disk.read_back")
    assert ours("write") == {f"runner.{name}" for name in below}


def test_nothing_is_imported_by_a_name_that_is_computed() -> None:
    for name, path in modules().items():
        called = {
            ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
        }
        assert not called & {"__import__", "importlib.import_module", "import_module"}, name


def test_methods_formats_and_architectures_do_not_know_each_other() -> None:
    kinds = {"methods", "formats", "architectures"}
    for name, path in modules().items():
        if room(name) in kinds:
            others = {room(other) for other in imported(path) if other.startswith("runner.")}
            assert not others & (kinds - {room(name)}), name


def test_a_recipe_knows_only_errors_and_tensors() -> None:
    assert ours("recipe/structure") == {"runner.errors"}
    assert ours("recipe/parse") == {"runner.errors", "runner.tensors", "runner.recipe.structure"}


def test_only_the_door_knows_hydra() -> None:
    for name, path in modules().items():
        knows = any(other.split(".")[0] in ("hydra", "omegaconf") for other in imported(path))
        assert not knows or room(name) in {"completion", "compose", "config", "sweep", "__main__"}, name


def test_only_place_asks_accelerate_and_only_the_engine_needs_torch_to_be_imported() -> None:
    for name, path in modules().items():
        assert "accelerate" not in {n.split(".")[0] for n in imported(path)} or room(name) == "place", name
        heavy = {n.split(".")[0] for n in imported(path, top_level=True)}
        assert "torch" not in heavy or room(name) == "engine", name
        assert not heavy & {"numpy", "accelerate", "diffusers", "transformers", "huggingface_hub"}, name
        asks = "huggingface_hub" in {n.split(".")[0] for n in imported(path)}
        assert not asks or name in ("runner.library.hub", "runner.publish.hub"), name


def test_only_the_form_knows_textual_and_nothing_imports_it_before_it_is_asked_for() -> None:
    for name, path in modules().items():
        drawn = {other.split(".")[0] for other in imported(path)} & {"textual", "textual_serve", "aiohttp"}
        assert not drawn or room(name) == "ui", name
    code = "import runner.__main__, runner.jobs, runner.ui.job, sys; assert 'textual' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_up_to_the_plan_is_imported_without_torch() -> None:
    code = "import runner.__main__, runner.run, sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_signing_knows_the_package_that_signs_and_nothing_imports_it_before_it_is_asked_for() -> None:
    for name, path in modules().items():
        signs = {other.split(".")[0] for other in imported(path)} & {"model_signing", "cryptography"}
        assert not signs or name == "runner.signing", name
    code = "import runner.run, runner.proof.job, sys; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The package: a wheel that needs no checkout, dependencies with reasons, a lock, nothing of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)["project"]
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([sys.executable, "-m", "build", *options, str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return folder


def python(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the root folder, where no checkout is, with the installed wheel first on the path."""
    command = [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)


def test_the_wheel_holds_every_recipe_every_setting_and_the_license(wheel: Path) -> None:
    packed = ZipFile(wheel).namelist()
    for folder in ("conf", "recipes"):
        for file in (ROOT / folder).rglob("*.yaml"):
            assert f"runner/{file.relative_to(ROOT).as_posix()}" in packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert "runner/schemas/run.json" in packed
    assert not any(name.startswith("tests/") for name in packed)


def test_the_wheel_plans_the_default_recipe_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    run = python(installed, "-m", "runner", "job=plan", f"hydra.run.dir={tmp_path}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("plan of anime_mix:")
    unknown = python(installed, "-m", "runner", "recipe=no_such_recipe", f"hydra.run.dir={tmp_path}")
    assert unknown.returncode == 3
    assert f"looked for in {installed / 'runner' / 'recipes'};" in unknown.stderr


def test_the_wheel_finds_its_own_settings(installed: Path) -> None:
    found = python(installed, "-c", "from runner.compose import DATA_ROOT; print(DATA_ROOT)")
    assert Path(found.stdout.strip()) == installed / "runner"
    assert (installed / "bin" / "runner").is_file()


def test_every_dependency_says_why_it_is_there() -> None:
    stated = re.findall(r'^  "([^"]+)", +# \S', PYPROJECT, re.MULTILINE)
    for dependency in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]):
        assert dependency in stated


def test_every_dependency_has_a_lower_bound() -> None:
    for dependency in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]):
        assert any(bound.operator == ">=" for bound in Requirement(dependency).specifier), dependency


def test_the_lock_pins_every_dependency_in_its_range() -> None:
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.+!]+)", LOCK, re.MULTILINE):
        pins.setdefault(name, []).append(version)
    for dependency in map(Requirement, PROJECT["dependencies"]):
        assert dependency.name in pins
        for version in pins[dependency.name]:
            assert dependency.specifier.contains(version), dependency


def test_the_lock_has_a_hash_for_every_pin() -> None:
    for pin in re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)[1:]:
        assert re.match(r"[\w.-]+==\S+( ; .+)? \\\n    --hash=sha256:[0-9a-f]{64}", pin), pin


def test_the_lock_names_no_host_and_no_folder() -> None:
    assert "://" not in LOCK
    assert "index" not in re.sub(r"^\S+==", "", LOCK)
    assert not re.search(r"(^|\s)[~.]?/", LOCK)


def test_no_file_names_a_place_of_this_machine_or_a_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    registry = re.compile(r"(index-url|find-links)[ =]+\S*[:/]")
    places = {f"{place}/" for place in (ROOT, ROOT.parent, Path.home(), Path(sys.prefix)) if place.parts[1:]}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        text = path.read_text(errors="replace") if path.is_file() else ""
        assert not registry.search(text), name
        assert not [place for place in places if place in text], name

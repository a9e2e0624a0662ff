"""The README: its commands, names, tables, links and quoted output are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.errors import Location, RunnerError
from runner.methods import METHODS
from runner.recipe.parse import parse_recipe
from runner.recipe.structure import RECIPE_KEYS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SETTINGS: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())


def blocks(language: str) -> list[str]:
    """The code blocks of a language, without the indentation of the list they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def section(title: str) -> str:
    """The text under a heading."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head; code without its ticks."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def block_that_starts(text: str) -> list[str]:
    """The lines of the quoted output that starts so."""
    (found,) = [block for block in blocks("text") if block.startswith(text)]
    return found.splitlines()


def command(*arguments: str, folder: Path) -> list[str]:
    """The lines that a run of the command prints."""
    run = subprocess.run(
        [sys.executable, "-m", "runner", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return run.stdout.splitlines()


def shape(line: str) -> str:
    """A line with its digests, numbers and the folder of the run left open."""
    line = re.sub(r".*(runs/\w+/)[^/]+/", r"\1RUN/", line)
    return re.sub(r"\d[\d.]*( [kMGT]?B)?\b", "N", re.sub(r"\b[0-9a-f]{64}\b", "SHA256", line))


def test_ci_runs_the_two_commands_as_they_stand() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    merge, tests = (block.strip() for block in blocks("sh")[:2])
    assert merge.endswith("python -m runner recipe=anime_mix") and tests.endswith(
        "python -m pytest -n logical"
    )
    assert merge in script and tests in script
    assert [line for line in script if line][-1] == tests


def test_every_recipe_it_names_exists() -> None:
    own = set(re.findall(r"`mine/(\w+)\.yaml`", README))
    named = set(re.findall(r"recipe=([a-z]\w*)", README)) | set(re.findall(r"recipes/(\w+)\.yaml", README))
    known = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert own and named - own <= known


def test_the_recipe_it_explains_is_the_one_that_runs() -> None:
    explained = yaml.safe_load(blocks("yaml")[0])
    assert explained == yaml.safe_load((ROOT / "recipes" / "anime_mix.yaml").read_text())


@pytest.mark.parametrize("text", blocks("yaml"))
def test_its_recipes_are_well_formed(text: str) -> None:
    tree = yaml.safe_load(text)
    if "method" not in tree:  # only a part is shown
        tree = {"method": "weighted_sum", "models": {"a": "demo:photo", "b": "demo:anime"}, **tree}
    parse_recipe("readme", tree, lambda path: Location("README.md"))


def test_its_table_of_settings_is_complete_and_has_their_defaults() -> None:
    defaults = {name: value for name, value in SETTINGS.items() if name not in ("defaults", "hydra")}
    defaults |= {name: value for entry in SETTINGS["defaults"][:4] for name, value in entry.items()}
    placement = yaml.safe_load((ROOT / "conf" / "placement" / "auto.yaml").read_text())
    defaults |= {f"placement.{name}": value for name, value in placement.items()}
    for path in sorted((ROOT / "conf" / "publish").glob("*.yaml")):
        own = {f"publish.{name}": value for name, value in yaml.safe_load(path.read_text()).items()}
        assert own.pop("publish.target") == path.stem
        assert all(defaults.get(name, value) == value for name, value in own.items())
        defaults |= own
    assert {name: yaml.safe_load(default) for name, default, _ in rows("Settings")} == defaults


def test_its_table_of_targets_is_complete() -> None:
    assert {row[0] for row in rows("Publishing")} == {
        path.stem for path in (ROOT / "conf" / "publish").glob("*.yaml")
    }


def test_its_table_of_jobs_is_complete() -> None:
    assert {row[0] for row in rows("Jobs")} == {path.stem for path in (ROOT / "conf" / "job").glob("*.yaml")}


def test_its_tables_of_methods_are_complete() -> None:
    ours = [name for name, tool in METHODS if tool is None]
    families = [row for row in rows("Methods") if re.search(r"`[a-z_]+`", f"`{row[1]}`") and len(row) == 2]
    named = [name for row in families for name in re.findall(r"\w+", row[1])]
    assert sorted(named) == sorted(ours)
    for tool in {tool for _, tool in METHODS if tool}:
        (row,) = (row for row in rows("Methods") if row[0] == tool)
        assert set(re.findall(r"\w+", row[1])) == {name for name, of in METHODS if of == tool}


def test_its_policies_are_fields_of_a_recipe() -> None:
    policies = {row[0] for row in rows("When models do not fit")}
    assert "force" in policies and policies <= set(RECIPE_KEYS)


def test_its_table_of_exit_codes_is_complete() -> None:
    codes = {error.exit_code for error in (RunnerError, *RunnerError.__subclasses__())}
    stated = {int(code) for row in rows("Exit codes") for code in row[0].split(", ")}
    assert stated == codes | {0, 129, 130, 143}


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target


def test_the_merge_it_quotes_is_what_is_printed(tmp_path: Path) -> None:
    printed = command("recipe=anime_mix", "placement=cpu", folder=tmp_path)
    assert [*map(shape, printed)] == [
        *map(shape, block_that_starts("runs/anime_mix/2026-11-25_19-31-22_5e9afe/anime_mix\n"))
    ]


def test_the_plan_it_quotes_is_what_is_printed(tmp_path: Path) -> None:
    printed = command("recipe=anime_mix", "job=plan", "placement=cpu", folder=tmp_path)
    quoted = block_that_starts("plan of anime_mix:")
    work = quoted.index("work")  # from there on it depends on the machine
    assert printed[:work] == quoted[:work]
    assert [*map(shape, printed[work:-1])] == [*map(shape, quoted[work:])]


def test_the_sweep_it_quotes_is_what_is_printed(tmp_path: Path) -> None:
    printed = command("-m", "recipe=weighted_sum", "recipe.alpha=0.2,0.35,0.5", folder=tmp_path)
    quoted = block_that_starts("sweep of 3 jobs:")
    assert [*map(shape, printed[-len(quoted) + 1 :])] == [*map(shape, quoted[1:])]

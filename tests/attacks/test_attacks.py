"""Attacks that work on a plain Hydra program, and do nothing here.

Every payload is run twice, as a process of its own: by a small program without a guard, where it must
succeed (else it would prove nothing), and by ours.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.command import Done, process, python, run

PAYLOADS = Path(__file__).parent / "payloads"
NAMES = sorted(path.stem for path in PAYLOADS.glob("*.yaml") if path.stem != "callback_piece")
SECRET = "s3cr3t-of-the-user"

# What many programs do: recipes are a config group, the result is resolved, printed and instantiated.
VICTIM = """
import hydra
from hydra.utils import instantiate
from omegaconf import OmegaConf

@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config):
    print(OmegaConf.to_yaml(config, resolve=True))
    instantiate(config)

main()
"""


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty working folder; a canary in it is the mark of a success."""
    path = tmp_path / "work"
    path.mkdir()
    return path


def ours(folder: Path, *arguments: str, recipes: Path = PAYLOADS, **environment: str) -> Done:
    """Our command, with the payloads among the user's recipes."""
    return run(folder, *arguments, "job=plan", RUNNER_RECIPES=str(recipes), **environment)


def harmed(folder: Path, done: Done) -> bool:
    """Whether the canary exists, or the secret is in the output or any file below the folder."""
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    names = "".join(map(str, folder.rglob("*")))
    canary = any(path.name == "canary" for path in folder.rglob("*"))
    return canary or SECRET in done.stdout + done.stderr + names or SECRET.encode() in written


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_succeeds_without_a_guard(folder: Path, name: str) -> None:
    shutil.copytree(PAYLOADS, folder / "conf" / "recipe")
    (folder / "conf" / "config.yaml").write_text("defaults:\n- recipe: ???\n- _self_\n")
    (folder / "victim.py").write_text(VICTIM)
    done = process(folder, sys.executable, "victim.py", f"recipe={name}")
    assert harmed(folder, done), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_refused_in_words_and_does_nothing(folder: Path, name: str) -> None:
    done = ours(folder, f"recipe={name}")
    assert (done.returncode, done.stdout) == (3, "")
    assert not harmed(folder, done)
    for line in done.stderr.splitlines():
        assert line.startswith("runner: error[E-RECIPE]: ")
        assert f"{name}.yaml:" in line
    assert len(done.stderr) < 2000


@pytest.mark.parametrize("name", ["callback_by_package", "leak_nested"])
@pytest.mark.parametrize("way", ["parent", "model", "path", "sweep", "shown"])
def test_a_payload_is_refused_on_every_way_in(tmp_path: Path, folder: Path, name: str, way: str) -> None:
    recipes = tmp_path / "recipes"
    shutil.copytree(PAYLOADS, recipes)
    place = {"parent": name, "model": f"{name}@models.b"}.get(way, "weighted_sum")
    (recipes / "mine.yaml").write_text(f"defaults: [{place}]\nmethod: weighted_sum\n")
    arguments = {
        "path": [f"recipe={PAYLOADS / name}.yaml"],
        "sweep": ["-m", f"recipe={name}"],
        "shown": [f"recipe={name}", "--cfg", "job"],
    }.get(way, ["recipe=mine"])
    done = ours(folder, *arguments, recipes=recipes)
    assert not harmed(folder, done)
    if way != "shown":
        assert done.returncode == 3
        assert f"{name}.yaml:" in done.stderr


def test_the_piece_of_a_payload_is_data_without_its_place(folder: Path) -> None:
    done = ours(folder, "recipe=callback_piece")
    assert done.returncode == 3
    assert not harmed(folder, done)


def test_a_resolver_on_the_command_line_leaves_no_trace(folder: Path) -> None:
    override = "recipe.description=${oc.env:SECRET}"
    for arguments in ([override], ["-m", override, "recipe.alpha=0.1"]):
        done = ours(folder, *arguments)
        assert done.returncode == 3
        assert "command line: description: ${ is only for plain references" in done.stderr
        assert not harmed(folder, done)


def test_a_text_that_turns_into_a_resolver_stays_a_text(tmp_path: Path, folder: Path) -> None:
    recipe = 'defaults: [weighted_sum]\nauthor: "$"\nlicense: "{oc.env:SECRET}"\n'
    (tmp_path / "mine.yaml").write_text(f"{recipe}description: ${{.author}}${{.license}}\n")
    done = ours(folder, "recipe=mine", recipes=tmp_path)
    assert done.returncode == 0
    assert not harmed(folder, done)
    (record,) = folder.rglob("run.json")
    assert json.loads(record.read_text())["run"]["error"] is None


def _aliases() -> str:
    levels = zip("abcdefghi", "bcdefghij", strict=True)
    return "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in levels)


BOMBS = {
    "aliases": _aliases(),
    "brackets": "a: " + "[" * 3000,
    "references": "l0: x\n" + "".join(f"l{n}: '{f'${{recipe.l{n - 1}}}' * 10}'\n" for n in range(1, 10)),
    "values": "a: [" + "x," * 200_000 + "]",
    "bytes": "a: " + "x" * (1 << 21),
    "parents": "defaults: [" + ", ".join(["mine@models.a", "mine@models.b"] * 20) + "]",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_bomb_does_not_go_off(tmp_path: Path, folder: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = ours(folder, "recipe=mine", recipes=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert done.returncode == 3
    assert len(done.stderr) < 8192


@pytest.mark.parametrize(
    "text",
    [
        "description: a\x1b[2Jb\n",
        'description: "\\e]0;x\\a"\n',
        "'\\x1b': 1\n",
        '"\\u202e": 1\n',
        "method: \u202ex\n",
    ],
)
def test_no_control_character_reaches_the_terminal(tmp_path: Path, folder: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    done = ours(folder, "recipe=mine", recipes=tmp_path)
    assert done.returncode == 3
    assert all(char.isprintable() or char == "\n" for char in done.stderr)


# Modules in the working folder

# Python itself imports some modules before any program of its starts; no program can help that.
LIBRARY = [name for name in sorted(sys.stdlib_module_names) if name in sys.modules or find_spec(name)]
FOREIGN = ["accelerate", "antlr4", "diffusers", "hydra", "hydra_plugins", "numpy", "omegaconf", "packaging"]
FOREIGN += ["rich", "safetensors", "torch", "transformers", "typing_extensions", "yaml"]


def plant(folder: Path, *names: str) -> None:
    """Modules that leave a canary when they are imported."""
    for name in names:
        (folder / f"{name}.py").write_text(
            "open('canary', 'a').write(__name__)\nraise ImportError(__name__)\n"
        )


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules that are there before runner drops the working folder: python's own, and pathlib's."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "empty.py").write_text("import __future__, pathlib, sys\nprint(*sys.modules)\n")
    names = process(folder, sys.executable, "-m", "empty").stdout.split()
    return {name.partition(".")[0] for name in names}


def test_a_planted_module_is_imported_by_python_itself(folder: Path) -> None:
    plant(folder, "yaml")
    assert "yaml" in python(folder, "import yaml").stderr
    assert (folder / "canary").exists()


def test_modules_in_the_working_folder_are_not_imported(folder: Path, early: set[str]) -> None:
    plant(folder, *{*LIBRARY, *FOREIGN} - early)
    (folder / "hydra_plugins.py").unlink()
    (folder / "hydra_plugins").mkdir()  # Hydra imports all that is in this package
    plant(folder / "hydra_plugins", "evil")
    done = run(folder, "recipe=weighted_sum")
    assert done.returncode == 0, done.stderr
    assert not harmed(folder, done), (folder / "canary").read_text()


def test_the_console_script_imports_nothing_at_all_from_there(folder: Path) -> None:
    plant(folder, "runner", *LIBRARY, *FOREIGN)
    script = Path(sysconfig.get_path("scripts")) / "runner"
    done = process(folder, str(script), "job=plan")
    assert done.returncode == 0, done.stderr
    assert not harmed(folder, done)


@pytest.mark.parametrize("name", ["__future__", "pathlib", "fnmatch"])
def test_not_even_the_first_import_comes_from_there(folder: Path, name: str) -> None:
    plant(folder, name)
    done = run(folder, "job=plan")
    assert not harmed(folder, done)


def test_conf_and_recipes_in_the_working_folder_are_not_read(folder: Path) -> None:
    (folder / "conf" / "job").mkdir(parents=True)
    (folder / "recipes").mkdir()
    (folder / "conf" / "config.yaml").write_text("hydra: {run: {dir: canary}}\n")
    (folder / "conf" / "job" / "plan.yaml").write_text("# @package hydra.run\ndir: canary\n")
    (folder / "recipes" / "anime_mix.yaml").write_text("method: 3\n")
    done = run(folder, "job=plan")
    assert done.returncode == 0, done.stderr
    assert not harmed(folder, done)


# Sources: a recipe may name any path, and learns nothing from it


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (f"password = {SECRET}\n", "a header of"),
        (json.dumps({"token": SECRET}), "a JSON text"),
        (f"<html>{SECRET}", "a web page"),
        (f"{SECRET}"[:7], "truncated"),
        (f"{len(SECRET):c}\0\0\0\0\0\0\0{SECRET}", "not JSON"),
        (f"\x80\x02X\x0a\x00\x00\x00{SECRET}.", "pickle at byte"),
    ],
)
def test_a_source_that_is_no_model_is_told_by_its_kind_alone(
    tmp_path: Path, folder: Path, content: str, what: str
) -> None:
    private = tmp_path / "private.txt"
    private.write_text(content, encoding="latin-1")
    models = f"{{a: '{private}', b: '../{private.name}'}}"  # one file, absolute and not
    (tmp_path / "mine.yaml").write_text(f"method: weighted_sum\nmodels: {models}\n")
    done = ours(folder, "recipe=mine", recipes=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert what in done.stderr
    assert not harmed(folder, done)


@pytest.mark.parametrize("name", ["../canary", "/tmp/canary", ".canary"])
def test_a_recipe_does_not_choose_where_the_output_goes(tmp_path: Path, folder: Path, name: str) -> None:
    text = f'defaults: [weighted_sum]\noutput: {{name: "{name}"}}\n'
    (tmp_path / "mine.yaml").write_text(text)
    done = ours(folder, "recipe=mine", recipes=tmp_path)
    assert done.returncode == 3
    assert "output.name" in done.stderr
    assert not list(tmp_path.rglob("canary*"))

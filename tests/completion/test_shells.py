"""Completion as the shells ask for it: real command lines through Hydra, and the shells themselves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra

from runner.completion.shells import Bash, Zsh
from runner.compose import DATA_ROOT, register
from tests.command import process, python, run

Offered = Callable[[str], list[str]]


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfigLoader]:
    """Hydra, as it is when it asks for completions in an empty folder of which RUNNER_RECIPES is a part."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("RUNNER_RECIPES", str(tmp_path / "mine"))
    register()
    with initialize_config_dir(str(DATA_ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def offered(
    loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Offered:
    """What is offered for a command line, beginning after the command."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", f"runner {line}")
        Zsh(loader).query("config")
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out.splitlines()

    return ask


def test_at_the_start_everything_is_offered_that_a_line_can_begin_with(offered: Offered) -> None:
    assert {"recipe=", "recipe.", "job=", "placement=", "publish=", "models_dir=", "verify="} <= {
        *offered("")
    }


def test_jobs_and_other_groups_are_offered(offered: Offered) -> None:
    jobs = sorted(path.stem for path in (DATA_ROOT / "conf" / "job").glob("*.yaml"))
    assert offered("job=") == [f"job={name}" for name in jobs]
    assert offered("placement=") == ["placement=auto", "placement=cpu"]
    assert "publish=a1111" in offered("publish=a")


def test_recipes_are_offered_by_name_and_by_path(offered: Offered, tmp_path: Path) -> None:
    (tmp_path / "mine" / "styles").mkdir()
    for name in ("tidal.yaml", "styles/soft.yaml", "tidal.lock.yaml", "notes.txt"):
        (tmp_path / "mine" / name).write_text("")
    assert offered("recipe=ti") == ["recipe=tidal", "recipe=ties"]
    assert offered("recipe=styles") == ["recipe=styles/soft"]
    assert offered(f"recipe={tmp_path}/m") == [f"recipe={tmp_path}/mine/"]
    assert offered(f"recipe={tmp_path}/mine/") == [
        f"recipe={tmp_path}/mine/{name}" for name in ("styles/", "tidal.yaml")
    ]


def test_methods_are_offered_wherever_one_is_named(offered: Offered) -> None:
    for key in ("recipe.method", "recipe=anime_mix recipe.models.b.method", "job=methods job.method"):
        last = key.rpartition(" ")[2]
        assert offered(f"{key}=dare_") == [f"{last}=dare_linear", f"{last}=dare_ties"]


def test_the_parameters_of_the_chosen_method_are_offered_if_the_recipe_does_not_mention_them(
    offered: Offered,
) -> None:
    assert "recipe.trim=" in offered("recipe=ties recipe.")
    line = "recipe=weighted_sum recipe.method=slerp"
    assert offered(f"{line} recipe.mag") == ["recipe.magnitude="]
    assert "recipe.models.base=" in offered(f"{line} recipe.models.")


def test_of_a_sweep_the_first_recipe_says_what_can_follow(offered: Offered) -> None:
    assert offered("-m recipe=ties,slerp recipe.vo") == ["recipe.vote="]
    assert offered("-m recipe=ties recipe.density=0.2,0.5 recipe.vo") == ["recipe.vote="]


def test_a_job_and_a_target_bring_their_own_settings(offered: Offered) -> None:
    assert offered("job=inspect job.ha") == ["job.hashes="]
    assert offered("publish=a1111 publish.r") == ["publish.root="]
    assert offered("job.hashes") == offered("publish.") == []


def test_models_are_offered_by_path_and_by_the_names_of_those_in_model_folders(
    offered: Offered, tmp_path: Path
) -> None:
    for name in (
        "here/plain.safetensors",
        "here/my model.safetensors",
        "here/odd(1).safetensors",
        "here/a.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "here" / "pipeline").mkdir()
    (tmp_path / "here" / "pipeline" / "model_index.json").touch()
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "faraway.safetensors").touch()
    key = "recipe.models.a"
    assert offered(f"{key}=demo:ph") == [f"{key}=demo:photo"]
    assert offered(f"models_dir=here {key}=my") == [f"{key}=my model.safetensors"]
    assert offered(f"{key}=here/p") == [f"{key}=here/pipeline", f"{key}=here/plain.safetensors"]
    assert offered(f"{key}=here/o") == offered(f"{key}=here/a") == []  # needs quotes of Hydra's; is no model
    assert offered(f"model_folders=[{tmp_path}/far] {key}=fara") == [f"{key}=faraway"]


def test_files_are_offered_where_a_setting_is_a_path(offered: Offered, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert offered("job=inspect source=") == ["source=mine/", "source=model.safetensors"]
    assert offered("job=inspect source=mo") == ["source=model.safetensors"]


WRONG = [
    "'recipe=ti",
    'recipe="ti',
    "recipe.method=nope",
    "nope",
    "nope=",
    "threads.x=",
    "=",
    "source=/nowhere/",
    "source=~nobody/",
    "recipe.models.a=demo:photo/x",
    "threads=many recipe.models.a=de",
    "--",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_line_that_makes_no_sense_gets_nothing(offered: Offered, line: str) -> None:
    assert offered(line) == []


BROKEN = {
    "syntax": "method: [ties\n",
    "refused": "method: &x ties\nmodels: *x\n",
    "circular": "defaults: [circular, _self_]\nmethod: ties\n",
    "unknown": "method: nope\nmodels: 3\n",
    "missing": "defaults: [nowhere, _self_]\n",
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("name", BROKEN)
def test_of_a_broken_recipe_all_that_any_recipe_can_say_is_offered(
    offered: Offered, tmp_path: Path, name: str
) -> None:
    (tmp_path / "mine" / f"{name}.yaml").write_text(BROKEN[name])
    assert offered(f"recipe={name} recipe.method=ti") == ["recipe.method=ties"]
    assert offered(f"recipe={name} recipe.models.a.b.c=") == []


def test_what_is_wrong_elsewhere_on_the_line_is_no_hindrance(offered: Offered) -> None:
    for wrong in ("recipe=nope", "thraeds=1", "recipe=", "job=nope", "recipe.alpha={a", "--cfg", "-x"):
        assert offered(f"{wrong} recipe.method=ti") == ["recipe.method=ties"]


def test_bash_is_given_the_rest_from_where_it_begins_a_word_and_a_blank_behind_what_is_complete(
    loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def lines(line: str, breaks: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", f"runner {line}")
        monkeypatch.setenv("COMP_WORDBREAKS", breaks)
        Bash(loader).query("config")
        return capsys.readouterr().out.splitlines()

    (tmp_path / "my model.ckpt").touch()
    assert lines("recipe.meth", " =:@") == ["recipe.method="]
    assert lines("recipe.models.a=demo:ph", " =:@") == ["photo "]
    assert lines("recipe.models.a=demo:ph", " =") == ["demo:photo "]
    assert lines("recipe.models.a=demo:ph", " ") == ["recipe.models.a=demo:photo "]
    assert lines("source=my\\ m", " =:@") == ["my\\ model.ckpt "]


def test_it_is_asked_of_the_command_without_torch_and_without_a_word_on_stderr(tmp_path: Path) -> None:
    code = (
        "import os, sys; from runner.__main__ import run;"
        "os.environ['COMP_LINE'] = 'runner recipe.models.a=demo:ph';"
        "assert run(['-sc', 'query=bash']) == 0;"
        "assert not {'torch', 'numpy', 'textual', 'huggingface_hub'} & set(sys.modules)"
    )
    done = python(tmp_path, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "recipe.models.a=demo:photo \n", "")
    assert not any(tmp_path.iterdir())


BASH = """
eval "$1"; complete -p runner
COMP_WORDBREAKS=$' \\t\\n"\\'@><=;|&(:' COMP_LINE="$2" COMP_POINT="$3"
_runner; printf '[%s]\\n' "${COMPREPLY[@]}"
eval "$4"; complete -p runner
"""


def test_bash_completes_what_stands_before_the_cursor(tmp_path: Path) -> None:
    install, undo = (run(tmp_path, "-sc", f"{word}=bash").stdout for word in ("install", "uninstall"))
    line = "runner recipe=ties recipe.vote= threads=1"
    point = str(line.index(" threads"))
    done = process(tmp_path, "bash", "--norc", "-c", BASH, "bash", install, line, point, undo)
    assert done.stdout == "complete -o nospace -F _runner runner\n[count ]\n[mass ]\n"
    assert done.stderr.count("\n") == 1 and "no completion specification" in done.stderr


ZSH = """
compdef() { print -r -- compdef "$@" }
compadd() { print -r -- compadd "$@" }
eval "$1"
words=(runner recipe=ties recipe.vo) CURRENT=3 PREFIX=recipe.vo
_runner
"""


def test_zsh_is_told_what_goes_on_and_what_is_complete(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("NOT TESTED: zsh is missing")
    install = run(tmp_path, "-sc", "install=zsh").stdout
    done = process(tmp_path, "zsh", "-f", "-c", ZSH, "zsh", install)
    assert done.stderr == ""
    assert done.stdout == "compdef _runner runner\ncompadd -S  -- recipe.vote=\ncompadd --\n"


def test_fish_completes(tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("NOT TESTED: fish is missing")
    (tmp_path / "install.fish").write_text(run(tmp_path, "-sc", "install=fish").stdout)
    code = "source install.fish; complete -C 'runner recipe=ties recipe.vote='"
    done = process(tmp_path, "fish", "--no-config", "-c", code, XDG_CONFIG_HOME=str(tmp_path))
    assert (done.stdout, done.stderr) == ("recipe.vote=count\nrecipe.vote=mass\n", "")

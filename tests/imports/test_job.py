"""job=import as a person meets it: what is written where, what is said, and that the recipe runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from runner.imports.job import import_recipe
from tests.build import write_models
from tests.command import run

MECHA = """version 0.1.0
model "a.safetensors" model_config="sd1-ldm" merge_space="weight"
model "b.safetensors" model_config="sd1-ldm" merge_space="weight"
merge "weighted_sum" &0 &1 alpha=0.25
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with two models and a third that says it was merged from them."""
    tensors = write_models(tmp_path, a=1, b=2)
    save_file(tensors["a"], tmp_path / "old mix.safetensors", {"mecha_recipe": MECHA})
    return tmp_path


@pytest.mark.parametrize("setting", ["source", "job.source"])
def test_the_recipe_is_written_beside_the_user_and_can_be_run(folder: Path, setting: str) -> None:
    done = run(folder, "job=import", f"{setting}='old mix.safetensors'")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "old-mix.yaml: imported from old mix.safetensors (sd-mecha)"
    assert "exact" in done.stdout
    recipe = folder / "old-mix.yaml"
    for job in ("plan", "merge"):
        done = run(folder, f"recipe={recipe}", f"job={job}", "output_dir=.")
        assert done.returncode == 0, done.stderr
    a, b, mixed = (load_file(folder / f"{name}.safetensors") for name in ("a", "b", "old-mix"))
    key = "model.diffusion_model.linear.weight"
    assert mixed[key].equal((a[key].float() * 0.75 + b[key].float() * 0.25).half())


def test_a_recipe_that_is_there_stays_unless_the_user_says_otherwise(folder: Path) -> None:
    (folder / "old-mix.yaml").write_text("mine")
    arguments = ("job=import", "source='old mix.safetensors'")
    done = run(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        'runner: error[E-EXISTS]: "old-mix.yaml" is there already\nhint: give job.output'
    )
    assert (folder / "old-mix.yaml").read_text() == "mine"
    assert run(folder, *arguments, "job.output=other.yaml").returncode == 0
    assert run(folder, *arguments, "job.overwrite=true").returncode == 0
    assert (folder / "other.yaml").read_text() == (folder / "old-mix.yaml").read_text() != "mine"


def test_what_was_refused_is_a_warning(folder: Path) -> None:
    (folder / "x.txt").write_text(MECHA.replace('merge "weighted', 'merge "rebasin" &0 &1\nmerge "weighted'))
    done = run(folder, "job=import", "source=x.txt")
    assert done.returncode == 0
    assert done.stderr == "runner: warning[W-IMPORT]: 1 part not translated; see the list\n"
    assert done.stdout.splitlines()[1].startswith("  refused")


def test_what_became_of_parts_stands_in_columns_however_wide_their_names_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n写真風: 1\nother: 2\n"
    (tmp_path / "x.yaml").write_text(text)
    import_recipe(tmp_path / "x.yaml", tmp_path / "y.yaml", False, tmp_path)
    _, wide, plain, *_ = capsys.readouterr().out.splitlines()
    assert wide == f"  refused      写真風{' ' * 6}  is not translated"
    assert plain == f"  refused      other{' ' * 7}  is not translated"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "source=FILE is missing"),
        (("source=nothing.txt",), 4, "nothing.txt: no such file"),
        (("source=a.safetensors",), 4, "a.safetensors: expected a model with sd_merge_recipe"),
        (
            ("source='old mix.safetensors'", "job.output=x.txt"),
            2,
            "job.output: expected the name of a .yaml file",
        ),
        (("source='old mix.safetensors'", "job.overwrite=maybe"), 2, "job.overwrite: expected true or false"),
        (("source='old mix.safetensors'", "job.output=no/folder/x.yaml"), 7, "no/folder"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = run(folder, "job=import", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.glob("*.yaml"))

"""The command as a person meets it: exit codes, what is said, signals, sweeps. Every run is a process."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner.catalogue import standard
from runner.sweep import gather
from tests.build import write_models
from tests.command import Done, Ended, interrupt, process, python, run, tries

OWN = ["recipe=weighted_sum", "recipe.models.a=a.safetensors", "recipe.models.b=b.safetensors"]
MERGED = ["weighted_sum.safetensors", "weighted_sum.safetensors.tensors.json"]
SMALL_STEPS = ["threads=1", "tile_elements=32768", "digests=fresh", "progress=off"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with two small models in it."""
    write_models(tmp_path, a=1, b=2)
    return tmp_path


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models whose merge takes a while: 200 MB each."""
    path = tmp_path_factory.mktemp("big")
    tensor = torch.randn(1 << 20)
    for number, name in enumerate("ab"):
        save_file({f"k{at}": tensor + at + number for at in range(50)}, path / f"{name}.safetensors")
    return path


def shell(folder: Path, command: str) -> int:
    """The exit code of our command within a line of bash, where it is written as RUNNER."""
    line = command.replace("RUNNER", f"{sys.executable} -m runner")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=folder, capture_output=True, check=False, timeout=60
    ).returncode


def error(done: Done, code: int) -> str:
    """What a failed run says in its one line."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    line, *hints = done.stderr.splitlines()
    assert all(hint.startswith("hint: ") for hint in hints)
    assert len(hints) <= 1
    prefix, _, message = line.partition("]: ")
    assert prefix.startswith("runner: error[E-")
    return message


def record(folder: Path) -> dict[str, Any]:
    """The only run.json below a folder."""
    (path,) = folder.rglob("run.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def models(folder: Path) -> list[str]:
    """The entries of a folder of results, partial ones too."""
    return sorted(path.name for path in folder.iterdir())


# Plans and merges


def test_without_arguments_but_the_job_a_plan_is_printed(tmp_path: Path) -> None:
    done = run(tmp_path, "job=plan")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "plan of anime_mix: weighted_sum@1 → anime_mix (diffusers folder, predicts epsilon)\n"
    )
    assert record(tmp_path)["run"]["error"] is None
    assert not any(path.suffix == ".safetensors" for path in tmp_path.rglob("*"))


def test_a_plan_and_a_mistake_do_not_import_torch(tmp_path: Path, folder: Path) -> None:
    """It would take seconds; tests run it, so they look whether it is there."""
    code = """
import sys
from runner.__main__ import run
lines = ["job=plan"], ["job=lock"], ["job=plan", "recipe.alpha=x"], ["job=plan", "thread=1"]
codes = [run(line) for line in lines]
sys.exit(f"{codes} {[name for name in ('torch', 'diffusers', 'rich') if name in sys.modules]}")
"""
    done = python(tmp_path, code)
    assert done.stderr.splitlines()[-1] == "[0, 0, 3, 2] []", done.stderr


def test_a_merge_says_where_the_model_is_and_leaves_a_record(folder: Path) -> None:
    done = run(folder, *OWN, "recipe.alpha=0.5")
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    path = folder / first
    assert path.name == "weighted_sum.safetensors"
    assert path.parent.parent == folder / "runs" / "weighted_sum"
    model, sidecar = MERGED
    beside = [".hydra", "README.md", "run.json", "run.log", model, f"{model}.intoto.json", sidecar]
    assert models(path.parent) == beside
    content = record(folder)
    assert content["deterministic"]["output"]["sha256"] in second
    assert content["run"]["overrides"] == [*OWN, "recipe.alpha=0.5"]
    assert content["run"]["command"] == ["runner", *OWN, "recipe.alpha=0.5"]
    assert content["run"]["error"] is None
    logged = (path.parent / "run.log").read_bytes()[: content["run"]["log"]["bytes"]]
    assert logged and hashlib.sha256(logged).hexdigest() == content["run"]["log"]["sha256"]
    key = "model.diffusion_model.linear.weight"
    a, b = (load_file(folder / f"{name}.safetensors")[key].float() for name in "ab")
    torch.testing.assert_close(load_file(path)[key], (0.5 * a + 0.5 * b).half(), rtol=0, atol=1e-3)


def test_the_same_command_again_says_where_the_model_is_and_leaves_nothing(folder: Path) -> None:
    first = run(folder, *OWN, "progress=off")
    before = models((folder / first.stdout.splitlines()[0]).parent)
    second = run(folder, *OWN, "progress=off")
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[:2] == first.stdout.splitlines()[:2]
    assert "there already" in second.stdout and second.stderr == ""
    (only,) = (folder / "runs" / "weighted_sum").iterdir()
    assert models(only) == before and {"run.json", "run.log", *MERGED} <= set(before)
    (line, hint) = run(folder, *OWN, "locked=true").stderr.splitlines()
    assert line.startswith("runner: error[E-LOCK]: ") and hint == "hint: write it: job=lock"


def test_a_job_without_a_recipe_leaves_nothing_behind(tmp_path: Path) -> None:
    for arguments, code in ((["job=presets"], 0), (["job=methods", "job.method=slep"], 2)):
        assert run(tmp_path, *arguments).returncode == code
        assert models(tmp_path) == []


def test_a_folder_that_was_chosen_for_a_run_stays_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("mine")
    assert run(tmp_path, "job=presets", "hydra.run.dir=mine").returncode == 0
    assert models(tmp_path / "mine") == ["text"]


def test_help_teaches_and_names_jobs_recipes_methods_and_parameters(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    jobs = (
        "compare, compose, find, import, inspect, lock, merge, methods, models, plan, presets, publish, "
        "replay, verify"
    )
    assert f"job: {jobs}" in done.stdout
    assert "recipe: add_difference, " in done.stdout
    assert "recipe.alpha=0.4" in done.stdout
    said = " ".join(done.stdout.split())
    for method in standard():
        assert f"{method.name}({', '.join(method.parameters)})" in said
    assert "Exit codes" in done.stdout
    written = [line for line in done.stdout.splitlines() if not line.startswith("recipe: ")]
    assert max(map(len, written)) <= 120
    assert models(tmp_path) == []


def test_help_names_the_users_recipes_too(tmp_path: Path) -> None:
    (tmp_path / "my_own_mix.yaml").write_text("method: [broken\n")
    assert "my_own_mix" in run(tmp_path, "--help", RUNNER_RECIPES=str(tmp_path)).stdout


def test_the_composed_configuration_can_be_shown(tmp_path: Path) -> None:
    done = run(tmp_path, "recipe=weighted_sum", "recipe.alpha=0.7", "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    assert "alpha: 0.7" in done.stdout
    assert models(tmp_path) == []


def test_a_folder_of_recipes_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    done = run(tmp_path, "job=plan", RUNNER_RECIPES=str(tmp_path / "nowhere"))
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("runner: warning[W-RECIPES]: ") and "no such folder" in line


# Mistakes

USAGE = [
    (["thraeds=1"], '"thraeds": unknown setting, did you mean "threads"?'),
    (["qqqqqq=1"], '"qqqqqq": unknown setting (python -m runner --help lists them)'),
    (["+foo=1"], "foo: unknown setting (known: models_dir,"),
    (["job=mrege"], 'job=mrege: there is no such job, did you mean "merge"?'),
    (["placement=cuda"], "placement=cuda: there is no such placement (there are: auto, cpu)"),
    (["threads=many"], 'threads: expected an integer from 0 to 256; found "many"'),
    (["anime_mix"], '"anime_mix": '),
    (["threads=[1"], '"threads=[1": '),
    (["recipe=a,b"], "Ambiguous value for argument 'recipe=a,b'"),
    (["placement.devizes=1"], '"placement.devizes": unknown setting, did you mean "placement.devices"?'),
    (["job.kyes=all"], '"job.kyes": unknown setting, did you mean "job.keys"?'),
    (["recipe=[weighted_sum,sigmoid]"], "recipe=NAME: expected the name of one recipe"),
    (["--config-name", "nope"], "Cannot find primary config 'nope'"),
    (["models_dir=${oc.env:NOT_SET_ANYWHERE}"], "settings: "),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[" ".join(case[0]) for case in USAGE])
def test_a_mistake_on_the_command_line_is_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert error(run(tmp_path, "job=plan", *arguments), 2).startswith(message)


@pytest.mark.parametrize("arguments", [["job=null"], ["~recipe"], ["placement=null"]])
def test_a_group_without_a_choice_is_2_too(tmp_path: Path, arguments: list[str]) -> None:
    error(run(tmp_path, "job=plan", *arguments), 2)


def test_an_unknown_recipe_is_3_with_the_nearest_name_and_where_was_looked(tmp_path: Path) -> None:
    done = run(tmp_path, "recipe=wieghted_sum")
    assert error(done, 3) == 'no recipe "wieghted_sum", did you mean "weighted_sum"?'
    assert "RUNNER_RECIPES" in done.stderr.splitlines()[1]
    assert models(tmp_path) == []


def test_an_unknown_recipe_with_a_long_name_is_3_too(tmp_path: Path) -> None:
    error(run(tmp_path, f"recipe={'x' * 300}"), 3)


def test_the_mistakes_of_a_recipe_are_3_all_at_once_with_their_places(tmp_path: Path) -> None:
    recipe = "defaults: [weighted_sum]\nalhpa: 0.3\nseed: x\noutput:\n  dtype: float61\n  nam: x\n"
    (tmp_path / "mine.yaml").write_text(recipe)
    done = run(tmp_path, f"recipe={tmp_path}/mine.yaml", "job=plan", "recipe.force=7")
    assert (done.returncode, done.stdout) == (3, "")
    found = [line.removeprefix("runner: error[E-RECIPE]: ") for line in done.stderr.splitlines()]
    assert [line.rpartition(": expected")[0] or line.split(": unknown")[0] for line in sorted(found)] == [
        "command line: force",
        "mine.yaml:3:1: seed",
        "mine.yaml:5:3: output.dtype",
        "mine.yaml:6:3: output.nam",
    ]
    assert record(tmp_path)["run"]["error"]["exit_code"] == 3


def test_the_guards_refusals_are_3_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: yes\nhydra: {}\n")
    done = run(tmp_path, "recipe=mine", RUNNER_RECIPES=str(tmp_path))
    assert done.returncode == 3
    assert [line.split(": ")[2:4] for line in done.stderr.splitlines()] == [
        ["mine.yaml:1:9", "method"],
        ["mine.yaml:2:1", "hydra"],
    ]
    assert record(tmp_path)["run"]["error"]["exit_code"] == 3


@pytest.mark.parametrize(
    ("field", "words"),
    [("description", '"\\ud800"'), ("models", '{a: "\\ud800", b: demo:anime}')],
)
def test_half_a_character_in_a_recipe_is_3(tmp_path: Path, field: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults: [weighted_sum]\n{field}: {words}\n")
    error(run(tmp_path, "recipe=mine", "job=plan", RUNNER_RECIPES=str(tmp_path)), 3)


def test_a_size_without_end_in_a_recipe_is_3(tmp_path: Path) -> None:
    error(run(tmp_path, "job=plan", f"recipe.output.max_shard_size={'9' * 400}GB"), 3)


def test_a_missing_input_is_4(folder: Path) -> None:
    done = run(folder, "job=plan", *OWN, "recipe.models.b=nope.safetensors")
    assert error(done, 4) == "nope.safetensors: no such file"
    assert done.stderr.splitlines()[1] == 'hint: paths start at models_dir=., did you mean "b.safetensors"?'


def test_a_truncated_input_is_4(folder: Path) -> None:
    path = folder / "b.safetensors"
    for size in (path.stat().st_size - 1, 100, 4, 0):
        os.truncate(path, size)
        found = error(run(folder, "job=plan", *OWN), 4)
        assert found.startswith("b.safetensors: ")
        assert "truncated" in found or "empty" in found


def test_inputs_that_do_not_fit_are_5(folder: Path) -> None:
    tensors = load_file(folder / "b.safetensors")
    tensors["model.diffusion_model.linear.weight"] = torch.zeros(3, 3).half()
    save_file(tensors, folder / "b.safetensors")
    assert "model.diffusion_model.linear.weight" in error(run(folder, "job=plan", *OWN), 5)
    assert "layouts cannot be mixed" in error(run(folder, "job=plan", *OWN[:2]), 5)


def test_values_that_are_no_numbers_are_6_and_leave_nothing(folder: Path) -> None:
    tensors = load_file(folder / "b.safetensors")
    tensors["model.diffusion_model.linear.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "b.safetensors")
    (folder / "out").mkdir()
    found = error(run(folder, *OWN, "output_dir=out"), 6)
    assert "b.safetensors" in found and "model.diffusion_model.linear.weight" in found
    assert models(folder / "out") == []


def test_another_file_than_the_recipe_says_is_10(folder: Path) -> None:
    (folder / "out").mkdir()
    source = "recipe.models.b={source: b.safetensors, sha256: " + "0" * 64 + "}"
    assert '"b.safetensors": sha256 ' in error(run(folder, *OWN[:2], source, "output_dir=out"), 10)
    assert models(folder / "out") == []


def test_an_output_folder_that_is_missing_is_7(folder: Path) -> None:
    assert 'output folder "nowhere"' in error(run(folder, *OWN, "output_dir=nowhere"), 7)
    assert not (folder / "nowhere").exists()


# Places and streams


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: a full disk; mounting a tmpfs needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_disk_that_is_too_small_is_7_before_any_work(big: Path, tmp_path: Path, small_disk: Path) -> None:
    done = run(tmp_path, *OWN, f"models_dir={big}", f"output_dir={small_disk}")
    found = error(done, 7)
    assert "bytes needed" in found and "1048576 free" in found
    assert models(small_disk) == []
    assert "execute" not in record(tmp_path)["run"]["seconds"]


def test_a_full_disk_for_the_record_is_7(small_disk: Path) -> None:
    (small_disk / "fill").write_bytes(bytes(1 << 20))
    error(run(small_disk, "job=plan"), 7)


@pytest.mark.parametrize(
    "command",
    [
        "RUNNER {} | head -c0",
        "RUNNER {} > /dev/full 2> /dev/full",
        "RUNNER {} <&-",
    ],
)
def test_streams_that_are_full_or_gone_do_not_spoil_a_merge(folder: Path, command: str) -> None:
    (folder / "out").mkdir()
    assert shell(folder, command.format(" ".join([*OWN, "output_dir=out"]))) == 0
    assert models(folder / "out") == MERGED


def test_a_bar_that_cannot_be_drawn_does_not_spoil_a_merge(folder: Path) -> None:
    (folder / "out").mkdir()
    assert shell(folder, f"RUNNER {' '.join(OWN)} output_dir=out progress=on 2> /dev/full") == 0
    assert models(folder / "out") == MERGED


@pytest.mark.parametrize("streams", [">&-", "2>&-"])
def test_streams_that_are_closed_do_not_spoil_a_merge(folder: Path, streams: str) -> None:
    (folder / "out").mkdir()
    assert shell(folder, f"RUNNER {' '.join(OWN)} output_dir=out {streams}") == 0
    assert models(folder / "out") == MERGED


def test_a_reader_who_has_seen_enough_is_no_mistake(tmp_path: Path) -> None:
    """What is longer than a pipe holds meets its closed end."""
    names = " ".join(f"recipe_{n:0>200}.yaml" for n in range(400))
    subprocess.run(f"touch {names}", shell=True, cwd=tmp_path, check=True)
    line = f"RUNNER_RECIPES=. {sys.executable} -m runner --help | head -c1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_traceback_is_shown_on_request_only(tmp_path: Path) -> None:
    arguments = ["job=plan", "recipe=weighted_sum", "recipe.alpha=9"]
    assert "Traceback" not in run(tmp_path, *arguments).stderr
    done = run(tmp_path, *arguments, HYDRA_FULL_ERROR="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr and "runner.errors.RecipeError" in done.stderr


# Signals


def is_at_work(folder: Path) -> bool:
    """Whether a run has begun to compute."""
    return any("import: " in log.read_text() for log in folder.rglob("run.log"))


def interrupted(big: Path, tmp_path: Path, number: int, times: int = 1) -> tuple[Ended, Path]:
    """A merge that is stopped while it computes, and its folder."""
    for folder in tries(tmp_path):
        (folder / "out").mkdir()
        arguments = [*OWN, *SMALL_STEPS, f"models_dir={big}", "output_dir=out", "hydra.run.dir=run"]
        ended = interrupt(folder, arguments, partial(is_at_work, folder), number, times)
        if ended.code and ended.seconds < 1:
            break
    return ended, folder


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGTERM, 1), (signal.SIGHUP, 1)]
)
def test_a_signal_ends_a_merge_at_once_in_one_line_without_leftovers(
    big: Path, tmp_path: Path, number: int, times: int
) -> None:
    ended, folder = interrupted(big, tmp_path, number, times)
    assert (ended.code, ended.output) == (128 + number, "")
    assert ended.errors == "runner: interrupted. Nothing unfinished is left behind.\n"
    assert ended.seconds < 1
    assert models(folder / "out") == []
    error = record(folder)["run"]["error"]
    assert error["exit_code"] == 128 + number
    assert error["stage"] in ("execute", None)  # None: just before it begins


def test_ctrl_c_while_the_command_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    code = """
import os, signal, sys
class Finder:  # the first import of a package that is not Python's own
    def find_spec(self, name, path=None, target=None):
        if name == "hydra":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
import runner.__main__
"""
    done = python(tmp_path, code)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_nohup_is_obeyed(tmp_path: Path) -> None:
    code = """
import signal
from runner.__main__ import run
run(["--cfg", "job"])
print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    done = process(tmp_path, "nohup", sys.executable, "-c", code)
    assert done.stdout.splitlines()[-1] == "True False"


def test_what_a_killed_merge_leaves_is_removed_by_the_next(big: Path, tmp_path: Path) -> None:
    ended, folder = interrupted(big, tmp_path, signal.SIGKILL)
    assert (ended.code, ended.output) == (-signal.SIGKILL, "")
    (left,) = models(folder / "out")
    assert left.startswith(".rnr-")
    assert run(folder, *OWN, f"models_dir={big}", "output_dir=out").returncode == 0
    assert models(folder / "out") == MERGED


def test_every_failure_is_in_its_record(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "weighted_sum.safetensors").symlink_to("elsewhere")
    error(run(folder, *OWN, "output_dir=out"), 2)
    assert record(folder)["run"]["error"]["exit_code"] == 2


# Sweeps


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A sweep of four jobs, of which the second and the fourth fail."""
    folder = tmp_path_factory.mktemp("sweep")
    write_models(folder, a=1, b=2)
    (folder / "models").mkdir()
    sources = ",".join(["b.safetensors", "nope.safetensors"])
    arguments = [*OWN[:2], f"recipe.models.b={sources}", "recipe.alpha=0.25,2.5", "output_dir=models"]
    return folder, run(folder, "-m", *arguments, "progress=off")


def sweep_folder(folder: Path) -> Path:
    (path,) = (folder / "runs" / "sweeps").iterdir()
    return path


def test_a_sweep_goes_on_after_a_failure_and_ends_with_the_code_of_the_first(
    sweep: tuple[Path, Done],
) -> None:
    _, done = sweep
    assert done.returncode == 3
    told = [line for line in done.stderr.splitlines() if line.startswith("runner: job ")]
    assert [line.partition(" failed: ")[0] for line in told] == [f"runner: job {n}" for n in (1, 2, 3)]
    assert "nope.safetensors: no such file" in told[1]


def test_every_job_of_a_sweep_has_a_folder_that_says_what_it_was(sweep: tuple[Path, Done]) -> None:
    folder, _ = sweep
    names = sorted(path.name for path in sweep_folder(folder).iterdir() if path.is_dir())
    assert [name.partition("_")[0] for name in names] == ["0", "1", "2", "3"]
    assert all("_recipe.alpha=" in name and "recipe.models.b=" in name for name in names)
    for name in names:
        assert {"run.json", "status.json", "run.log"} <= set(models(sweep_folder(folder) / name))


def test_the_models_of_a_sweep_do_not_replace_each_other(sweep: tuple[Path, Done]) -> None:
    folder, _ = sweep
    (model,) = (folder / "models").rglob("weighted_sum.safetensors")
    assert model.parent.parent == folder / "models"
    assert model.parent.name.startswith("0_")


def test_sweep_json_tells_of_every_job(sweep: tuple[Path, Done]) -> None:
    folder, _ = sweep
    jobs = json.loads((sweep_folder(folder) / "sweep.json").read_text())
    assert [(job["job"], job["ok"], job["exit_code"]) for job in jobs] == [
        (0, True, 0),
        (1, False, 3),
        (2, False, 4),
        (3, False, 4),
    ]
    ok = jobs[0]
    (model,) = (folder / "models").rglob("weighted_sum.safetensors")
    assert folder / ok["summary"]["output"] == model
    assert set(ok["summary"]["moved"]) and all(value > 0 for value in ok["summary"]["moved"].values())
    assert "recipe.alpha=0.25" in ok["overrides"]
    assert jobs[3]["summary"] == {}


def test_sweep_csv_is_a_table_of_what_was_varied_and_what_came_of_it(sweep: tuple[Path, Done]) -> None:
    folder, done = sweep
    with (sweep_folder(folder) / "sweep.csv").open(newline="") as file:
        head, *rows = list(csv.reader(file))
    assert head[:5] == ["job", "recipe.models.b", "recipe.alpha", "result", "sha256"]
    assert [row[:4] for row in rows] == [
        ["0", "b.safetensors", "0.25", "weighted_sum.safetensors"],
        ["1", "b.safetensors", "2.5", "failed (3)"],
        ["2", "nope.safetensors", "0.25", "failed (4)"],
        ["3", "nope.safetensors", "2.5", "failed (4)"],
    ]
    assert len(rows[0][4]) == 64
    assert "sweep of 4 jobs" in done.stdout


def test_a_sweep_over_recipes_has_one_folder_and_a_good_one_is_0(folder: Path) -> None:
    (folder / "out").mkdir()
    done = run(folder, "-m", "recipe=weighted_sum,sigmoid", *OWN[1:], "output_dir=out")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (folder / "out").rglob("*.safetensors"))
    assert names == ["sigmoid.safetensors", "weighted_sum.safetensors"]
    (sweep_of_both,) = (folder / "runs" / "sweeps").iterdir()
    assert len(json.loads((sweep_of_both / "sweep.json").read_text())) == 2


def test_a_broken_recipe_fails_its_own_job_only(folder: Path) -> None:
    (folder / "broken.yaml").write_text("method: [\n")
    arguments = ["recipe=broken,weighted_sum", *OWN[1:]]
    done = run(folder, "-m", *arguments, RUNNER_RECIPES=str(folder))
    assert done.returncode == 3
    assert len(list(folder.glob("runs/sweeps/*/1_*/weighted_sum.safetensors"))) == 1


def test_an_output_folder_that_is_missing_is_7_in_a_sweep_too(folder: Path) -> None:
    assert run(folder, "-m", *OWN, "recipe.alpha=0.1,0.2", "output_dir=nowhere").returncode == 7


def test_a_signal_ends_a_whole_sweep(big: Path, tmp_path: Path) -> None:
    for folder in tries(tmp_path):
        arguments = ["-m", *OWN, *SMALL_STEPS, f"models_dir={big}", "recipe.alpha=0.1,0.2"]
        ended = interrupt(folder, arguments, partial(is_at_work, folder), signal.SIGINT)
        if ended.code and not list(folder.rglob("1_*")):
            break
    assert ended.code == 130
    assert ended.errors.endswith("runner: interrupted. Nothing unfinished is left behind.\n")
    assert not list(folder.rglob("1_*"))
    (job,) = json.loads((sweep_folder(folder) / "sweep.json").read_text())
    assert (job["job"], job["ok"], job["exit_code"]) == (0, False, 130)
    assert not list(folder.rglob(".rnr-*"))


def test_a_job_that_was_killed_is_told_of(tmp_path: Path) -> None:
    """Launchers that start processes can lose one; it leaves a folder without a status."""
    for number, status in [
        (0, {"ok": True, "overrides": [], "exit_code": 0, "error": "", "summary": {}}),
        (10, None),
    ]:
        (tmp_path / f"{number}_recipe=x").mkdir()
        if status:
            (tmp_path / f"{number}_recipe=x" / "status.json").write_text(json.dumps(status))
    (tmp_path / "sweep.csv").touch()
    ok, killed = gather(tmp_path)
    assert (ok["job"], ok["ok"]) == (0, True)
    assert (killed["job"], killed["ok"], killed["exit_code"]) == (10, False, 1)
    assert "killed" in killed["error"]

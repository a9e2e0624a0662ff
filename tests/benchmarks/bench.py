"""Measures `runner` beside the limits of the machine and the naive script, in one run, and prints the ratios.

    python tests/benchmarks/bench.py --folder FOLDER [--families sd15 sdxl] [--rounds N] [--only NAME …]

Every command is a whole process: wall seconds, CPU seconds of it and its children, and the peak of its
private (anonymous) memory, sampled. The commands take turns, round after round, since the machine may be
shared: read ratios. Inputs are in the page cache before each command; outputs are removed after it, outside
the measured time. Missing checkpoints are made first. A missed target is printed, never an error.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SAMPLE_SECONDS = 0.02
MIB = 1 << 20

# {python} this interpreter, {a} and {b} the inputs, {out} a folder for outputs, {naive} the naive script.
MERGE = (
    "{python} -m runner recipe=weighted_sum recipe.models.a={a} recipe.models.b={b} recipe.alpha=0.35 "
    "recipe.output.name=bench output_dir={out} rerun=true "
)
COMMANDS = {
    "import torch": ["{python}", "-c", "import torch"],
    "cp + fsync": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', "{a}", "{out}/copy.safetensors"],
    "naive": ["{python}", "{naive}", "{a}", "{b}", "0.35", "{out}/naive.safetensors"],
    "first": (MERGE + "digests=fresh").split(),
    "fast": (MERGE + "digests=remember verify=false").split(),
    "plan": (MERGE + "job=plan").split(),
    "help": ["{python}", "-m", "runner", "--help"],
}
PRIMED = {"fast"}  # run once unmeasured before the rounds, so that there is something to remember
LIMITS = {"import torch", "cp + fsync", "naive"}  # what the others are compared with
LIGHT = {"plan", "help"}  # must not load torch


@dataclass(frozen=True)
class Run:
    """What one process took."""

    wall_seconds: float
    cpu_seconds: float
    private_bytes: int
    torch_loaded: bool
    failure: str


@dataclass(frozen=True)
class Figures:
    """What one command took over all rounds: medians, or the least wall time beside the other medians."""

    wall: float
    cpu: float
    private_mib: float
    torch_loaded: bool


@dataclass(frozen=True)
class Target:
    """One line of the issue: a command's figure and the most it may be."""

    command: str
    what: str
    value: Callable[[dict[str, Figures]], float]
    limit: Callable[[dict[str, Figures]], float]
    needs: tuple[str, ...] = ()


TARGETS = [
    Target("first", "wall ≤ naive", lambda f: f["first"].wall, lambda f: f["naive"].wall, ("naive",)),
    Target(
        "first",
        "wall ≤ import torch + 2.5 × (cp + fsync)",
        lambda f: f["first"].wall,
        lambda f: f["import torch"].wall + 2.5 * f["cp + fsync"].wall,
        ("import torch", "cp + fsync"),
    ),
    Target(
        "fast", "wall ≤ 0.7 × naive", lambda f: f["fast"].wall, lambda f: 0.7 * f["naive"].wall, ("naive",)
    ),
    Target(
        "fast",
        "wall ≤ import torch + 1.3 × (cp + fsync)",
        lambda f: f["fast"].wall,
        lambda f: f["import torch"].wall + 1.3 * f["cp + fsync"].wall,
        ("import torch", "cp + fsync"),
    ),
    *(
        Target(
            command,
            "private MiB ≤ import torch + 96",
            lambda f, command=command: f[command].private_mib,
            lambda f: f["import torch"].private_mib + 96,
            ("import torch",),
        )
        for command in ("first", "fast")
    ),
    *(
        Target(command, "wall < 1.5 s", lambda f, command=command: f[command].wall, lambda f: 1.5)
        for command in ("plan", "help")
    ),
    *(
        Target(command, "torch loaded", lambda f, command=command: f[command].torch_loaded, lambda f: 0)
        for command in ("plan", "help")
    ),
]


class Sampler(threading.Thread):
    """Watches a process until it ends: peak anonymous memory, and whether libtorch was ever mapped."""

    def __init__(self, pid: int, watch_torch: bool):
        super().__init__(daemon=True)
        self.process = Path(f"/proc/{pid}")
        self.watch_torch = watch_torch
        self.private_bytes = 0
        self.torch_loaded = False
        self.ended = threading.Event()

    def run(self) -> None:
        """Samples until told to end or the process is gone."""
        while not self.ended.wait(SAMPLE_SECONDS):
            try:
                for line in (self.process / "status").read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        self.private_bytes = max(self.private_bytes, int(line.split()[1]) * 1024)
                if self.watch_torch and not self.torch_loaded:
                    self.torch_loaded = "libtorch" in (self.process / "maps").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return


def measure(command: list[str], folder: Path, watch_torch: bool) -> Run:
    """Returns what a command took, run in a folder with the project importable."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (folder / "last.log").open("w+b") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log
        )
        sampler = Sampler(process.pid, watch_torch)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        sampler.ended.set()
        sampler.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    failure = f"exit code {process.returncode}: {lines[-1] if lines else ''}" if process.returncode else ""
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, sampler.private_bytes, sampler.torch_loaded, failure)


def warm(paths: list[Path]) -> None:
    """Brings files into the page cache."""
    buffer = bytearray(MIB)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def clean(out: Path, scratch: Path) -> None:
    """Removes what a command wrote, and lets the disk come to rest."""
    shutil.rmtree(scratch / "runs", ignore_errors=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()


def bench(inputs: list[Path], scratch: Path, rounds: int, names: list[str]) -> dict[str, list[Run]]:
    """Returns the runs of every command that works, taken in turns."""
    out = scratch / "out"
    known = {"python": sys.executable, "naive": HERE / "naive.py", "a": inputs[0], "b": inputs[1], "out": out}
    commands = {name: [word.format(**known) for word in COMMANDS[name]] for name in names}
    runs: dict[str, list[Run]] = {}
    scratch.mkdir(exist_ok=True)
    for number in range(rounds + 1):  # round 0 is not counted: it compiles bytecode and primes digests
        for name in list(commands):
            if number == 0 and name not in PRIMED | LIGHT and name != "import torch":
                continue
            clean(out, scratch)
            warm(inputs)
            run = measure(commands[name], scratch, name in LIGHT)
            if run.failure:
                print(f"{name}: left out, {run.failure}", flush=True)
                del commands[name]
                runs.pop(name, None)
            elif number:
                runs.setdefault(name, []).append(run)
                print(f"round {number} {name}: {run.wall_seconds:.2f} s", flush=True)
    shutil.rmtree(scratch)
    return runs


def summary(runs: list[Run], pick: Callable[[list[float]], float]) -> Figures:
    """Returns the figures of a command, the wall time picked by the median or the minimum."""
    return Figures(
        wall=pick([run.wall_seconds for run in runs]),
        cpu=statistics.median(run.cpu_seconds for run in runs),
        private_mib=statistics.median(run.private_bytes / MIB for run in runs),
        torch_loaded=any(run.torch_loaded for run in runs),
    )


def report(family: str, runs: dict[str, list[Run]]) -> None:
    """Prints the figures of a family and what they are held to, by medians and again by least wall times."""
    usual = {name: summary(of, statistics.median) for name, of in runs.items()}
    least = {name: summary(of, min) for name, of in runs.items()}
    naive = usual["naive"].wall if "naive" in usual else float("nan")
    print(f"\n{family:<14}{'wall s':>9}{'min s':>9}{'CPU s':>9}{'private MiB':>13}{'/ naive':>9}")
    for name, of in usual.items():
        numbers = f"{of.wall:9.2f}{least[name].wall:9.2f}{of.cpu:9.2f}{of.private_mib:13.0f}"
        print(f"{name:<14}{numbers}{of.wall / naive:9.2f}")
    print(f"\n{'':<54}{'median':>9}{'limit':>9}{'':>6}{'least':>9}{'limit':>9}")
    for target in TARGETS:
        if {target.command, *target.needs} <= usual.keys():
            both = [(target.value(figures), target.limit(figures)) for figures in (usual, least)]
            verdict(f"{target.command}: {target.what}", both)


def verdict(text: str, measured: list[tuple[float, float]]) -> None:
    """Prints one target: pairs of what was measured and the most it may be."""
    pairs = [f"{value:9.2f}{limit:9.2f}  {'PASS' if value <= limit else 'miss'}" for value, limit in measured]
    print(f"{text:<54}{''.join(pairs)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are, or are made")
    parser.add_argument("--families", nargs="+", default=["sd15"], choices=["sd15", "sdxl"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="these commands, beside the limits")
    given = parser.parse_args()
    names = [name for name in COMMANDS if not given.only or name in LIMITS or name in given.only]
    families: dict[str, dict[str, list[Run]]] = {}
    for family in given.families:
        inputs = [given.folder.resolve() / family / f"{model}.safetensors" for model in "ab"]
        if not all(path.exists() for path in inputs):
            maker = [sys.executable, HERE / "checkpoints.py", given.folder, family]
            subprocess.run([*maker, "--layout", "checkpoint", "--models", "a", "b"], check=True)
        print(f"{family}: {given.rounds} rounds", flush=True)
        runs = bench(inputs, given.folder.resolve() / "bench", given.rounds, names)
        families[family] = {name: runs[name] for name in names if name in runs}
    for family, runs in families.items():
        report(family, runs)
    for name in ("first", "fast"):
        peaks = [summary(of[name], min).private_mib for of in families.values() if name in of]
        if len(peaks) > 1:
            verdict(f"{name}: private MiB, largest / smallest family", [(max(peaks) / min(peaks), 1.1)])


if __name__ == "__main__":
    main()

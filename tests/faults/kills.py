"""Merges ended by signals at random moments: python -m tests.faults.kills [ROUNDS] [SEED]."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOMENTS = ("start", "partial", "work")
NAME = "weighted_sum.safetensors"
SIDECAR = f"{NAME}.tensors.json"
OLD, OLD_SIDECAR = b"what was there before", b"and its digests"
SAID = "runner: interrupted. Nothing unfinished is left behind.\n"


@dataclass
class Tally:
    """What the rounds came to.

    Attributes:
        ended: how often which signal met what: a stage, "start" (no partial yet), "work", "done".
        seconds: from each signal that can be caught to the end.
        partials: how often one was left, by SIGKILL.
    """

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    partials: int = 0


class Merges:
    """Merges of two models, replacing a file or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.out.mkdir()
        tensor = torch.randn(1 << 20)
        for number, name in enumerate("ab"):
            save_file({f"k{at}": tensor + at + number for at in range(10)}, folder / f"{name}.safetensors")
        self.arguments = [
            "recipe=weighted_sum",
            "recipe.models.a=a.safetensors",
            "recipe.models.b=b.safetensors",
        ]
        self.arguments += [
            "output_dir=out",
            "progress=off",
            "threads=2",
            "digests=fresh",
            "hydra.run.dir=run",
        ]
        started = time.monotonic()
        self.check_that_it_runs()
        self.usual_seconds = time.monotonic() - started

    def start(self) -> subprocess.Popen[str]:
        """A merge, of which nobody says anything to the process that started it."""
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *self.arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def check_that_it_runs(self) -> None:
        """A merge that nobody disturbs gives the model and leaves nothing else."""
        process = self.start()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert sorted(path.name for path in self.out.iterdir()) == [NAME, SIDECAR]
        self.whole = hashlib.sha256((self.out / NAME).read_bytes()).hexdigest()
        self.sidecar = (self.out / SIDECAR).read_bytes()

    def round(self, number: int, moment: str, chance: random.Random, tally: Tally) -> None:
        """A merge ended by a signal: nothing is torn, and only SIGKILL may leave a partial.

        Args:
            number: of the signal.
            moment: after which it comes, by chance: "start", "partial", or when it is at "work".
            chance: for how long after.
            tally: is added to.
        """
        replaces = chance.random() < 0.5
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        log = self.folder / "run" / "run.log"
        for name, old in ((NAME, OLD), (SIDECAR, OLD_SIDECAR)):
            (self.out / name).unlink(missing_ok=True)
            if replaces:
                (self.out / name).write_bytes(old)
        left = partials(self.out)  # by an earlier round
        process = self.start()
        try:
            if moment == "start":
                time.sleep(chance.uniform(0.1, self.usual_seconds))
            elif moment == "partial":
                _wait(process, lambda: bool(partials(self.out) - left))
                time.sleep(chance.uniform(0, 0.5 * self.usual_seconds))
            else:
                _wait(process, lambda: log.exists() and "import: " in log.read_text())
                time.sleep(chance.uniform(0, 0.3 * self.usual_seconds))
            at_work = bool(partials(self.out) - left)
            process.send_signal(number)
            started = time.monotonic()
            _, errors = process.communicate(timeout=60)
            seconds = time.monotonic() - started
        finally:
            process.kill()
        made = bool(partials(self.out) - left)
        assert not made or number == signal.SIGKILL, errors
        self.check(process.returncode, errors, number, replaces)
        if number != signal.SIGKILL:
            tally.seconds.append(seconds)
        when = "done" if process.returncode == 0 else "work" if at_work else "start"
        if process.returncode > 0 and (self.folder / "run" / "run.json").exists():
            error = json.loads((self.folder / "run" / "run.json").read_text())["run"]["error"]
            when = error["stage"] if error else "done"
        tally.ended[signal.Signals(number).name, when] += 1
        tally.partials += made

    def check(self, code: int, errors: str, number: int, replaces: bool) -> None:
        """The invariant, the exit code, and what is said."""
        entries = {path.name for path in self.out.iterdir() if not path.name.startswith(".rnr-")}
        assert entries <= {NAME, SIDECAR}
        found = (self.out / NAME).read_bytes() if NAME in entries else None
        sidecar = (self.out / SIDECAR).read_bytes() if SIDECAR in entries else None
        whole = found is not None and hashlib.sha256(found).hexdigest() == self.whole
        assert whole or found == (OLD if replaces else None), "torn"
        assert sidecar in (self.sidecar if whole else OLD_SIDECAR if replaces else None, None)
        assert code != 0 or sidecar
        assert code in (0, 128 + number, -number), (code, errors)
        assert whole or code != 0
        if "removed what a killed run had left" in errors:
            errors = errors.partition("\n")[2]
        own = "Traceback" in errors and "runner" not in errors.replace("_run_module_as_main", "")
        assert own or errors == (SAID if code == 128 + number else ""), errors  # own: Python's, before ours
        for path in self.folder.rglob("run.json"):
            json.loads(path.read_text())


def _wait(process: subprocess.Popen[str], seen: Callable[[], bool]) -> None:
    while process.poll() is None and not seen():
        time.sleep(0.002)


def partials(folder: Path) -> set[tuple[int, int]]:
    """What is being built in a folder, or was left: inode and time of change."""
    found = set()
    for path in folder.glob(".rnr-*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.add((status.st_ino, status.st_ctime_ns))
    return found


def rounds(count: int, seed: int, folder: Path, *, second: bool) -> Tally:
    """Ends merges by signals.

    Args:
        count: of merges.
        seed: of the moments and signals.
        folder: to work in.
        second: whether each is followed by one that nobody disturbs; else only the last.
    """
    chance, tally, merges = random.Random(seed), Tally(), Merges(folder)
    for number in range(count):
        merges.round(SIGNALS[number % 4], MOMENTS[number // 4 % 3], chance, tally)
        if second or number == count - 1:
            merges.check_that_it_runs()
    return tally


if __name__ == "__main__":
    count, seed = (int(argument) for argument in [*sys.argv[1:], "200", "0"][:2])
    with tempfile.TemporaryDirectory() as folder:
        tally = rounds(count, seed, Path(folder), second=False)
    for (name, when), times in sorted(tally.ended.items()):
        print(f"{name} at {when}: {times}")
    print(f"{count} rounds, none torn, {tally.partials} partials left by SIGKILL and removed by the next run")
    print(f"longest from a signal to the end: {max(tally.seconds):.2f} s")

"""Damaged inputs by the thousand: python -m tests.attacks.fuzz --cases 100000 prints what came of them.

Every case follows from the seed, the name of its target and its number, so one that fails can be run again:
--target recipes --seed 0 --first 4711 --cases 1
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.attacks import files, texts
from tests.attacks.mutations import SECRET, SECRET_NAME

Target = Callable[[Random, Path], bool]  # whether what was handed over was accepted

TARGETS: Mapping[str, Target] = {
    "safetensors": files.safetensors_file,
    "pickles": files.pickle_file,
    "json": files.json_file,
    "folders": files.diffusers_folder,
    "adapters": texts.adapter_keys,
    "recipes": texts.recipe,
    "block strings": texts.block_string,
    "foreign recipes": texts.foreign_recipe,
}
SECONDS = 2.0  # of processor time, for any one case


@dataclass
class Figures:
    """What came of the cases of one target.

    Attributes:
        cases, accepted: how many were tried, and of how many something could be read.
        executions: payloads that ran.
        faults: cases that ended otherwise than they may, in words.
        slowest: seconds of processor time of the slowest.
    """

    cases: int = 0
    accepted: int = 0
    executions: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


def fuzz(target: str, folder: Path, cases: int, seed: int = 0, first: int = 0, until: float = 0.0) -> Figures:
    """Runs cases of a target.

    Args:
        target: one of TARGETS.
        folder: an empty one, for its files.
        cases: how many.
        seed, first: which.
        until: time.monotonic() at which to stop early; 0: never.
    """
    os.environ[SECRET_NAME] = SECRET
    figures = Figures()
    canary = folder / "canary"
    for number in range(first, first + cases):
        if until and time.monotonic() > until:
            break
        rng = Random(f"{seed}/{target}/{number}")
        started = time.process_time()
        try:
            figures.accepted += TARGETS[target](rng, folder)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            figures.faults.append(f"{target} {seed}/{number}: {type(error).__name__}: {error}"[:400])
        took = time.process_time() - started
        if took > SECONDS:
            figures.faults.append(f"{target} {seed}/{number}: took {took:.1f} s")
        figures.slowest = max(figures.slowest, took)
        figures.cases += 1
        if canary.exists():
            figures.executions += 1
            canary.unlink()
    return figures


def main() -> int:
    """Prints a line for each target; 1 if anything ended otherwise than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="of each target")
    parser.add_argument("--seconds", type=float, default=0.0, help="for all; 0: as long as it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    targets = options.target or list(TARGETS)
    bad = total = 0
    print(f"{'target':<16}{'cases':>9}{'accepted':>10}{'ran code':>10}{'faults':>8}  slowest  peak MiB")
    for target in targets:
        until = time.monotonic() + options.seconds / len(targets) if options.seconds else 0.0
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(target, Path(folder), options.cases, options.seed, options.first, until)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = f"{target:<16}{found.cases:>9}{found.accepted:>10}{found.executions:>10}{len(found.faults):>8}"
        print(f"{row}{found.slowest * 1000:>7.0f} ms{peak:>10.0f}", flush=True)
        for fault in found.faults[:10]:
            print(f"  {fault}")
        bad += len(found.faults) + found.executions
        total += found.cases
    print(f"{total} cases, {bad} faults")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())

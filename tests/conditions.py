"""Every shipped recipe under every condition that must not matter: python -m tests.conditions.

Prints a row for each condition: of how many recipes the file has the same SHA-256 as without it. Each
condition is a process of its own, which merges all recipes with small models; those that only a known
architecture can merge are left out here and replayed in tests/recipes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.command import process
from tests.recipes.build import OF_ARCHITECTURES, RECIPES, methods_of, small_models, with_small_models

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Condition:
    """What is other than usual around a merge.

    Attributes:
        threads: how many compute.
        tile_elements: how much of a tensor at a time.
        host_budget: bytes the tensors in flight may have; None: as many as there are.
        clock: what the time is, in seconds since 1970; None: what it is.
        backwards: the inputs have their tensors in the other order.
        elsewhere: the process stands in another folder.
        environment: its variables.
    """

    threads: int = 2
    tile_elements: int = 1 << 18
    host_budget: int | None = None
    clock: float | None = None
    backwards: bool = False
    elsewhere: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


CONDITIONS = {
    **{f"threads={count}": Condition(threads=count) for count in (1, 3, 4)},
    **{f"tile_elements={count}": Condition(tile_elements=count) for count in (1 << 15, 1 << 16, 1 << 22)},
    **{f"memory of {count // 1000} kB": Condition(host_budget=count) for count in (32_000_000, 100_000_000)},
    **{
        f"{name}={value}": Condition(environment={name: value})
        for name, values in {
            "ATEN_CPU_CAPABILITY": ("default", "avx2"),
            "PYTHONHASHSEED": ("0", "1", "4294967295"),
            "LC_ALL": ("C", "C.UTF-8", "POSIX"),
            "TZ": ("Asia/Kathmandu", "America/St_Johns"),
            "OMP_NUM_THREADS": ("1", "4"),
        }.items()
        for value in values
    },
    **{f"the clock at {seconds:.0f}": Condition(clock=seconds) for seconds in (0.0, 4102444800.0)},
    "another working folder": Condition(elsewhere=True),
    "tensors in the other order": Condition(backwards=True),
}


def digests(condition: Condition, models: Path, out: Path) -> dict[str, str]:
    """By recipe the SHA-256 of the file it gives; computed in this process.

    With the tensors of the inputs in another order these are other files, which the header says and random
    masks depend on: then it is of the data alone, and recipes that draw are left out.
    """
    import torch

    from runner.methods import METHODS
    from tests.build import data_of, digest, merge

    torch.set_num_threads(condition.threads)
    drawing = {method.name for method in METHODS.values() if method.draws}
    found = {}
    for path in RECIPES:
        tree = with_small_models(path)
        if path.stem in OF_ARCHITECTURES or (condition.backwards and drawing & set(methods_of(tree))):
            continue
        file, _ = merge(
            tree,
            models,
            out,
            threads=condition.threads,
            tile_elements=condition.tile_elements,
            host_budget=condition.host_budget,
        )
        found[path.stem] = digest(file)
        found[f"{path.stem}, data"] = hashlib.sha256(data_of(file)).hexdigest()
        file.unlink()
    return found


def under(condition: Condition, folder: Path) -> dict[str, str]:
    """The digests, computed by a process of its own.

    Args:
        condition: what is other than usual.
        folder: holds the models, as `prepare` writes them.
    """
    out = Path(tempfile.mkdtemp(dir=folder))
    models = folder / ("backwards" if condition.backwards else "models")
    program = (sys.executable, "-m", "tests.conditions", "--under", json.dumps(asdict(condition)))
    done = process(ROOT, *program, str(models), str(out), timeout=600, **condition.environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def prepare(folder: Path) -> None:
    """Writes the models, once in either order of their tensors."""
    small_models(folder / "models")
    small_models(folder / "backwards", backwards=True)


def unlike(usual: Mapping[str, str], found: Mapping[str, str], condition: Condition) -> list[str]:
    """The recipes whose files are not the usual ones."""
    ends = ", data"
    names = [name for name in found if name.endswith(ends) == condition.backwards]
    return sorted(name.removesuffix(ends) for name in names if found[name] != usual[name])


def _main() -> None:
    if sys.argv[1:2] == ["--under"]:
        condition = Condition(**json.loads(sys.argv[2]))
        models, out = (Path(argument).resolve() for argument in sys.argv[3:])
        if condition.elsewhere:
            os.chdir("/")
        if condition.clock is not None:
            clock = condition.clock
            time.time, time.time_ns = (lambda: clock), (lambda: int(clock * 1e9))
        json.dump(digests(condition, models, out), sys.stdout)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        usual = under(Condition(), folder)
        for name, condition in CONDITIONS.items():
            found = under(condition, folder)
            other = unlike(usual, found, condition)
            print(f"{name:32} {len(found) // 2 - len(other)} of {len(found) // 2}", *other, flush=True)


if __name__ == "__main__":
    _main()

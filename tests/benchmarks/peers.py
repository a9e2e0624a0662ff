"""Measures whole merges by `runner`, mergekit and sd-mecha on the same checkpoints, in turns.

    python tests/benchmarks/peers.py --folder FOLDER --peers BIN [--rounds N] [--only METHOD ...]

BIN is the bin folder of an environment with mergekit 0.1.5, immutables and sd-mecha 1.1.8. FOLDER is that of
checkpoints.py; what is missing is made. Peers compute no digests, check no values and sync nothing; `runner`
does all of it ("first": digests fresh, read back). A method a peer lacks is left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench import HERE, MIB, Run, clean, measure, warm

MECHA = """
import sys, pathlib, torch, sd_mecha as m
method, out, *paths = sys.argv[1:]
models = [m.model(pathlib.Path(path)) for path in paths]
recipe = {
    "weighted_sum": lambda: m.weighted_sum(*models, alpha=0.4),
    "slerp": lambda: m.slerp(*models, alpha=0.4),
    "ties": lambda: m.add_difference(
        models[0], m.ties_sum_extended(
            *(m.subtract(one, models[0]) for one in models[1:]), k=0.5, vote_sgn=1.0, apply_stock=1.0),
        alpha=1.0),
    "model_stock": lambda: m.add_difference(
        models[0], m.model_stock(*(m.subtract(one, models[0]) for one in models[1:])), alpha=1.0),
}[method]()
m.merge(recipe, output=pathlib.Path(out), output_dtype=torch.float16)
"""
# Our recipe's overrides; mergekit's parameters; how many models.
METHODS: dict[str, tuple[list[str], dict[str, object], int]] = {
    "weighted_sum": (["recipe.alpha=0.4"], {}, 2),
    "slerp": (["recipe.alpha=0.4"], {"t": 0.4}, 2),
    "ties": (["recipe.density=0.5", "recipe.weight=1"], {"density": 0.5, "weight": 1.0}, 3),
    "dare_ties": (["recipe.density=0.5", "recipe.weight=1"], {"density": 0.5, "weight": 1.0}, 3),
    "model_stock": ([], {}, 3),
}


def ours(method: str, overrides: list[str], inputs: list[Path], out: Path) -> list[str]:
    roles = ("a", "b") if len(inputs) == 2 else ("base", "photo", "anime")
    models = ", ".join(f"{role}: '{path}'" for role, path in zip(roles, inputs, strict=True))
    recipe = [f"recipe={method}", f"recipe.models={{{models}}}", "recipe.output.dtype=float16", *overrides]
    return [sys.executable, "-m", "runner", *recipe, "digests=fresh", "rerun=true", f"output_dir={out}"]


def mergekit(
    method: str, parameters: dict[str, object], inputs: list[Path], out: Path, peers: Path
) -> list[str]:
    weights = [0.6, 0.4]
    models = [
        {"model": str(path), **({"parameters": {"weight": weights[at]}} if method == "weighted_sum" else {})}
        for at, path in enumerate(inputs)
    ]
    name = "linear" if method == "weighted_sum" else method
    config = {"merge_method": name, "models": models, "parameters": parameters, "dtype": "float16"}
    if name != "linear":
        config["base_model"] = str(inputs[0])
    path = out.parent / "mergekit.yml"
    path.write_text(json.dumps(config))
    return [str(peers / "mergekit-pytorch"), str(path), str(out / "mergekit")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are, or are made")
    parser.add_argument("--peers", type=Path, required=True, help="bin of the environment of the peers")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    folder = given.folder.resolve()
    inputs = [folder / "sd15" / f"{name}.safetensors" for name in "abc"]
    if not all(path.exists() for path in inputs):
        maker = [sys.executable, HERE / "checkpoints.py", folder, "sd15"]
        subprocess.run([*maker, "--layout", "checkpoint", "--models", *"abc"], check=True)
    scratch, runs = folder / "peers", {}
    out = scratch / "out"
    out.mkdir(parents=True, exist_ok=True)
    for _ in range(given.rounds):
        for method in given.only:
            overrides, parameters, count = METHODS[method]
            used = inputs[:count]
            names = [method, str(out / "mecha.safetensors"), *map(str, used)]
            commands = {
                "runner": ours(method, overrides, used, out),
                "mergekit": mergekit(method, parameters, used, out, given.peers),
                "sd-mecha": [str(given.peers / "python"), "-c", MECHA, *names],
            }
            for tool, command in commands.items():
                clean(out, scratch)
                warm(used)
                run = measure(command, scratch, False)
                if run.failure:
                    print(f"{method}, {tool}: left out, {run.failure}", flush=True)
                else:
                    runs.setdefault((method, tool), []).append(run)
                    print(f"{method}, {tool}: {run.wall_seconds:.1f} s", flush=True)
    report(runs)


def report(runs: dict[tuple[str, str], list[Run]]) -> None:
    """Prints a line for each method and tool, with ratios to ours."""
    print(f"\n{'method':<14}{'tool':<10}{'wall s':>9}{'CPU s':>9}{'private MiB':>13}{'/ runner':>10}")
    for (method, tool), of in runs.items():
        wall, base = (
            statistics.median(run.wall_seconds for run in found)
            for found in (of, runs.get((method, "runner"), of))
        )
        cpu = statistics.median(run.cpu_seconds for run in of)
        private = statistics.median(run.private_bytes for run in of) / MIB
        print(f"{method:<14}{tool:<10}{wall:9.1f}{cpu:9.1f}{private:13.0f}{wall / base:10.1f}")


if __name__ == "__main__":
    main()

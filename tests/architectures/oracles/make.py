"""Writes expected.json: which models another merger takes our single files for, by their headers.

Not run by the tests, which only read the file. To make it again, from the root of the repository, with
ENV an environment that has runner and its tests' packages, and peers the one of
tests/methods/oracles/make.py:

    PYTHONPATH=$PWD:ENV/lib/python3.11/site-packages peers/bin/python tests/architectures/oracles/make.py

For each kind of model a single file of full size is planned and its header written, with a hole for the
data. sd-mecha opens it, infers its config and holds the file to that. Recorded are the digest of names
and shapes in the file, the config, keys that only the file has, keys that only the config has and does
not call optional, and keys whose shapes differ.
"""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import sd_mecha
from sd_mecha.graph_finalization import open_graph

from tests.architectures.test_peers import CONFIGS, EXPECTED, digest, planned_file


def seen(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """What sd-mecha says of a file with tensors of these shapes."""
    with open_graph(sd_mecha.model(path)) as graph:
        config = graph.finalize_root(check_extra_keys=False, check_mandatory_keys=False).model_config
    known = config.keys()
    ours = {config.resolve_alias(key): shape for key, shape in shapes.items()}
    wanted = {key for key, meta in known.items() if not meta.optional}
    return {
        "config": config.identifier,
        "only in the file": sorted(ours.keys() - known.keys()),
        "only in the config": sorted(wanted - ours.keys()),
        "other shapes": sorted(
            key for key in ours.keys() & known.keys() if tuple(known[key].shape) != ours[key]
        ),
    }


def main() -> None:
    cases = {}
    for case in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            file = planned_file(case, Path(folder))
            path = Path(folder, "planned.safetensors")
            path.write_bytes(file.header)
            os.truncate(path, file.nbytes)
            shapes = {key: spec.shape for key, (_, spec) in file.tensors.items()}
            cases[case] = {"digest": digest(file), **seen(path, shapes)}
    expected = {"sd-mecha": version("sd-mecha"), "cases": cases}
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Another merger takes our single files for the models they are; oracles/make.py asked it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from runner.checkpoint import OutputFile
from tests.architectures.test_layouts import single_specs
from tests.build import header_only, planned

EXPECTED = Path(__file__).parent / "oracles" / "expected.json"
# A kind of model → sd-mecha's name of it; it has no others of ours.
CONFIGS = {"sd1": "sd1-ldm", "sdxl": "sdxl-sgm", "sd3": "sd3-comfyui", "flux": "flux-flux"}
# What programs and training put into files and no folder has: sd-mecha misses it where it is not there.
BESIDE = {
    "sd3": [
        "model.model_sampling.sigmas",
        *(f"text_encoders.{encoder}.logit_scale" for encoder in ("clip_g", "clip_l", "t5xxl")),
    ]
}


def planned_file(case: str, folder: Path) -> OutputFile:
    """The single file that a merge of models of full size writes."""
    header_only(folder / "a.safetensors", single_specs(case))
    tree = {"method": "copy", "models": {"a": "a.safetensors"}, "output": {"format": "checkpoint"}}
    (file,) = planned(tree, folder).layout.files
    return file


def digest(file: OutputFile) -> str:
    """Of the names and shapes of its tensors."""
    lines = sorted(f"{key} {list(spec.shape)}\n" for key, (_, spec) in file.tensors.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("case", CONFIGS)
def test_sd_mecha_recognises_a_single_file_and_knows_every_tensor(case: str, tmp_path: Path) -> None:
    seen = json.loads(EXPECTED.read_text())["cases"][case]
    assert digest(planned_file(case, tmp_path)) == seen["digest"], (
        "the file is another one: make the oracle again"
    )
    assert seen["config"] == CONFIGS[case]
    assert seen["only in the file"] == seen["other shapes"] == []
    assert seen["only in the config"] == BESIDE.get(case, [])

"""Publishing into InvokeAI itself, and listing its models: started here where its command is on PATH.

PATH=$PATH:/opt/invokeai/.venv/bin python -m pytest tests/publish/test_real_invokeai.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from safetensors.torch import save_file

from runner.demo.models import demo_model
from runner.demo.shapes import unet_shapes
from runner.errors import PublishError
from runner.library.roots import roots_of
from runner.library.walk import models_in
from runner.publish.finished import finished_model
from runner.publish.invokeai import register
from runner.publish.target import CHECKPOINT, PIPELINE, PUBLISHED, THERE, Model, Target
from tests.build import random_tensors
from tests.publish.conftest import mix
from tests.publish.invokeai_server import ANSWERS, CHANGES, PREDICTIONS, QUERY, ROUTES, STATES
from tests.runs import made

COMMAND = shutil.which("invokeai-web")
ADDRESS = re.compile(r"Invoke running on (http://[\w.:]+)")
START_SECONDS = 300

pytestmark = pytest.mark.slow

if COMMAND is None:
    pytest.skip("NOT TESTED: InvokeAI itself; its invokeai-web is not on PATH", allow_module_level=True)


@dataclass
class InvokeAI:
    """One that runs: its folder, its address and its process."""

    root: Path
    url: str
    process: subprocess.Popen[str]

    def answer(self, place: str) -> Any:
        """What it says at a place."""
        with urlopen(f"{self.url}{place}", timeout=60) as answer:
            return json.load(answer)

    def models(self) -> list[dict[str, Any]]:
        """All models it knows."""
        found: list[dict[str, Any]] = self.answer("/api/v2/models/")["models"]
        return found

    def entry(self, model: Model) -> dict[str, Any]:
        """What it says of the one model at a path."""
        (found,) = [one for one in self.models() if one["path"] == str(model.path)]
        return found

    def take(self, source: str, **changes: str) -> None:
        """Has it move a model into its own folder, or list a service, and waits for that."""
        query = urlencode({"source": source, "inplace": "false"})
        address, headers = f"{self.url}/api/v2/models/install?{query}", {"Content-Type": "application/json"}
        with urlopen(Request(address, json.dumps(changes).encode(), headers), timeout=60) as answer:
            job = json.load(answer)
        until = time.monotonic() + 60
        while job["status"] != "completed":
            assert job["status"] != "error" and time.monotonic() < until, job
            time.sleep(0.05)
            job = self.answer(f"/api/v2/models/install/{job['id']}")

    def target(self, **changes: Any) -> Target:
        """For publishing into it."""
        return Target("invokeai", url=self.url, patience=60, **changes)


@pytest.fixture(scope="module")
def invokeai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InvokeAI]:
    root = tmp_path_factory.mktemp("invokeai")
    process = subprocess.Popen(
        [COMMAND, "--root", str(root)],
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        | {"HOME": str(root), "HF_HUB_OFFLINE": "1", "INVOKEAI_DEVICE": "cpu", "INVOKEAI_HOST": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    overdue = threading.Timer(START_SECONDS, process.kill)
    overdue.start()
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if match := ADDRESS.search(line):
                break
        else:
            pytest.fail(f"InvokeAI does not start:\n{''.join(said)}")
        overdue.cancel()
        # What it says from here on is taken off its hands, else it waits once the pipe is full.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield InvokeAI(root, match[1], process)
    finally:
        overdue.cancel()
        process.kill()
        process.wait()


def wide(folder: Path, name: str, cache: Path, seed: int, **unet: Any) -> Path:
    """A demo model whose UNet reads texts as wide as real ones: by that InvokeAI tells models apart."""
    shutil.copytree(demo_model(name, cache), folder)
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text()) | unet
    path.write_text(json.dumps(config))
    tensors = random_tensors(seed, shapes=unet_shapes(config))
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Two models each of Stable Diffusion 1.x, 2.x and XL."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        wide(folder / f"sd1_{seed}", "base", cache, seed, cross_attention_dim=768)
        wide(
            folder / f"sd2_{seed}", "base", cache, seed, cross_attention_dim=1024, use_linear_projection=True
        )
        wide(folder / f"xl_{seed}", "sdxl_base", cache, seed, cross_attention_dim=2048)
    return folder


def merge(family: str, name: str, **changes: Any) -> dict[str, Any]:
    """A recipe for the two models of a family, to a single file."""
    recipe = mix(a=f"{family}_1", b=f"{family}_2") | {"output": {"name": name, "format": "checkpoint"}}
    return recipe | changes


def lora(family: str, name: str) -> dict[str, Any]:
    """A recipe for what the second model of a family has beyond the first."""
    models = {"base": f"{family}_1", "model": f"{family}_2"}
    rank = {"default": 2, "text_encoder": 0} | ({"text_encoder_2": 0} if family == "xl" else {})
    return {"method": "extract_lora", "models": models, "rank": rank, "output": {"name": name}}


def finished(models: Path, run: Path, recipe: dict[str, Any], cache: Path, target: Target | None) -> Model:
    """The model of a run that is made now."""
    run.mkdir(exist_ok=True)
    made(run, "run", recipe, models_dir=models, cache_dir=cache, publish=target)
    return finished_model(run / "run", run / "run")


V = {"prediction_type": "v_prediction"}
MAIN = {"type": "main", "format": "checkpoint", "variant": "normal", "prediction_type": "epsilon"}
LORA = {"type": "lora", "format": "lycoris"}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (merge("sd1", "one.v1"), MAIN | {"base": "sd-1"}),
        (merge("sd1", "two.v1", output={"name": "two.v1"}), MAIN | {"base": "sd-1", "format": "diffusers"}),
        (merge("sd1", "three", **V), MAIN | V | {"base": "sd-1"}),
        (
            merge("sd1", "four", output={"name": "four"}, **V),
            MAIN | V | {"base": "sd-1", "format": "diffusers"},
        ),
        (merge("sd2", "five", **V), MAIN | V | {"base": "sd-2"}),
        (merge("sd2", "six", prediction_type="epsilon"), MAIN | {"base": "sd-2"}),
        (merge("xl", "seven"), MAIN | {"base": "sdxl"}),
        (merge("xl", "eight", **V), MAIN | V | {"base": "sdxl"}),
        (lora("sd1", "nine"), LORA | {"base": "sd-1"}),
        (lora("xl", "ten"), LORA | {"base": "sdxl"}),
    ],
    ids=lambda value: value.get("output", {}).get("name", ""),
)
def test_a_result_is_known_as_what_it_is(
    recipe: dict[str, Any],
    expected: dict[str, Any],
    invokeai: InvokeAI,
    models: Path,
    cache: Path,
    tmp_path: Path,
) -> None:
    before = invokeai.models()
    model = finished(models, tmp_path, recipe, cache, invokeai.target(dry_run=True))
    assert invokeai.models() == before
    assert [register(model, invokeai.target()) for _ in range(2)] == [PUBLISHED, THERE]
    entry = invokeai.entry(model)
    assert {field: entry[field] for field in expected} == expected
    assert entry["name"] == recipe["output"]["name"]
    assert len(invokeai.models()) == len(before) + 1
    moved = Path(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    assert register(finished_model(moved, moved), invokeai.target()) == THERE  # by its hash
    shutil.rmtree(tmp_path / "run")
    assert register(finished_model(moved, moved), invokeai.target()) == PUBLISHED  # the other one is gone


@pytest.mark.parametrize("layout", ["checkpoint", "diffusers"])
def test_another_content_at_the_same_path_is_refused(
    layout: str, invokeai: InvokeAI, models: Path, cache: Path, tmp_path: Path
) -> None:
    output = {"output": {"name": f"other_{layout}", "format": layout}}
    model = finished(models, tmp_path, merge("sd1", "", **output), cache, invokeai.target())
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(PublishError, match=f'knows "other_{layout}" at this path, with another content'):
        finished(models, tmp_path, merge("sd1", "", alpha=0.9, **output), cache, invokeai.target())
    assert model.path.exists()


def test_what_it_does_not_recognise_is_told_again_and_again(
    invokeai: InvokeAI, cache: Path, tmp_path: Path
) -> None:
    recipe = mix(a="demo:photo", b="demo:anime") | {"output": {"name": "narrow", "format": "checkpoint"}}
    model = finished(tmp_path, tmp_path, recipe, cache, invokeai.target(dry_run=True))
    for _ in range(2):
        with pytest.raises(PublishError, match='lists "narrow", and does not recognise it'):
            register(model, invokeai.target())
    entry = invokeai.entry(model)
    assert entry.keys() >= ANSWERS["unknown"].keys() and entry["type"] == ANSWERS["unknown"]["type"]


def test_what_it_refuses_is_told_in_its_words(invokeai: InvokeAI, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r'answers 409: "Unsupported model source: .*gone') as caught:
        register(Model(tmp_path / "gone.safetensors", CHECKPOINT, {}), invokeai.target())
    assert "under the same path" in str(caught.value.hint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PublishError, match='"ValueError: No model files or config files found in directory'):
        register(Model(tmp_path / "empty", PIPELINE, {}), invokeai.target())
    with pytest.raises(PublishError, match="the answer is not JSON"):
        register(Model(tmp_path, PIPELINE, {}), replace(invokeai.target(), url=f"{invokeai.url}/below"))


def test_what_is_asked_of_it_is_what_it_documents_and_the_tests_server_answers_as_it(
    invokeai: InvokeAI,
) -> None:
    document = invokeai.answer("/openapi.json")
    routes, schemas = document["paths"], document["components"]["schemas"]
    assert all(method in routes[place] for method, place in ROUTES)
    install = routes["/api/v2/models/install"]["post"]
    assert {one["name"] for one in install["parameters"]} >= QUERY
    for route in (install, routes["/api/v2/models/i/{key}"]["patch"]):
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith("/ModelRecordChanges")
    assert schemas["ModelRecordChanges"]["properties"].keys() >= CHANGES
    assert set(schemas["SchedulerPredictionType"]["enum"]) >= PREDICTIONS
    assert set(schemas["InstallStatus"]["enum"]) >= STATES
    files = [one for one in invokeai.models() if (one["type"], one["format"]) == ("main", "checkpoint")]
    jobs = invokeai.answer("/api/v2/models/install")
    assert files and all(one.keys() >= ANSWERS["main"].keys() for one in files)
    assert jobs and all(one.keys() >= ANSWERS["job"].keys() for one in jobs)
    assert all(one["source"].keys() >= ANSWERS["job"]["source"].keys() for one in jobs)


def test_its_models_are_listed_by_their_names_while_it_runs_and_after(
    invokeai: InvokeAI, models: Path, cache: Path, tmp_path: Path
) -> None:
    for name, layout in (("moved", "checkpoint"), ("moved_too", "diffusers")):
        recipe = merge("sd1", "", output={"name": name, "format": layout})
        model = finished(models, tmp_path / name, recipe, cache, None)
        invokeai.take(str(model.path), name=f"{name}: into its own folder")
    invokeai.take("external://openai/gpt-image-1")
    known = [one for one in invokeai.models() if one["base"] != "external"]
    assert len(known) < len(invokeai.models()) and any(not one["path"].startswith("/") for one in known)
    expected = sorted((one["name"], str(invokeai.root / "models" / one["path"])) for one in known)
    databases = invokeai.root / "databases"
    for running in (True, False):
        if not running:
            invokeai.process.kill()
            invokeai.process.wait()
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in databases.iterdir()}
        found, problems = models_in(roots_of([invokeai.root]))
        assert sorted((one.name, str(one.path)) for one in found) == expected and not problems
        assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in databases.iterdir()} == before
    with pytest.raises(PublishError, match="does not answer"):
        register(Model(tmp_path, PIPELINE, {}), invokeai.target())

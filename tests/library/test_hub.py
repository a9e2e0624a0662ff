"""Models of the hub by name: from a cache made by hand, and from a hub that is a small server here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.demo.models import demo_model
from runner.errors import InputError
from runner.library.hub import fetch, needed, parse_name
from runner.provenance.record import header_metadata
from runner.recipe.canonical import canonical_recipe
from runner.recipe.parse import parse_recipe
from tests.build import here, merge, resolved, write_models
from tests.serving import serving

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
NAME = "hf:someone/a-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def keep(hub: Path, source: Path, commit: str = COMMIT, revision: str = "main") -> Path:
    """Puts the files of a folder into the cache as the hub's library does: links to blobs."""
    root = hub / "models--someone--a-model"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    (root / "blobs").mkdir(exist_ok=True)
    for file in (path for path in sorted(source.rglob("*")) if path.is_file()):
        content = file.read_bytes()
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = root / "snapshots" / commit / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root / "snapshots" / commit


def tree(source: Any, **more: Any) -> dict[str, Any]:
    return {"method": "weighted_sum", "models": {"a": source, "b": source}, "alpha": 0.5, **more}


# ---- Names.


@pytest.mark.parametrize(
    ("text", "repository", "revision", "file"),
    [
        ("hf:org/name", "org/name", "main", None),
        ("hf:org/name@v1.0", "org/name", "v1.0", None),
        (f"hf:org/name@{COMMIT}", "org/name", COMMIT, None),
        ("hf:org/name@refs/pr/12", "org/name", "refs/pr/12", None),
        ("hf:org/name@refs/pr/12/x.safetensors", "org/name", "refs/pr/12", "x.safetensors"),
        ("hf:org/name@feature%2Fx", "org/name", "feature/x", None),
        ("hf:org/name@feature%2Fx/y/z.safetensors", "org/name", "feature/x", "y/z.safetensors"),
        ("hf:org/name/x.sft", "org/name", "main", "x.sft"),
        ("hf:org/name/X.SAFETENSORS", "org/name", "main", "X.SAFETENSORS"),
        ("hf:o-r.g/n_a.me/x.safetensors", "o-r.g/n_a.me", "main", "x.safetensors"),
        ("hf:org/name@main/sub/x y.safetensors", "org/name", "main", "sub/x y.safetensors"),
        ("hf:org/name/x@2.ckpt", "org/name", "main", "x@2.ckpt"),
    ],
)
def test_a_name_says_repository_revision_and_file(
    text: str, repository: str, revision: str, file: str | None
) -> None:
    name = parse_name(text)
    assert (name.repository, name.revision, name.file) == (repository, revision, file)


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:name", "hf:/name", "hf:org/", "hf:org/name@", "hf:org/name/", "hf:../name", "hf:org/.."),
        *("hf:org/name@..", "hf:org/name/../x.safetensors", "hf:org/name//x.safetensors", "hf:org/na me"),
        *("hf:org/name/./x.safetensors", "hf:org/name/a\\x.safetensors", "hf:org/name/\nx.safetensors"),
        *("hf:org/name@a%2F..%2Fb", "hf:org/name@a%2F", "hf:org/name@%2Fa"),
        *("hf:org/name/unet", "hf:org/name/x.py", "hf:org/name/x.gguf"),
    ],
)
def test_what_is_no_name_of_a_model_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_name(text)
    assert caught.value.tag == "HUB" and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("hf:a/b/unet", "for a pipeline write hf:a/b"),
        ("hf:a/b@main/unet", "for a pipeline write hf:a/b@main"),
        ("hf:a/b@refs/pr/7/unet", "for a pipeline write hf:a/b@refs/pr/7"),
        (
            "hf:a/b@feature/x/y",
            "for a pipeline write hf:a/b@feature; "
            "a slash in the name of a branch is written %2F: hf:a/b@feature%2Fx%2Fy",
        ),
    ],
)
def test_a_path_that_is_no_file_has_a_hint_of_what_may_have_been_meant(text: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_name(text)
    assert caught.value.hint == hint


@given(st.text(max_size=30))
def test_no_text_leads_out_of_the_repository(text: str) -> None:
    try:
        name = parse_name(f"hf:org/name{text}")
    except InputError:
        return
    assert ".." not in (name.file or "").split("/") and ".." not in name.revision.split("/")
    assert not (name.file or "").startswith("/")


# ---- Offline.


def test_a_pipeline_in_the_cache_is_merged_and_its_commit_known(
    hub: Path, cache: Path, tmp_path: Path
) -> None:
    snapshot = keep(hub, demo_model("photo", cache))
    found = resolved(tree(NAME), tmp_path)
    assert found.primary.checkpoint.label == NAME and found.primary.revision == COMMIT
    assert found.primary.checkpoint.root == snapshot
    path, _ = merge(tree(NAME), tmp_path, tmp_path / "out")
    local, _ = merge(tree(str(demo_model("photo", cache))), tmp_path, tmp_path / "local")
    for file in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/vocab.json"):
        theirs = (path / file).read_bytes()
        assert file.endswith(".safetensors") or theirs == (local / file).read_bytes()
    weights = "text_encoder/model.safetensors"  # the file without a recipe in its header
    assert (path / weights).read_bytes() == (local / weights).read_bytes()


@pytest.mark.parametrize("file", ["x.safetensors", "sub/folder/x.safetensors"])
def test_a_single_file_in_the_cache_is_found_by_its_path(file: str, hub: Path, tmp_path: Path) -> None:
    (tmp_path / "repository" / file).parent.mkdir(parents=True)
    write_models(tmp_path, x=1)
    (tmp_path / "x.safetensors").rename(tmp_path / "repository" / file)
    snapshot = keep(hub, tmp_path / "repository")
    assert fetch(f"{NAME}/{file}", None, offline=True) == (snapshot / file, COMMIT)
    merge(tree(f"{NAME}/{file}"), tmp_path, tmp_path / "out")


def test_a_revision_is_a_branch_a_tag_a_pull_request_or_a_commit(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    write_models(tmp_path / "files", x=1)
    keep(hub, tmp_path / "files")
    keep(hub, tmp_path / "files", OTHER, "v1.0")
    pull_request = hub / "models--someone--a-model" / "refs" / "refs" / "pr" / "3"
    pull_request.parent.mkdir(parents=True)
    pull_request.write_text(OTHER)
    expected = {"": COMMIT, "@main": COMMIT, "@v1.0": OTHER, "@refs/pr/3": OTHER, f"@{OTHER}": OTHER}
    for said, commit in expected.items():
        assert fetch(f"{NAME}{said}/x.safetensors", None, offline=True)[1] == commit


def test_a_branch_with_a_slash_is_written_as_the_hubs_addresses_write_it(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    write_models(tmp_path / "files", x=1)
    (hub / "models--someone--a-model" / "refs" / "feature").mkdir(parents=True)
    keep(hub, tmp_path / "files", OTHER, "feature/x")
    assert fetch(f"{NAME}@feature%2Fx/x.safetensors", None, offline=True)[1] == OTHER
    with pytest.raises(InputError) as caught:
        fetch(f"{NAME}@feature/x", None, offline=True)
    assert str(caught.value.hint).endswith(f"name of a branch is written %2F: {NAME}@feature%2Fx")


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"])
@pytest.mark.parametrize("place", ["~/hub", "$ELSEWHERE/hub"])
def test_a_cache_can_be_said_from_the_home_folder_or_a_variable(
    variable: str, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name, value in {variable: place, "HOME": str(tmp_path), "ELSEWHERE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "files").mkdir()
    write_models(tmp_path / "files", x=1)
    keep(tmp_path / "hub", tmp_path / "files")
    assert fetch(f"{NAME}/x.safetensors", None, offline=True)[1] == COMMIT


@pytest.mark.parametrize("said", ["", "@v9", f"@{OTHER}", "/other.safetensors", "@v9/x.safetensors"])
def test_offline_says_what_the_cache_lacks(said: str, hub: Path, cache: Path, tmp_path: Path) -> None:
    if said:
        keep(hub, demo_model("photo", cache))
    with pytest.raises(InputError, match=r"is not in the hub's cache, and the hub is not asked") as caught:
        resolved(tree(f"{NAME}{said}"), tmp_path)
    assert caught.value.exit_code == 4 and "\n" not in caught.value.message
    assert "hub=online" in str(caught.value.hint)


def test_a_cache_with_a_part_of_a_pipeline_is_told(hub: Path, cache: Path, tmp_path: Path) -> None:
    snapshot = keep(hub, demo_model("photo", cache))
    next((snapshot / "vae").glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match=f"{NAME}/vae: expected .safetensors or .bin weights") as caught:
        resolved(tree(NAME), tmp_path)
    assert "cache" in str(caught.value.hint)


def test_a_link_out_of_the_cache_is_refused(hub: Path, cache: Path, tmp_path: Path) -> None:
    snapshot = keep(hub, demo_model("photo", cache))
    config = snapshot / "vae" / "config.json"
    config.unlink()
    (tmp_path / "secret.json").write_text("{}")
    config.symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="a symbolic link that leaves the folder"):
        resolved(tree(NAME), tmp_path)


# ---- What is recorded.


def test_a_recipe_keeps_the_name_and_never_the_place(hub: Path, cache: Path, tmp_path: Path) -> None:
    keep(hub, demo_model("photo", cache))
    recipe = parse_recipe("test", tree({"source": NAME, "variant": "fp16"}), here)
    assert canonical_recipe(recipe)["models"][0] == {"role": "a", "source": NAME, "variant": "fp16"}
    metadata = header_metadata(resolved(tree(NAME), tmp_path))
    assert metadata["modelspec.merged_from"] == NAME
    assert str(tmp_path) not in json.dumps(metadata)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a merge; its files go to out, which must not be there."""
    (folder / "own.yaml").write_text(json.dumps(tree(NAME, output={"name": "merged"})))
    options = ["recipe=own", f"hydra.run.dir={folder / 'out'}", "progress=off", *arguments]
    said = {name: text for name, text in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [sys.executable, "-m", "runner", *options],
        env={**said, "RUNNER_RECIPES": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def recorded(folder: Path) -> dict[str, Any]:
    """What the record of a merge promises; the merge is then removed."""
    record: dict[str, Any] = json.loads((folder / "out" / "run.json").read_text())["deterministic"]
    shutil.rmtree(folder / "out")
    return record


def test_the_record_tells_the_commit(hub: Path, cache: Path, tmp_path: Path) -> None:
    keep(hub, demo_model("photo", cache))
    done = command(tmp_path, "hub=offline")
    assert done.returncode == 0, done.stderr
    record = recorded(tmp_path)
    (entry,) = record["inputs"]
    assert entry["source"] == NAME and entry["revision"] == COMMIT
    assert str(tmp_path) not in json.dumps(record)


# ---- Which files.

FILES = [
    *("model_index.json", "README.md", "image.png", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt"),
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_flax_model.msgpack"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json"),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin"),
    *("text_encoder/modeling_own.py", "text_encoder/deeper/model.safetensors"),
    *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json"),
    *(f"transformer/diffusion_pytorch_model-0000{at}-of-00002.safetensors" for at in (1, 2)),
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
    *(f"transformer/diffusion_pytorch_model.fp16-0000{at}-of-00002.safetensors" for at in (1, 2)),
    *("vae/config.json", "vae/diffusion_pytorch_model.bin", "other/model.safetensors"),
]
COMPONENTS = ["_class_name", "unet", "tokenizer", "scheduler", "text_encoder", "transformer", "vae"]
ALWAYS = {
    *("model_index.json", "unet/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    *("scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors"),
    *("transformer/config.json", "vae/config.json", "vae/diffusion_pytorch_model.bin"),
}
BY_VARIANT = {
    None: {
        *(
            "unet/diffusion_pytorch_model.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
        ),
        *(f"transformer/diffusion_pytorch_model-0000{at}-of-00002.safetensors" for at in (1, 2)),
    },
    "fp16": {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        *(f"transformer/diffusion_pytorch_model.fp16-0000{at}-of-00002.safetensors" for at in (1, 2)),
    },
}


def refused(where: str, reason: str) -> InputError:
    return InputError(f"{where}: {reason}")


@pytest.mark.parametrize("variant", BY_VARIANT)
def test_only_the_files_that_are_read_are_fetched(variant: str | None) -> None:
    files = needed(FILES, COMPONENTS, variant, refused)
    assert len(files) == len(set(files)) and set(files) == ALWAYS | BY_VARIANT[variant]


def test_a_variant_that_is_not_there_is_told_before_anything_is_fetched() -> None:
    with pytest.raises(InputError, match='no variant "fp61", did you mean "fp16"'):
        needed(FILES, COMPONENTS, "fp61", refused)


def test_what_is_fetched_of_a_pipeline_can_be_opened(cache: Path, tmp_path: Path) -> None:
    for name in ("photo", "sdxl_photo"):
        source = demo_model(name, cache)
        files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        index = json.loads((source / "model_index.json").read_text())
        for file in needed(files, index, None, refused):
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, tmp_path / name / file)
        ours, theirs = (
            resolved(tree(str(at)), tmp_path).primary.checkpoint for at in (tmp_path / name, source)
        )
        assert ours.specs == theirs.specs and ours.others.keys() == theirs.others.keys()


# ---- Online, from a hub of our own.


@pytest.fixture
def server(tmp_path: Path, cache: Path) -> Iterator[str]:
    """A hub on this machine with one repository: what huggingface_hub asks for, answered from a folder."""
    root = tmp_path / "served"
    shutil.copytree(demo_model("photo", cache), root)
    (root / "README.md").write_text("not asked for")
    write_models(root, single=1)
    files = {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            api, _, revision = (
                path.partition("/api/models/someone/a-model")[2].partition("/")[2].partition("/")
            )
            file = path.partition(f"/someone/a-model/resolve/{COMMIT}/")[2]
            if file in files:
                tag = hashlib.sha256(files[file]).hexdigest()
                self.answer(files[file], ETag=f'"{tag}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
            elif api == "revision" and revision in ("main", COMMIT):
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                body = {"id": "someone/a-model", "sha": COMMIT, "siblings": siblings}
                self.answer(json.dumps(body).encode(), Content_Type="application/json")
            elif api == "tree":
                entries = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in files.items()
                ]
                self.answer(json.dumps(entries).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/someone/a-model"):
                self.answer(b"{}", 404, X_Error_Code="RevisionNotFound")
            elif path.startswith("/api/models/someone/closed"):
                self.answer(b"{}", 403, X_Error_Code="GatedRepo")
            else:
                self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET  # noqa: N815 - as the library names it

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(Hub) as endpoint:
        yield endpoint
    assert not any("README" in path for path in asked)


def test_a_pipeline_is_downloaded_once_and_then_there_offline(
    server: str, hub: Path, cache: Path, tmp_path: Path
) -> None:
    done = command(tmp_path, HF_ENDPOINT=server)
    assert done.returncode == 0, done.stderr
    assert f"{NAME}: downloading" in done.stderr and COMMIT[:12] in done.stderr
    first = recorded(tmp_path)
    assert first["inputs"][0]["revision"] == COMMIT
    snapshot = hub / "models--someone--a-model" / "snapshots" / COMMIT
    assert not (snapshot / "README.md").exists() and not (snapshot / "single.safetensors").exists()
    again = command(tmp_path, "job=plan", HF_ENDPOINT=server)
    assert again.returncode == 0 and "downloading" not in again.stderr
    assert command(tmp_path, "job=plan", HF_HUB_OFFLINE="1").returncode == 0
    shutil.rmtree(tmp_path / "out")
    offline = command(tmp_path, "hub=offline")
    assert offline.returncode == 0, offline.stderr
    assert recorded(tmp_path) == first


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:someone/a-model@v9", "no revision"),
        ("hf:someone/no-model", "no such repository, or a private one"),
        ("hf:someone/closed", "access is restricted"),
        ("hf:someone/a-model/singel.safetensors", 'no such file, did you mean "single.safetensors"?'),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_line_with_a_hint(
    source: str, message: str, server: str, hub: Path, tmp_path: Path
) -> None:
    failed = command(tmp_path, f"recipe.models.a={source}", "recipe.models.b=demo:photo", HF_ENDPOINT=server)
    assert failed.returncode == 4, failed.stderr
    errors = [line for line in failed.stderr.splitlines() if line.startswith("runner: error")]
    assert len(errors) == 1 and source in errors[0] and message in errors[0]
    assert "Traceback" not in failed.stderr


def test_a_hub_that_cannot_be_reached_is_said_in_a_line_with_a_hint(hub: Path, tmp_path: Path) -> None:
    failed = command(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")  # nobody listens there
    assert failed.returncode == 4, failed.stderr
    error, hint = failed.stderr.strip().splitlines()[-2:]
    assert error.startswith(f'runner: error[E-HUB]: "{NAME}": the hub cannot be reached')
    assert hint.startswith("hint: hub=offline")

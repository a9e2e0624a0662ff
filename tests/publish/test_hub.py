"""Models pushed to a hub on this machine by huggingface_hub's own client, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.errors import PublishError, UsageError
from runner.publish.hub import checked_repository
from runner.publish.publication import publish_run
from runner.publish.target import Target
from tests.command import run
from tests.publish.hub_server import TOKEN, Hub, served


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client asks, with a login there.

    The client reads its environment when it is imported; in this process that was before. The transfer by
    chunks (Xet) needs servers of its own: it is switched off.
    """
    with served() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        for name, value in (
            ("ENDPOINT", found.endpoint),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_HUB_DISABLE_TELEMETRY", True),
        ):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        yield found


def publish(run: Path, **changes: bool) -> str:
    """Does job=publish; returns the word for what was done."""
    return publish_run(run, Target("hub", repository="me/mix", **changes), None, offline=False).result


def published(run: Path) -> list[dict[str, Any]]:
    """What the record says was published, in order."""
    found: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["run"]["published"]
    return found


def test_a_file_and_its_card_arrive_byte_by_byte_in_one_commit_and_once(file_run: Path, hub: Hub) -> None:
    assert publish(file_run) == "published"
    files = {name: (file_run / name).read_bytes() for name in ("mix.safetensors", "README.md")}
    assert hub.files == {".gitattributes": b"*", **files} and hub.large == {"mix.safetensors"}
    assert hub.private is True and hub.commits == ["Add 2 files"]
    before = len(hub.asked)
    assert publish(file_run) == "there already"
    assert hub.asked[before:] == ["POST /api/models/me/mix/paths-info/main"] and len(hub.commits) == 1
    assert [one["result"] for one in published(file_run)] == ["published", "there already"]
    everything = b"".join(path.read_bytes() for path in file_run.rglob("*") if path.is_file())
    assert TOKEN.encode() not in everything


def test_a_folder_arrives_whole_and_a_repository_may_be_public(folder_run: Path, hub: Hub) -> None:
    assert publish(folder_run, private=False) == "published"
    model = folder_run / "mix"
    files = {
        path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()
    }
    assert "README.md" in files and "unet/diffusion_pytorch_model.safetensors" in files
    assert hub.files == {".gitattributes": b"*", **files} and len(hub.commits) == 1
    assert hub.private is False


def test_from_the_command_line_it_is_one_line(file_run: Path, hub: Hub) -> None:
    """In a process of its own, where the client knows the hub from the environment alone."""
    arguments = ["job=publish", f"run={file_run}", "publish=hub", "publish.repository=me/mix"]
    home = str(file_run.parent / "home")
    done = run(file_run.parent, *arguments, "publish.dry_run=false", HF_HUB_DISABLE_XET="1", HF_HOME=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hub me/mix: published\n", "")
    assert hub.files is not None and "mix.safetensors" in hub.files


def test_what_is_there_and_differs_is_replaced_only_on_request(file_run: Path, hub: Hub) -> None:
    hub.files = {"README.md": b"my own words", "other.txt": b"mine"}
    for dry_run in (False, True):
        with pytest.raises(PublishError, match=r"1 file there with another content: README\.md"):
            publish(file_run, dry_run=dry_run)
    assert hub.files == {"README.md": b"my own words", "other.txt": b"mine"}
    assert publish(file_run, overwrite=True) == "published"
    assert hub.files["README.md"] == (file_run / "README.md").read_bytes()
    assert hub.files["other.txt"] == b"mine"


def test_a_dry_run_makes_nothing(file_run: Path, hub: Hub) -> None:
    assert publish(file_run, dry_run=True) == "dry run"
    assert hub.files is None and published(file_run)[0]["result"] == "dry run"


def test_a_login_that_is_refused_is_one_line_with_what_to_do(
    file_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {}
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    with pytest.raises(PublishError) as caught:
        publish(file_run)
    error, hint = caught.value.lines()
    assert "the model is in place, publishing failed: me/mix: the hub refuses this login" in error
    assert "hf auth login" in hint and "xxxx" not in error + hint
    assert hub.files == {}


@pytest.mark.parametrize("route", ["/objects/batch", "/commit/main"])
def test_a_hub_that_breaks_off_leaves_the_repository_without_half_a_model(
    route: str, file_run: Path, hub: Hub
) -> None:
    hub.files, hub.fault = {}, (route, 400)
    before = (file_run / "mix.safetensors").read_bytes()
    with pytest.raises(PublishError, match="the hub cannot be reached, or refuses") as caught:
        publish(file_run)
    assert caught.value.exit_code == 7 and len(caught.value.lines()) == 2
    assert hub.files == {} and (file_run / "mix.safetensors").read_bytes() == before
    assert [one["result"] for one in published(file_run)] == ["failed"]
    hub.fault = None
    assert publish(file_run) == "published" and "mix.safetensors" in hub.files


@pytest.mark.parametrize(
    "repository", [None, "", "mix", "me/mix/x.safetensors", "me/mix@main", "me/..", "../mix", "a b/c", "/a/b"]
)
def test_a_repository_is_an_owner_and_a_name(repository: str | None) -> None:
    with pytest.raises(UsageError, match=r"publish\.repository"):
        checked_repository(Target("hub", repository=repository), offline=False)


def test_a_hub_that_is_not_to_be_asked_is_told_before_the_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the hub is not to be asked"):
        checked_repository(Target("hub", repository="me/mix"), offline=False)  # HF_HUB_OFFLINE is set here
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert checked_repository(Target("hub", repository="me/mix"), offline=False) == "me/mix"
    with pytest.raises(UsageError, match="the hub is not to be asked"):
        checked_repository(Target("hub", repository="me/mix"), offline=True)

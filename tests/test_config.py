"""Settings: what conf/ means, and that a wrong value is told with what is expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from runner.compose import DATA_ROOT, register
from runner.config import MAX_THREADS, MAX_TILE_ELEMENTS, Job, Settings, default_cache, settings_of
from runner.errors import UsageError
from runner.place import Devices
from runner.publish.target import Target

DEFAULTS: dict[str, Any] = {
    "job": {"name": "merge", "keys": "summary"},
    "placement": {"devices": None, "max_memory": {}},
    "models_dir": ".",
    "model_folders": None,
    "output_dir": None,
    "cache_dir": None,
    "memory": "auto",
    "threads": 0,
    "tile_elements": 262144,
    "digests": "remember",
    "verify": True,
    "progress": "auto",
    "hub": "online",
    "locked": False,
    "rerun": False,
    "resume": None,
    "recipe": {},
}


def composed(*overrides: str) -> DictConfig:
    register()
    with initialize_config_dir(str(DATA_ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def parsed(**changes: Any) -> Settings:
    return settings_of(OmegaConf.create({**DEFAULTS, **changes}))


def refused(config: DictConfig) -> str:
    with pytest.raises(UsageError) as caught:
        settings_of(config)
    assert caught.value.exit_code == 2
    (line,) = caught.value.lines()
    return line.removeprefix("runner: error[E-USAGE]: ")


def test_the_defaults_of_conf(cache: Path) -> None:
    expected = Settings(
        job=Job("merge", "summary"),
        placement=Devices(None, {}),
        models_dir=Path(),
        output_dir=None,
        cache_dir=cache,
        memory=None,
        threads=0,
        tile_elements=262144,
        digests="remember",
        verify=True,
        progress="auto",
        hub="online",
    )
    assert settings_of(composed()) == expected
    assert parsed() == expected


def test_groups_are_chosen_by_name() -> None:
    settings = settings_of(composed("job=plan", "job.keys=all", "placement=cpu"))
    assert settings.job == Job("plan", "all")
    assert settings.placement == Devices(("cpu",), {})


def test_every_setting_can_be_overridden() -> None:
    overrides = ["models_dir=m", "output_dir=/o", "cache_dir=c", "memory=512MB", "threads=3", "verify=false"]
    settings = settings_of(composed(*overrides, "tile_elements=32768", "digests=fresh", "progress=on"))
    assert (settings.models_dir, settings.output_dir, settings.cache_dir) == (
        Path("m"),
        Path("/o"),
        Path("c"),
    )
    assert (settings.memory, settings.threads, settings.tile_elements) == (512_000_000, 3, 32768)
    assert (settings.digests, settings.verify, settings.progress) == ("fresh", False, "on")


@pytest.mark.parametrize(
    ("text", "size"), [("auto", None), (None, None), (1000, 1000), ("1.5GiB", 3 << 29), ("2 kB", 2000)]
)
def test_memory_is_a_size(text: Any, size: int | None) -> None:
    assert parsed(memory=text).memory == size


@pytest.mark.parametrize(
    ("devices", "expected"),
    [(None, None), (["cpu"], ("cpu",)), ([0, 1, "cpu"], (0, 1, "cpu")), (["1"], (1,))],
)
def test_devices_are_the_host_or_numbers(devices: Any, expected: Any) -> None:
    assert parsed(placement={"devices": devices, "max_memory": {}}).placement.devices == expected


def test_memory_by_device() -> None:
    placement = {"devices": None, "max_memory": {0: "6GB", "cpu": "512MB", "1": 7}}
    assert parsed(placement=placement).placement.max_memory == {0: 6 * 10**9, "cpu": 512 * 10**6, 1: 7}


@pytest.mark.parametrize("override", ["placement.max_memory={0: 6GB}", "placement.max_memory={cpu: 512MB}"])
def test_memory_by_device_is_given_as_help_shows_it(override: str) -> None:
    settings_of(composed(override))


def test_on_and_off_are_words_here() -> None:
    assert parsed(progress=True).progress == "on"
    assert parsed(progress=False).progress == "off"


@pytest.mark.parametrize(("digests", "hub"), [("remember", "online"), ("fresh", "offline")])
def test_what_follows_from_settings(digests: str, hub: str) -> None:
    settings = parsed(cache_dir="/c", models_dir="/m", model_folders=["/x"], digests=digests, hub=hub)
    assert settings.digest_memory == (Path("/c/digests.json") if digests == "remember" else None)
    assert settings.offline == (hub == "offline")
    library = settings.library
    assert (library.folders, library.cache_dir) == ((Path("/m"), Path("/x")), Path("/c"))
    assert settings.library is not library  # another job looks anew


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parsed(models_dir="~/models").models_dir == Path("/home/me/models")


def test_a_setting_may_use_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are the user's own words; only recipes are a stranger's."""
    monkeypatch.setenv("MODELS", "/m")
    assert settings_of(composed("models_dir=${oc.env:MODELS}/sd")).models_dir == Path("/m/sd")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("RUNNER_CACHE", "~/own")
    assert default_cache() == Path("/home/me/own")
    monkeypatch.delenv("RUNNER_CACHE")
    assert default_cache() == Path("/xdg/runner")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path("/home/me/.cache/runner")


def test_more_folders_are_a_list_or_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parsed().model_folders == ()
    monkeypatch.setenv("RUNNER_MODELS", "~/ComfyUI::/opt/forge")
    assert parsed().model_folders == (Path("/home/me/ComfyUI"), Path("/opt/forge"))
    assert parsed(model_folders=["~/x", 7]).model_folders == (Path("/home/me/x"), Path("7"))
    assert settings_of(composed("model_folders=[a,b]")).model_folders == (Path("a"), Path("b"))
    assert parsed(model_folders=[]).model_folders == ()


def test_the_form_has_its_settings() -> None:
    assert settings_of(composed("job=compose")).job == Job("compose")
    told = settings_of(composed("job=compose", "job.recipe=mine", "job.browser=true", "job.port=8000"))
    assert told.job == Job("compose", recipe="mine", browser=True, port=8000)
    assert "job.port" in refused(composed("job=compose", "job.port=70000"))


def test_the_jobs_on_the_models_there_are_have_their_settings() -> None:
    assert settings_of(composed("job=models", "job.match='*a*'", "job.json=true")).job == Job(
        "models", match="*a*", json=True
    )
    assert settings_of(composed("job=find")).job == Job("find")


def test_the_jobs_on_what_was_recorded_have_their_settings() -> None:
    assert settings_of(composed("job=verify", "source=x", "job.inputs=true", "job.proof=true")).job == Job(
        "verify", source=Path("x"), inputs=True, proof=True
    )
    assert settings_of(composed("job=verify", "source=x", "job.key=k.pem")).job.key == Path("k.pem")
    replay = composed("job=replay", "source=x", "job.keep=true", "job.ulps=1", "job.json=true")
    assert settings_of(replay).job == Job("replay", source=Path("x"), keep=True, ulps=1, json=True)
    assert settings_of(composed("job=compare", "job.a=x", "job.b=y")).job == Job(
        "compare", a=Path("x"), b=Path("y")
    )
    assert refused(composed("job=verify", "job.key=[a]")).startswith("job.key: expected the file of a public")
    assert refused(composed("job=replay", "job.ulps=-1")).startswith("job.ulps: expected an integer from 0")


@pytest.mark.parametrize(
    ("overrides", "target"),
    [
        (["publish=a1111", "publish.root=/ui"], Target("a1111", Path("/ui"))),
        (["publish=comfyui", "publish.link=false"], Target("comfyui", link=False)),
        (["publish=folder", "publish.overwrite=true"], Target("folder", overwrite=True)),
        (["publish=invokeai"], Target("invokeai", url="http://127.0.0.1:9090", patience=600)),
        (
            ["publish=hub", "publish.repository=me/x", "publish.dry_run=true", "publish.private=false"],
            Target("hub", repository="me/x", dry_run=True, private=False),
        ),
    ],
)
def test_a_target_is_chosen_by_name(overrides: list[str], target: Target) -> None:
    assert settings_of(composed(*overrides)).publish == target
    assert settings_of(composed("job=publish", "run=runs/x", *overrides)).job == Job(
        "publish", run=Path("runs/x")
    )


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"target": "a111"},
            'publish.target: expected a1111 or comfyui or folder or invokeai or hub; found "a11',
        ),
        ({"target": "hub", "dry_run": 1}, "publish.dry_run: expected true or false"),
        ({"target": "invokeai", "dry_run": False, "url": 7}, "publish.url: expected an address"),
        (
            {"target": "invokeai", "dry_run": False, "url": "x", "patience": 0},
            "publish.patience: expected an integer from 1",
        ),
        (
            {"target": "folder", "dry_run": False, "overwrite": False, "root": None, "link": True, "url": ""},
            "publish.url: unknown setting",
        ),
    ],
)
def test_a_wrong_target_is_told_with_its_place(tree: Any, words: str) -> None:
    assert refused(OmegaConf.create({**DEFAULTS, "publish": tree})).startswith(words)


def test_a_lock_and_what_is_done_already_have_their_settings() -> None:
    settings = settings_of(composed("job=lock", "job.update=true", "locked=true", "rerun=true", "resume=x"))
    assert settings.job == Job("lock", update=True)
    assert (settings.locked, settings.rerun, settings.resume) == (True, True, Path("x"))
    assert not settings_of(composed("job=lock")).job.update


MISTAKES: list[tuple[str, Any, str]] = [
    *[
        ("threads", value, f"an integer from 0 to {MAX_THREADS}")
        for value in (-1, 257, 1.5, True, "2", None, [])
    ],
    *[
        ("tile_elements", value, f"an integer from 32768 to {MAX_TILE_ELEMENTS}")
        for value in (0, 32767, MAX_TILE_ELEMENTS + 1, 65536.0, "65536", None)
    ],
    *[
        ("memory", value, 'auto or a size such as "512MB"')
        for value in (0, -1, "lots", "0.5", True, 1.5, [], {})
    ],
    *[("verify", value, "true or false") for value in (1, "true", None, "yes")],
    *[(name, value, "true or false") for name in ("locked", "rerun") for value in (1, "yes", None)],
    *[("resume", value, "the folder of a sweep") for value in ("", True, ["x"])],
    *[("sign_key", value, "the file of a private key") for value in ("", True, ["x"])],
    *[("digests", value, "remember or fresh") for value in ("sometimes", None, 1, True, ["fresh"])],
    *[("progress", value, "auto or on or off") for value in ("loud", None, 2)],
    *[("models_dir", value, "a folder") for value in ("", True, 1.5, ["x"], {"x": 1}, "a\0b")],
    *[("output_dir", value, "a folder") for value in ("", False, [])],
    *[
        ("model_folders", value, "a list of folders")
        for value in ("x", "", {}, [""], [True], [["x"]], ["a\0"])
    ],
    *[("cache_dir", value, "a folder") for value in ("", False, {})],
]


@pytest.mark.parametrize(("name", "value", "expected"), MISTAKES)
def test_a_wrong_value_is_told_with_what_is_expected(name: str, value: Any, expected: str) -> None:
    found = refused(OmegaConf.create({**DEFAULTS, name: value}))
    assert found.startswith(f"{name}: expected {expected}")
    assert "; found " in found


@pytest.mark.parametrize(
    ("placement", "path", "expected"),
    [
        ({"devices": []}, "devices", "a list such as [0, 1, cpu]"),
        ({"devices": "cpu"}, "devices", "a list such as [0, 1, cpu]"),
        ({"devices": {"cpu": 1}}, "devices", "a list such as [0, 1, cpu]"),
        ({"devices": ["gpu"]}, "devices", "cpu or the number of a GPU"),
        ({"devices": [-1]}, "devices", "cpu or the number of a GPU"),
        ({"devices": [True]}, "devices", "cpu or the number of a GPU"),
        ({"devices": [0.0]}, "devices", "cpu or the number of a GPU"),
        ({"devices": [None]}, "devices", "cpu or the number of a GPU"),
        ({"max_memory": "6GB"}, "max_memory", "sizes by device"),
        ({"max_memory": ["6GB"]}, "max_memory", "sizes by device"),
        ({"max_memory": {0: "lots"}}, "max_memory.0", 'a size such as "6GB"'),
        ({"max_memory": {0: None}}, "max_memory.0", 'a size such as "6GB"'),
        ({"max_memory": {"cuda": "6GB"}}, "max_memory", "cpu or the number of a GPU"),
    ],
)
def test_a_wrong_placement_is_told_with_its_place(placement: Any, path: str, expected: str) -> None:
    tree = {"devices": None, "max_memory": {}, **placement}
    found = refused(OmegaConf.create({**DEFAULTS, "placement": tree}))
    assert found.startswith(f"placement.{path}: expected {expected}")


@pytest.mark.parametrize("value", [False, 0, "", []])
def test_an_empty_value_is_no_memory_by_device(value: Any) -> None:
    tree = {"devices": None, "max_memory": value}
    refused(OmegaConf.create({**DEFAULTS, "placement": tree}))


def test_a_size_without_end_is_no_size() -> None:
    refused(OmegaConf.create({**DEFAULTS, "memory": f"{'9' * 400}GB"}))


@pytest.mark.parametrize("value", [40000, 32769, 65535])
def test_a_tile_is_a_multiple_of_what_sums_are_taken_over(value: int) -> None:
    found = refused(composed(f"tile_elements={value}"))
    assert found == f"tile_elements: expected a multiple of 32768, found {value}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"job": {"name": "mrege", "keys": "all"}},
            "job.name: expected merge or plan or lock or methods or presets or import or inspect or models "
            "or find or publish or verify or replay or compare or compose; ",
        ),
        (
            {"job": {"name": "plan", "keys": "al"}},
            'job.keys: expected summary or all; found "al", did you mean "all"?',
        ),
        ({"job": {"name": "plan"}}, "job.keys: expected summary or all"),
        (
            {"job": {"name": "plan", "keys": "all", "key": 1}},
            'job.key: unknown setting, did you mean "keys"?',
        ),
        (
            {"placement": {"devices": None, "max_memory": {}, "x": 1}},
            "placement.x: unknown setting (known: dev",
        ),
        ({"thread": 3}, 'thread: unknown setting, did you mean "threads"?'),
        ({"x": 3}, "x: unknown setting (known: models_dir,"),
    ],
)
def test_unknown_names_and_words_are_told_with_what_is_near(changes: Any, words: str) -> None:
    assert refused(OmegaConf.create({**DEFAULTS, **changes})).startswith(words)


@pytest.mark.parametrize(
    "value", ["${nothing}", "${oc.env:NOT_SET_ANYWHERE}", "${models_dir}", "${recipe.method}", "${x:}"]
)
def test_a_reference_that_does_not_resolve_is_a_mistake(value: str) -> None:
    assert refused(OmegaConf.create({**DEFAULTS, "models_dir": value})).startswith("settings: ")


def test_the_recipe_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    assert parsed(recipe={"x": "${oc.env:NOT_SET_ANYWHERE}", "y": "???"}) == parsed()

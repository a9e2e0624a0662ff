"""README.md of a result: what hubs and people read of it, and nothing that strangers could write into it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runner.provenance.ancestry import header_entries, input_digests, trace
from runner.provenance.card import card as card_of
from runner.provenance.card import fenced, inline
from runner.recipe.guard import read_text
from runner.recipe.parse import parse_recipe
from tests.build import here, merge, planned
from tests.provenance.test_ancestry import HOSTILE, model

PIPELINES = {
    "method": "weighted_sum",
    "models": {"a": "demo:base", "b": "demo:photo"},
    "alpha": 0.25,
    "license": "mit",
    "output": {"name": "mix"},
}


def card(folder: Path, **changes: Any) -> str:
    target, _ = merge({**PIPELINES, **changes}, folder, folder / "out")
    return (target / "README.md").read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return card(tmp_path_factory.mktemp("card"))


def front_matter(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_folder_has_a_card_with_the_fields_of_the_hub(text: str) -> None:
    assert front_matter(text) == {"license": "mit", "library_name": "diffusers", "tags": ["merge"]}
    assert "# mix\n" in text and "demo\\:photo" in text


def test_its_recipe_can_be_run_and_knows_its_models_by_digest(text: str) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    file = read_text(recipe.encode(), "mix.yaml", "mix")
    assert not file.problems
    parsed = parse_recipe("mix", file.tree, here)
    table = re.findall(r"`([0-9a-f]{64})`", text)
    assert [source.sha256 for source in parsed.merge.sources()] == table and len(table) == 2
    assert parsed.merge.parameters == {"alpha": 0.25} and parsed.license == "mit"


def test_it_is_the_same_for_the_same_recipe_and_tells_no_folder(text: str, tmp_path: Path) -> None:
    assert card(tmp_path) == text and str(tmp_path) not in text


def test_a_licence_the_hub_does_not_know_is_another(tmp_path: Path) -> None:
    said = front_matter(card(tmp_path, license='My own: "terms"\n---\nlicense: mit'))
    assert (said["license"], said["license_name"]) == ("other", "my-own-terms-license-mit")


@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.just(HOSTILE))
def test_texts_of_strangers_are_no_markdown(text: str) -> None:
    shown = inline(text)
    assert "\n" not in shown and "\x1b" not in shown
    bare = re.sub(r"\\[\\`*_{}\[\]()<>#+\-.!|~&@:$^=]|&(amp|lt|gt);", "", shown)
    assert not re.search(r"[\\`*_{}\[\]()<>#+\-.!|~&@:$^=]", bare.replace("\\u", ""))


@given(st.lists(st.text("`a~ ", max_size=8), max_size=4))
def test_nothing_ends_a_fence_but_its_end(lines: list[str]) -> None:
    first, *inside, last = fenced(lines, "text").split("\n")
    assert first == f"{last}text" and not any(line.strip().startswith(last) for line in inside)


def test_what_a_hostile_header_says_is_shown_and_not_read(tmp_path: Path) -> None:
    said = {
        "modelspec.license": HOSTILE,
        "sd_merge_recipe": json.dumps({"type": "webui", "primary_model_hash": "1" * 64}),
        "sd_merge_models": json.dumps({"1" * 64: {"name": f"```\n{HOSTILE}", "license": "```\n<b>"}}),
    }
    model(tmp_path, "bad", 7, said)
    model(tmp_path, "b", 8, {})
    tree = {"method": "weighted_sum", "models": {"a": "bad.safetensors", "b": "b.safetensors"}, "alpha": 0.5}
    plan = planned(tree, tmp_path)
    entries = header_entries(trace(plan.resolved))
    text = card_of(plan, input_digests(plan.resolved, None), entries).decode()
    outside = re.sub(r"(?ms)^(````*)\w+\n.*?^\1$", "", text)
    assert "<script" not in outside and "](http" not in outside
    assert "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"^# head", text, re.MULTILINE)
    assert front_matter(text)["license"] == "other"
    rows = [line for line in outside.splitlines() if line.startswith("| a")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [7]

"""What is said of the methods is what they are: job=methods and docs/methods.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from runner.catalogue import (
    compatible,
    details,
    markdown,
    overview,
    preset_details,
    preset_overview,
    standard,
)
from runner.errors import Location, UsageError
from runner.methods import METHODS, Method
from runner.recipe.parse import parse_recipe
from runner.weighting.presets import PRESET_NAMES, preset
from tests.command import run

GUIDE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()


def test_every_method_is_listed_with_all_its_parameters() -> None:
    assert {method.name for method in standard()} == {name for name, tool in METHODS if tool is None}
    assert sum(map(len, compatible().values())) == len([tool for _, tool in METHODS if tool])
    text = overview()
    for method in METHODS.values():
        assert f"{method.name}(" in text
        assert all(parameter in details(method.name) for parameter in method.parameters)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.label)
def test_of_the_arguments_of_a_method_those_are_explained_that_a_recipe_can_say(method: Method) -> None:
    can_say = {*method.roles, method.optional, *method.parameters, "models", "loras", "adapters"}
    for text in details(method.name).split("Args:\n")[1:]:
        arguments = re.findall(r"^ {6}(\w[\w, ]*): ", text.partition("\n\n")[0], re.MULTILINE)
        assert arguments and {name for names in arguments for name in names.split(", ")} <= can_say


def test_arguments_that_the_engine_supplies_are_left_out_with_all_that_is_said_of_them() -> None:
    text = details("extract_lora")
    assert "streams of the merge" not in text and "that the energy gave" not in text
    assert "a, b: as in cosine_a." in details("cosine_b")


def test_the_table_of_the_guide_is_the_generated_one() -> None:
    """To make it again: print(runner.catalogue.markdown()) between the two comments."""
    found = re.search(r"<!-- methods: .*? -->\n(.*)<!-- end of methods -->", GUIDE, re.DOTALL)
    assert found and found[1] == markdown()


def test_every_method_and_recipe_the_guide_names_exists() -> None:
    known = {name for name, _ in METHODS}
    families = {"dare_*", "della*", "breadcrumbs*"}
    prose = GUIDE.partition("## Numbers by place")[0]
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)*\*?|[a-z]+_\*)`", prose)) - families
    fields = {"base", "dare", "della", "breadcrumbs", "b", "c"}
    assert named - fields <= known
    root = Path(__file__).parents[1]
    assert all((root / "docs" / target).exists() for target in re.findall(r"\]\((\.\./[^)]+)\)", GUIDE))


def test_the_ways_to_write_a_number_are_well_formed() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines():
        tree = {"method": "weighted_sum", "models": {"a": "demo:photo", "b": "demo:anime"}}
        parse_recipe("guide", {**tree, **yaml.safe_load(line)}, lambda path: Location("guide"))


def test_the_command_lists_and_explains(tmp_path: Path) -> None:
    listed = run(tmp_path, "job=methods").stdout
    assert listed.strip() == overview().strip()
    one = run(tmp_path, "job=methods", "job.method=ties").stdout
    assert one.strip() == details("ties").strip()


def test_an_unknown_method_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='did you mean "slerp"'):
        details("slrp")


def test_every_preset_is_drawn_and_listed_with_its_numbers() -> None:
    text = preset_overview()
    assert all(name in text for name in PRESET_NAMES)
    assert re.search(r"^GRAD_V +█▇▇▆▆▅▅▄▃▃▂▂▁▂▂▃▃▄▅▅▆▆▇▇█$", text, re.MULTILINE)
    for name in PRESET_NAMES:
        (pasted,) = re.findall(r"^mbw: (\[.*\])$", preset_details(name), re.MULTILINE)
        assert yaml.safe_load(pasted) == pytest.approx(preset(name), abs=1e-6)
        assert pasted.count(",") == 25


def test_a_preset_that_is_not_there_is_an_error_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'no such preset, did you mean "COSINE"\?'):
        preset_details("COSIN")

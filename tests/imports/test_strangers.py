"""Whatever strangers write into headers and texts: a recipe that passes the guard, or one error."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import RunnerError
from runner.imports import import_file, import_metadata, import_text
from runner.imports.recipe_text import recipe_text
from tests.imports.test_records import CHATTIORI, HEADER, MODELS, SUPERMERGER, WEBUI, A, B, row

DATA = Path(__file__).parent / "data"
TEXTS = [path.read_text() for path in sorted(DATA.glob("*.[my]*"))]
TEXTS += [HEADER + row(), row(mbw="True"), json.dumps(WEBUI)]

WORDS = st.sampled_from(
    ["", "a", "${oc.env:HOME}", "../../x", "_target_", "# @package", "\0", "\u2028", "\ud800", "1e999",
     "NaN", "&0", "*", "IN00", "Weighted sum", "Add difference", "extract", "Triple sum", A, B,
     "0.5", "true", "x" * 5000]
)  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | WORDS
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)


def check(imported: Any) -> None:
    """Either a recipe whose text is accepted, or an error of ours in one short line."""
    try:
        found = imported()
        text = recipe_text(found, "x")
    except RunnerError as error:
        assert error.exit_code == 4
        assert all(len(line.encode()) <= 500 for line in error.lines())
    else:
        kinds = {unicodedata.category(char) for char in text if char != "\n"}
        assert not any(kind[0] == "C" or kind in ("Zl", "Zp") for kind in kinds)
        assert len(text) < 1 << 20


@settings(max_examples=150, deadline=None)
@given(
    record=st.sampled_from([WEBUI, SUPERMERGER, CHATTIORI]),
    changes=st.dictionaries(st.integers(0, 30), VALUES, max_size=4),
    models=VALUES,
)
def test_a_changed_record_is_a_recipe_or_an_error(
    record: dict[str, Any], changes: dict[int, Any], models: Any
) -> None:
    names = list(record)
    changed = {**record, **{names[at % len(names)]: value for at, value in changes.items()}}
    nested = {**MODELS, A: {"name": models, "sd_merge_recipe": changed}, B: models}
    check(lambda: import_metadata({"sd_merge_recipe": changed, "sd_merge_models": models}, "x"))
    check(lambda: import_metadata({"sd_merge_recipe": record, "sd_merge_models": nested}, "x"))


@settings(max_examples=100, deadline=None)
@given(
    value=VALUES, key=st.sampled_from(["runner.recipe", "mecha_recipe", "sd_merge_recipe", "sd_merge_models"])
)
def test_anything_under_the_keys_that_are_read_is_a_recipe_or_an_error(value: Any, key: str) -> None:
    check(lambda: import_metadata({key: value}, "x"))
    recipe = {"method": value, "models": [{"role": "a", "source": value}], "alpha": value, "output": value}
    check(lambda: import_metadata({"runner.recipe": recipe}, "x"))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=st.sampled_from(TEXTS))
def test_a_damaged_text_is_a_recipe_or_an_error(data: st.DataObject, text: str) -> None:
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(len(text), begin + 12)))
        other = data.draw(WORDS | st.sampled_from(['"', "&1", "=", "\n", "[", "{", ": ", "- ", " &0 &1"]))
        text = text[:begin] + other + text[end:]
    check(lambda: import_text(text.encode("utf-8", "replace").decode(), "x"))


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_file_is_a_recipe_or_an_error(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_bytes(content)
    check(lambda: import_file(path))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        "version 0.1.0\n" + "merge " * 100_000,
        "version 0.1.0\n" + "\n".join(['model "' + "a" * 1000 + '"'] * 4000),
        'version 0.1.0\nmodel "' + "\\" * 200_000,
        "merge_method: linear\nmodels: " + "[" * 50_000,
        "merge_method: linear\nmodels: [" + "{model: x}, " * 20_000 + "]",
        '"' * 300_000,
        ",".join(["Weight"] * 200_000),
        'version 0.1.0\nmodel "a"\nmerge "n_average" ' + "&0 " * 300_000,
        'version 0.1.0\nmodel "a"\nmerge ' + " " * 900_000 + "x=",
        'version 0.1.0\nmodel "a"\nmodel "b"\nmerge "subtract" &0 &1\n'
        + f'merge "n_average" {"&2 " * 60}\n' * 900,
    ],
    ids=range(12),
)
def test_long_and_deep_texts_end_soon(text: str) -> None:
    check(lambda: import_text(text, "x"))

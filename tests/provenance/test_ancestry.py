"""The header of a result: its inputs, how they were merged, and their ancestors, whatever strangers wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from runner.demo.models import demo_model
from runner.digests import InputDigests
from runner.family import family_tree
from runner.imports import import_file, import_metadata
from runner.provenance.ancestry import MAX_ANCESTRY_BYTES, header_entries, trace
from tests.build import digest, merge, metadata_of, planned, random_tensors, resolved, write_models

HOSTILE = "\x1b]0;owned\x07<script>alert(1)</script>[x](https://evil.example)|`\n# head\u202e"


def tree(a: str, b: str, **changes: Any) -> dict[str, Any]:
    models = {"a": f"{a}.safetensors", "b": f"{b}.safetensors"}
    return {"method": "weighted_sum", "models": models, "alpha": 0.25, **changes}


def model(folder: Path, name: str, seed: int, metadata: Mapping[str, str]) -> Path:
    path = folder / f"{name}.safetensors"
    save_file(random_tensors(seed), path, {"format": "pt", **metadata})
    return path


def merged(folder: Path, recipe: Mapping[str, Any], name: str) -> Path:
    """A merge that is an input of the next."""
    made, _ = merge(recipe, folder, folder / "out")
    return made.rename(folder / f"{name}.safetensors")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path, a=1, b=2, c=3, d=4)
    return tmp_path


def test_the_header_names_every_input_by_role_digest_size_and_licence(tmp_path: Path) -> None:
    a = model(tmp_path, "a", 1, {"modelspec.license": "mit", "modelspec.author": "Ada"})
    b = model(tmp_path, "b", 2, {})
    inner = tree("a", "b")
    path = merged(tmp_path, {**tree("a", "b"), "models": {"a": "a.safetensors", "b": inner}}, "m")
    assert json.loads(metadata_of(path)["runner.inputs"]) == [
        {
            "roles": ["a", "b.a"],
            "name": "a.safetensors",
            "sha256": digest(a),
            "bytes": a.stat().st_size,
            "layout": "checkpoint",
            "architecture": None,
            "license": "mit",
            "author": "Ada",
        },
        {
            "roles": ["b.b"],
            "name": "b.safetensors",
            "sha256": digest(b),
            "bytes": b.stat().st_size,
            "layout": "checkpoint",
            "architecture": None,
        },
    ]


@pytest.mark.parametrize(
    ("recipe", "name", "number"),
    [
        (tree("a", "b"), "Weighted sum", 0.25),
        (tree("a", "b", alpha={"default": 0.25}), "Weighted sum", 0.25),
        (tree("a", "b", alpha={"default": 0.25, "vae": 0}), None, None),
        (tree("a", "b", compat="supermerger", alpha=0.5), None, None),
        ({"method": "copy", "models": {"a": "a.safetensors"}}, "No interpolation", None),
        (tree("a", "b", method="sigmoid"), None, None),
        (tree("a", "b") | {"models": {"a": "a.safetensors", "b": tree("b", "c")}}, None, None),
    ],
)
def test_a_merge_that_a1111_knows_is_in_its_fields_and_every_merge_is_in_ours(
    models: Path, recipe: dict[str, Any], name: str | None, number: float | None
) -> None:
    metadata = metadata_of(merged(models, recipe, "m"))
    record = json.loads(metadata["sd_merge_recipe"])
    assert (record["type"], record["interp_method"], record["multiplier"]) == ("runner", name, number)
    digests = {name: digest(models / f"{name}.safetensors") for name in "abc"}
    assert record["primary_model_hash"] == (digests["a"] if name else None)
    assert record["steps"] == metadata["runner.recipe"]
    assert set(record["models"].values()) <= set(digests.values())
    assert record["models"]["a"] == digests["a"]


def test_a1111s_hash_of_an_input_is_read_from_it(tmp_path: Path) -> None:
    save_file({"x": torch.arange(400_000, dtype=torch.float32)}, tmp_path / "a.safetensors")
    save_file({"x": torch.ones(400_000)}, tmp_path / "b.safetensors")
    path = merged(tmp_path, tree("a", "b"), "m")
    entries = json.loads(metadata_of(path)["sd_merge_models"])
    for name in "ab":
        content = (tmp_path / f"{name}.safetensors").read_bytes()
        entry = entries[hashlib.sha256(content).hexdigest()]
        assert entry["name"] == f"{name}.safetensors" and entry["sd_merge_recipe"] is None
        assert entry["legacy_hash"] == hashlib.sha256(content[1 << 20 :][: 1 << 16]).hexdigest()[:8]


def test_a_folder_is_known_by_the_digest_of_its_list(tmp_path: Path) -> None:
    recipe = tree("a", "b") | {"models": {"a": "demo:base", "b": "demo:photo"}}
    recipe["output"] = {"format": "checkpoint"}
    metadata = metadata_of(merge(recipe, tmp_path, tmp_path / "out")[0])
    kinds = {
        entry["kind"]: entry["legacy_hash"] for entry in json.loads(metadata["sd_merge_models"]).values()
    }
    assert kinds == {"diffusers": None}


def test_the_folder_of_a_component_is_known_as_a_folder(tmp_path: Path) -> None:
    unet = demo_model("base", tmp_path) / "unet"
    recipe = {"method": "copy", "models": {"a": str(unet)}}
    metadata = metadata_of(merge(recipe, tmp_path, tmp_path / "out")[0])
    weights = digest(unet / "diffusion_pytorch_model.safetensors")
    listed = hashlib.sha256(f"{weights}  diffusion_pytorch_model.safetensors\n".encode()).hexdigest()
    entry = json.loads(metadata["sd_merge_models"])[listed]
    assert (entry["kind"], entry["legacy_hash"]) == ("diffusers", None)


def test_a_merge_of_a_merge_of_a_merge_has_the_whole_family(models: Path) -> None:
    short = {name: digest(models / f"{name}.safetensors")[:10] for name in "abcd"}
    one = merged(models, tree("a", "b"), "one")
    two = merged(models, tree("one", "c", alpha=0.5), "two")
    three = merged(
        models, {**tree("two", "d"), "models": {"a": "two.safetensors", "b": tree("d", "a")}}, "three"
    )
    assert family_tree(metadata_of(three)) == [
        "  weighted_sum@1, alpha 0.25  [runner]",
        f"    a  two.safetensors  {digest(two)[:10]}, itself merged:",
        "       weighted_sum@1, alpha 0.5  [runner]",
        f"         a  one.safetensors  {digest(one)[:10]}, itself merged:",
        "            weighted_sum@1, alpha 0.25  [runner]",
        f"              a  a.safetensors  {short['a']}",
        f"              b  b.safetensors  {short['b']}",
        f"         b  c.safetensors  {short['c']}",
        "    b  weighted_sum, alpha 0.25",
        f"       a  d.safetensors  {short['d']}",
        f"       b  a.safetensors  {short['a']}",
    ]


def test_an_input_that_is_also_an_ancestor_stands_in_the_header_once(models: Path) -> None:
    merged(models, tree("a", "b"), "one")
    path = merged(models, tree("one", "a"), "two")
    names = [entry["name"] for entry in json.loads(metadata_of(path)["sd_merge_models"]).values()]
    assert sorted(names) == ["a.safetensors", "b.safetensors", "one.safetensors"]


def test_the_family_of_a_merge_by_another_tool_is_carried_on(models: Path) -> None:
    record = {"type": "webui", "primary_model_hash": "1" * 64, "interp_method": "No interpolation"}
    ancestors = {"1" * 64: {"name": "sub/old.ckpt", "legacy_hash": "0123abcd", "sd_merge_recipe": None}}
    said = {"sd_merge_recipe": json.dumps(record), "sd_merge_models": json.dumps(ancestors)}
    model(models, "webui", 7, said)
    path = merged(models, tree("webui", "a"), "m")
    entries = json.loads(metadata_of(path)["sd_merge_models"])
    assert entries["1" * 64] == {"name": "old.ckpt", "legacy_hash": "0123abcd", "sd_merge_recipe": None}
    assert entries[digest(models / "webui.safetensors")]["sd_merge_recipe"] == record
    assert "      A  old.ckpt  1111111111" in "\n".join(family_tree(metadata_of(path)))


def test_merges_of_ours_without_a_history_still_have_their_inputs(models: Path) -> None:
    recipe = {"method": "weighted_sum", "models": [{"role": "a", "source": "x"}], "alpha": 0.5}
    model(models, "old", 7, {"runner.recipe": json.dumps(recipe), "runner.method": "weighted_sum@1"})
    tree_lines = family_tree(metadata_of(merged(models, tree("old", "a"), "m")))
    assert "       weighted_sum@1, alpha 0.5  [runner]" in tree_lines and "         a  x" in tree_lines


def test_the_bytes_are_the_same_from_another_folder(models: Path) -> None:
    one = merged(models, tree("a", "b"), "one")
    other = models / "other"
    other.mkdir()
    for name in "ab":
        (models / f"{name}.safetensors").rename(other / f"{name}.safetensors")
    assert merged(other, tree("a", "b"), "one").read_bytes() == one.read_bytes()


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"sd_merge_recipe": '{"type":"x","type":"y"}'}, id="a name twice"),
        pytest.param({"sd_merge_recipe": DEEP, "sd_merge_models": DEEP, "runner.recipe": DEEP}, id="deep"),
        pytest.param({"sd_merge_models": json.dumps({"1" * 64: {"name": "x" * (29 << 20)}})}, id="29 MiB"),
        pytest.param({"runner.inputs": "[" * 100_000, "runner.recipe": "{}"}, id="no list"),
        pytest.param({"runner.inputs": '{"a":1}', "sd_merge_models": "[1]"}, id="other types"),
        pytest.param({"sd_merge_models": json.dumps({"x": {}, "1" * 64: 7})}, id="no digests"),
        pytest.param({"sd_merge_recipe": '{"multiplier":NaN}'}, id="NaN"),
        pytest.param(
            {
                "modelspec.license": HOSTILE,
                "modelspec.author": HOSTILE,
                "sd_merge_recipe": json.dumps({"type": HOSTILE, HOSTILE: [HOSTILE], "multiplier": 10**300}),
                "sd_merge_models": json.dumps({"1" * 64: {"name": HOSTILE, "license": HOSTILE}}),
            },
            id="control characters",
        ),
    ],
)
def test_a_hostile_header_neither_stops_a_merge_nor_enters_it(models: Path, metadata: dict[str, str]) -> None:
    model(models, "bad", 7, metadata)
    path = merged(models, tree("bad", "a"), "m")
    found = metadata_of(path)
    text = json.dumps(found, ensure_ascii=True)
    assert "\\u001b" not in text and "\\u202e" not in text and "\\u0007" not in text
    assert len(text) < 100_000
    assert json.loads(found["runner.inputs"])[0]["roles"] == ["a"]
    assert family_tree(found)


def test_what_could_not_be_read_of_a_header_is_a_warning_of_the_plan(models: Path) -> None:
    model(models, "bad", 7, {"sd_merge_models": DEEP})
    warnings = planned(tree("bad", "a"), models).warnings
    assert any("bad.safetensors" in one and "nested more than" in one for one in warnings)


def test_the_oldest_ancestors_are_left_out_when_there_is_no_room_and_the_header_says_so(models: Path) -> None:
    digests = [f"{number:064x}" for number in range(2000)]
    ancestors = {
        digest: {
            "name": "x" * 200,
            "sd_merge_recipe": {"type": "webui", "primary_model_hash": following},
        }
        for digest, following in zip(digests, [*digests[1:], None], strict=True)
    }
    record = {"type": "webui", "primary_model_hash": digests[0]}
    said = {"sd_merge_recipe": json.dumps(record), "sd_merge_models": json.dumps(ancestors)}
    model(models, "old", 7, said)
    path = merged(models, tree("old", "a"), "m")
    found = metadata_of(path)
    kept = json.loads(found["sd_merge_models"]).keys() & set(digests)
    assert kept == set(digests[: len(kept)]) and 500 < len(kept) < 2000
    assert len(found["sd_merge_models"]) < MAX_ANCESTRY_BYTES + 2000
    assert found["runner.ancestors_lost"] == str(2000 - len(kept))
    (warning,) = planned(tree("old", "a"), models).warnings
    assert f"{2000 - len(kept)} older ancestors" in warning


def test_licences_that_differ_are_a_warning_and_all_in_the_header(tmp_path: Path) -> None:
    for number, (name, licence) in enumerate((("a", "mit"), ("b", "openrail"), ("c", ""))):
        model(tmp_path, name, number, {"modelspec.license": licence} if licence else {})
    (warning,) = planned(tree("a", "b"), tmp_path).warnings
    assert '"mit" (a.safetensors); "openrail" (b.safetensors)' in warning and warning.endswith('"mit"')
    (warning,) = planned(tree("a", "b", license="cc0"), tmp_path).warnings
    assert warning.endswith('the recipe says "cc0"')
    assert not planned(tree("a", "c"), tmp_path).warnings
    path = merged(tmp_path, tree("a", "b"), "m")
    assert [one["license"] for one in json.loads(metadata_of(path)["runner.inputs"])] == ["mit", "openrail"]


def test_names_of_files_can_be_left_out(models: Path) -> None:
    merged(models, tree("a", "b"), "secret_one")
    path = merged(models, tree("secret_one", "c", output={"name": "mix", "hide_names": True}), "m")
    text = json.dumps(metadata_of(path))
    assert "safetensors" not in text and "secret" not in text
    for name in ("a", "b", "c", "secret_one"):
        assert digest(models / f"{name}.safetensors") in text
    assert json.loads(metadata_of(path)["runner.recipe"])["models"][0]["source"] == "input-1"


def test_our_own_file_is_imported_with_the_digests_of_its_models(models: Path) -> None:
    path = merged(models, tree("a", "b"), "m")
    imported = import_file(path).tree["models"]
    assert imported["b"] == {"source": "b.safetensors", "sha256": digest(models / "b.safetensors")}


def test_an_ancestor_of_ours_in_the_record_of_another_tool_is_expanded(models: Path) -> None:
    said = {"output": {"name": "m", "dtype": "float16"}, "prediction_type": "epsilon", "author": "me"}
    ours = metadata_of(merged(models, tree("a", "b", **said), "m"))
    record = {
        "type": "webui",
        "primary_model_hash": "1" * 64,
        "secondary_model_hash": "2" * 64,
        "interp_method": "Weighted sum",
        "multiplier": 0.5,
    }
    known = {
        "1" * 64: {"name": "m.safetensors", "sd_merge_recipe": json.loads(ours["sd_merge_recipe"])},
        "2" * 64: {"name": "n.safetensors"},
    }
    found = import_metadata({"sd_merge_recipe": record, "sd_merge_models": known}, "x").tree
    assert found["models"]["a"] == {
        "method": "weighted_sum",
        "models": {
            name: {"source": f"{name}.safetensors", "sha256": digest(models / f"{name}.safetensors")}
            for name in "ab"
        },
        "alpha": 0.25,
    }


def test_what_is_planned_has_room_for_what_is_known_in_the_end(models: Path) -> None:
    merged(models, tree("a", "b"), "one")
    bound = resolved(tree("one", "a"), models)
    ancestry = trace(bound)
    with InputDigests(bound.files, None, 1) as digests:
        final = header_entries(ancestry, digests.wait())
    for key, text in header_entries(ancestry).items():
        assert len(text) >= len(final[key])

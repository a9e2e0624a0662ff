"""sd_merge_recipe of A1111, supermerger and Chattiori, rows of supermerger's history, and our own recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from runner.digests import InputDigests, model_digest
from runner.errors import InputError
from runner.imports import Imported, import_file, import_metadata, import_text
from runner.imports.blocks import elemental
from runner.imports.imported import MAX_MERGES, Notes, file_name, merges
from runner.imports.recipe_text import recipe_text, unknown_names
from runner.methods import METHODS
from tests.build import merge, merged, planned, resolved, write_models

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
MODELS: dict[str, Any] = {
    digest: {"name": f"{name}.safetensors", "legacy_hash": "01234567", "sd_merge_recipe": None}
    for digest, name in ((A, "a"), (B, "b"), (C, "c"), (D, "d"))
}
WEBUI: dict[str, Any] = {
    "type": "webui",
    "primary_model_hash": A,
    "secondary_model_hash": B,
    "tertiary_model_hash": None,
    "interp_method": "Weighted sum",
    "multiplier": 0.3,
    "save_as_half": False,
    "custom_name": "my mix",
    "config_source": 0,
    "bake_in_vae": "None",
    "discard_weights": "",
    "is_inpainting": False,
    "is_instruct_pix2pix": False,
}
SUPERMERGER: dict[str, Any] = {
    "type": "sd-webui-supermerger",
    "weights_alpha": None,
    "weights_beta": None,
    "weights_alpha_orig": None,
    "weights_beta_orig": None,
    "model_a": A,
    "model_b": B,
    "model_c": None,
    "base_alpha": 0.25,
    "base_beta": 0.5,
    "mode": "Weight sum:A*(1-alpha)+B*alpha",
    "mbw": False,
    "elemental_merge": "",
    "calcmode": "normal",
    "Off": [],
}
CHATTIORI: dict[str, Any] = {
    "type": "merge-models-chattiori",
    "primary_model_hash": A,
    "secondary_model_hash": B,
    "tertiary_model_hash": C,
    "merge_method": "Weighted Sum",
    "block_weights": False,
    "alpha_info": "0.45",
    "beta_info": None,
    "calculation": None,
    "fp": "fp16",
    "output_name": "mixed",
    "bake_in_vae": False,
    "pruned": False,
}
BLOCKS = [n / 25 for n in range(25)]


def imported(record: dict[str, Any], models: dict[str, Any] = MODELS, **said: Any) -> Imported:
    """What becomes of a record in a header, with some of its fields changed; its text passes the guard."""
    metadata = {"sd_merge_recipe": json.dumps({**record, **said}), "sd_merge_models": json.dumps(models)}
    found = import_metadata(metadata, "x.safetensors")
    assert recipe_text(found, "x.safetensors")
    return found


def noted(found: Imported, kind: str) -> str:
    """The notes of a kind."""
    return "\n".join(f"{note.part}: {note.text}" for note in found.notes if note.kind == kind)


# A1111


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"method": "weighted_sum", "alpha": 0.3, "compat": "a1111"}),
        (
            {"interp_method": "Add difference", "tertiary_model_hash": C, "multiplier": 1.0},
            {"method": "add_difference", "alpha": 1, "compat": "a1111"},
        ),
        ({"interp_method": "No interpolation", "save_as_half": True}, {"method": "copy"}),
    ],
)
def test_each_method_of_a1111_has_its_own_here(said: dict[str, Any], expected: dict[str, Any]) -> None:
    found = imported(WEBUI, **said)
    assert expected.items() <= found.tree.items()
    assert (
        list(found.tree["models"])
        == list("abc")[: {"weighted_sum": 2, "add_difference": 3}.get(expected["method"], 1)]
    )
    assert found.tree["models"]["a"] == {"source": "a.safetensors", "sha256": A}
    assert found.tree["output"]["name"] == "my-mix"


def test_what_a1111_did_beside_merging_is_listed() -> None:
    found = imported(WEBUI, bake_in_vae="kl-f8.pt", discard_weights="model_ema.*", save_as_half=True)
    assert found.tree["output"]["dtype"] == "float16"
    assert 'bake_in_vae: the VAE "kl-f8.pt"' in noted(found, "refused")
    assert 'discard_weights: keys that match "model_ema.*"' in noted(found, "refused")
    assert "save_as_half" in noted(found, "approximate")


def test_an_ancestor_becomes_a_merge_inside_the_merge() -> None:
    inner = {
        **WEBUI,
        "primary_model_hash": C,
        "secondary_model_hash": D,
        "multiplier": 0.5,
        "custom_name": "x",
    }
    for recorded in (inner, json.dumps(inner)):  # objects or texts
        models = {**MODELS, A: {**MODELS[A], "sd_merge_recipe": recorded}}
        tree = imported(WEBUI, models).tree
        assert tree["models"]["a"]["method"] == "weighted_sum"
        assert tree["models"]["a"]["models"]["a"] == {"source": "c.safetensors", "sha256": C}
        assert "output" not in tree["models"]["a"]


def test_an_ancestor_that_is_there_stays_a_file() -> None:
    inner = {**WEBUI, "primary_model_hash": C, "secondary_model_hash": D}
    metadata = {
        "sd_merge_recipe": WEBUI,
        "sd_merge_models": {**MODELS, A: {**MODELS[A], "sd_merge_recipe": inner}},
    }
    found = import_metadata(metadata, "x", present=lambda name: name == "a.safetensors")
    assert found.tree["models"]["a"] == {"source": "a.safetensors", "sha256": A}


def test_ancestors_that_go_round_stop_at_the_file() -> None:
    models = {**MODELS, A: {**MODELS[A], "sd_merge_recipe": WEBUI}}
    found = imported(WEBUI, models)
    assert merges(found.tree) == 2
    assert "leads back to it" in noted(found, "refused")


def test_ancestors_that_double_at_every_step_do_not_fill_the_memory() -> None:
    digests = [f"{n:064x}" for n in range(40)]
    models = {
        digest: {
            "name": f"m{n}.safetensors",
            "sd_merge_recipe": {**WEBUI, "primary_model_hash": after, "secondary_model_hash": after},
        }
        for n, (digest, after) in enumerate(zip(digests, [*digests[1:], A], strict=True))
    }
    found = imported(WEBUI, models, primary_model_hash=digests[0], secondary_model_hash=digests[0])
    assert 1 < merges(found.tree) <= MAX_MERGES
    assert "too deep" in noted(found, "approximate")


def test_a_model_without_a_name_is_named_by_its_digest() -> None:
    found = imported(WEBUI, {})
    assert found.tree["models"]["a"] == {"source": "aaaaaaaaaa.safetensors", "sha256": A}
    assert "not recorded" in noted(found, "approximate")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"interp_method": "Magic"}, 'interp_method: unknown: "Magic"'),
        ({"multiplier": "much"}, 'multiplier: expected a number, found "much"'),
        ({"primary_model_hash": None}, "primary_model_hash: the model is not recorded"),
        ({"type": "other"}, "other"),
    ],
)
def test_a_record_of_which_nothing_can_be_made_is_an_error(said: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        imported(WEBUI, **said)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.safetensors", "a.safetensors"),
        ("anime/a.safetensors", "anime/a.safetensors"),
        (r"anime\a.safetensors", "anime/a.safetensors"),
        ("/home/someone/a.safetensors", "a.safetensors"),
        (r"C:\models\a.safetensors", "a.safetensors"),
        ("../../a.safetensors", "a.safetensors"),
        ("~/a.safetensors", "a.safetensors"),
        ("demo:sd15", "./demo:sd15"),
        ("${oc.env:HOME}", "./$_{oc.env:HOME}"),
        ("a\nb\x1b[2J", "a_b_[2J"),
        ("..", "unnamed.safetensors"),
        ("", "unnamed.safetensors"),
    ],
)
def test_a_name_from_a_stranger_is_a_file_below_the_models(name: str, expected: str) -> None:
    assert file_name(name) == expected


# supermerger


@pytest.mark.parametrize(
    ("mode", "calculation", "method"),
    [
        ("Weight sum:A*(1-alpha)+B*alpha", "normal", "weighted_sum"),
        ("Weight sum", "", "weighted_sum"),
        ("Add difference:A+(B-C)*alpha", "normal", "add_difference"),
        ("Triple sum:A*(1-alpha-beta)+B*alpha+C*beta", "normal", "triple_sum"),
        ("sum Twice:(A*(1-alpha)+B*alpha)*(1-beta)+C*beta", "normal", "sum_twice"),
        ("Weight sum", "cosineA", "cosine_a"),
        ("Weight sum", "cosineB", "cosine_b"),
        ("Add difference", "trainDifference", "train_difference"),
        ("Add difference", "smoothAdd", "smooth_add"),
        ("Add difference", "smoothAdd MT", "smooth_add"),
        ("Add difference", "extract", "extract"),
        ("Weight sum", "tensor", "tensor_sum"),
        ("Weight sum", "tensor2", "tensor_sum"),
        ("Weight sum", "self", "copy"),
    ],
)
def test_each_mode_and_calculation_of_supermerger_has_its_method(
    mode: str, calculation: str, method: str
) -> None:
    found = imported(SUPERMERGER, mode=mode, calcmode=calculation, model_c=C)
    assert found.tree["method"] == method
    assert ("beta" in found.tree) == (method in ("triple_sum", "sum_twice", "tensor_sum", "extract"))
    if method != "copy":
        assert found.tree["alpha"] == 0.25
    known = (method, found.tree.get("compat")) in METHODS
    refused = {note.part for note in unknown_names(found.tree)}
    assert ("method" in refused) == (not known)


def test_only_tensor2_chooses_the_dimension_that_is_cut() -> None:
    assert "axis" not in imported(SUPERMERGER, calcmode="tensor").tree
    assert imported(SUPERMERGER, calcmode="tensor2").tree["axis"] == "auto"


def test_without_a_third_model_supermerger_takes_the_first() -> None:
    found = imported(SUPERMERGER, mode="Add difference", model_c="")
    assert found.tree["models"]["c"] == found.tree["models"]["a"]


def test_block_weights_are_one_text_that_begins_with_base() -> None:
    found = imported(SUPERMERGER, mbw=True, weights_alpha=BLOCKS)
    assert found.tree["alpha"]["dialect"] == "supermerger"
    values = found.tree["alpha"]["mbw"].split(",")
    assert (len(values), values[:3]) == (26, ["0.25", "0", "0.04"])


@pytest.mark.parametrize("count", [19, 20])
def test_of_twenty_values_for_sdxl_the_last_is_not_used(count: int) -> None:
    found = imported(SUPERMERGER, mbw=True, weights_alpha=BLOCKS[:count])
    assert len(found.tree["alpha"]["mbw"].split(",")) == 20


@pytest.mark.parametrize("weights", [BLOCKS[:7], None, [], ["x"] * 25, [1e400] * 25, "R,U,X"])
def test_block_weights_that_fit_no_model_are_an_error(weights: Any) -> None:
    with pytest.raises(InputError, match="weights_alpha"):
        imported(
            SUPERMERGER, mbw=True, weights_alpha=json.loads(json.dumps(weights).replace("Infinity", '"inf"'))
        )


def test_elemental_entries_are_one_text() -> None:
    found = imported(
        SUPERMERGER, mbw=True, weights_alpha=BLOCKS, elemental_merge=["OUT04:attn:0.5", "IN01:x"]
    )
    assert found.tree["alpha"]["elemental"] == "OUT04:attn:0.5"
    assert '"IN01:x": expected BLOCKS:ELEMENTS:NUMBER' in noted(found, "refused")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("IN09:attn:1", "M00:attn:1"),  # the eleventh name of SD1's list
        ("IN10 IN11:attn:1", "OUT00 OUT01:attn:1"),
        ("M00:attn:1", "OUT02:attn:1"),
        ("OUT00:attn:1", "OUT03:attn:1"),
        ("OUT05:attn:1", "OUT08:attn:1"),
        ("OUT06:attn:1", ""),
        ("IN08-IN10:attn:1", "IN08 M00 OUT00:attn:1"),
        ("NOT OUT00:attn:1", "NOT OUT03:attn:1"),
        (":attn:1", ":attn:1"),
        ("IN01:attn:1", "IN01:attn:1"),
    ],
)
def test_on_sdxl_supermerger_meant_other_blocks_by_the_later_names(entry: str, expected: str) -> None:
    assert elemental([entry], shifted=True, notes=Notes()) == expected
    assert elemental([entry], shifted=False, notes=Notes()) == entry


def test_excluded_keys_stay_the_first_models() -> None:
    found = imported(SUPERMERGER, Exclude=["IN00", "attn2", "VAE", "print"])
    assert found.tree["alpha"] == {"default": 0.25, "IN00": 0, "*attn2*": 0, "vae": 0}
    found = imported(SUPERMERGER, mode="Triple sum", model_c=C, Include=["attn2"])
    assert found.tree["alpha"] == {"default": 0, "*attn2*": 0.25}
    assert found.tree["beta"] == {"default": 0, "*attn2*": 0.5}


def test_what_supermerger_does_not_record_is_said() -> None:
    found = imported(SUPERMERGER, calcmode="extract", mode="Add", model_c=C)
    assert found.tree["gamma"] == 0.3
    assert "gamma: not recorded" in noted(found, "approximate")
    assert "VAE" in noted(found, "approximate")
    with pytest.raises(InputError, match='calcmode: "plus random" is not offered'):
        imported(SUPERMERGER, calcmode="plus random")


HEADER = (
    '"ID","time","name","weights alpha","weights beta","model A","model B","model C","alpha","beta","mode",'
    '"use MBW","plus lora","custum name","save setting","use ID"\n'
)


def row(**said: str) -> str:
    """A row of mergehistory.csv."""
    fields = {
        "id": "1", "time": "2024-01-01 10:00:00", "name": "mixed",
        "alphas": '"' + ",".join(map(str, [0.5, *BLOCKS])) + '"',
        "betas": "0", "a": "a [0123456789]", "b": "b [0123456789]", "c": "", "alpha": "0.5", "beta": "0.25",
        "mode": "Weight sum:A*(1-alpha)+B*alpha", "mbw": "False", "custom": "",
        "save": '"[\'save model\', \'fp16\']"',
        "ids": "[]", "elemental": "", "calcmode": "normal", "seed": "-1", "adjust": "", "gamma": "0.3",
        "inex": "Off", "blocks": "[]", "elements": "",
    } | said  # fmt: skip
    return ",".join(fields.values()) + "\n"


def test_the_last_row_of_the_history_is_the_recipe() -> None:
    found = import_text(HEADER + row(alpha="0.1") + row(id="2", alpha="0.7"), "mergehistory.csv")
    assert found.tree["alpha"] == 0.7
    assert found.tree["models"] == {"a": {"source": "a"}, "b": {"source": "b"}}
    assert 'the last of 2, number "2"' in noted(found, "approximate")
    assert recipe_text(found, "mergehistory.csv")


def test_a_row_alone_will_do_and_has_base_first_in_its_weights() -> None:
    found = import_text(row(mbw="True", adjust='"1,0,0"', mode="Add difference"), "row.txt")
    assert found.tree["alpha"]["mbw"].split(",")[:2] == ["0.5", "0"]
    assert found.tree["models"]["c"] == found.tree["models"]["a"]
    assert "Adjust" in noted(found, "refused")


# Chattiori


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("Weighted Sum", "weighted_sum"),
        ("Add Difference", "add_difference"),
        ("Smooth Add Difference", "smooth_add"),
        ("Train Difference", "train_difference"),
        ("Triple Sum", "triple_sum"),
        ("Sum Twice", "sum_twice"),
        ("Tensor Sum", "tensor_sum"),
        ("Multiply Difference", "multiply_difference"),
        ("Similarity Add Difference", "similarity_add_difference"),
        ("Geometric", "geometric_sum"),
        ("No Interpolation", "copy"),
    ],
)
def test_each_method_of_chattiori_that_we_have_is_found_by_its_long_name(name: str, method: str) -> None:
    assert imported(CHATTIORI, merge_method=name, beta_info="0.5").tree["method"] == method


def test_numbers_of_chattiori_are_read_from_its_text() -> None:
    weights = ", ".join(map(str, BLOCKS))
    found = imported(
        CHATTIORI, alpha_info=f"0.1,[[{weights}],['OUT03:attn:0.5']]", calculation="cosine_0,fine[1]"
    )
    assert found.tree["method"] == "cosine_a"
    assert found.tree["alpha"]["mbw"].startswith("0.1,0,0.04,")
    assert found.tree["alpha"]["elemental"] == "OUT03:attn:0.5"
    assert found.tree["output"] == {"name": "mixed", "dtype": "float16"}
    assert "fine[1]" in noted(found, "refused")
    with pytest.raises(InputError, match="no numbers"):
        imported(CHATTIORI, alpha_info="preset:[x]")


# Our own, and files


def test_a_merge_of_ours_imports_to_the_recipe_it_was_made_by(tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2, c=3)
    tree = {
        "method": "ties",
        "models": {
            "base": "a.safetensors",
            "one": {
                "method": "weighted_sum",
                "models": {"a": "b.safetensors", "b": "c.safetensors"},
                "alpha": 0.25,
            },
            "two": "c.safetensors",
        },
        "weight": {"one": 0.5, "two": {"default": 1, "*norm*": 0.5}},
        "density": 0.5,
        "missing": "keep",
        "output": {"name": "mixed", "dtype": "float32"},
    }
    first, _ = merge(tree, tmp_path, tmp_path / "first")
    found = import_file(first)
    second, _ = merge(found.tree, tmp_path, tmp_path / "second")
    assert second.read_bytes() == first.read_bytes()
    assert recipe_text(found, first.name)


def test_the_dtype_of_the_file_is_that_of_the_output(tmp_path: Path) -> None:
    tensors = write_models(tmp_path, a=1)["a"]
    for record, expected in ((SUPERMERGER, "float16"), ({**WEBUI, "save_as_half": True}, "float16")):
        save_file(tensors, tmp_path / "x.safetensors", {"sd_merge_recipe": json.dumps(record)})
        assert import_file(tmp_path / "x.safetensors").tree["output"]["dtype"] == expected


def test_an_imported_recipe_merges_the_files_it_names_and_no_others(tmp_path: Path) -> None:
    write_models(tmp_path, a=1, b=2, c=3)
    tree = {"method": "copy", "models": dict.fromkeys("a", "a.safetensors")}
    digests = {}
    for name in "abc":
        bound = resolved({**tree, "models": {"a": f"{name}.safetensors"}}, tmp_path)
        with InputDigests(bound.files, None, 1) as found_digests:
            digests[name] = model_digest(bound.models[0].checkpoint, found_digests.wait())
    record = {
        **SUPERMERGER,
        **{f"model_{name}": digests[name] for name in "abc"},
        "calcmode": "trainDifference",
    }
    models = {digests[name]: {"name": f"{name}.safetensors"} for name in "abc"}
    recipe = import_metadata({"sd_merge_recipe": record, "sd_merge_models": models}, "x").tree
    assert planned(recipe, tmp_path).fates
    ours = merged(recipe, tmp_path, tmp_path / "out")
    assert not ours["model.diffusion_model.linear.weight"].equal(
        load_file(tmp_path / "a.safetensors")["model.diffusion_model.linear.weight"]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no recipe is recognised"),
        ("hello", "no recipe is recognised"),
        ("{}", "expected a model with sd_merge_recipe"),
        ('{"prompt": "{}"}', "a graph of ComfyUI"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ("method: copy\nmodels: {a: x}", "no recipe is recognised"),
        ("merge_method: &x linear", "an anchor"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "no recipe is recognised"),
    ],
)
def test_a_text_that_is_no_recipe_of_a_known_tool_is_an_error(
    content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(InputError) as caught:
        import_file(tmp_path / "x.txt")
    assert message in str(caught.value)


def test_a_model_without_a_record_is_an_error(tmp_path: Path) -> None:
    write_models(tmp_path, a=1)
    with pytest.raises(InputError, match="expected a model with sd_merge_recipe"):
        import_file(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="no such file"):
        import_file(tmp_path / "b.safetensors")

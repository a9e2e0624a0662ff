"""What is recorded of a run names no folder of the machine and no secret."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.provenance.masking import MASK, all_masked, masked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output_dir=/home/me/out", "output_dir=…/out"),
        ("recipe=/home/me/mine.yaml", "recipe=…/mine.yaml"),
        ("models_dir=~/models/", "models_dir=…/"),
        ("models_dir=/models", "models_dir=…/models"),
        ("recipe.models.a='/my models/v=2.safetensors'", "recipe.models.a='…/v=2.safetensors'"),
        ("recipe.models={a:/x/a.safetensors,b:~me/b}", "recipe.models={a:…/a.safetensors,b:…/b}"),
        ('output "/home/me/a b/mix" is there already', 'output "…/mix" is there already'),
        ('"/models": no such folder', '"…/models": no such folder'),
        ("[/x/y/z, /p/q]", "[…/z, …/q]"),
        ("file:///home/me/x", "…/x"),
        ("models/photo.safetensors ../up/x 1/2 ‖a‖ / ‖b‖", "models/photo.safetensors ../up/x 1/2 ‖a‖ / ‖b‖"),
        ("hf:org/name@main/v1.safetensors", "hf:org/name@main/v1.safetensors"),
        ("https://host/x/y", "https://host/x/y"),
    ],
)
def test_folders_of_absolute_paths_are_left_out(text: str, expected: str) -> None:
    assert masked(text) == expected


SECRETS = st.text("abcdefABCDEF0123456789", min_size=16, max_size=40)


@given(secret=SECRETS)
def test_secrets_are_left_out_wherever_they_stand(secret: str) -> None:
    for text in (
        f"recipe.models.a=hf_{secret}",
        f"https://host/x?token={secret}&y=1",
        f"+api_key={secret}",
        f"HF_TOKEN={secret}",
        f"https://user:{secret}@host/x",
        f"Authorization: Bearer {secret}",
        f"ghp_{secret} and sk-{secret}",
    ):
        assert secret not in masked(text) and MASK in masked(text)


@given(
    folders=st.lists(st.text("abc. -_+", min_size=1, max_size=6), min_size=1, max_size=4),
    quote=st.sampled_from("'\""),
)
def test_no_folder_of_a_quoted_path_is_left(folders: list[str], quote: str) -> None:
    text = masked(f"a={quote}/{'/'.join(folders)}/name{quote}")
    assert text == f"a={quote}…/name{quote}"


def test_digests_and_numbers_stay_as_they_are() -> None:
    value = {"sha256": "ab" * 32, "seconds": 0.5, "none": None, "list": ["2026-11-25T19:31:22Z", True]}
    assert all_masked(value) == value
    assert all_masked({"/x/y": ["/x/y"]}) == {"…/y": ["…/y"]}
    assert not re.search("hf_", str(all_masked({"a": [{"b": "hf_" + "x" * 20}]})))

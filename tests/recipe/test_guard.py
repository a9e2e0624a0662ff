"""The guard: plain data comes through as it was written; of anything else it says where it stands."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.compose import DATA_ROOT
from runner.errors import Location
from runner.recipe.guard import MAX_BYTES, MAX_DEPTH, MAX_NODES, RecipeFile, read_recipe

Read = Callable[[str | bytes], RecipeFile]
SECONDS = 4.0  # of the processor; the largest file that is allowed takes less, whatever stands in it

MINIMAL = "method: weighted_sum\nmodels: {a: x, b: y}\nalpha: 0.3\n"


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    path = tmp_path_factory.mktemp("guard") / "mix.yaml"

    def read(content: str | bytes) -> RecipeFile:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_recipe(path, "mix")

    return read


def value(read: Read, text: str) -> Any:
    """What the guard makes of the value of a key."""
    file = read(f"key: {text}\n")
    assert file.problems == ()
    return file.tree["key"]


def problem(read: Read, text: str | bytes) -> str:
    """The one problem of a text, without the folder; nothing of the text comes through."""
    file = read(text)
    assert (file.tree, file.defaults, file.locations) == ({}, (("_self_", ""),), {})
    (found,) = file.problems
    assert "\n" not in found
    return found.rpartition("mix.yaml")[2].removeprefix(":").lstrip()


# What comes through


def test_a_recipe_becomes_plain_data_with_digest_and_locations(read: Read) -> None:
    file = read(MINIMAL)
    assert file.name == "mix"
    assert file.sha256 == hashlib.sha256(MINIMAL.encode()).hexdigest()
    assert file.tree == {"method": "weighted_sum", "models": {"a": "x", "b": "y"}, "alpha": 0.3}
    assert file.problems == ()
    assert file.defaults == (("_self_", ""),)
    places = {path: (place.line, place.column) for path, place in file.locations.items()}
    assert places == {
        ("method",): (1, 1),
        ("models",): (2, 1),
        ("models", "a"): (2, 10),
        ("models", "b"): (2, 16),
        ("alpha",): (3, 1),
    }


def test_items_of_a_list_are_located_too(read: Read) -> None:
    file = read("# head\n\nnonfinite:\n  - a\n  - [b,\n     c]\n")
    found = {path: str(place).rpartition("mix.yaml:")[2] for path, place in file.locations.items()}
    assert found == {
        ("nonfinite",): "3:1",
        ("nonfinite", 0): "4:5",
        ("nonfinite", 1): "5:5",
        ("nonfinite", 1, 0): "5:6",
        ("nonfinite", 1, 1): "6:6",
    }


def test_a_file_below_the_working_folder_is_called_by_its_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.yaml").write_text("method: 3\n")
    monkeypatch.chdir(tmp_path)
    file = read_recipe(tmp_path / "mine" / "x.yaml", "x")
    assert file.label == "mine/x.yaml"
    assert file.locations["method",] == Location("mine/x.yaml", 1, 1)


@pytest.mark.parametrize("path", sorted((DATA_ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_pass(path: Path) -> None:
    assert read_recipe(path, path.stem).problems == ()


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(read: Read) -> None:
    plain = read(MINIMAL)
    windows = read(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert windows.problems == ()
    assert (windows.tree, windows.locations) == (plain.tree, plain.locations)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.3", -0.3),
        ("+2", 2),
        ("0", 0),
        ("1E+2", 100.0),
        ("18446744073709551615", 2**64 - 1),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("float16", "float16"),
        ("demo:photo", "demo:photo"),
        ("2001-01-01", "2001-01-01"),
        ("1.2.3", "1.2.3"),
        ("0.3x", "0.3x"),
        ("=", "="),
        ("ünïcode 🎨", "ünïcode 🎨"),
        ("'it''s'", "it's"),
        (r'"a\tb\n"', "a\tb\n"),
        ("|\n  two\n  lines", "two\nlines\n"),
        ("$HOME", "$HOME"),
        ("${.models.a}", "${.models.a}"),
        ("${recipe.alpha} of ${..x}", "${recipe.alpha} of ${..x}"),
    ],
)
def test_values_are_what_they_look_like(read: Read, text: str, expected: Any) -> None:
    found = value(read, text)
    assert found == expected
    assert type(found) is type(expected)


TRAPS = ["yes", "No", "on", "off", "012", "0x1f", "0b1", "1_000", "1:30", ".nan", ".inf", "-.INF", "1e999"]


@pytest.mark.parametrize("text", TRAPS)
def test_what_yaml_would_guess_is_refused_and_fine_in_quotes(read: Read, text: str) -> None:
    found = problem(read, f"key: {text}\n")
    assert found.startswith("1:6: key: ")
    assert f'"{text}"' in found
    assert value(read, f"'{text}'") == text
    assert value(read, f'"{text}"') == text


def test_a_quoted_number_stays_a_text(read: Read) -> None:
    assert value(read, "'0.3'") == "0.3"


# What does not

DEEP = "a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcde", "bcdef", strict=True)
)

REFUSED: list[tuple[str, str | bytes, str, str]] = [
    # name, text, where, words
    ("empty", "", "", "empty"),
    ("comments only", "# nothing\n", "", "empty"),
    ("not UTF-8", b"a: \xff\n", "", "not UTF-8 at byte 3"),
    ("UTF-16", MINIMAL.encode("utf-16"), "", "not UTF-8"),
    ("a surrogate in UTF-8", b"a: \xed\xa0\x80\n", "", "not UTF-8"),
    ("a second byte order mark", b"\xef\xbb\xbf\xef\xbb\xbfa: 1\n", "1", "control character"),
    ("an escape", "a: 1\nb: \x1b[31m\n", "2", 'control character, "\\u001b"'),
    ("NUL", "a: 1\0", "1", "control character"),
    ("DEL in a comment", "a: 1\n\n# \x7f\n", "3", "control character"),
    ("C1", "a: \x9b31m", "1", "control character"),
    ("an escaped escape", 'a:\n  b: "\\e[31m"\n', "2:6", "a.b: a control character"),
    ("an escaped NUL", 'a: ["\\0"]\n', "1:5", "a.0: a control character"),
    ("an escaped control character in a key", '"\\x9b": 1\n', "1:1", "a control character"),
    ("a text", "hello\n", "1:1", "expected `key: value`"),
    ("a number", "5\n", "1:1", "expected `key: value`"),
    ("a list", "- a\n", "1:1", "expected `key: value`"),
    ("two documents", "a: 1\n---\nb: 2\n", "2:1", "second document"),
    ("bad YAML", "a: 1\nb: [c\nd: e\n", "3:2", "not YAML"),
    ("tabs", "a:\n\tb: 1\n", "2:1", "not YAML"),
    ("a noncharacter", "a: \uffff\n", "", "not YAML"),
    ("another version", "%YAML 9.9\n---\na: 1\n", "1:1", "not YAML"),
    ("too deep", f"{DEEP[:-MAX_DEPTH]}[]{DEEP[-MAX_DEPTH:]}\n", "1:35", "nested more than 32"),
    ("3000 brackets", "[" * 3000, "1:33", "nested more than 32"),
    ("3000 dashes", "- " * 3000, "1:65", "nested more than 32"),
    ("3000 question marks", "? " * 3000, "1:65", "nested more than 32"),
    ("too many values", "a: [" + "x," * MAX_NODES + "]", "1:19999", "more than 10000"),
    ("an alias bomb", BOMB, "1:4", "an anchor (&name)"),
    ("an alias", "a: 1\nb: *a\n", "2:4", "an alias (*name)"),
    ("an anchored scalar", "a: &x 1\n", "1:4", "an anchor"),
    ("an anchored root", "&x\na: 1\n", "1:1", "an anchor"),
    ("a merge key", "a:\n  <<: {b: 1}\n", "2:3", "a: a merge key (<<)"),
    ("a python tag", "a: !!python/object/apply:os.system [id]\n", "1:4", "a tag"),
    ("a plain tag", "a: !!str 1\n", "1:4", "a tag"),
    ("a tag of one's own", "%TAG !e! tag:x,2000:\n---\na: !e!b c\n", "3:4", "a tag"),
    ("a tag on a key", "!!int a: 1\n", "1:1", "a tag"),
    ("a duplicate", "a: 1\nb: 2\n'a': 3\n", "3:1", "a: a duplicate key"),
    ("a duplicate below", "a:\n  b: {c: 1, c: 2}\n", "2:13", "a.b.c: a duplicate key"),
    ("_target_", "a:\n  _target_: os.system\n", "2:3", "a._target_: keys of the form _x_"),
    ("_partial_ in a list", "a: [{_partial_: 1}]\n", "1:6", "a.0._partial_: keys of the form _x_"),
    ("_target_ in quotes", '"\\x5ftarget_": x\n', "1:1", "_target_: keys of the form _x_"),
    ("_self_ as a key", "_self_: 1\n", "1:1", "keys of the form _x_"),
    ("a number as key", "a: {1: x}\n", "1:5", 'a: a key is a word or a quoted text; found "1"'),
    ("a truth as key", "true: x\n", "1:1", "a key is a word"),
    ("nothing as key", "~: x\n", "1:1", "a key is a word"),
    ("an empty key", "'': x\n", "1:1", "a key is a word"),
    ("a list as key", "? [a]\n: b\n", "1:3", "a key is a word"),
    ("a mapping as key", "? {a: b}\n: b\n", "1:3", "a key is a word"),
    ("hydra", "a: 1\nhydra:\n  run: {dir: /}\n", "2:1", "hydra: hydra's own settings"),
    ("a package", "# @package _global_\na: 1\n", "1", "a comment to Hydra"),
    ("a package, hidden", "a: 1\n\n  #   @package x\n", "3", "a comment to Hydra"),
    ("a package, Windows", "a: 1\r\n#@package x\r\n", "2", "a comment to Hydra"),
    ("a package, behind a mark", "\ufeff# @package x\na: 1\n", "1", "a comment to Hydra"),
    ("a resolver", "a: ${oc.env:HOME}\n", "1:4", 'a: ${ is only for plain references; found "${oc.env'),
    ("a resolver in quotes", "a: ['x', '${now:}']\n", "1:10", "a.1: ${ is only for plain references"),
    ("a resolver in a block", "a:\n  b: |\n    ${oc.env:HOME}\n", "2:6", "a.b: ${ is only for"),
    ("a resolver, escaped", 'a: "\\x24{oc.env:HOME}"\n', "1:4", "${ is only for plain references"),
    ("a nested reference", "a: ${${.k}:HF_TOKEN}\n", "1:4", "${ is only for plain references"),
    ("a reference behind one", "a: ${.k}${oc.env:HOME}\n", "1:4", "${ is only for plain references"),
    ("a reference that appears", "a: $${.k}{oc.env:HOME}\n", "1:4", "${ is only for plain references"),
    ("a reference in brackets", "a: ${models[0]}\n", "1:4", "${ is only for plain references"),
    ("an open reference", "a: '${.k'\n", "1:4", "${ is only for plain references"),
    ("a reference in a key", "a:\n  '${.k}': 1\n", "2:3", "a: ${ in a key"),
]


@pytest.mark.parametrize(("text", "where", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_refusal_says_where_and_what(read: Read, text: str | bytes, where: str, words: str) -> None:
    started = time.process_time()
    found = problem(read, text)
    assert time.process_time() - started < SECONDS
    assert found.startswith(f"{where}: " if where else words), found
    assert words in found


def test_as_deep_and_as_many_as_allowed_passes(read: Read) -> None:
    assert read("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)).problems == ()
    assert read("a: [" + "x," * (MAX_NODES - 3) + "]").problems == ()


def test_every_problem_is_found_at_once(read: Read) -> None:
    found = read("a: yes\nb: {_x_: 1}\nhydra: 1\nc: '${oc.env:X}'\na: 1\ndefaults: [../x]\n").problems
    assert [text.rpartition("mix.yaml:")[2].partition(": ")[0] for text in found] == [
        "1:4",
        "2:5",
        "3:1",
        "4:4",
        "5:1",
        "6:12",
    ]


@pytest.mark.parametrize("unit", ["\ud800", "\udcff"])
def test_half_a_character_is_refused(read: Read, unit: str) -> None:
    assert read(f'description: "\\u{ord(unit):04x}"\n').problems


def test_an_escaped_carriage_return_is_a_control_character(read: Read) -> None:
    assert read('description: "good\\rbad"\n').problems


@pytest.mark.parametrize("digits", [309, 399])
def test_a_huge_integer_is_not_finite(read: Read, digits: int) -> None:
    assert read(f"seed: {'9' * digits}\n").problems


# Files


def test_a_file_of_the_largest_size_is_read_and_a_larger_one_is_not(read: Read) -> None:
    assert read("# " + "x" * (MAX_BYTES - 8) + "\na: 1\n").problems == ()
    assert "at most 1048576" in problem(read, "# " + "x" * MAX_BYTES + "\na: 1\n")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_only_regular_files_are_read_and_nothing_waits(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "x.yaml"
    make(path)
    (found,) = read_recipe(path, "x").problems
    assert "expected a regular file" in found


def test_a_missing_file_is_a_problem_like_others(tmp_path: Path) -> None:
    file = read_recipe(tmp_path / "x.yaml", "x")
    assert file.sha256 == ""
    assert "no such file" in file.problems[0]


# Defaults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[base]", [("base", ""), ("_self_", "")]),
        ("[_self_, base]", [("_self_", ""), ("base", "")]),
        ("[anime/mix-2, 9x]", [("anime/mix-2", ""), ("9x", ""), ("_self_", "")]),
        ("[style@models.b]", [("style", "models.b"), ("_self_", "")]),
        ("[a/b@models.b.models.c]", [("a/b", "models.b.models.c"), ("_self_", "")]),
        ("[]", [("_self_", "")]),
    ],
)
def test_defaults_are_names_and_places_of_models(
    read: Read, text: str, expected: list[tuple[str, str]]
) -> None:
    file = read(f"defaults: {text}\n{MINIMAL}")
    assert file.problems == ()
    assert list(file.defaults) == expected
    assert "defaults" not in file.tree


@pytest.mark.parametrize(
    "entry",
    [
        "payload@_global_",
        "payload@_global_.hydra.callbacks",
        "payload@hydra.callbacks",
        "payload@_here_",
        "payload@_group_",
        "payload@models",
        "payload@models.",
        "payload@models.a-b",
        "payload@models._x.",
        "payload@alpha.b",
        "payload@:models.b",
        "'@models.b'",
        "/recipe/base",
        "../base",
        "a/../../base",
        "./base",
        "a//b",
        "a/",
        ".hidden",
        "base.yaml",
        "-base",
        "override base",
        "optional base",
        "override hydra/launcher: x",
        "{job: plan}",
        "{optional job: plan}",
        "{_target_: os.system}",
        "[base]",
        "${oc.env:HOME}",
        "'${.x}'",
        "~",
        "'base\n\n  '",
        "bäse",
        "''",
    ],
)
def test_other_entries_of_defaults_are_refused(read: Read, entry: str) -> None:
    found = problem(read, f"{MINIMAL}defaults:\n- base\n- {entry}\n")
    assert found.startswith("6:3: defaults.1: expected _self_, the name of a recipe, or NAME@models.ROLE")


@pytest.mark.parametrize("text", ["base", "{base: x}", "~", "3"])
def test_defaults_are_a_list(read: Read, text: str) -> None:
    assert problem(read, f"defaults: {text}\n").startswith("1:11: defaults: expected a list")


# Anything at all


def check(read: Read, content: str | bytes) -> None:
    """Whatever a file holds, the answer is plain data, or problems that each name the file, soon."""
    started = time.process_time()
    file = read(content)
    assert time.process_time() - started < SECONDS
    assert all("mix.yaml" in problem for problem in file.problems)
    if file.problems:
        assert not file.tree and not file.locations
    assert _is_plain(file.tree)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and "${" not in key for key in value) and all(
            map(_is_plain, value.values())
        )
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


PIECES = [
    *"{}[],:?-#&*!|>'\"%@`~<=\n\t\r \\",
    *(
        ": ",
        "- ",
        "\n  ",
        "<<: ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "!!int ",
        "&a ",
        "*a ",
        "# @package ",
        "${",
    ),
    *("${.x}", "}", "_target_", "defaults: [", "hydra: ", "yes", "0x1", "1e9", ".inf", "9" * 30, "\\u0000"),
    *("\ufeff", "\x1b", "\x85", "\u2028", "\ud7ff", "é", "🎨"),
]
VALID = (
    MINIMAL + "defaults: [base, style@models.b]\noutput: {name: x, dtype: 'float16'}\nnonfinite:\n- '*.ema'\n"
)
SPOTS = st.integers(0, len(VALID))


@given(st.text() | st.binary() | st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_content_is_data_or_refused(read: Read, content: str | bytes) -> None:
    check(read, content)


@given(
    st.lists(st.tuples(SPOTS, st.integers(0, 6), st.sampled_from(PIECES) | st.text(max_size=3)), max_size=4)
)
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_recipe_is_data_or_refused(read: Read, changes: list[tuple[int, int, str]]) -> None:
    text = VALID
    for at, removed, added in changes:
        text = text[:at] + added + text[at + removed :]
    check(read, text)


@pytest.mark.parametrize(
    "unit",
    [
        "#",
        " ",
        "''",
        "{",
        "- ",
        "? ",
        "a: b\n",
        "x\n ",
        "&a ",
        "*a ",
        "!",
        "${",
        "${.a",
        "1",
        "\\",
        "_",
        "a-",
    ],
)
def test_a_large_file_takes_no_long_time(read: Read, unit: str) -> None:
    check(read, "a: " + unit * (MAX_BYTES // len(unit) // 2))
    check(read, "a: '" + unit * (MAX_BYTES // len(unit) // 2))


@pytest.mark.parametrize("head", ["a: 1\n", "a: 1\n#"])
def test_empty_lines_take_no_long_time(read: Read, head: str) -> None:
    started = time.process_time()
    read(head + "\n" * 30_000 + "a: 1\n")
    assert time.process_time() - started < 0.4


def test_many_comments_to_hydra_are_told_in_a_few_lines(read: Read) -> None:
    assert len(read("#@\n" * 20_000).problems) < 1000

"""One number of a recipe at every place of a model: which value wins, and every mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.architectures import ARCHITECTURES, Architecture, Place, place
from runner.architectures.base import numbered
from runner.errors import Problems, RecipeError
from runner.methods import Parameter, Range
from runner.weighting.parameter import Weighting, parse_weighting
from runner.weighting.rules import Names
from tests.build import here

SD1 = ARCHITECTURES["sd1"]
_LISTED = st.floats(0, 1)
ALPHA = Parameter("alpha", 0.5, Range(0, 1, "ask"))

TIME = "unet/time_embedding.linear_1.weight"
CONV_IN = "unet/conv_in.weight"
ATTN2 = "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"  # IN01
DEEP = "unet/down_blocks.1.resnets.0.conv1.bias"  # IN04
MIDDLE = "unet/mid_block.resnets.0.conv1.weight"
LAST = "unet/up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.weight"  # OUT11
HEAD = "unet/conv_out.bias"
TEXT = "text_encoder/text_model.final_layer_norm.bias"
DECODER = "vae/decoder.conv_in.weight"
KEYS = (TIME, CONV_IN, ATTN2, DEEP, MIDDLE, LAST, HEAD, TEXT, DECODER)
PLACES = {key: place(SD1, "diffusers", key) for key in KEYS}


def parse(
    value: Any,
    parameter: Parameter = ALPHA,
    *,
    extrapolate: bool = False,
    architecture: Architecture | None = SD1,
    places: dict[str, Place] = PLACES,
) -> tuple[Weighting, Problems]:
    problems = Problems(here)
    names = Names(places, architecture)
    weighting = parse_weighting(parameter, value, ("alpha",), extrapolate, names, problems)
    return weighting, problems


def values(value: Any, parameter: Parameter = ALPHA, **settings: Any) -> dict[str, float]:
    """The value at every key, of a mapping without mistakes."""
    weighting, problems = parse(value, parameter, **settings)
    problems.raise_if_any()
    assert problems.warnings == []
    return {key: weighting.at(key, at) for key, at in settings.get("places", PLACES).items()}


def mistakes(value: Any, parameter: Parameter = ALPHA, **settings: Any) -> list[str]:
    _, problems = parse(value, parameter, **settings)
    try:
        problems.raise_if_any()
    except RecipeError as error:
        return [line.removeprefix("test.yaml:1: ") for line in error.message.split("\n")]
    return []


# ---- One value.


def test_one_number_is_the_value_everywhere() -> None:
    assert set(values(0.25).values()) == {0.25}


def test_an_integer_is_a_number() -> None:
    weighting, _ = parse(1)
    assert weighting == Weighting(1.0)
    assert isinstance(weighting.default, float)


@pytest.mark.parametrize("value", [None, {}, {"default": None}])
def test_what_the_recipe_does_not_say_the_method_does(value: Any) -> None:
    assert set(values(value).values()) == {0.5}


def test_a_parameter_without_default_must_be_given() -> None:
    assert mistakes(None, Parameter("alpha", None, None)) == ["alpha: alpha must be given"]
    assert parse({"unet": 0.2}, Parameter("alpha", None, None))[0].open == TEXT


# ---- Which value wins.

# From the least specific to the most: each wins over all before it, in whatever order they stand.
LADDERS: dict[str, list[dict[str, Any]]] = {
    TIME: [
        {"default": 0.1},
        {"unet": 0.2},
        {"IN00-IN04": 0.3},
        {"IN00-IN01": 0.35},
        {"IN00": 0.4},
        {"TIME": 0.5},
        {"*time_embedding*": 0.6},
    ],
    ATTN2: [{"default": 0.1}, {"unet": 0.2}, {"IN00-OUT11": 0.3}, {"IN01": 0.4}, {"*.attn2.*": 0.5}],
    HEAD: [{"default": 0.1}, {"unet": 0.2}, {"OUT11": 0.4}, {"HEAD": 0.5}, {HEAD: 0.6}],
    TEXT: [{"default": 0.1}, {"BASE": 0.2}, {"text_encoder": 0.4}, {"CLIP": 0.5}, {"*norm*": 0.6}],
    DECODER: [{"default": 0.1}, {"BASE": 0.2}, {"vae": 0.4}, {"VAE": 0.5}, {"vae/*": 0.6}, {DECODER: 0.7}],
}


@pytest.mark.parametrize("key", LADDERS)
def test_the_most_specific_value_wins_wherever_it_stands(key: str) -> None:
    ladder = LADDERS[key]
    for end in range(1, len(ladder) + 1):
        steps = [item for step in ladder[:end] for item in step.items()]
        assert values(dict(steps))[key] == steps[-1][1]
        assert values(dict(reversed(steps)))[key] == steps[-1][1]


@pytest.mark.parametrize("name", ["IN00", "TIME", "IN00-IN04", "*time*"])
def test_of_equally_specific_values_the_one_under_its_component_wins(name: str) -> None:
    assert values({name: 0.2, "unet": {name: 0.3}})[TIME] == 0.3
    assert values({"unet": {name: 0.3}, name: 0.2})[TIME] == 0.3


def test_the_default_of_a_component_is_the_component() -> None:
    assert values({"default": 0.1, "unet": {"default": 0.2}}) == values({"default": 0.1, "unet": 0.2})


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        # A fine name beats a block, even one under the component.
        ({"TIME": 0.2, "unet": {"IN00": 0.3}}, 0.2),
        # So does a pattern beat everything else there.
        ({"*time*": 0.2, "unet": {"TIME": 0.3}}, 0.2),
        # And a block the default of the component.
        ({"IN00": 0.2, "unet": {"default": 0.3}}, 0.2),
        # A range under the component is a block under the component.
        ({"IN00": 0.2, "unet": {"IN00-IN01": 0.3}}, 0.3),
        # Of two that are equal in all this, either, if they agree.
        ({"*time*": 0.2, "*.weight": 0.2}, 0.2),
        ({"IN00-IN01": 0.2, "BASE-IN00": 0.2}, 0.2),
    ],
)
def test_between_the_rungs(tree: dict[str, Any], expected: float) -> None:
    assert values(tree)[TIME] == expected


def test_what_stands_under_a_component_stays_in_it() -> None:
    found = values({"unet": {"default": 0.1, "*.bias": 0.2, "M00": 0.3}, "vae": {"*": 0.4}})
    assert found == {
        TIME: 0.1,
        CONV_IN: 0.1,
        ATTN2: 0.1,
        DEEP: 0.2,
        MIDDLE: 0.3,
        LAST: 0.1,
        HEAD: 0.2,
        TEXT: 0.5,
        DECODER: 0.4,
    }


def test_base_is_all_but_the_unet() -> None:
    found = values({"default": 0.1, "BASE": 0.9})
    assert {key for key, value in found.items() if value == 0.9} == {TEXT, DECODER}


def test_ranges_and_aliases_mean_the_blocks_between_and_the_same_blocks() -> None:
    found = values({"default": 0, "IN0-IN1": 0.1, "IN4": 0.2, "MID": 0.3, "OUT3-OUT11": 0.4})
    assert found == {
        TIME: 0.1,
        CONV_IN: 0.1,
        ATTN2: 0.1,
        DEEP: 0.2,
        MIDDLE: 0.3,
        LAST: 0.4,
        HEAD: 0.4,
        TEXT: 0,
        DECODER: 0,
    }


def test_a_pattern_is_matched_with_its_case_against_the_whole_key() -> None:
    assert values({"unet/conv_in.*": 0.1})[CONV_IN] == 0.1
    assert values({"conv_in.*": 0.1, "UNET/*": 0.2, "unet/conv_i": 0.3})[CONV_IN] == 0.5
    assert values({"unet/conv_?n.weight": 0.1, "*[tg].bias": 0.2})[HEAD] == 0.2


def test_a_model_of_unknown_architecture_has_numbered_modules_as_blocks() -> None:
    keys = ("prior/layers.3.weight", "prior/layers.4.weight", "decoder/layers.3.weight")
    places = {key: place(None, "diffusers", key) for key in keys}
    tree = {"layers.3": 0.1, "prior": {"layers.4": 0.2}}
    assert list(values(tree, architecture=None, places=places).values()) == [0.1, 0.2, 0.1]
    (line,) = mistakes({"IN04": 0.1}, architecture=None, places=places)
    assert line == "alpha.IN04: unknown component, block or key pattern (components: decoder, prior)"


# ---- A list over depth.


def test_a_list_runs_over_the_blocks_of_the_main_component() -> None:
    found = values({"unet": [0, 0.5, 1], "default": 0.0625})
    assert found == {
        **dict.fromkeys((TIME, CONV_IN), 0),
        ATTN2: pytest.approx(1 / 24),
        DEEP: pytest.approx(4 / 24),
        MIDDLE: 0.5,
        **dict.fromkeys((LAST, HEAD), 1),
        **dict.fromkeys((TEXT, DECODER), 0.0625),
    }
    bare = {key: value for key, value in found.items() if key.startswith("unet/")}
    assert values([0, 0.5, 1], places={key: PLACES[key] for key in bare}) == bare


def test_a_list_alone_says_nothing_of_the_other_components() -> None:
    weighting, _ = parse([0, 1])
    assert weighting.open == TEXT
    assert parse({"unet": [0, 1]})[0].open == TEXT
    assert parse({"unet": [0, 1], "BASE": 0})[0].open is None


def test_what_the_recipe_names_beats_a_list() -> None:
    tree = {"unet": [0, 1], "IN00-IN04": 0.25, "TIME": 0.75, "*.attn2.*": 0.875, "default": 0}
    found = values(tree)
    assert [found[key] for key in (CONV_IN, DEEP, TIME, ATTN2, LAST)] == [0.25, 0.25, 0.75, 0.875, 0.875]
    assert found[HEAD] == 1


@given(numbers=st.lists(_LISTED, min_size=2, max_size=40))
def test_a_list_starts_at_its_first_number_ends_at_its_last_and_stays_between(numbers: list[float]) -> None:
    found = values({"unet": numbers, "default": 0})
    assert (found[CONV_IN], found[HEAD]) == (numbers[0], numbers[-1])
    assert all(min(numbers) <= found[key] <= max(numbers) for key in found if key.startswith("unet/"))


def test_numbered_modules_are_the_depth_of_an_unknown_architecture() -> None:
    keys = [f"prior/layers.{number}.weight" for number in (0, 2, 10, 9, 1)]
    places = {key: place(None, "diffusers", key) for key in (*keys, "prior/out.bias")}
    expected = dict(zip(keys, (0, 0.5, 1, 0.75, 0.25), strict=True))
    assert values(
        {"prior": [0, 1], "default": 2}, Parameter("scale", 1.0, None), architecture=None, places=places
    ) == {
        **expected,
        "prior/out.bias": 2,
    }
    numbered = {key: places[key] for key in keys}
    assert values([0, 1], architecture=None, places=numbered) == expected
    two = {**numbered, "decoder/layers.0.weight": place(None, "diffusers", "decoder/layers.0.weight")}
    (line,) = mistakes([0, 1], architecture=None, places=two)
    assert line == "alpha: a list runs over the blocks of one component: name it (decoder, prior)"


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([], "alpha: a list runs from its first number to its last; found []"),
        ([0, "x"], 'alpha.1: expected a number, found "x"'),
        ({"unet": [0, 2]}, "alpha.unet.1: expected 0 to 1, found 2; say extrapolate: true to go outside"),
        ({"vae": [0, 1]}, "alpha.vae: a list runs over blocks, and only unet has any"),
        ({"IN00": [0, 1]}, "alpha.IN00: expected a number, found [0, 1]"),
        ({"default": [0, 1]}, "alpha.default: expected a number, found [0, 1]"),
    ],
)
def test_a_list_in_the_wrong_place_or_with_wrong_numbers_is_told(tree: Any, expected: str) -> None:
    assert mistakes(tree) == [expected]


# ---- Contradictions.


@pytest.mark.parametrize(
    ("tree", "first", "second", "key"),
    [
        ({"*time*": 0.2, "*.weight": 0.3}, "*time*", "*.weight", TIME),
        ({"IN00-IN01": 0.2, "BASE-IN00": 0.3}, "IN00-IN01", "BASE-IN00", TIME),
        ({"unet": {"IN04-M00": 0.2, "IN03-IN11": 0.3, "default": 0}}, "IN04-M00", "IN03-IN11", DEEP),
        ({"IN4": 0.2, "IN04": 0.3}, "IN4", "IN04", DEEP),
    ],
)
def test_selectors_that_are_equally_specific_must_agree(
    tree: dict[str, Any], first: str, second: str, key: str
) -> None:
    (line,) = mistakes(tree)
    under = "unet." if "unet" in tree else ""
    doubt = f'alpha.{under}{second}: 0.3 or 0.2 for "{key}"?'
    assert line == f'{doubt} "{first}" selects it too and is as specific; make one narrower'
    agreeing = dict.fromkeys((first, second), 0.2)
    assert values({"unet": agreeing} if under else agreeing)[key] == 0.2


def test_a_whole_key_is_narrower_than_any_pattern() -> None:
    assert values({HEAD: 0.2, "*.bias": 0.3, "unet": {"*": 0.4}})[HEAD] == 0.2


# ---- Ranges.


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0])
def test_the_ends_of_a_range_are_inside(value: float) -> None:
    assert set(values(value).values()) == {value}


@pytest.mark.parametrize("value", [-0.1, 1.5])
@pytest.mark.parametrize("extrapolate", [False, True])
def test_a_range_without_exception_has_none(value: float, extrapolate: bool) -> None:
    strict = Parameter("alpha", 0.5, Range(0, 1))
    expected = f"alpha.IN00: expected 0 to 1, found {value}"
    assert mistakes({"IN00": value}, strict, extrapolate=extrapolate) == [expected]


def test_a_recipe_may_ask_to_go_outside() -> None:
    assert mistakes(1.5) == ["alpha: expected 0 to 1, found 1.5; say extrapolate: true to go outside"]
    weighting, problems = parse({"default": -0.5, "unet": {"IN00": 1.5}}, extrapolate=True)
    assert not problems
    assert [weighting.at(key, PLACES[key]) for key in (CONV_IN, DECODER)] == [1.5, -0.5]
    assert len(problems.warnings) == 2


def test_an_unusual_value_is_taken_and_told() -> None:
    weighting, problems = parse(3, Parameter("alpha", 1.0, Range(0, 2, "warn")))
    assert weighting == Weighting(3.0)
    assert not problems
    assert problems.warnings == ["test.yaml:1: alpha: 3 is outside the usual 0 to 2"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, pytest.param(10**309, id="huge")])
@pytest.mark.parametrize("limits", [None, Range(0, 1, "ask"), Range(0, 1, "warn")])
def test_a_number_is_finite(value: float, limits: Range | None) -> None:
    (line,) = mistakes({"M00": value}, Parameter("alpha", 0.5, limits), extrapolate=True)
    assert line.startswith("alpha.M00: expected a finite number, found ")


def test_without_a_range_every_finite_number_is_good() -> None:
    assert set(values(-1e300, Parameter("alpha", 0.5, None)).values()) == {-1e300}


# ---- Mistakes.

MISTAKES: list[tuple[Any, str]] = [
    (True, "alpha: expected a number, found true"),
    ("0.5", 'alpha: expected a number, found "0.5"'),
    ([0.5], "alpha: a list runs from its first number to its last; found [0.5]"),
    ({"default": "x"}, 'alpha.default: expected a number, found "x"'),
    ({"default": {"IN00": 0.1}}, 'alpha.default: expected a number, found {"IN00": 0.1}'),
    ({"IN00": False}, "alpha.IN00: expected a number, found false"),
    ({"IN00": None}, "alpha.IN00: expected a number, found null"),
    ({"IN00": {"default": 1}}, 'alpha.IN00: expected a number, found {"default": 1}'),
    ({"*.bias": "x"}, 'alpha.*.bias: expected a number, found "x"'),
    ({"unet": "x"}, 'alpha.unet: expected a number, found "x"'),
    ({"unet": None}, "alpha.unet: expected a number, found null"),
    ({"unet": {"default": None}}, "alpha.unet.default: expected a number, found null"),
    ({"unet": {"IN00": 2}}, "alpha.unet.IN00: expected 0 to 1, found 2; say extrapolate: true to go outside"),
    (
        {"untt": 0.1},
        'alpha.untt: unknown component, block or key pattern, did you mean "unet"?',
    ),
    (
        {"text_encoder_2": 0.1},
        'alpha.text_encoder_2: unknown component, block or key pattern, did you mean "text_encoder"?',
    ),
    (
        {"TIMES": 0.1},
        'alpha.TIMES: unknown component, block or key pattern, did you mean "TIME"?',
    ),
    (
        {"nonsense": 0.1},
        "alpha.nonsense: unknown component, block or key pattern (components: text_encoder, unet, vae)",
    ),
    (
        {3: 0.1},
        "alpha.3: unknown component, block or key pattern (components: text_encoder, unet, vae)",
    ),
    (
        {"IN05-IN04": 0.1},
        'alpha.IN05-IN04: unknown component, block or key pattern, did you mean "IN04"?',
    ),
]


@pytest.mark.parametrize(("value", "expected"), MISTAKES)
def test_a_mistake_names_its_place_and_what_is_expected(value: Any, expected: str) -> None:
    assert mistakes(value) == [expected]


def test_components_do_not_nest() -> None:
    (line,) = mistakes({"unet": {"vae": 0.1}})
    assert line.startswith("alpha.unet.vae: unknown component, block or key pattern")


def test_every_mistake_is_reported_at_once() -> None:
    tree = {"default": "x", "unet": {"M00": True, "zzz": 1}, "IN00": 9, "*.bias": None}
    assert len(mistakes(tree)) == 5


# ---- Against a straightforward reading of the rules.

_ORDER = ("BASE", *numbered("IN", 0, 12), "M00", *numbered("OUT", 0, 12))
NAMES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("TIME", "HEAD", "CLIP", "VAE", "BASE", "IN00", "M00", "OUT11")},
    "IN0": ("IN00",),
    "IN4": ("IN04",),
    "MID": ("M00",),
    "IN00-IN04": _ORDER[1:6],
    "IN0-IN1": _ORDER[1:3],
    "IN04-M": _ORDER[5:14],
    "BASE-OUT11": _ORDER,
    "BASE-IN00": _ORDER[:2],
    "M-OUT11": _ORDER[13:],
}
PATTERNS: dict[str, Callable[[str], bool]] = {
    "*": lambda key: True,
    "*attn2*": lambda key: "attn2" in key,
    "unet/*": lambda key: key.startswith("unet/"),
    "*.bias": lambda key: key.endswith(".bias"),
    "*to_[kq].*": lambda key: "to_k." in key or "to_q." in key,
    DECODER: lambda key: key == DECODER,
}


def reference(tree: dict[str, Any], key: str, at: Place) -> set[float]:
    """The values at a key that nothing beats: for each kind of name, under the component and then outside."""
    own = tree.get(at.component, {})
    scopes = [own if isinstance(own, dict) else {"default": own}, tree]
    for exact in (True, False):
        for scope in scopes:
            found = {scope[name] for name in scope if name in PATTERNS and PATTERNS[name](key)}
            if exact:
                found &= {scope[key]} if key in scope else set()
            if found:
                return found
    for block in (*at.blocks, "the component"):
        if block == "the component" and "default" in scopes[0]:
            return {scopes[0]["default"]}
        if block == "BASE":
            continue
        for scope in scopes:
            if found := named(scope, block):
                return found
    for scope in scopes if "BASE" in at.blocks else ():
        if found := named(scope, "BASE"):
            return found
    return {tree.get("default", 0.5)}


def named(scope: dict[str, Any], block: str) -> set[float]:
    """The values that the narrowest names of a block have."""
    names = [name for name in scope if block in NAMES.get(name, ())]
    fewest = min((len(NAMES[name]) for name in names), default=0)
    return {scope[name] for name in names if len(NAMES[name]) == fewest}


_NUMBERS = st.floats(0, 1)
_NAMES = st.sampled_from(["default", *NAMES, *PATTERNS])
_INSIDE = st.dictionaries(_NAMES, _NUMBERS, max_size=6)
_COMPONENTS = st.dictionaries(st.sampled_from(["unet", "vae", "text_encoder"]), _NUMBERS | _INSIDE)
_TREES = st.tuples(_INSIDE, _COMPONENTS, st.booleans()).map(
    lambda parts: parts[0] | parts[1] if parts[2] else parts[1] | parts[0]
)


@given(tree=_TREES)
def test_the_value_is_that_of_a_straightforward_reading(tree: dict[str, Any]) -> None:
    expected = {key: reference(tree, key, at) for key, at in PLACES.items()}
    if all(len(found) == 1 for found in expected.values()):
        assert {key: {value} for key, value in values(tree).items()} == expected
    else:
        contradictions = [line for line in mistakes(tree) if "is as specific" in line]
        assert contradictions == mistakes(tree) != []
        doubtful = {key for key, found in expected.items() if len(found) > 1}
        assert all(any(f'"{key}"' in line for key in doubtful) for line in contradictions)

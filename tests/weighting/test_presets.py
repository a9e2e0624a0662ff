"""The named block weights: against the published table, and as a set."""

from __future__ import annotations

import pytest

from runner.weighting.presets import PRESET_NAMES, PRESETS, mixed, preset

# Source: supermerger's mbwpresets.txt, as printed there; presets given by formulas of different kinds.
PUBLISHED = {
    "GRAD_V": (
        "0,1,0.9166666667,0.8333333333,0.75,0.6666666667,0.5833333333,0.5,0.4166666667,"
        "0.3333333333,0.25,0.1666666667,0.0833333333,0,0.0833333333,0.1666666667,0.25,"
        "0.3333333333,0.4166666667,0.5,0.5833333333,0.6666666667,0.75,0.8333333333,0.9166666667,"
        "1.0"
    ),
    "WRAP08": "0,1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1",
    "WRAP14": "0,1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1",
    "MID12_50": "0,0,0,0,0,0,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0,0,0,0,0,0",
    "OUT07": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1,1,1",
    "OUT12_5": "0,0,0,0,0,0,0,0,0,0,0,0,0,0.5,1,1,1,1,1,1,1,1,1,1,1,1",
    "RING08_SOFT": "0,0,0,0,0,0,0.5,1,1,1,0.5,0,0,0,0,0,0.5,1,1,1,0.5,0,0,0,0,0",
    "RING08_5": "0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0,1,1,1,1,0,0,0,0,0,0",
    "RING10_5": "0,0,0,0,0,0,1,1,1,1,1,0,0,0,0,0,1,1,1,1,1,0,0,0,0,0",
    "RING10_3": "0,0,0,0,0,0,0,1,1,1,1,1,0,0,0,1,1,1,1,1,0,0,0,0,0,0",
    "SMOOTHSTEP": (
        "0,0,0.00506365740740741,0.0196759259259259,0.04296875,0.0740740740740741,"
        "0.112123842592593,0.15625,0.205584490740741,0.259259259259259,0.31640625,0.376157407407407,"
        "0.437644675925926,0.5,0.562355324074074,0.623842592592592,0.68359375,0.740740740740741,"
        "0.794415509259259,0.84375,0.887876157407408,0.925925925925926,0.95703125,0.980324074074074,"
        "0.994936342592593,1"
    ),
    "R_SMOOTHSTEP*3": (
        "0,1,0.984809027777778,0.940972222222222,0.87109375,0.777777777777778,0.663628472222222,"
        "0.53125,0.383246527777778,0.222222222222222,0.05078125,0.128472222222222,0.312934027777778,"
        "0.5,0.687065972222222,0.871527777777778,0.94921875,0.777777777777778,0.616753472222222,"
        "0.46875,0.336371527777777,0.222222222222222,0.12890625,0.0590277777777777,"
        "0.0151909722222232,0"
    ),
    "SMOOTHSTEP/3": (
        "0,0,0.04296875,0.15625,0.31640625,0.5,0.68359375,0.84375,0.95703125,1.,0.95703125,"
        "0.84375,0.68359375,0.5,0.31640625,0.15625,0.04296875,0.,0.04296875,0.15625,0.31640625,"
        "0.5,0.68359375,0.84375,0.95703125,1"
    ),
    "COSINE": (
        "0,1,0.995722430686905,0.982962913144534,0.961939766255643,0.933012701892219,"
        "0.896676670145617,0.853553390593274,0.80438071450436,0.75,0.691341716182545,"
        "0.62940952255126,0.565263096110026,0.5,0.434736903889974,0.37059047744874,"
        "0.308658283817455,0.25,0.195619285495639,0.146446609406726,0.103323329854382,"
        "0.0669872981077805,0.0380602337443566,0.0170370868554658,0.00427756931309475,0"
    ),
    "TRUE_CUBIC_HERMITE": (
        "0,0,0.199031876929012,0.325761959876543,0.424641927083333,0.498456790123457,"
        "0.549991560570988,0.58203125,0.597360869984568,0.598765432098765,0.589029947916667,"
        "0.570939429012346,0.547278886959876,0.520833333333333,0.49438777970679,0.470727237654321,"
        "0.45263671875,0.442901234567901,0.444305796682099,0.459635416666667,0.491675106095678,"
        "0.543209876543211,0.617024739583333,0.715904706790124,0.842634789737655,1"
    ),
    "FAKE_REVERSE_CUBIC_HERMITE": (
        "0,1,0.842423804012346,0.71508487654321,0.615234375,0.540123456790123,0.487003279320988,"
        "0.453125,0.435739776234568,0.432098765432099,0.439453125,0.455054012345679,"
        "0.476152584876543,0.5,0.523847415123457,0.544945987654321,0.560546875,0.567901234567901,"
        "0.564260223765432,0.546875,0.512996720679013,0.459876543209876,0.384765625,"
        "0.28491512345679,0.157576195987653,0"
    ),
    "ALL_B": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_published_one(name: str) -> None:
    expected = [float(number) for number in PUBLISHED[name].split(",")]
    digits = 1e-10 if name == "GRAD_V" else 3e-14  # GRAD is printed with ten digits
    assert preset(name) == pytest.approx(expected, abs=digits)


def test_there_are_the_38_of_supermerger_and_one_of_sd_meh() -> None:
    assert len(PRESETS) == len({preset(name) for name in PRESETS}) == 39
    assert len(PRESET_NAMES) == 39 + 12


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_preset_has_26_shares_and_leaves_what_is_not_the_unet(name: str) -> None:
    values = preset(name)
    assert values is not None and len(values) == 26
    assert all(0 <= value <= 1 for value in values)
    assert values[0] == (1 if name == "ALL_B" else 0)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("R_", "REVERSE_"))])
def test_a_reversed_preset_is_what_remains_of_the_other(name: str) -> None:
    forward, reverse = preset(name.removeprefix("R_").removeprefix("REVERSE_")), preset(name)
    assert forward is not None and reverse is not None
    assert [a + b for a, b in zip(forward[1:], reverse[1:], strict=True)] == pytest.approx([1] * 25)


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        ("REVERSE_SMOOTHSTEP", ["reverse-smoothstep", " Reverse_SmoothStep "]),
        ("SMOOTHSTEP*2", ["2SMOOTHSTEP", "2smoothstep"]),
        ("R_SMOOTHSTEP*4", ["4R_SMOOTHSTEP", "4R-SMOOTHSTEP"]),
        ("SMOOTHSTEP/2", ["HALF_SMOOTHSTEP"]),
        ("R_SMOOTHSTEP/3", ["ONE_THIRD_R_SMOOTHSTEP"]),
        ("SMOOTHSTEP/4", ["ONE_FOURTH_SMOOTHSTEP"]),
        ("GRAD_V", ["grad-v"]),
    ],
)
def test_case_dashes_and_the_names_of_sd_meh_make_no_difference(ours: str, others: list[str]) -> None:
    assert [preset(other) for other in others] == [preset(ours)] * len(others)


@pytest.mark.parametrize("name", ["", "GRAD", "SMOOTHSTEP*5", "0.5"])
def test_what_is_no_preset_is_none(name: str) -> None:
    assert preset(name) is None


def test_mixing_goes_from_one_preset_to_the_other() -> None:
    ones, zeros = preset("ALL_B"), preset("ALL_A")
    assert ones is not None and zeros is not None
    assert mixed(ones, zeros, 0) == ones and mixed(ones, zeros, 1) == zeros
    assert mixed(zeros, ones, 0.25) == (0.25,) * 26

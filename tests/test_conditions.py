"""Nothing around a merge changes a byte of it: every recipe under many conditions at once."""

from __future__ import annotations

from pathlib import Path

from tests.conditions import Condition, prepare, under, unlike

CONDITIONS = [
    Condition(
        threads=1,
        tile_elements=1 << 15,
        clock=0.0,
        elsewhere=True,
        environment={
            "ATEN_CPU_CAPABILITY": "default",
            "PYTHONHASHSEED": "1",
            "LC_ALL": "C",
            "TZ": "Asia/Kathmandu",
        },
    ),
    Condition(
        threads=3,
        tile_elements=1 << 22,
        host_budget=32_000_000,
        backwards=True,
        environment={"ATEN_CPU_CAPABILITY": "avx2", "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "4"},
    ),
]


def test_no_condition_changes_a_byte_of_a_recipes_result(tmp_path: Path) -> None:
    prepare(tmp_path)
    usual = under(Condition(), tmp_path)
    assert len(usual) > 100
    for condition in CONDITIONS:
        found = under(condition, tmp_path)
        assert len(found) > 90
        assert unlike(usual, found, condition) == []

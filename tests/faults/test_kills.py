"""Real merges, ended by signals at random moments. More rounds: python -m tests.faults.kills 200."""

from __future__ import annotations

from pathlib import Path

from tests.faults.kills import rounds


def test_a_signal_at_any_moment_tears_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    tally = rounds(12, 1, tmp_path, second=False)
    assert sum(tally.ended.values()) == 12
    assert len({when for _, when in tally.ended}) >= 2

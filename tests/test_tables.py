"""Tables a person reads: columns stand below each other whatever is written in them."""

from __future__ import annotations

from runner.tables import table


def test_columns_are_aligned_by_the_cells_that_characters_take_on_a_terminal() -> None:
    rows = [("name", "kind", "size"), ("写真風", "lora", "大きい"), ("cafe\u0301", "vae", "7 B")]
    assert table([*rows, ("か\u3099", "", "1")], right=(2,)) == [
        "  name    kind    size",
        "  写真風  lora  大きい",
        "  cafe\u0301    vae      7 B",
        "  か\u3099                 1",
    ]

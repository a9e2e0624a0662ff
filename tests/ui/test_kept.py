"""What is not saved is there again in the form that comes after one that ended, and in no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.errors import OutputError
from runner.ui.draft import EMPTY
from runner.ui.kept import Kept
from runner.ui.opened import Opened
from runner.ui.store import Stored, read, save

MIX = "method: copy\nmodels: {a: demo:photo}\n"


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return save(tmp_path / "recipes" / "mine.yaml", MIX, "")


@pytest.fixture
def drafts(tmp_path: Path) -> Path:
    return tmp_path / "drafts"


def write(opened: Opened, text: str) -> Opened:
    opened.change(lambda draft: draft.with_text(text))
    return opened


def end(kept: Kept) -> None:
    """As at the end of a process: its locks are free."""
    os.close(kept._lock)


def test_what_a_form_that_ended_had_not_saved_is_a_change_of_the_next(stored: Stored, drafts: Path) -> None:
    first = Kept(drafts)
    text = MIX + "# é, \udcff\n"  # what is no UTF-8 too
    first.keep(write(first.reopen(stored), text))
    end(first)
    second = Kept(drafts)
    opened = second.reopen(stored)
    assert opened.draft.text == text and not opened.is_saved
    assert opened.undo() and opened.draft.text == MIX
    second.keep(opened)
    assert not list(drafts.iterdir())


def test_a_form_that_is_open_keeps_its_text_to_itself(stored: Stored, drafts: Path) -> None:
    first, second = Kept(drafts), Kept(drafts)
    first.keep(write(first.reopen(stored), MIX + "# first\n"))
    opened = second.reopen(stored)
    assert opened.can_be_left
    second.keep(write(opened, MIX + "# second\n"))
    end(second)
    end(first)
    third, fourth, fifth = Kept(drafts), Kept(drafts), Kept(drafts)
    assert third.reopen(stored).draft.text == MIX + "# second\n"  # the last one first
    assert fourth.reopen(stored).draft.text == MIX + "# first\n"
    assert fifth.reopen(stored).can_be_left


def test_what_is_saved_or_given_up_is_not_kept(stored: Stored, drafts: Path) -> None:
    kept = Kept(drafts)
    opened = write(kept.reopen(stored), MIX + "# more\n")
    kept.keep(opened)
    opened.save(stored.path, stored.sha256)
    kept.keep(opened)
    assert not list(drafts.iterdir())
    kept.keep(write(opened, MIX + "# still more\n"))
    kept.drop()
    assert not list(drafts.iterdir())
    assert kept.reopen(read(stored.path)).can_be_left


def test_another_recipe_gets_none_of_it(stored: Stored, drafts: Path, tmp_path: Path) -> None:
    first = Kept(drafts)
    first.keep(write(first.reopen(stored), MIX + "# more\n"))
    end(first)
    assert Kept(drafts).reopen(Stored("other", tmp_path / "recipes" / "other.yaml", EMPTY, "")).can_be_left


def test_it_is_not_saved_over_what_somebody_else_wrote_meanwhile(stored: Stored, drafts: Path) -> None:
    first = Kept(drafts)
    first.keep(write(first.reopen(stored), MIX + "# ours\n"))
    end(first)
    theirs = save(stored.path, MIX + "# theirs\n", stored.sha256)
    opened = Kept(drafts).reopen(theirs)
    assert opened.draft.text == MIX + "# ours\n"
    assert opened.stored.sha256 == stored.sha256  # which the file has no longer: Opened.save refuses
    assert opened.undo() and opened.draft.text == theirs.text


@pytest.mark.parametrize("content", ["", "[", "{}", "[1, 2]", '["", "a", "b"]', "null", "[" * 100_000])
def test_a_damaged_copy_is_passed_over(content: str, stored: Stored, drafts: Path) -> None:
    first = Kept(drafts)
    first.keep(write(first.reopen(stored), MIX + "# more\n"))
    end(first)
    (path,) = drafts.iterdir()
    path.write_text(content)
    assert Kept(drafts).reopen(stored).can_be_left


def test_a_folder_that_cannot_be_made_is_said_each_time(stored: Stored, drafts: Path) -> None:
    drafts.write_text("a file")
    kept = Kept(drafts)
    opened = write(kept.reopen(stored), MIX + "# more\n")
    for _ in range(2):
        with pytest.raises(OutputError, match="drafts"):
            kept.keep(opened)
    assert opened.draft.text == MIX + "# more\n"

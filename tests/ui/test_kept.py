"""What is not saved is there again in the form that comes after one that ended, and in no other."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner.errors import BusyError, OutputError
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


@contextmanager
def full_disk() -> Iterator[None]:
    """Files of this process cannot grow beyond a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_a_form_that_ended_had_not_saved_is_a_change_of_the_next(stored: Stored, drafts: Path) -> None:
    first = Kept(drafts)
    text = MIX + "# é, \udcff\n"  # what is no UTF-8 too
    first.keep(write(first.reopen(stored), text))
    first.end()
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
    second.end()
    first.end()
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
    first.end()
    assert Kept(drafts).reopen(Stored("other", tmp_path / "recipes" / "other.yaml", EMPTY, "")).can_be_left


def test_it_is_not_saved_over_what_somebody_else_wrote_meanwhile(stored: Stored, drafts: Path) -> None:
    first = Kept(drafts)
    first.keep(write(first.reopen(stored), MIX + "# ours\n"))
    first.end()
    theirs = save(stored.path, MIX + "# theirs\n", stored.sha256)
    opened = Kept(drafts).reopen(theirs)
    assert opened.draft.text == MIX + "# ours\n"
    assert opened.stored.sha256 == stored.sha256  # which the file has no longer: Opened.save refuses
    with pytest.raises(BusyError, match="changed by somebody else"):
        opened.save(theirs.path, opened.stored.sha256)
    assert opened.undo() and opened.draft.text == theirs.text and opened.is_saved
    write(opened, theirs.text + "# both\n").save(theirs.path, opened.stored.sha256)
    assert opened.is_saved and theirs.path.read_text().endswith("# both\n")


def test_a_form_that_ends_keeps_nothing_more(stored: Stored, drafts: Path) -> None:
    kept = Kept(drafts)
    opened = write(kept.reopen(stored), MIX + "# not wanted\n")
    kept.keep(opened)
    kept.drop()
    kept.end()
    kept.keep(opened)  # of a message that was on its way
    assert not list(drafts.iterdir())


def test_a_full_disk_leaves_what_was_kept_before(stored: Stored, drafts: Path) -> None:
    first = Kept(drafts)
    opened = write(first.reopen(stored), MIX + "# first\n")
    first.keep(opened)
    with full_disk(), pytest.raises(OutputError):
        first.keep(write(opened, MIX + "# " + "x" * 100_000))
    assert len(list(drafts.iterdir())) == 1
    first.end()
    assert Kept(drafts).reopen(stored).draft.text == MIX + "# first\n"


@pytest.mark.parametrize("content", ["", "[", "{}", "[1, 2]", '["", "a", "b"]', "null", "[" * 100_000])
def test_a_damaged_copy_is_removed(content: str, stored: Stored, drafts: Path) -> None:
    first = Kept(drafts)
    first.keep(write(first.reopen(stored), MIX + "# more\n"))
    first.end()
    (path,) = drafts.iterdir()
    path.write_text(content)
    path.with_suffix(".part").touch()  # as a process leaves it that is killed while it writes
    assert Kept(drafts).reopen(stored).can_be_left and not list(drafts.iterdir())


def test_a_folder_that_cannot_be_made_is_said_each_time(stored: Stored, drafts: Path) -> None:
    drafts.write_text("a file")
    kept = Kept(drafts)
    opened = write(kept.reopen(stored), MIX + "# more\n")
    for _ in range(2):
        with pytest.raises(OutputError, match="drafts"):
            kept.keep(opened)
    assert opened.draft.text == MIX + "# more\n"

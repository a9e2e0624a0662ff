"""Signals as they come out in the main thread. Every test is a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import python

BEGIN = """
import os, signal, sys, threading
from runner import interrupts
from runner.errors import Interrupted
interrupts.Interrupts()
def send(number):
    os.kill(os.getpid(), number)
"""


def ended(code: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program that begins with BEGIN."""
    done = python(Path(__file__).parents[1], BEGIN + code)
    return done.returncode, done.stdout, done.stderr


def test_a_second_signal_is_heard_only_if_the_first_takes_too_long_and_then_ends_all() -> None:
    code = """
try:
    send(signal.SIGTERM)
except Interrupted:
    send(signal.SIGINT)
    print("still here", flush=True)
    interrupts.PATIENCE_SECONDS = -1.0
    send(signal.SIGINT)
    print("for ever")
"""
    assert ended(code) == (130, "still here\n", "")


def test_after_a_hang_up_the_process_ends_even_if_its_cleaning_up_never_does() -> None:
    code = """
interrupts.HUNG_UP_SECONDS = 0.3
try:
    send(signal.SIGHUP)
finally:
    print("cleaning up", flush=True)
    threading.Event().wait(60)
"""
    assert ended(code) == (129, "cleaning up\n", "")


FALLS = {
    "in a finaliser": """
class Last:
    def __del__(self):
        send(signal.SIGTERM)
Last()
""",
    "caught with everything": """
try:
    send(signal.SIGTERM)
except:
    pass
""",
}


@pytest.mark.parametrize("falls", FALLS)
def test_a_signal_that_python_or_others_let_fall_comes_again(falls: str) -> None:
    lines = "".join(f"    {line}\n" for line in FALLS[falls].splitlines())
    code = f"""
try:
{lines}
    print("fell", flush=True)
    threading.Event().wait(20)
except Interrupted as error:
    interrupts.is_told()
    sys.exit(error.exit_code)
"""
    assert ended(code) == (143, "fell\n", "")


def test_an_interruption_that_is_being_handled_or_is_told_does_not_come_again() -> None:
    code = """
try:
    try:
        send(signal.SIGHUP)
    finally:
        try:
            open("/nowhere/at/all")
        except OSError:
            threading.Event().wait(0.3)
except Interrupted:
    interrupts.is_told()
threading.Event().wait(0.3)
print("done")
"""
    assert ended(code) == (0, "done\n", "")


def test_what_falls_and_is_no_signal_is_still_told() -> None:
    code = """
class Last:
    def __del__(self):
        raise ValueError("lost")
Last()
"""
    status, _, errors = ended(code)
    assert status == 0 and "ValueError: lost" in errors


def test_an_error_that_an_interruption_made_is_told_as_an_interruption() -> None:
    """As OmegaConf does: it cleans up a node that is half made, and says what fails then in its own words."""
    code = """
from runner.__main__ import tell
try:
    try:
        try:
            send(signal.SIGTERM)
        finally:
            None.half_made
    except AttributeError as error:
        raise ValueError("does not fit") from error
except ValueError as error:
    sys.exit(tell(error))
"""
    assert ended(code) == (143, "", "runner: interrupted. Nothing unfinished is left behind.\n")

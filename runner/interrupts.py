"""Signals that end a run: Ctrl-C, termination, hang-up. Each raises in the main thread until it is told.

Python lets an exception fall that is raised where none can be, such as in a finaliser or a callback of its
import system, and so does code of others that catches everything. So it is raised again while nothing handles
it. Signals that follow are ignored: they would interrupt the cleaning up. If that takes longer than it may,
the next one ends the process at once. After a hang-up nobody is left to send one: the process ends by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from runner.errors import Interrupted

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_SECONDS = 0.1
PATIENCE_SECONDS = 1.0
HUNG_UP_SECONDS = 10.0


class Interrupts:
    """Takes care of signals from its making on, in the main thread."""

    def __init__(self) -> None:
        self._raised: BaseException | None = None
        self._first, self._hung_up = 0.0, False
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                signal.signal(number, self._end)
        signal.signal(signal.SIGALRM, self._again)
        sys.unraisablehook = _let_fall

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._hung_up |= number == signal.SIGHUP
        if self._raised is None:
            self._first = time.monotonic()
            self._raised = KeyboardInterrupt() if number == signal.SIGINT else Interrupted(number)
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
            raise self._raised
        if time.monotonic() > self._first + PATIENCE_SECONDS:
            os._exit(128 + number)

    def _again(self, number: int, frame: FrameType | None) -> None:
        if self._hung_up and time.monotonic() > self._first + HUNG_UP_SECONDS:
            os._exit(128 + signal.SIGHUP)
        if self._raised is not None and interruption_in(sys.exc_info()[1]) is None:
            raise self._raised


def interruption_in(error: BaseException | None) -> BaseException | None:
    """The interruption that an error is, or that made it: what is cleaned up half made can fail too."""
    errors, seen = [error], set()
    while errors:
        one = errors.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, (KeyboardInterrupt, Interrupted)):
            return one
        seen.add(id(one))
        errors += [one.__context__, one.__cause__]
    return None


def is_told() -> None:
    """Notes that an interruption has come to where it ends: it is not raised again."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def leave_to_the_system() -> None:
    """Has signals end the process as if it took no care of them: all is done."""
    is_told()
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _let_fall(unraisable: sys.UnraisableHookArgs) -> None:
    if not isinstance(unraisable.exc_value, (KeyboardInterrupt, Interrupted)):
        sys.__unraisablehook__(unraisable)

"""What a person sees of long work: a bar on a terminal, a quiet line now and then elsewhere."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from runner.tables import size

log = logging.getLogger(__name__)
COUNT_SECONDS = 0.1
QUIET_SECONDS = 15.0  # between two lines where there is no terminal


def say(text: str) -> None:
    """Prints a result. A closed or full stdout never spoils what is done."""
    with suppress(OSError, ValueError):
        print(text, flush=True)


@contextmanager
def progress(total: int, what: str, mode: str, things: str | None = None) -> Iterator[Callable[[int], None]]:
    """Shows how far a stage is; yields the function to be told of more bytes done.

    Args:
        total: bytes of the whole stage.
        what: names the stage.
        mode: "on", "off", "auto": a bar only if stderr is a terminal; or "lines", for programs.
        things: what is counted if not bytes: "models".
    """
    if mode == "off":
        yield lambda count: None
    elif mode == "lines":
        yield _counts(total, what)
    elif mode == "on" or (sys.stderr is not None and sys.stderr.isatty()):
        with _bar(total, what, things) as advance:
            yield advance
    else:
        yield _lines(total, what, things)


@contextmanager
def _bar(total: int, what: str, things: str | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *((MofNCompleteColumn(),) if things else (DownloadColumn(), TransferSpeedColumn())),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    task = bar.add_task(what, total=total)
    is_due = _every(COUNT_SECONDS)  # to draw it takes longer than to read a header

    def advance(count: int) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone
            bar.update(task, advance=count, refresh=is_due())

    with suppress(OSError, ValueError):
        bar.start()
    try:
        yield advance
    finally:
        with suppress(OSError, ValueError):
            bar.stop()


def _every(seconds: float, last: float = -math.inf) -> Callable[[], bool]:
    """Whether that many seconds have passed since it last was true, or since a moment."""

    def is_due() -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds:
            return False
        last = now
        return True

    return is_due


def _counts(total: int, what: str) -> Callable[[int], None]:
    """For programs: a line with plain numbers on stderr, ten times a second at most."""
    done, is_due = 0, _every(COUNT_SECONDS)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if is_due() or done >= total:
            with suppress(OSError, ValueError):
                print(f"progress {done} of {total}: {what}", file=sys.stderr, flush=True)

    return advance


def _lines(total: int, what: str, things: str | None) -> Callable[[int], None]:
    started = time.monotonic()
    done, is_due = 0, _every(QUIET_SECONDS, started)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if not done or not is_due():
            return
        rate = done / (time.monotonic() - started)
        left = (total - done) / rate
        if things:
            log.info("%s: %d of %d %s, %.0f s left", what, done, total, things, left)
            return
        log.info("%s: %s of %s, %s/s, %.0f s left", what, size(done), size(total), size(int(rate)), left)

    return advance

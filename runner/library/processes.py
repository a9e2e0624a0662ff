"""The same work on many things, by as many processes as there are processors."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

log = logging.getLogger(__name__)
ALONE_SECONDS = 2.0  # what takes no longer needs no other process
AT_A_TIME = 16  # things a process is given
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def spread(
    things: Sequence[Thing], work: Callable[[Thing], Result], processes: int
) -> Generator[tuple[int, Result], None, None]:
    """The index of each thing and what the work on it gives, in any order.

    Begins in this process, which may be all it takes. The others are forks of it: they know what the work has
    learnt until then. Whoever leaves off before the end closes the iterator, which ends them.

    Args:
        things: to be worked on.
        work: what is done; its results travel from one process to another.
        processes: how many may work; 1 where this process has threads, which a fork is without.
    """
    until, at = time.monotonic() + ALONE_SECONDS, 0
    while at < len(things) and (processes < 2 or time.monotonic() < until or len(things) - at <= AT_A_TIME):
        yield at, work(things[at])
        at += 1
    if at < len(things):
        yield from _shared_out(things, work, range(at, len(things), AT_A_TIME), processes)


def _shared_out(
    things: Sequence[Thing], work: Callable[[Thing], Result], begins: Sequence[int], processes: int
) -> Generator[tuple[int, Result], None, None]:
    def some(begin: int) -> list[Result]:
        return [work(thing) for thing in things[begin : begin + AT_A_TIME]]

    left = iter(begins)
    busy: dict[Connection, int] = {}

    def give(worker: Connection) -> None:
        if (begin := next(left, None)) is not None:
            busy[worker] = begin
            with suppress(OSError):  # it is gone: whoever waits for it is told
                worker.send(begin)

    with _forks(some, min(processes, len(begins))) as workers:
        for worker in workers:
            give(worker)
        while busy:
            ready = wait(list(busy))
            for worker in [one for one in busy if one in ready]:
                begin = busy.pop(worker)
                try:
                    results = worker.recv()
                except (EOFError, OSError):
                    log.warning("a process ended before its work was done; this one does it again")
                    results = some(begin)
                else:
                    give(worker)
                yield from enumerate(results, begin)
    for begin in left:  # none of them is left
        yield from enumerate(some(begin), begin)


@contextmanager
def _forks(work: Callable[[int], object], count: int) -> Iterator[list[Connection]]:
    """Processes that answer what they are sent with what the work makes of it, until the connection ends."""
    fork = multiprocessing.get_context("fork")
    processes, ours = [], []
    try:
        for _ in range(count):
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # they are ended by this one alone
            try:
                here, there = fork.Pipe()
                process = fork.Process(target=_answer, args=(work, here, there), daemon=True)
                process.start()
                there.close()
                processes.append(process)
                ours.append(here)
            except OSError:  # there is no room for one more: fewer do it
                break
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield ours
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for here in ours:
            here.close()


def _answer(work: Callable[[int], object], other: Connection, connection: Connection) -> None:
    other.close()  # so that it ends when the process does that has the other end
    with suppress(Exception):  # what is wrong is met again by the process that waits for the answer
        while True:
            connection.send(work(connection.recv()))

"""What an error may look like, whatever caused it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import RunnerError
from tests.attacks.mutations import SECRET


@contextmanager
def refused_by(*codes: int) -> Iterator[list[RunnerError]]:
    """Lets errors of ours pass that are what they should be: code, one short line each, nothing secret."""
    caught: list[RunnerError] = []
    try:
        yield caught
    except RunnerError as error:
        assert error.exit_code in codes, repr(error)
        for line in error.lines():
            assert line.isprintable() and len(line.encode()) <= 500, line
            assert SECRET not in line, line
        caught.append(error)

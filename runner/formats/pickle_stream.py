"""The bytes of a pickle, and what is said if they are not what we read."""

from __future__ import annotations

from collections.abc import Callable

from runner.errors import InputError, escape

MAX_NAME_BYTES = 256
_READ_BYTES = 1 << 16


class PickleError(Exception):
    """A pickle that is not what we read; becomes an InputError with file and position."""


class UnsafeError(PickleError):
    """A pickle that names something to be imported that no checkpoint needs."""


class Stream:
    """The bytes of a pickle, one after another.

    Args:
        read: count bytes from a position.
        end: no byte from here on is read.
        label: names the file in an error.
    """

    def __init__(self, read: Callable[[int, int], bytes], end: int, label: str) -> None:
        self._read, self._end, self._label = read, end, label
        self._buffer = b""
        self._base = 0  # position of the buffer
        self._at = 0  # position in the buffer

    @property
    def position(self) -> int:
        """Of the next byte."""
        return self._base + self._at

    def byte(self) -> int:
        """The next byte."""
        if self._at >= len(self._buffer):
            self._fill(1)
        self._at += 1
        return self._buffer[self._at - 1]

    def take(self, count: int) -> bytes:
        """The next count bytes."""
        if self._at + count > len(self._buffer):
            self._fill(count)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def number(self, count: int) -> int:
        """The next count bytes as an unsigned number."""
        return int.from_bytes(self.take(count), "little")

    def line(self) -> str:
        """The text up to the next line break."""
        if len(self._buffer) - self._at <= MAX_NAME_BYTES:
            self._fill(min(MAX_NAME_BYTES + 1, max(1, self._end - self.position)))
        end = self._buffer.find(b"\n", self._at, self._at + MAX_NAME_BYTES + 1)
        if end < 0:
            raise PickleError(f"a name without end, or of more than {MAX_NAME_BYTES} bytes")
        line = self._buffer[self._at : end]
        self._at = end + 1
        return decoded(line)

    def _fill(self, count: int) -> None:
        position = self.position
        left = self._end - position
        if count > left:
            raise PickleError(f"truncated: {count} bytes are needed, {left} are left")
        self._buffer = self._read(position, min(left, max(count, _READ_BYTES)))
        self._base, self._at = position, 0

    def error(self, problem: PickleError) -> InputError:
        """What is wrong, with file and position."""
        if isinstance(problem, UnsafeError):
            return InputError(
                f"{escape(self._label)}: {problem}",
                tag="UNSAFE",
                hint="if you trust it all the same, convert it to .safetensors where it can do no harm",
            )
        return InputError(f"{escape(self._label)}: pickle at byte {self.position}: {problem}", tag="PICKLE")


def decoded(data: bytes) -> str:
    """The text in UTF-8.

    Raises:
        PickleError: it is none.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PickleError("a text that is not UTF-8") from None

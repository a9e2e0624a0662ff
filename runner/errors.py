"""Every error the user can meet, its exit code, and how it is said.

RunnerError                 1   a bug here, or something nobody foresaw
├── UsageError              2   unknown job, bad override, refused output place
├── RecipeError             3   the recipe itself: syntax, unknown key, value out of range
├── InputError              4   an input is missing, malformed, hostile, or changed while read
├── IncompatibleError       5   well-formed inputs that do not fit each other or the method
├── NumericError            6   a value that cannot be stored or computed
├── OutputError             7   reading from or writing to the device failed: space, permission, ...
│   ├── PublishError        7   the model is in place, publishing it failed
│   └── SigningError        7   the model is in place, signing it failed
├── OutOfMemoryError        8   host or GPU memory
├── BusyError               9   another run holds this output
├── MismatchError          10   verification failed
└── CannotReplayError      11   an input or method version is not available

Interrupted           128 + n   a signal; no error, so that nothing catches it by mistake
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

MESSAGE_BYTES = 500  # one message line on stderr
MISTAKES_SHOWN = 15  # lines of one error; with them a failing run prints less than 8 KiB
QUOTE_CHARACTERS = 120  # text from a stranger inside a message


class RunnerError(Exception):
    """Says which file, which key, what was found and what to do.

    Args:
        message: one line without the "runner: error" prefix; several lines for several mistakes.
        tag: short upper-case word for the kind of fault, for example "SHAPE".
        hint: what the user can do about it; printed on a line of its own.
    """

    exit_code = 1
    default_tag = "BUG"

    def __init__(self, message: str, *, tag: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.tag = tag or self.default_tag
        self.hint = hint

    def lines(self) -> list[str]:
        """The error as stderr shows it: a line for each mistake, then the hint."""
        mistakes = self.message.split("\n")
        lines = [clip(f"runner: error[E-{self.tag}]: {mistake}") for mistake in mistakes[:MISTAKES_SHOWN]]
        if len(mistakes) > MISTAKES_SHOWN:
            more = len(mistakes) - MISTAKES_SHOWN
            lines.append(f"runner: error[E-{self.tag}]: and {more} more, in the log")
        if self.hint:
            lines.append(clip(f"hint: {self.hint}"))
        return lines


class UsageError(RunnerError):
    exit_code = 2
    default_tag = "USAGE"


class RecipeError(RunnerError):
    exit_code = 3
    default_tag = "RECIPE"


class InputError(RunnerError):
    exit_code = 4
    default_tag = "INPUT"


class IncompatibleError(RunnerError):
    exit_code = 5
    default_tag = "INCOMPATIBLE"


class NumericError(RunnerError):
    exit_code = 6
    default_tag = "NUMERIC"


class OutputError(RunnerError):
    exit_code = 7
    default_tag = "IO"


class PublishError(OutputError):
    default_tag = "PUBLISH"


class SigningError(OutputError):
    default_tag = "SIGN"


class OutOfMemoryError(RunnerError):
    exit_code = 8
    default_tag = "MEMORY"


class BusyError(RunnerError):
    exit_code = 9
    default_tag = "BUSY"


class MismatchError(RunnerError):
    exit_code = 10
    default_tag = "MISMATCH"


class CannotReplayError(RunnerError):
    exit_code = 11
    default_tag = "REPLAY"


class Interrupted(BaseException):
    """A signal asked the process to stop; exit code 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + number


@dataclass(frozen=True, slots=True)
class Location:
    """Where a value of a recipe was written: a file and line, or the command line."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class Problems:
    """Collects the mistakes of a recipe so that they are reported together.

    Args:
        locate: the place where the value at a key path was written.
    """

    def __init__(self, locate: Callable[[KeyPath], Location]) -> None:
        self._locate = locate
        self._found: list[str] = []
        self.warnings: list[str] = []

    def add(self, path: KeyPath, message: str) -> None:
        """Notes one mistake at a key path such as ("models", "b", "alpha")."""
        text = self._text(path, message)
        if text not in self._found:
            self._found.append(text)

    def warn(self, path: KeyPath, message: str) -> None:
        """Notes what is unusual, but no mistake."""
        self.warnings.append(self._text(path, message))

    def _text(self, path: KeyPath, message: str) -> str:
        key = escape(".".join(str(part) for part in path))
        return f"{self._locate(path)}: {key}: {message}" if key else f"{self._locate(path)}: {message}"

    def __bool__(self) -> bool:
        return bool(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def raise_if_any(self) -> None:
        """Raises: RecipeError with all that was noted, if anything was."""
        if self._found:
            raise RecipeError("\n".join(self._found))


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean "alpha"?' if a known word is close to this one, else ''."""
    spelled = {one.lower(): one for one in known}
    match = difflib.get_close_matches(word.lower(), list(spelled), n=1, cutoff=0.6)
    return f', did you mean "{spelled[match[0]]}"?' if match else ""


def counted(count: int, noun: str) -> str:
    """A number of things: "1 tensor", "2 tensors"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def quote(value: object) -> str:
    """A value from a stranger, made safe for a terminal: escaped and cut, texts in quotation marks."""
    if isinstance(value, (bool, int, float, list, dict)) or value is None:
        return escape(json.dumps(value, ensure_ascii=False, default=str))
    return f'"{escape(str(value))}"'


def escape(text: str) -> str:
    """Like quote, without the quotation marks: for key paths and file names."""
    if len(text) > QUOTE_CHARACTERS:
        text = text[: QUOTE_CHARACTERS - 1] + "…"
    return _escape_unprintable(text)


def _escape_unprintable(text: str) -> str:
    if text.isprintable():  # nearly all are, and this is asked of every name in a header
        return text
    return "".join(
        "".join(f"\\u{unit:04x}" for unit in _utf16(char)) if is_unprintable(char) else char for char in text
    )


def is_unprintable(char: str) -> bool:
    """Whether a character is shown as its number, and never as it is."""
    # Cc/Cf/Cs/Co/Cn, and the two separators that break lines: bidirectional controls are in Cf.
    kind = unicodedata.category(char)
    return kind[0] == "C" or kind in ("Zl", "Zp")


def _utf16(char: str) -> list[int]:
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def clip(line: str) -> str:
    """The line without line breaks, cut to the message limit."""
    line = _escape_unprintable(line.replace("\n", " "))
    data = line.encode("utf-8", "replace")
    if len(data) <= MESSAGE_BYTES:
        return line
    return data[: MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "…"

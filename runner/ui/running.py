"""A merge in a process of its own: how far it is, what it says, and how it is stopped."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Label, ProgressBar, RichLog

from runner.checkpoint import RECORD

_PROGRESS = re.compile(r"progress (?P<done>\d+) of (?P<total>\d+): (?P<what>.*)")
PATIENCE = 20.0  # seconds for a run to end by itself when it is asked to


def command(path: Path, overrides: Sequence[str]) -> list[str]:
    """The command that runs a recipe."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return [sys.executable, "-m", "runner", f"recipe='{escaped}'", "job=merge", *overrides, "progress=lines"]


class Run(ModalScreen[int]):
    """Runs a recipe and shows what happens; its result is the exit code."""

    DEFAULT_CSS = """
    Run { align: center middle; }
    Run > Vertical { width: 95%; height: 80%; border: round $primary; padding: 0 1; }
    Run RichLog { height: 1fr; }
    Run ProgressBar { height: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,ctrl+c", "stop", "stop / back", priority=True)]

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        super().__init__()
        self.path, self.command = path, command(path, overrides)
        self.process: asyncio.subprocess.Process | None = None
        self.code: int | None = None
        self.said: list[str] = []

    def compose(self) -> ComposeResult:
        """A bar, and below it what the run says."""
        with Vertical():
            yield Label(f"running {self.path.name} …", id="state", markup=False)
            yield ProgressBar(total=None, id="progress")
            yield RichLog(wrap=True, markup=False, id="log")
        yield Footer()

    def on_mount(self) -> None:
        """Starts the run."""
        self.run_worker(self._follow(), exclusive=True)

    async def on_unmount(self) -> None:
        """Leaves no process behind."""
        await self.end()

    async def _follow(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        streams = (self.process.stdout, self.process.stderr)
        await asyncio.gather(*(self._read(stream) for stream in streams if stream is not None))
        self.code = await self.process.wait()
        state = "✓ done" if self.code == 0 else f"✗ ended with exit code {self.code}"
        self.query_one("#state", Label).update(f"{state}: {self.path.name}")
        if self.code == 0:
            self.query_one(ProgressBar).update(total=1, progress=1)
            self._record()

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            if match := _PROGRESS.fullmatch(line):
                bar = self.query_one(ProgressBar)
                bar.update(total=int(match["total"]), progress=int(match["done"]))
                continue
            self.said.append(line)
            self.query_one(RichLog).write(line)

    def _record(self) -> None:
        """Says where the record of the run is."""
        for line in self.said:
            record = Path(line).parent / RECORD
            if line and not line.startswith(" ") and record.is_file():
                self.said.append(f"record: {record}")
                self.query_one(RichLog).write(self.said[-1])
                return

    async def end(self) -> None:
        """Asks the run to end, as Ctrl-C does, and waits until it is gone."""
        process = self.process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def action_stop(self) -> None:
        """Stops the run; leaves if it has ended."""
        if self.code is not None:
            self.dismiss(self.code)
            return
        self.query_one("#state", Label).update("stopping …")
        self.run_worker(self.end())


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines of a stream, however long, without what would move the cursor."""
    rest = b""
    while chunk := await stream.read(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield _plain(line)
    if rest:
        yield _plain(rest)


def _plain(line: bytes) -> str:
    text = line.decode("utf-8", "replace").rstrip("\r")
    return "".join(char if char.isprintable() else "·" for char in text)

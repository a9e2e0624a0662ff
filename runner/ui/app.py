"""The composer: form and text of a recipe side by side, its plan below, kept in step while one types."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.timer import Timer
from textual.widgets import Footer, Static, Tab, Tabs, TextArea

from runner.config import Settings
from runner.errors import KeyPath, RunnerError, UsageError
from runner.ui import store
from runner.ui.asked import (
    MERGE,
    MERGED,
    NEW,
    free_role,
    method_picker,
    model_rows,
    numbers_page,
    recipe_picker,
    vae_rows,
)
from runner.ui.check import Checked, Problem, check
from runner.ui.choices import Choice, found_models, looked_at, named, reader_of
from runner.ui.draft import EMPTY, Draft
from runner.ui.form import Form
from runner.ui.help import HELP
from runner.ui.picker import Notice, Picker, Question, Row
from runner.ui.running import Run
from runner.ui.text import RecipeText
from runner.ui.watch import Watch

PAUSE = 0.25  # seconds without a change before a draft is checked
LOOK = 2.0  # seconds between looks whether the models are still there


class Compose(App[None]):
    """Edits one recipe."""

    TITLE = "runner compose"
    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "compose.tcss"
    HORIZONTAL_BREAKPOINTS = [  # noqa: RUF012 - as Textual declares it
        (0, "-narrow"),
        (100, "-wide"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "help"),
        Binding("f2", "go('form')", "form"),
        Binding("f3", "go('text')", "text"),
        Binding("f4", "go('plan')", "plan"),
        Binding("ctrl+s", "save", "save"),
        Binding("ctrl+r", "run", "run"),
        Binding("ctrl+o", "open", "open"),
        Binding("ctrl+z", "undo", "undo", show=False),
        Binding("f5", "look", "look again", show=False),
        Binding("delete", "empty", "empty role", show=False),
        Binding("ctrl+q", "leave", "quit", priority=True),
    ]

    def __init__(
        self,
        settings: Settings,
        stored: store.Stored,
        overrides: Sequence[str] = (),
        confined: bool = False,
    ) -> None:
        """Opens a recipe.

        Args:
            settings: where models are, and how recipes are run.
            stored: the recipe; one without a file yet has no sha256.
            overrides: of the command line, for the runs.
            confined: whether models outside the folders of the settings are refused.
        """
        super().__init__()
        self.settings, self.overrides, self.confined = settings, tuple(overrides), confined
        self._take(stored)
        self.at: KeyPath = ()
        self.checked = Checked("")
        self.models: list[Choice] = []
        self.files = Watch(settings.models_dir)
        self._waiting: Timer | None = None

    def _take(self, stored: store.Stored) -> None:
        self.stored = stored
        self.draft = Draft(stored.name, stored.text)
        self.before: list[Draft] = []

    def compose(self) -> ComposeResult:
        """The title, the tabs of a narrow screen, the panes."""
        yield Static("", id="top", markup=False)
        yield Tabs(
            Tab("form", id="form-tab"), Tab("text", id="text-tab"), Tab("plan", id="plan-tab"), id="tabs"
        )
        with Horizontal(id="panes", classes="form"):
            yield Form(id="form")
            with Vertical(id="right"):
                yield RecipeText(self.draft.text, id="text")
                with VerticalScroll(id="below"):
                    yield Static("", id="mistakes", markup=False)
                    yield Static("", id="plan", markup=False)
        yield Footer()

    async def on_mount(self) -> None:
        """Shows the recipe and begins to look for models."""
        await self._show()
        self._check()
        self.action_look()
        self.set_interval(LOOK, self._look_at_files)

    @property
    def is_saved(self) -> bool:
        """Whether the file says what the form says."""
        return self.draft.text == self.stored.text and bool(self.stored.sha256)

    async def _show(self) -> None:
        """Brings form, text and title up to the draft."""
        if self.at not in self.draft.merges():
            self.at = ()
        text = self.query_one("#text", RecipeText)
        if text.text != self.draft.text:
            with self.prevent(TextArea.Changed):
                text.show(self.draft.text)
        mark = "" if self.is_saved else "● not saved: "
        self.query_one("#top", Static).update(f"{mark}{store.shown(self.stored.path)}")
        await self.query_one("#form", Form).show(self.draft, self.at, self.checked, self.files.gone)

    async def change(self, change: Callable[[Draft], Draft]) -> bool:
        """Changes the draft; says why if that cannot be."""
        try:
            changed = change(self.draft)
        except RunnerError as error:
            self.notify(str(error), title="not changed", severity="error", markup=False)
            return False
        if changed.text != self.draft.text:
            self.before = [*self.before[-199:], self.draft]
            self.draft = changed
            self._check_soon()
        await self._show()
        return True

    # Checking

    def _check_soon(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
        self._waiting = self.set_timer(PAUSE, self._check)

    @work(thread=True, exclusive=True, group="check")
    def _check(self) -> None:
        draft = self.draft
        try:
            checked = check(draft, self.settings, confined=self.confined)
        except Exception as error:  # the form must stay: somebody's work is in it
            checked = Checked(draft.text, (Problem(f"{type(error).__name__}: {error} (a bug in runner)"),))
        self.call_from_thread(self.call_later, self._tell, checked)

    async def _tell(self, checked: Checked) -> None:
        if checked.text != self.draft.text:
            return  # a newer one is on its way
        if checked.problems and not checked.curves:  # what was known of the models holds on
            known = self.checked
            checked = Checked(
                checked.text, checked.problems, checked.hint, "", known.curves, known.components
            )
        self.checked = checked
        self.query_one("#text", RecipeText).mark(checked.problems)
        lines = [
            f"✗ {'' if one.line is None else f'line {one.line}: '}{one.text}" for one in checked.problems
        ]
        lines += [f"→ {checked.hint}"] if checked.hint else []
        mistakes = self.query_one("#mistakes", Static)
        mistakes.update("\n".join(lines))
        mistakes.display = bool(lines)
        self.query_one("#plan", Static).update("" if lines else f"✓ {checked.plan}")
        count = len(checked.problems)
        self.query_one("#plan-tab", Tab).label = f"plan ✗{count}" if count else "plan ✓"
        await self._show()

    # Models

    @work(exclusive=True, group="look")
    async def action_look(self) -> None:
        """Looks which models there are, then what they are."""
        try:
            found = await asyncio.to_thread(found_models, self.settings)
            self._found(named(found, self.settings))
            if command := await asyncio.to_thread(reader_of, found, self.settings):
                await _done(command)
            self._found(await asyncio.to_thread(looked_at, found, self.settings))
        except RunnerError as error:
            self.notify(str(error), title="models", severity="error", markup=False)

    def _found(self, models: list[Choice]) -> None:
        self.models = models
        if isinstance(self.screen, Picker) and self._rows_of is not None:
            self.screen.set_rows(self._rows_of(models))

    _rows_of: Callable[[Sequence[Choice]], list[Row]] | None = None

    async def _look_at_files(self) -> None:
        """Notices models that vanish, or come back, while the form is open."""
        if self.files.look(self.draft, {choice.source for choice in self.models}):
            self._check_soon()
            await self._show()

    # What is asked for

    @on(Form.Changed)
    async def _edited(self, event: Form.Changed) -> None:
        await self.change(event.change)

    @on(Form.Moved)
    async def _moved(self, event: Form.Moved) -> None:
        self.at = event.at
        await self._show()

    @on(TextArea.Changed, "#text")
    async def _written(self, event: TextArea.Changed) -> None:
        text = event.text_area.text
        if text != self.draft.text:
            await self.change(lambda draft: draft.with_text(text))

    @on(Form.Asked)
    @work
    async def _asked(self, event: Form.Asked) -> None:
        at = self.at
        if event.what == "method":
            if (name := await self.push_screen_wait(method_picker())) is not None:
                await self.change(lambda draft: draft.with_method(at, str(name)))
        elif event.what == "numbers":
            page = numbers_page(self.draft, at, event.name, self.checked)
            if page is not None and (changed := await self.push_screen_wait(page)) is not None:
                await self.change(lambda _: changed)
        elif event.what == "role":
            question = Question("name of the model's role", free_role(self.draft, at))
            if role := await self.push_screen_wait(question):
                await self._ask_model(at, role)
        elif event.what == "vae":
            source = await self._choose("VAE of the result", lambda models: vae_rows(self.draft, models))
            if source is not None:
                vae = None if source == MERGED else source
                await self.change(lambda draft: draft.with_component("vae", vae))
        else:
            await self._ask_model(at, event.name)

    async def _ask_model(self, at: KeyPath, role: str) -> None:
        source = await self._choose(f"model for {role}", partial(model_rows, self.draft, at, role))
        if source == MERGE:
            if await self.change(lambda draft: draft.with_merge(at, role)):
                self.at = (*at, "models", role)
                await self._show()
        elif source is not None:
            await self.change(lambda draft: draft.with_model(at, role, source))

    async def _choose(self, title: str, rows: Callable[[Sequence[Choice]], list[Row]]) -> Any:
        """Asks for a model; more of them come while the list is open."""
        self._rows_of = rows
        source = await self.push_screen_wait(Picker(title, rows(self.models), free="as written"))
        self._rows_of = None
        return source

    async def action_empty(self) -> None:
        """Takes the model out of the role that has the keyboard."""
        role = (self.focused.id or "") if self.focused else ""
        if role.startswith("role-"):
            path = (*self.at, "models", role.removeprefix("role-"))
            await self.change(lambda draft: draft.without(path))

    async def action_undo(self) -> None:
        """Takes the last change back."""
        if self.before:
            self.draft = self.before.pop()
            self._check_soon()
            await self._show()

    def action_go(self, pane: str) -> None:
        """Goes to the form, the text or the plan."""
        self.query_one(Tabs).active = f"{pane}-tab"
        self.query_one("#panes").set_classes(pane)
        if pane == "form":
            fields = [widget for widget in self.query("#form *") if widget.focusable]
            (fields[0] if fields else self.query_one("#form")).focus()
        else:
            self.query_one("#text" if pane == "text" else "#below").focus()

    @on(Tabs.TabActivated)
    def _tab(self, event: Tabs.TabActivated) -> None:
        self.query_one("#panes").set_classes((event.tab.id or "form-tab").removesuffix("-tab"))

    def action_help(self) -> None:
        """Shows the keys."""
        self.push_screen(Notice(HELP))

    # Files

    async def action_save(self, then: Callable[[], Any] | None = None) -> None:
        """Saves; asks for a name if the recipe has no file yet."""
        if self.stored.sha256:
            await self._save(self.stored.path, self.stored.sha256, then)
        else:
            self._ask_name("", then)

    def _ask_name(self, said: str, then: Callable[[], Any] | None) -> None:
        async def named(name: str | None) -> None:
            if name:
                try:
                    path = store.path_of(name)
                except UsageError as error:
                    self._ask_name(f"✗ {error}", then)
                else:
                    await self._save(path, "", then)

        self.push_screen(Question("save the recipe as", self.draft.name, said), named)

    async def _save(self, path: Path, known: str, then: Callable[[], Any] | None) -> None:
        try:
            self.stored = store.save(path, self.draft.text, known)
        except RunnerError as error:
            said = "\n".join(filter(None, (f"✗ {error}", error.hint)))
            self._ask_name(said, then)
            return
        self.draft = Draft(self.stored.name, self.draft.text)
        self.notify(f"saved {store.shown(self.stored.path)}", markup=False)
        self._check()
        await self._show()
        if then is not None:
            then()

    async def action_run(self) -> None:
        """Saves and runs, if nothing is wrong."""
        checked = check(self.draft, self.settings, confined=self.confined)
        if checked.problems:
            await self._tell(checked)
            self.action_go("plan")
            self.notify("the recipe has mistakes", severity="error")
        elif self.is_saved:
            self.push_screen(Run(self.stored.path, self.overrides))
        else:
            await self.action_save(lambda: self.push_screen(Run(self.stored.path, self.overrides)))

    @work
    async def action_open(self) -> None:
        """Opens another recipe, or begins a new one."""
        name = await self.push_screen_wait(recipe_picker())
        if name is None or not (self._has_nothing_to_lose() or await self._gives_up()):
            return
        try:
            found = None if name == NEW else store.opened(name)
        except RunnerError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self._take(found or fresh(store.free_name()))
        self.at = ()
        self._check()
        await self._show()

    @work
    async def action_leave(self) -> None:
        """Leaves; asks first if something is not saved."""
        if isinstance(self.screen, Run):
            await self.screen.end()
        if self._has_nothing_to_lose() or await self._gives_up():
            self.exit()

    def _has_nothing_to_lose(self) -> bool:
        return self.is_saved or self.draft.text in (EMPTY, self.stored.text)

    async def _gives_up(self) -> bool:
        text = f"{self.draft.name} is not saved.\n\nEnter: go on without saving    Escape: back"
        return await self.push_screen_wait(Notice(text)) is True


async def _done(command: Sequence[str]) -> None:
    """Waits for a command that says nothing; ends it when it is waited for no longer."""
    nothing = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()


def fresh(name: str) -> store.Stored:
    """A recipe that has no file yet."""
    return store.Stored(name, store.own_folder() / f"{name}.yaml", EMPTY, "")

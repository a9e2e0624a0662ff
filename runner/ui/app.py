"""The composer: form and text of a recipe side by side, its plan below, kept in step while one types."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import AppBlur
from textual.timer import Timer
from textual.widgets import Footer, Static, TextArea

from runner.config import Settings
from runner.errors import KeyPath, OutputError, RunnerError, UsageError
from runner.ui import asked, store
from runner.ui.check import Checked, Problem, check
from runner.ui.choices import Choice, found_models, looked_at, named, read_apart, reader_of
from runner.ui.draft import Draft, no_role
from runner.ui.form import Form
from runner.ui.help import HELP
from runner.ui.kept import Kept
from runner.ui.messages import Asked, Changed, Moved
from runner.ui.panes import Panes
from runner.ui.picker import Notice, Picker, Question
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
        Binding("f2", "go('form')", "form", priority=True),
        Binding("f3", "go('text')", "text", priority=True),
        Binding("f4", "go('plan')", "plan", priority=True),
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
        self.kept = Kept(settings.cache_dir / "drafts")
        self.opened = self.kept.reopen(stored)
        self.at: KeyPath = ()
        self.checked = Checked("")
        self.models: list[Choice] = []
        self.files = Watch(settings.models_dir)
        self._page: asked.Page | None = None
        self._shown = False  # a browser has been shown the form
        self._warned = False  # that what is not saved cannot be kept
        self._waiting: Timer | None = None

    def compose(self) -> ComposeResult:
        """The title and the panes."""
        yield Static("", id="top", markup=False)
        yield Panes(self.draft.text)
        yield Footer(compact=True)

    async def on_mount(self) -> None:
        """Shows the recipe and begins to look for models."""
        await self._show()
        self._say_what_is_back()
        self.action_go("form")
        self.action_look()
        self.set_interval(LOOK, self._look_at_files)

    def on_unmount(self) -> None:
        """Leaves what is not saved to the next form: this process may have to wait for its threads."""
        self.kept.end()

    @property
    def draft(self) -> Draft:
        """The recipe as it is now."""
        return self.opened.draft

    async def _show(self) -> None:
        """Brings form, text, title and what is kept of it up to the draft."""
        self._keep()
        if self.at not in self.draft.merges():
            self.at = ()
        with self.prevent(TextArea.Changed):
            self.query_one("#text", RecipeText).show(self.draft.text)
        mark = "" if self.opened.is_saved else "● not saved: "
        self.query_one("#top", Static).update(f"{mark}{store.shown(self.opened.stored.path)}")
        await self.query_one("#form", Form).show(self.draft, self.at, self.checked, self.files.gone)

    def _keep(self) -> None:
        try:
            self.kept.keep(self.opened)
            self._warned = False
        except OutputError as error:
            if not self._warned:
                self._warned = True
                self.notify(str(error), title="unsaved text is not kept", severity="warning", markup=False)

    def _say_what_is_back(self) -> None:
        """Says so if what another form had not saved is here again."""
        if not self.opened.can_be_left:
            text = f"what was not saved of {self.draft.name} is here again; Ctrl+Z takes it away"
            self.notify(text, timeout=15, markup=False)

    async def change(self, change: Callable[[Draft], Draft]) -> bool:
        """Changes the draft; says why if that cannot be."""
        try:
            if self.opened.change(change):
                self._check_soon()
        except RunnerError as error:
            self.notify(str(error), title="not changed", severity="error", markup=False)
            return False
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
        self.checked = checked = checked.after(self.checked)
        self.query_one(Panes).tell(checked)
        await self._show()

    # Models

    @work(exclusive=True, group="look")
    async def action_look(self) -> None:
        """Looks which models there are, then what they are."""
        self._check()
        try:
            found = await asyncio.to_thread(found_models, self.settings)
            choices = named(found, self.settings)
            self.files.known |= {one.name: one.path for one in found}
            self.files.known |= {choice.source: one.path for choice, one in zip(choices, found, strict=True)}
            self._found(choices)
            if command := await asyncio.to_thread(reader_of, found, self.settings):
                await read_apart(command)
            self._found(await asyncio.to_thread(looked_at, found, self.settings))
        except RunnerError as error:
            self.notify(str(error), title="models", severity="error", markup=False)

    def _found(self, models: list[Choice]) -> None:
        self.models = models
        page = self._page
        if page is not None and page.rows is not None and isinstance(page.screen, Picker):
            page.screen.set_rows(page.rows(models))

    async def _look_at_files(self) -> None:
        """Notices models that vanish, come back or change while the form is open."""
        if self.files.look(self.draft):
            self._check_soon()
            await self._show()

    # What is asked for

    @on(Changed)
    async def _edited(self, event: Changed) -> None:
        await self.change(event.change)

    @on(Moved)
    async def _moved(self, event: Moved) -> None:
        self.at = event.at
        await self._show()

    @on(TextArea.Changed, "#text")
    async def _written(self) -> None:
        area = self.query_one("#text", RecipeText)
        text = area.told = area.text
        if text != self.draft.text:
            await self.change(lambda draft: draft.with_text(text))

    @on(Asked)
    @work
    async def _ask(self, event: Asked) -> None:
        at, what, name = self.at, event.what, event.name
        if what == "role":
            question = Question("name of its role", asked.free_role(self.draft, at), no_role)
            if not (role := await self.push_screen_wait(question)):
                return
            what, name = "model", role
        page = asked.page_for(what, name, self.draft, at, self.checked, self.models)
        if page is None:
            return
        self._page = page
        answer = await self.push_screen_wait(page.screen)
        self._page = None
        if answer is None or not await self.change(lambda draft: page.change(draft, answer)):
            return
        if answer == asked.MERGE:
            self.at = (*at, "models", name)
            await self._show()

    async def action_empty(self) -> None:
        """Takes the model out of the role that has the keyboard."""
        role = (self.focused.id or "") if self.focused else ""
        if role.startswith("role-"):
            path = (*self.at, "models", role.removeprefix("role-"))
            await self.change(lambda draft: draft.without(path))

    async def action_undo(self) -> None:
        """Takes the last change back."""
        if self.opened.undo():
            self._check_soon()
            await self._show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        """Whether a key does something now: between panes nobody goes while something is asked."""
        return action != "go" or len(self.screen_stack) == 1

    def on_app_blur(self, event: AppBlur) -> None:
        """In a browser Textual sends the first by itself, which may come after the page has the keyboard."""
        if self.is_web and not self._shown:
            event.prevent_default()
        self._shown = True

    def action_go(self, pane: str) -> None:
        """Goes to the form, the text or the plan."""
        self.query_one(Panes).go(pane)

    def action_help(self) -> None:
        """Shows the keys."""
        self.push_screen(Notice(HELP))

    # Files

    @work
    async def action_save(self) -> None:
        """Saves."""
        await self._saves()

    async def _saves(self) -> bool:
        """Saves; asks for a name if there is no file yet, or somebody else wrote it."""
        stored = self.opened.stored
        said = self._refusal(stored.path, stored.sha256) if stored.sha256 else ""
        if said or not stored.sha256:
            name = store.name_for(stored, self.draft.value(("output", "name")))
            question = Question("save the recipe as", name, self._save_as, said)
            if await self.push_screen_wait(question) is None:
                return False
        self.notify(f"saved {store.shown(self.opened.stored.path)}", markup=False)
        self._check()
        await self._show()
        return True

    def _save_as(self, name: str) -> str:
        try:
            return self._refusal(store.path_of(name), "")
        except UsageError as error:
            return f"✗ {error}"

    def _refusal(self, path: Path, known: str) -> str:
        """Saves; why that could not be."""
        try:
            self.opened.save(path, known)
        except RunnerError as error:
            return "\n".join(filter(None, (f"✗ {error}", error.hint)))
        return ""

    @work
    async def action_run(self) -> None:
        """Saves and runs, if nothing is wrong."""
        checked = check(self.draft, self.settings, confined=self.confined)
        if checked.problems:
            await self._tell(checked)
            self.action_go("plan")
            self.notify("the recipe has mistakes", severity="error")
        elif self.opened.is_saved or await self._saves():
            self.push_screen(Run(self.opened.stored.path, self.overrides))

    @work
    async def action_open(self) -> None:
        """Opens another recipe, or begins a new one."""
        name = await self.push_screen_wait(asked.recipe_picker())
        if name is None or not (self.opened.can_be_left or await self._gives_up()):
            return
        try:
            found = None if name == asked.NEW else store.opened(name, self.confined)
        except RunnerError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.opened = self.kept.reopen(found or store.fresh())
        self.at = ()
        self._check()
        await self._show()
        self._say_what_is_back()
        self.action_go("form")

    @work
    async def action_leave(self) -> None:
        """Leaves; asks first if something is not saved."""
        if isinstance(self.screen, Run):
            await self.screen.end()
        if self.opened.can_be_left or await self._gives_up():
            self.kept.drop()
            self.kept.end()
            self.exit()

    def action_help_quit(self) -> None:
        """Says how to leave to who presses Ctrl+C and has nothing chosen that it would copy."""
        self.notify("Ctrl+Q leaves")

    async def _gives_up(self) -> bool:
        text = f"{self.draft.name} is not saved.\n\nEnter: go on without saving    Escape: back"
        return await self.push_screen_wait(Notice(text)) is True

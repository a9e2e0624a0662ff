"""The form: one merge of the recipe at a time, its models, its numbers, and what the result is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from rich.text import Text
from textual import on
from textual.containers import VerticalScroll
from textual.events import DescendantFocus
from textual.widget import Widget
from textual.widgets import Button, Input, OptionList, Select, Static
from textual.widgets.option_list import Option

from runner.errors import KeyPath, escape
from runner.recipe.structure import IDENTIFIER
from runner.ui.check import Checked
from runner.ui.draft import Draft, described
from runner.ui.fields import DTYPE, FORMAT, NAME, merge_fields, result_fields
from runner.ui.messages import Asked, Changed, Moved
from runner.ui.parameter import ParameterRow, is_varied
from runner.ui.rows import FieldRow, Finer, button_row

UNREADABLE = (
    "✗ This text is no recipe that a form could show. Nothing of it is lost: correct it in the text (F3);"
    " the lines with mistakes are marked there."
)


class Form(VerticalScroll):
    """Shows a draft and says what a person changes in it."""

    DEFAULT_CSS = """
    Form { padding: 0 1; }
    Form .row { height: 1; margin-top: 1; }
    Form .row > Label { width: 13; text-style: bold; }
    Form .row Button { width: 1fr; height: 1; min-width: 8; border: none; }
    Form .row Button { content-align: left middle; text-align: left; text-wrap: nowrap; }
    Form .row Button { text-overflow: ellipsis; }
    Form #result { margin-top: 1; border-top: solid $primary; text-style: bold; }
    Form .row Button:focus { text-style: reverse bold; }
    Form .row Button.small { width: 7; }
    Form .row Input { width: 1fr; height: 1; border: none; padding: 0; background: $surface-lighten-1; }
    Form .row Input.number { width: 9; margin: 0 1; }
    Form .row Select { width: 1fr; height: 1; }
    Form .row SelectCurrent { height: 1; border: none; padding: 0; }
    Form .row Select:focus SelectCurrent { text-style: reverse bold; }
    Form .row .curve { width: 1fr; margin-right: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    Form #steps { height: auto; max-height: 6; border: none; margin-top: 1; }
    Form #formula, Form .meaning { color: $text-muted; margin-left: 13; height: auto; }
    Form Finer FieldRow .row > Label { width: 18; }
    Form Finer FieldRow .meaning { margin-left: 18; }
    Form .row Button.-active { border: none; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id, can_focus=False)
        self.draft, self.checked = Draft("new"), Checked("")
        self.at: KeyPath = ()
        self.gone: frozenset[str] = frozenset()
        self._rows: dict[object, Widget] = {}
        self._showing = asyncio.Lock()
        self._last: str | None = None
        self._opened: frozenset[str] = frozenset()

    async def show(self, draft: Draft, at: KeyPath, checked: Checked, gone: frozenset[str]) -> None:
        """Shows a draft: fields that are there already get new values, so that the keyboard stays."""
        async with self._showing:  # while fields come and go, the next draft waits
            if at != self.at:
                self._last = None
            self.draft, self.at, self.checked, self.gone = draft, at, checked, gone
            await self._bring(dict(self._fields()))
            with self.prevent(Input.Changed, Select.Changed, OptionList.OptionHighlighted):
                self._update()

    async def _bring(self, fields: Mapping[object, Callable[[], Widget]]) -> None:
        """Makes the fields those: what is there already stays, and the keyboard with it."""
        if list(fields) == list(self._rows):
            return
        last, had_focus = self._last, self.has_focus_within
        kept = [key for key in fields if key in self._rows]
        if kept != [key for key in self._rows if key in fields]:  # in another order
            kept = []
        async with self.batch():
            await self.remove_children([one for key, one in self._rows.items() if key not in kept])
            rows: dict[object, Widget] = {}
            above: Widget | None = None
            for key, make in fields.items():
                rows[key] = self._rows[key] if key in kept else make()
                if key not in kept:
                    await self.mount(rows[key], after=above, before=0 if above is None else None)
                above = rows[key]
            self._rows = rows
        self._last = last
        if had_focus:
            self.enter()

    def enter(self) -> None:
        """Gives the keyboard to the field that had it last, else to the first model that is missing."""
        empty = [
            f"role-{role}" for role in self._roles() if self.draft.value((*self.at, "models", role)) is None
        ]
        for id in (self._last, *empty, "method"):
            if id and self.query(f"#{id}"):
                self.screen.set_focus(self.query_one(f"#{id}"))
                return

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Notes who has the keyboard."""
        self._last = event.widget.id

    def _roles(self) -> list[str]:
        return list(filter(IDENTIFIER.fullmatch, self.draft.roles(self.at)))

    def _dtype_parts(self) -> list[str]:
        """The components whose dtype is shown: those that have one of their own, or all."""
        said = self.draft.value(DTYPE.path)
        return self._parts(said if isinstance(said, Mapping) else (), "dtype")

    def _components(self) -> list[str]:
        """The components whose source is shown: the VAE, those that have one of their own, or all."""
        return self._parts(["vae", *self.draft.merge(("components",))], "components")

    def _parts(self, said: Iterable[str], section: str) -> list[str]:
        known = self.checked.components if section in self._opened else ()
        found = dict.fromkeys([*map(str, said), *known])
        return [part for part in found if part != "default" and IDENTIFIER.fullmatch(part)]

    def _fields(self) -> Iterator[tuple[object, Callable[[], Widget]]]:
        """The fields there are to be, by what makes each another one."""
        draft, at, method = self.draft, self.at, self.draft.method(self.at)
        if not draft.is_readable:
            yield "unreadable", partial(Static, UNREADABLE, id="unreadable", markup=False)
            return
        if len(draft.merges()) > 1:
            yield "steps", partial(OptionList, id="steps", markup=False)
        yield "method", partial(button_row, "method", "method")
        yield "formula", partial(Static, id="formula", markup=False)
        for role in self._roles():
            yield ("role", role), partial(button_row, role, f"role-{role}")
        if method is not None and method.variadic is not None:
            yield "more", partial(button_row, "", "more")
        for parameter in method.parameters.values() if method else ():
            path = (*at, parameter.name)
            key = (path, parameter, is_varied(draft, path))
            yield key, partial(ParameterRow, parameter, path, draft)
        yield "force", partial(button_row, "force", "force")
        fields = merge_fields(method, is_inner=at != ())
        finer = tuple(one for one in fields if one.name != "force")  # which has a button
        yield (at, finer), partial(Finer, finer, at, "finer-merge")
        if at == ():
            yield from self._result()

    def _result(self) -> Iterator[tuple[object, Callable[[], Widget]]]:
        yield "result", partial(Static, "result", id="result")
        yield "name", partial(FieldRow, NAME, NAME.path)
        yield "format", partial(FieldRow, FORMAT, FORMAT.path)
        yield "dtype", partial(FieldRow, DTYPE, DTYPE.path, "default", "open-dtype")
        for part in self._dtype_parts():
            yield ("dtype", part), partial(FieldRow, DTYPE, DTYPE.path, part)
        first, *others = self._components()
        yield ("component", first), partial(button_row, first, f"component-{first}", "open-components")
        for component in others:
            yield ("component", component), partial(button_row, component, f"component-{component}")
        yield "finer", partial(Finer, tuple(result_fields()), (), "finer-result")

    def _update(self) -> None:
        draft, at, method = self.draft, self.at, self.draft.method(self.at)
        if not draft.is_readable:
            return
        for steps in self.query("#steps").results(OptionList):
            merges = draft.merges()
            steps.clear_options()
            steps.add_options([Option(_step(draft, merge, at)) for merge in merges])
            steps.highlighted = merges.index(at)
        name = draft.merge(at).get("method")
        self.query_one("#method", Button).label = Text(f"{described(name) or '· choose a method'} ▾")
        unknown = "✗ there is no such method" if name is not None else ""
        inherited = "The recipe it builds on says it." if at == () and draft.file.defaults else ""
        self.query_one("#formula", Static).update(method.summary if method else unknown or inherited)
        for role in self._roles():
            value = draft.value((*at, "models", role))
            self.query_one(f"#role-{role}", Button).label = self._label(value, "choose a model")
        for button in self.query("#more").results(Button):
            button.label = "+ one more model"
        for one in self._rows.values():
            if isinstance(one, ParameterRow):
                one.show(draft, self.checked)
            elif isinstance(one, (FieldRow, Finer)):
                one.show(draft)
        mark = "☑" if draft.value((*at, "force")) is True else "☐"
        self.query_one("#force", Button).label = Text(f"{mark} merge what fits of models that differ")
        for component in self._components() if at == () else ():
            source = draft.value(("components", component))
            self.query_one(f"#component-{component}", Button).label = self._label(
                source, "merged like the rest"
            )

    def _label(self, model: Any, without: str) -> Text:
        """What the button of a model says: which it is, and whether it is still there."""
        name = described(model) or f"· {without}"
        return Text(f"{'✗ gone: ' if name in self.gone else ''}{name} ▾")

    @on(Button.Pressed)
    async def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        what, _, name = (event.button.id or "").partition("-")
        if what == "force":
            path = (*self.at, "force")
            value = None if self.draft.value(path) is True else True
            self.post_message(Changed(lambda draft: draft.with_said(path, value)))
        elif what == "finer":
            async with self._showing:
                for finer in self.query(f"#{what}-{name.removesuffix('-more')}").results(Finer):
                    await finer.toggle()
        elif what == "open":
            if not self.checked.components:
                self.notify("The components are known once the models are: choose them first.")
                return
            self._opened ^= {name}
            await self.show(self.draft, self.at, self.checked, self.gone)
        else:
            asked = {"role": "model", "places": "numbers", "more": "role"}
            self.post_message(Asked(asked.get(what, what), name))

    @on(OptionList.OptionSelected, "#steps")
    def _went(self, event: OptionList.OptionSelected) -> None:
        self.post_message(Moved(self.draft.merges()[event.option_index]))


def _step(draft: Draft, merge: KeyPath, at: KeyPath) -> str:
    mark = "▸" if merge == at else " "
    role = f"{merge[-1]}: " if merge else "result: "
    return f"{mark} {'  ' * (len(merge) // 2)}{role}{escape(str(draft.merge(merge).get('method')))}"

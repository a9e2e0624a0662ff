"""The composer, driven by keys: from an empty folder to a merged model, and nothing lost on the way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textual", reason="NOT TESTED: the composer; pip install 'runner[ui]'")

from textual import events
from textual.pilot import Pilot
from textual.widgets import Button, Input, OptionList, Static, TextArea

from runner.compose import DATA_ROOT
from runner.disk.cachefile import HEADERS
from runner.library.headers import known_facts
from runner.tensors import TensorSpec
from runner.ui.app import Compose
from runner.ui.bars import Curve
from runner.ui.choices import FEW, found_models, read_apart, reader_of
from runner.ui.picker import SHOWN, Picker, Question, Row
from runner.ui.running import Run
from runner.ui.text import RecipeText
from tests.build import write_models
from tests.library.trees import write
from tests.ui.form import checked, choose, composer, says, until

MIX = (DATA_ROOT / "recipes" / "anime_mix.yaml").read_text()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with recipes/ below it for recipes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drive(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(steps)


def test_from_an_empty_folder_to_a_merged_model(cache: Path, folder: Path) -> None:
    async def steps() -> None:
        app = composer(cache)
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.press("enter")  # the form begins at the first model that is missing
            await until(pilot, lambda: isinstance(app.screen, Picker))
            await pilot.press(*"photo", "enter")
            await choose(pilot, "#role-b", "anime")
            app.query_one("#bar-alpha").focus()
            await pilot.press("left", "left", "shift+left")
            await checked(pilot, app)
            assert says(app, "#planned").startswith("✓ plan of new_mix: weighted_sum@1 → new_mix")
            await pilot.press("ctrl+r")
            await until(pilot, lambda: isinstance(app.screen, Question))
            app.screen.query_one("#answer", Input).value = "first_mix"
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, Run))
            run = app.screen
            assert isinstance(run, Run)
            await until(pilot, lambda: run.code is not None)
            assert run.code == 0, run.said
            await pilot.press("escape")
            await until(pilot, lambda: not isinstance(app.screen, Run))
            record = Path(
                next(line for line in run.said if line.startswith("record: ")).removeprefix("record: ")
            )
            told = json.loads(record.read_text())
            assert told["deterministic"]["output"]["sha256"] in "\n".join(run.said)
            assert (record.parent / "first_mix" / "model_index.json").is_file()
            assert app.opened.is_saved

    drive(steps())
    text = (folder / "recipes" / "first_mix.yaml").read_text()
    assert text == "method: weighted_sum\nmodels:\n  a: demo:photo\n  b: demo:anime\nalpha: 0.39\n"


def test_a_recipe_keeps_its_comments_when_a_nested_number_changes(cache: Path, folder: Path) -> None:
    (folder / "recipes").mkdir()
    path = folder / "recipes" / "mine.yaml"
    path.write_text(MIX)

    async def steps() -> None:
        app = composer(cache, "mine")
        async with app.run_test(size=(100, 24)) as pilot:
            await checked(pilot, app)
            app.query_one("#steps", OptionList).focus()
            await pilot.press("down", "enter")
            await until(pilot, lambda: app.at == ("models", "b"))
            number = app.query_one("#number-alpha", Input)
            assert number.value == "0.6"
            number.focus()
            number.value = "0.75"
            await checked(pilot, app)
            assert not app.checked.problems
            await pilot.press("ctrl+z")
            await until(pilot, lambda: number.value == "0.6")
            assert app.draft.text == MIX
            number.value = "0.8"
            await checked(pilot, app)
            await pilot.press("ctrl+s")
            await until(pilot, lambda: app.opened.is_saved)

    drive(steps())
    assert path.read_text() == MIX.replace("alpha: 0.6 ", "alpha: 0.8 ")


def test_a_curve_by_block_and_a_preset(cache: Path) -> None:
    async def steps() -> None:
        app = composer(cache)
        async with app.run_test(size=(100, 24)) as pilot:
            await choose(pilot, "#role-a", "photo")
            await choose(pilot, "#role-b", "anime")
            await checked(pilot, app)
            app.query_one("#places-alpha").focus()
            await pilot.press("enter")
            await until(pilot, lambda: app.screen.query("#curve"))
            app.screen.query_one("#curve", Curve).focus()
            await pilot.press("right", "up", "up", "end", "down", "ctrl+s")
            await checked(pilot, app)
            curve = {"IN00": 0.5, "IN01": 0.6, "IN02-OUT10": 0.5, "OUT11": 0.45}
            assert app.draft.value(("alpha",)) == {"default": 0.5, "unet": curve}
            assert app.checked.curves["alpha",][2][1] == 0.6
            app.query_one("#places-alpha").focus()
            await pilot.press("enter")
            await until(pilot, lambda: app.screen.query("#mbw"))
            app.screen.query_one("TabbedContent").active = "pasted"  # type: ignore[attr-defined]
            app.screen.query_one("#mbw", Input).value = "GRAD_V"
            app.screen.query_one("#base", Input).value = "0.2"
            await pilot.press("ctrl+s")
            await checked(pilot, app)
            assert app.draft.value(("alpha",)) == {"mbw": "GRAD_V", "base": 0.2}
            assert not app.checked.problems
            assert "█" in says(app, "#curve-alpha") and "pasted: GRAD_V" in says(app, "#curve-alpha")

    drive(steps())


def test_all_a_recipe_may_say_is_said_with_keys(cache: Path, folder: Path) -> None:
    (folder / "recipes").mkdir()
    text = "method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\noutput: {dtype: float16}  # mine\n"
    (folder / "recipes" / "mine.yaml").write_text(text)

    async def steps() -> None:
        app = composer(cache, "mine")
        async with app.run_test(size=(80, 24)) as pilot:
            await checked(pilot, app)
            for button, field, keys in (
                ("#open-dtype", "#field-output-dtype-vae", ("enter", *"float32", "enter")),
                ("#finer-merge-more", "#field-seed", "12"),
                ("#finer-result-more", "#field-author", "me"),
            ):
                if not app.query(field):
                    app.query_one(button).focus()
                    await pilot.press("enter")
                    await until(pilot, lambda field=field: app.query(field))  # type: ignore[misc]
                app.query_one(field).focus()
                await pilot.press(*keys)
            app.query_one("#open-components").focus()
            await pilot.press("enter")
            await until(pilot, lambda: app.query("#component-text_encoder"))
            for component, source in (
                ("vae", "photo"),
                ("text_encoder", "demo:base"),
                ("vae", "merged like"),
            ):
                await choose(pilot, f"#component-{component}", source)
            await checked(pilot, app)
            assert app.checked.problems == ()
            assert str(app.query_one("#finer-merge-more", Button).label) == "▾ seed: 12"
            assert app.draft.text == (
                "author: me\nmethod: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\n"
                "seed: 12\ncomponents: {text_encoder: demo:base}\n"
                "output: {dtype: {default: float16, vae: float32}}  # mine\n"
            )

    drive(steps())


def test_a_merge_in_the_place_of_a_model(cache: Path) -> None:
    async def steps() -> None:
        app = composer(cache)
        async with app.run_test(size=(100, 24)) as pilot:
            await choose(pilot, "#role-a", "photo")
            await choose(pilot, "#role-b", "anime")
            await choose(pilot, "#role-b", "another")
            assert app.at == ("models", "b")
            assert app.query_one("#role-a", Button).label.plain == "demo:anime ▾"
            await choose(pilot, "#role-b", "photo")
            await choose(pilot, "#role-c", "demo:base")
            await choose(pilot, "#method", "train_d")
            await checked(pilot, app)
            assert app.checked.problems == ()
            assert app.draft.merge(("models", "b"))["method"] == "train_difference"

    drive(steps())


def test_at_sixty_columns_the_panes_are_tabs(cache: Path) -> None:
    async def steps() -> None:
        app = composer(cache)
        async with app.run_test(size=(60, 24)) as pilot:
            for key, shown in (("f2", "#form"), ("f3", "#text"), ("f4", "#plan")):
                await pilot.press(key)
                await pilot.pause()
                seen = [one for one in ("#form", "#text", "#plan") if app.query_one(one).region.width]
                assert seen == [shown]
                assert app.query_one(shown).region.width >= 58
            await pilot.resize_terminal(120, 40)
            await pilot.pause()
            assert all(app.query_one(one).region.width > 50 for one in ("#form", "#text", "#plan"))

    drive(steps())


def test_a_recipe_with_mistakes_is_shown_as_it_is_and_they_at_their_lines(cache: Path, folder: Path) -> None:
    (folder / "recipes").mkdir()
    path = folder / "recipes" / "odd.yaml"
    broken = "method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\nalpha: &x 0.5  # mine\n"
    path.write_text(broken)

    async def steps() -> None:
        app = composer(cache, "odd")
        async with app.run_test(size=(100, 24)) as pilot:
            await checked(pilot, app)
            text = app.query_one("#text", RecipeText)
            assert text.text == app.draft.text == broken
            assert (
                text.get_line(2).plain
                == "alpha: &x 0.5  # mine  ✗ an anchor (&name); a recipe has no aliases"
            )
            assert "line 3" in says(app, "#mistakes") and app.query("#unreadable")
            text.replace("alhpa: 0.5", (2, 0), (2, 13))
            await checked(pilot, app)
            assert 'did you mean "alpha"?' in text.get_line(2).plain
            text.replace("alpha", (2, 0), (2, 5))
            await checked(pilot, app)
            assert says(app, "#planned").startswith("✓") and app.query("#bar-alpha")

    drive(steps())
    assert path.read_text() == broken


ODD = (
    'method: weighted_sum\nmodels: {"a b": x, a: 1, b: [x]}\noutput: 3\ncomponents: 5\n',
    "method: 3\nmodels: {a: {method: 1, models: {}}, b: {models: 1}}\nseed: {a: 1}\nema: 1\nnonfinite: x\n",
    "method: slerp\nmodels: {a: {source: 3}}\nalpha: {default: {x: 1}}\noutput: {dtype: [1], name: [2]}\n",
    "author: x\ndefaults: [anime_mix]\ncomponents: {vae: null, unet: {a: 1}}\noutput: {dtype: {vae: x}}\n",
)


async def type_and_take_back(pilot: Pilot[None], app: Compose, line: Input) -> None:
    text = app.draft.text
    line.focus()
    await pilot.press("end", "x")
    await until(pilot, lambda: line.disabled or app.draft.text != text)
    await pilot.press("backspace")
    await until(pilot, lambda: app.draft.text == text)


def test_whatever_stands_in_a_recipe_the_form_shows_it_and_changes_nothing(cache: Path) -> None:
    typed: list[tuple[str | None, bool]] = []

    async def steps() -> None:
        app = composer(cache)
        async with app.run_test(size=(120, 60)) as pilot:
            for text in ODD:
                app.query_one("#text", RecipeText).text = text
                await checked(pilot, app)
                assert app.draft.text == text and app.checked.problems
                assert "a bug" not in says(app, "#mistakes")
                for section, field in (("merge", "#field-seed"), ("result", "#field-author")):
                    if app.draft.is_readable and not app.query(field):
                        app.query_one(f"#finer-{section}-more", Button).press()
                        await until(pilot, lambda field=field: app.query(field))  # type: ignore[misc]
                for line in app.query("FieldRow Input").results(Input):
                    if line.value:
                        typed.append((line.id, line.disabled))
                        await type_and_take_back(pilot, app, line)

    drive(steps())
    told = [("field-seed", True), ("field-nonfinite", True), ("field-output-name", True)]
    assert typed == [*told, ("field-author", False)]


def test_changes_that_come_at_once_leave_the_fields_of_the_last(cache: Path) -> None:
    async def steps() -> None:
        app = composer(cache)
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause()
            names = ("ties", "slerp", "add_difference", "weighted_sum", "linear")
            await asyncio.gather(
                *(app.change(lambda one, name=name: one.with_method((), name)) for name in names)
            )
            assert app.query("#more") and not app.query("#role-a, #role-c")

    drive(steps())


def test_a_model_that_vanishes_or_changes_is_noticed(cache: Path, folder: Path) -> None:
    write_models(folder, first=1, second=2)

    async def steps() -> None:
        app = composer(cache, models_dir=folder)
        async with app.run_test(size=(100, 24)) as pilot:
            await until(pilot, lambda: len(app.models) == 2 and all(one.facts for one in app.models))
            await choose(pilot, "#role-a", "first")
            await choose(pilot, "#role-b", "second")
            await choose(pilot, "#component-vae", "second")
            await checked(pilot, app)
            assert not app.checked.problems
            (folder / "second.safetensors").unlink()
            await until(pilot, lambda: "gone" in app.query_one("#role-b", Button).label.plain)
            assert "gone" in app.query_one("#component-vae", Button).label.plain
            await until(pilot, lambda: "second.safetensors" in says(app, "#mistakes"))
            write_models(folder, second=2)
            await until(pilot, lambda: "gone" not in app.query_one("#role-b", Button).label.plain)
            await until(pilot, lambda: says(app, "#planned").startswith("✓"))
            os.truncate(folder / "second.safetensors", 1000)
            await until(pilot, lambda: "second.safetensors" in says(app, "#mistakes"))

    drive(steps())


def test_two_editors_of_one_recipe_do_not_overwrite_each_other(cache: Path, folder: Path) -> None:
    (folder / "recipes").mkdir()
    path = folder / "recipes" / "mine.yaml"
    path.write_text("method: weighted_sum\nmodels: {a: demo:photo, b: demo:anime}\n")
    theirs = path.read_text() + "# theirs\n"

    async def steps() -> None:
        app = composer(cache, "mine")
        async with app.run_test(size=(100, 24)) as pilot:
            await checked(pilot, app)
            app.query_one("#bar-alpha").focus()
            await pilot.press("right")
            path.write_text(theirs)
            await pilot.press("ctrl+s")
            await until(pilot, lambda: isinstance(app.screen, Question))
            assert "changed by somebody else" in str(app.screen.query_one("#said", Static).content)
            app.screen.query_one("#answer", Input).value = "mine"
            await pilot.press("enter")
            await pilot.pause()
            assert "is there already" in str(app.screen.query_one("#said", Static).content)
            app.screen.query_one("#answer", Input).value = "../mine_too"
            await pilot.press("enter")
            await pilot.pause()
            app.screen.query_one("#answer", Input).value = "mine_too"
            await pilot.press("enter")
            await until(pilot, lambda: app.opened.is_saved)

    drive(steps())
    assert path.read_text() == theirs
    assert sorted(one.name for one in path.parent.iterdir()) == ["mine.yaml", "mine_too.yaml"]
    assert "alpha: 0.55" in (folder / "recipes" / "mine_too.yaml").read_text()


def test_escape_stops_a_run_and_nothing_is_left_of_it(cache: Path, folder: Path) -> None:
    (folder / "recipes").mkdir()
    shutil.copy(DATA_ROOT / "recipes" / "anime_mix.yaml", folder / "recipes" / "mine.yaml")

    async def steps() -> None:
        app = composer(cache, "mine")
        async with app.run_test(size=(100, 24)) as pilot:
            await checked(pilot, app)
            await pilot.press("ctrl+r")
            await until(pilot, lambda: isinstance(app.screen, Run))
            run = app.screen
            assert isinstance(run, Run)
            await until(pilot, lambda: run.process is not None)
            await pilot.press("escape")
            await until(pilot, lambda: run.code is not None)
            assert run.code != 0
            assert run.process is not None and run.process.returncode is not None

    drive(steps())
    assert not [*folder.rglob("*.safetensors"), *folder.rglob(".rnr-*")]


def test_ten_thousand_models_are_filtered_while_one_types() -> None:
    rows = [Row(f"folder_{at % 100}/model_{at}.safetensors", "Stable Diffusion XL") for at in range(10_000)]

    async def steps() -> None:
        app = Compose.__mro__[1]()  # a plain Textual app
        async with app.run_test(size=(100, 30)) as pilot:
            picker = Picker("model", rows)
            await app.push_screen(picker)
            started = time.process_time()
            await pilot.press(*"model_9876")
            spent = time.process_time() - started
            assert picker.query_one("#rows", OptionList).option_count == 1
            assert str(picker.query_one("#count", Static).content) == "1 of 10000"
            await pilot.press(*["backspace"] * 10)
            assert picker.query_one("#rows", OptionList).option_count == SHOWN
            assert spent < 5.0  # ten keys

    drive(steps())


def test_the_headers_of_many_models_are_read_by_another_process(folder: Path) -> None:
    for number in range(FEW + 1):
        write(folder / "models" / f"m{number}.safetensors", {f"k{number}": TensorSpec("F16", (2,))})
    app = composer(folder / "cache", models_dir=folder / "models")
    command = reader_of(found_models(app.settings), app.settings)
    assert command is not None and command[1:3] == ["-m", "runner.library"]
    asyncio.run(read_apart(command))
    assert len(known_facts(folder / "cache" / HEADERS)) == FEW + 1
    assert reader_of(found_models(app.settings), app.settings) is None

    async def steps() -> None:
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: app.models and app.models[-1].facts)
            assert len(app.models) == FEW + 1 and all(one.facts for one in app.models)

    drive(steps())


def test_a_command_that_is_waited_for_no_longer_is_ended(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    command = [sys.executable, "-c", "import signal\nfile = open('fifo', 'w')\nsignal.pause()"]

    async def steps() -> None:
        waiting = asyncio.create_task(read_apart(command))
        file = await asyncio.to_thread((folder / "fifo").open)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with file:
            assert await asyncio.to_thread(file.read) == ""  # it is open until the command is gone

    drive(steps())


def test_what_is_not_saved_is_asked_for_before_leaving(cache: Path) -> None:
    async def steps() -> None:
        app = composer(cache)
        async with app.run_test(size=(80, 24)) as pilot:
            await choose(pilot, "#role-a", "photo")
            await pilot.press("ctrl+q")
            await until(pilot, lambda: len(app.screen_stack) == 2)
            await pilot.press("escape")
            await until(pilot, lambda: len(app.screen_stack) == 1)
            assert app.is_running and app.query_one("#text", TextArea).text == app.draft.text
            await pilot.press("ctrl+q")
            await until(pilot, lambda: len(app.screen_stack) == 2)
            await pilot.press("enter")
            await until(pilot, lambda: not app.is_running or app._exit)

    drive(steps())


def test_a_copy_that_cannot_be_kept_is_said_once_and_the_form_goes_on(folder: Path) -> None:
    (folder / "cache").mkdir()
    (folder / "cache" / "drafts").touch()

    async def steps() -> None:
        app = composer(folder / "cache")
        async with app.run_test(size=(80, 24)) as pilot:
            await checked(pilot, app)
            await pilot.press("f3", "#", "x")
            await until(pilot, lambda: app.draft.text.startswith("#x"))
            (said,) = [one for one in app._notifications if one.title == "unsaved text is not kept"]
            assert "drafts" in said.message

    drive(steps())


def test_keys_that_come_at_once_go_to_the_pane_that_was_asked_for(folder: Path) -> None:
    async def steps() -> None:
        app = composer(folder / "cache")
        async with app.run_test(size=(60, 24)) as pilot:
            await checked(pilot, app)
            for key in ("f2", "f3", "f2", "f3", "#", "x", "y"):  # without waiting, as terminals do
                app.post_message(events.Key(key, key if len(key) == 1 else None))
            await until(pilot, lambda: app.draft.text.startswith("#xy"))
            await checked(pilot, app)
            assert app.query_one("#text").display

    drive(steps())


def test_the_undoing_of_a_long_paste_leaves_the_form_alive(folder: Path) -> None:
    """Of the text pane's own undo: https://github.com/Textualize/textual/issues/6686."""

    async def steps() -> None:
        app = composer(folder / "cache")
        async with app.run_test(size=(110, 22)) as pilot:
            await checked(pilot, app)
            await pilot.press("f3")
            before = app.draft.text
            app.post_message(events.Paste("# line\n" * 40))
            await until(pilot, lambda: app.draft.text.count("\n") > 40)
            await pilot.pause()
            await pilot.press("ctrl+z", "up")
            await until(pilot, lambda: app.draft.text == before)

    drive(steps())


def test_what_is_typed_while_the_form_shows_something_new_stays(folder: Path) -> None:
    async def steps() -> None:
        app = composer(folder / "cache")
        async with app.run_test(size=(110, 22)) as pilot:
            await checked(pilot, app)
            area = app.query_one("#text", RecipeText)
            area.insert("# typed\n", (0, 0))
            await app._show()  # as when a check ends before the form is told what was typed
            await until(pilot, lambda: app.draft.text.startswith("# typed"))
            assert area.text == app.draft.text

    drive(steps())

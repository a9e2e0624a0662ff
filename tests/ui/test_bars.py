"""Bars and curves in the hands of somebody with a mouse."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("textual", reason="NOT TESTED: the composer; pip install 'runner[ui]'")

from textual.app import App, ComposeResult

from runner.methods import Range
from runner.ui.bars import Bar, Curve

BLOCKS = ("IN00", "IN01", "M00", "OUT00")


class Bars(App[None]):
    def compose(self) -> ComposeResult:
        yield Bar(0.5, Range(0, 1), id="bar")
        yield Curve(BLOCKS, [0.5] * 4, Range(0, 1), id="curve")


def test_a_bar_follows_the_pointer_and_stops_where_it_is_let_go() -> None:
    async def steps() -> None:
        async with Bars().run_test(size=(43, 20)) as pilot:
            bar = pilot.app.query_one(Bar)
            await pilot.mouse_down("#bar", offset=(11, 0))
            assert bar.value == 0.25
            await pilot.hover("#bar", offset=(31, 0))
            assert bar.value == 0.75
            await pilot.hover("#bar", offset=(42, 0))
            assert bar.value == 1
            await pilot.mouse_up("#bar", offset=(42, 0))
            await pilot.hover("#bar", offset=(5, 0))
            assert bar.value == 1

    asyncio.run(steps())


def test_a_curve_is_drawn_with_the_pointer() -> None:
    async def steps() -> None:
        async with Bars().run_test(size=(43, 20)) as pilot:
            curve = pilot.app.query_one(Curve)
            bottom = curve.size.height - 4
            await pilot.mouse_down("#curve", offset=(0, 0))
            await pilot.hover("#curve", offset=(3, bottom))
            await pilot.hover("#curve", offset=(7, 0))
            await pilot.mouse_up("#curve", offset=(7, 0))
            await pilot.hover("#curve", offset=(10, 0))
            assert curve.values == [1, 0, 1, 0.5] and curve.at == 2

    asyncio.run(steps())

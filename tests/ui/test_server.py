"""The form in a browser: who has the address with its secret gets it, and nobody else anything."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("textual_serve", reason="NOT TESTED: the composer in a browser; pip install 'runner[ui]'")

from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web
from textual_serve.app_service import AppService

from runner.ui.server import HOST, LocalServer, form_command

# What a form in a browser says first, and nothing else: the program behind the socket is not what is tested.
PROGRAM = [sys.executable, "-c", "import sys; print('__GANGLION__', flush=True); sys.stdin.buffer.read(1)"]
# One that says the size it is given first, then every message about its size.
SIZED = """
import os, struct, sys
def say(text):
    sys.stdout.buffer.write(b"D" + struct.pack(">I", len(text)) + text)
    sys.stdout.buffer.flush()
print("__GANGLION__", flush=True)
say(os.environ["COLUMNS"].encode() + b" " + os.environ["ROWS"].encode())
while head := sys.stdin.buffer.read(5):
    text = sys.stdin.buffer.read(struct.unpack(">I", head[1:])[0])
    if b"quit" in text:
        break
    say(text)
"""
SECRET = "s3cret-s3cret-s3cret"


class Served(LocalServer):
    """Waits for its programs, whose pipes are to be closed before a test's loop is."""

    async def _process_messages(self, websocket: web.WebSocketResponse, app_service: AppService) -> None:
        try:
            await super()._process_messages(websocket, app_service)
        finally:
            await app_service.stop()
            assert app_service._process is not None
            await app_service._process.wait()


@asynccontextmanager
async def served(program: list[str]) -> AsyncIterator[tuple[LocalServer, ClientSession]]:
    listener = socket.socket()
    listener.bind((HOST, 0))
    server = Served(program, listener.getsockname()[1], SECRET)
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        async with ClientSession() as client:
            yield server, client
    finally:
        await runner.cleanup()


def drive(
    steps: Callable[[LocalServer, ClientSession], Awaitable[None]], program: list[str] = PROGRAM
) -> None:
    async def all_of_it() -> None:
        async with served(program) as (server, client):
            await steps(server, client)

    asyncio.run(all_of_it())


def test_the_page_and_its_files_come_from_this_server_alone() -> None:
    async def steps(server: LocalServer, client: ClientSession) -> None:
        async with client.get(server.address) as page:
            text = await page.text()
            assert page.status == 200 and "://" not in text.replace(
                f"ws://{HOST}:{server.port}/{SECRET}/ws", ""
            )
            assert page.headers["Referrer-Policy"] == "no-referrer"
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]
        for name in ("js/textual.js", "css/xterm.css"):
            async with client.get(f"{server.address}static/{name}") as found:
                assert found.status == 200

    drive(steps)


@pytest.mark.parametrize(
    "path",
    ["/", "/ws", "/static/js/textual.js", f"/{SECRET[:-1]}/", f"/{SECRET}x/ws", "/x/static/js/textual.js"],
)
def test_without_the_secret_there_is_nothing(path: str) -> None:
    async def steps(server: LocalServer, client: ClientSession) -> None:
        async with client.get(f"http://{HOST}:{server.port}{path}") as found:
            assert (found.status, await found.text()) == (403, "forbidden\n")

    drive(steps)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_another_host_or_origin_gets_nothing_even_with_the_secret(headers: dict[str, str]) -> None:
    async def steps(server: LocalServer, client: ClientSession) -> None:
        async with client.get(server.address, headers=headers) as found:
            assert found.status == 403
        with pytest.raises(WSServerHandshakeError) as caught:
            await client.ws_connect(f"{server.address}ws", headers=headers)
        assert caught.value.status == 403

    drive(steps)


def test_the_socket_wants_secret_and_origin() -> None:
    async def steps(server: LocalServer, client: ClientSession) -> None:
        own = f"http://{HOST}:{server.port}"
        for url, origin in ((f"{own}/x/ws", own), (f"{server.address}ws", None)):
            with pytest.raises(WSServerHandshakeError):
                await client.ws_connect(url, origin=origin)
        async with client.ws_connect(f"{server.address}ws", origin=own) as opened:
            await opened.send_json(["ping", 7])
            answer = await opened.receive(timeout=30)
            assert answer.type == WSMsgType.TEXT and answer.json() == ["pong", 7]

    drive(steps)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("width=120&height=40", "120 40"),
        ("width=99999999&height=1001", "1000 1000"),
        ("width=-5&height=0", "1 1"),
        ("width=x", "80 24"),
    ],
)
def test_a_form_is_never_larger_than_a_screen(asked: str, given: str) -> None:
    async def steps(server: LocalServer, client: ClientSession) -> None:
        own = f"http://{HOST}:{server.port}"
        async with client.ws_connect(f"{server.address}ws?{asked}", origin=own) as opened:
            assert await opened.receive_bytes(timeout=30) == given.encode()
            width, height = (int(side) for side in given.split())
            for wide, high in ((10**8, 50), (50, 10**8), (width, height)):
                await opened.send_json(["resize", {"width": wide, "height": high}])
                told = json.loads(await opened.receive_bytes(timeout=30))
                assert (told["width"], told["height"]) == (min(wide, 1000), min(high, 1000))

    drive(steps, [sys.executable, "-c", SIZED])


@pytest.mark.parametrize(
    "path", ["static/../../server.py", "static/%2e%2e/%2e%2e/server.py", "static/", "download/x"]
)
def test_nothing_but_the_forms_own_files_is_served(path: str) -> None:
    async def steps(server: LocalServer, client: ClientSession) -> None:
        async with client.get(f"{server.address}{path}") as found:
            assert found.status in (403, 404)

    drive(steps)


@pytest.mark.parametrize(
    "said", ["job.browser=true", "++job.browser=true", "+job.port=8000", "job.confined=false"]
)
def test_a_form_in_a_browser_is_confined_and_serves_no_other(said: str) -> None:
    command = form_command(["job=compose", said, "threads=2"])
    assert command[1:] == ["-m", "runner", "job=compose", "threads=2", "job.confined=true"]

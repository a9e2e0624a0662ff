"""The form in a browser: served to this machine alone, to whoever has the address with its secret.

The address is http://127.0.0.1:PORT/SECRET/. Every request needs the secret, a Host that is this
machine, and no Origin but this server's: another page in the same browser cannot reach it. Each
connection gets a process of the form, confined to the folders of the settings.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import textual_serve
from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.server import Server, to_int

from runner.config import Settings
from runner.errors import OutputError
from runner.progress import say

HOST = "127.0.0.1"
MOST = 1000  # columns and rows of a form: no screen has more, and each takes memory
STATIC = Path(textual_serve.__file__).parent / "static"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SERVERS = ("job.browser", "job.port", "job.confined")  # what a form is not told
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>runner compose</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="static/css/xterm.css">
<style>html, body, #terminal {{ margin: 0; height: 100vh; width: 100vw; overflow: hidden }}
body {{ background: #121212 }}
body.-closed #terminal {{ opacity: 0.4 }}</style>
<script src="static/js/textual.js"></script><script src="keys.js" defer></script></head>
<body><div id="terminal" class="textual-terminal" data-session-websocket-url="{socket}"
data-font-size="16"></div></body></html>
"""
# The keyboard goes to the form as soon as it is there, without a click; and a form that was used is not
# closed with its tab unasked: what is not saved would be gone.
_KEYS = """new MutationObserver((changes, observer) => {
  const field = document.querySelector(".xterm-helper-textarea");
  if (field && document.body.classList.contains("-first-byte")) { observer.disconnect(); field.focus(); }
}).observe(document.body, {attributes: true, subtree: true, childList: true});
window.addEventListener("beforeunload", (event) => {
  if (!document.body.classList.contains("-closed")) event.preventDefault();
});
"""


class LocalServer(Server):
    """Serves one program to this machine.

    Attributes:
        secret: that every request must have in its path.
    """

    def __init__(self, command: Sequence[str], port: int, secret: str) -> None:
        super().__init__(shlex.join(command), host=HOST, port=port, title="runner compose")
        self.secret = secret

    @property
    def address(self) -> str:
        """What to open in the browser."""
        return f"http://{HOST}:{self.port}/{self.secret}/"

    def application(self) -> web.Application:
        """The routes, every one behind the check of who asks."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 16)
        app.add_routes(
            [
                web.get("/{secret}/", self._page),
                web.get("/{secret}/keys.js", self._keys),
                web.get("/{secret}/ws", self._socket),
                web.static(f"/{self.secret}/static", STATIC),
            ]
        )
        return app

    def allows(self, request: web.Request) -> bool:
        """Whether a request comes from this machine's browser, from our own page, with the secret."""
        hosts = {f"{HOST}:{self.port}", f"localhost:{self.port}"}
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if host not in hosts or origin not in (None, f"http://{host}"):
            return False
        if origin is None and request.headers.get("Upgrade"):  # browsers always say where a socket comes from
            return False
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return False
        given = request.path.split("/", 2)[1]
        return hmac.compare_digest(given.encode(), self.secret.encode())

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self.allows(request):
            return web.Response(status=403, text="forbidden\n", headers=_HEADERS)
        response = await handler(request)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    async def _page(self, request: web.Request) -> web.Response:
        socket_url = f"ws://{request.headers['Host']}/{self.secret}/ws"
        return web.Response(text=_PAGE.format(socket=socket_url), content_type="text/html")

    async def _keys(self, request: web.Request) -> web.Response:
        return web.Response(text=_KEYS, content_type="text/javascript")

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        width = _within(to_int(request.query.get("width", ""), 80))
        height = _within(to_int(request.query.get("height", ""), 24))
        sized = request.rel_url.with_query(width=width, height=height)
        return await self.handle_websocket(request.clone(rel_url=sized))

    async def _process_messages(self, websocket: web.WebSocketResponse, app_service: AppService) -> None:
        resize = app_service.set_terminal_size

        async def resize_within(width: int, height: int) -> None:
            await resize(_within(width), _within(height))

        # The server makes the services, of a class that cannot be given to it.
        app_service.set_terminal_size = resize_within  # type: ignore[method-assign]
        await super()._process_messages(websocket, app_service)


def _within(side: int) -> int:
    return max(1, min(side, MOST))


def serve(settings: Settings, overrides: Sequence[str]) -> dict[str, Any]:
    """Serves the form until it is interrupted.

    Args:
        settings: job.port is the port; 0: a free one.
        overrides: of the command line, for the processes of the form.

    Raises:
        OutputError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, settings.job.port))
    except OSError as error:
        listener.close()
        hint = "job.port=0 takes one that is free"
        raise OutputError(f"port {settings.job.port}: {error.strerror}", hint=hint) from error
    server = LocalServer(form_command(overrides), listener.getsockname()[1], secrets.token_urlsafe(24))
    asyncio.run(_run(server, listener))
    return {}


def form_command(overrides: Sequence[str]) -> list[str]:
    """The process of one form: what the command line says, without its server, and confined."""
    own = [one for one in overrides if one.lstrip("+~").partition("=")[0] not in _SERVERS]
    return [sys.executable, "-m", "runner", *own, "job.confined=true"]


async def _run(server: LocalServer, listener: socket.socket) -> None:
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=10)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        say(f"{server.address}\n  open it in a browser on this machine; Ctrl-C ends it")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()

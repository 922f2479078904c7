"""The end of the server: signals, and requests that may still finish while no new one begins."""

from __future__ import annotations

import asyncio
import signal

from starlette.types import ASGIApp, Receive, Scope, Send

from qwell.server.errors import RETRY_AFTER_S, HttpError, error_response

# Whoever watches the server may do so to its end.
_WATCHED_TO_THE_END = ("/health", "/metrics")


class StopSignals:
    """SIGINT and SIGTERM: the first asks the server to stop, the second to do so at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def listen(self) -> None:
        """Take the signals over. For the event loop of the main thread."""
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, self._receive)

    def _receive(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class Lifecycle:
    """How many requests run, and whether new ones may begin."""

    def __init__(self) -> None:
        self.draining = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Requests that have not been answered to their end."""
        return self._running

    def begin(self) -> None:
        """A request begins."""
        self._running += 1
        self._idle.clear()

    def end(self) -> None:
        """A request has ended."""
        self._running -= 1
        if self._running == 0:
            self._idle.set()

    async def drain(self, seconds: float, at_once: asyncio.Event) -> bool:
        """Let no request in any more, and those that run finish; whether all did.

        Waits for `seconds` at most, and no longer once `at_once` is set.
        """
        self.draining = True
        waits = {asyncio.create_task(event.wait()) for event in (self._idle, at_once)}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._running == 0


class Admission:
    """ASGI middleware: count requests; answer 503 once the server drains, but to who watches it."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._lifecycle.draining and scope["path"] not in _WATCHED_TO_THE_END:
            await error_response(_refusal())(scope, receive, send)
            return
        self._lifecycle.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.end()


def _refusal() -> HttpError:
    return HttpError(
        503,
        "The server is shutting down; it takes no new requests",
        type="server_error",
        code="server_draining",
        headers={"Retry-After": str(RETRY_AFTER_S), "Connection": "close"},
    )

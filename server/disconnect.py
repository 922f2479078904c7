"""A client that goes away takes its request with it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
    """ASGI middleware: cancel the handler when its client disconnects.

    Handlers need no checks of their own; a `finally` that frees what they hold is enough.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # One message of look-ahead only, so that a handler that reads its body slowly or not
        # at all still slows the client down.
        inbox: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        answered = False

        async def watch() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                await inbox.put(message)

        async def watched_send(message: Message) -> None:
            nonlocal answered
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body")

        handler = asyncio.ensure_future(self._app(scope, inbox.get, watched_send))
        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({handler, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not answered:
                handler.cancel()
            await asyncio.wait({handler})
        except asyncio.CancelledError:
            # The server's last word at shutdown, to a client that does not read. The task ends
            # here either way; raised further it would be logged as a fault.
            handler.cancel()
            await asyncio.wait({handler})
        finally:
            watcher.cancel()
        if not handler.cancelled():
            handler.result()

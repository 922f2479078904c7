"""Server-sent events: a stream of chunks, errors within it, and the [DONE] at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwell.runtime.errors import QwellError
from qwell.server.errors import as_http_error, error_body
from qwell.server.generation import Generation

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_encoder = msgspec.json.Encoder()
_DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """The chunks of a generation that has started; it is cancelled when the stream ends early."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, chunks: AsyncIterator[msgspec.Struct]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._generation = generation
        self._chunks = chunks

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for chunk in self._chunks:
                    await _send_body(send, _event(chunk), more=True)
            except QwellError as error:
                # The status has gone out already; OpenAI's clients raise on such an event.
                await _send_body(send, _event(error_body(as_http_error(error))), more=True)
            await _send_body(send, _DONE, more=False)
        finally:
            self._generation.cancel()


def _event(data: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % _encoder.encode(data)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})

"""Server-sent events: a stream of chunks, errors within it, and the [DONE] at its end."""

from __future__ import annotations

import secrets
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
# Chunks of one token are of one size, or of two where their text is long.
_BLOCK_BYTES = 256


class EventStream(Response):
    """The chunks of a generation that has started; it is cancelled when the stream ends early.

    With `obfuscated` chunks are filled up, so that who sees only their sizes does not learn those
    of tokens.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        chunks: AsyncIterator[msgspec.Struct],
        *,
        obfuscated: bool = False,
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._generation = generation
        self._chunks = chunks
        self._encode = _encode_obfuscated if obfuscated else _encoder.encode

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for chunk in self._chunks:
                    await _send_body(send, _event(self._encode(chunk)), more=True)
            except QwellError as error:
                # The status has gone out already; OpenAI's clients raise on such an event.
                content = _encoder.encode(error_body(as_http_error(error)))
                await _send_body(send, _event(content), more=True)
            await _send_body(send, _DONE, more=False)
        finally:
            self._generation.cancel()


def _event(content: bytes) -> bytes:
    return b"data: %b\n\n" % content


def _encode_obfuscated(chunk: msgspec.Struct) -> bytes:
    """With one more field, of random characters, up to a whole number of blocks."""
    content = _encoder.encode(chunk)[:-1] + b',"obfuscation":"'
    missing = -(len(content) + len(b'"}')) % _BLOCK_BYTES
    return content + secrets.token_hex(_BLOCK_BYTES // 2)[:missing].encode() + b'"}'


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})

"""A server of the OpenAI API without a model, whose answers are the test's to write.

As a program, `python openai_stub.py PORT`, it answers everything with `stream()`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from qwell.bench.serving.http_client import Address

Reply = Callable[[dict[str, Any]], Awaitable[bytes]]
HEAD = b"HTTP/1.1 %d Status\r\nContent-Type: application/json\r\n"
MODELS = {"data": [{"id": "stub"}]}


def whole(status: int, body: object, headers: bytes = b"") -> bytes:
    """An answer of known length."""
    data = json.dumps(body).encode()
    return HEAD % status + headers + b"Content-Length: %d\r\n\r\n" % len(data) + data


def event(data: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def chunked(*chunks: bytes) -> bytes:
    """A stream, in these chunks, to its end."""
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk]
    return HEAD % 200 + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(parts) + b"0\r\n\r\n"


def stream_events(pieces: list[str], tokens: int) -> list[bytes]:
    """The events of a completion in these pieces that counts so many tokens."""
    return [
        *(event({"choices": [{"index": 0, "text": piece}]}) for piece in pieces),
        event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
        event(
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 7,
                    "completion_tokens": tokens,
                    "prompt_tokens_details": {"cached_tokens": 3},
                },
            }
        ),
        b"data: [DONE]\n\n",
    ]


def stream(pieces: list[str] | None = None, tokens: int = 3) -> bytes:
    """A completion in these pieces."""
    return chunked(*stream_events(["a", "b"] if pieces is None else pieces, tokens))


class OpenAIStub:
    """The server, as an async context manager; `reply` gets each POST's body.

    Attributes:
        bodies: of the requests so far.
        address: where it listens.
    """

    def __init__(self, reply: Reply, port: int = 0) -> None:
        self._reply = reply
        self._port = port
        self.bodies: list[dict[str, Any]] = []

    async def __aenter__(self) -> OpenAIStub:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("GET"):
            writer.write(whole(200, MODELS))
        else:
            length = head.lower().partition("content-length: ")[2].split()[0]
            self.bodies.append(json.loads(await reader.readexactly(int(length))))
            writer.write(await self._reply(self.bodies[-1]))
        writer.close()


async def _main(port: int) -> None:
    async def reply(_: dict[str, Any]) -> bytes:
        return stream()

    async with OpenAIStub(reply, port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))

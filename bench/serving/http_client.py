"""A small HTTP/1.1 client for asyncio: a connection for each request, answers whole or as events.

The load comes from the machine that serves it: what a larger client would compute, the server
could not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from qwell.runtime.errors import QwellError

# A header line, or the line that says how long a chunk is.
_LONGEST_LINE = 1 << 16


class ServingError(QwellError):
    """A server that cannot be measured: it is not there, or it answers what it should not."""


@dataclass(frozen=True)
class Address:
    """Where a server is; `prefix` is what its paths begin with, before /v1."""

    host: str
    port: int
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Of an address like http://127.0.0.1:8000, with or without /v1 behind it.

        Raises ServingError for anything but plain HTTP.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ServingError(f"a server's address must be like http://127.0.0.1:8000, got {url}")
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or 80, prefix)

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}{self.prefix}"


class Answer:
    """An answer whose body is still on its way.

    Attributes:
        status: the HTTP status.
        headers: by name in lower case.
    """

    def __init__(
        self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader
    ) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self._pieces()])

    async def events(self) -> AsyncIterator[bytes]:
        """The data of each server-sent event, when it is there."""
        rest = b""
        async for piece in self._pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(await self._reader.readline(), 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
        elif "content-length" in self.headers:
            yield await self._reader.readexactly(int(self.headers["content-length"]))
        else:
            while piece := await self._reader.read(_LONGEST_LINE):
                yield piece


@contextlib.asynccontextmanager
async def request(
    address: Address, method: str, path: str, body: bytes | None = None
) -> AsyncIterator[Answer]:
    """The answer to one request; leaving the block early goes away from the server.

    Raises:
        OSError, EOFError: no connection, or one that ends too soon.
        ValueError: what comes is not HTTP.
    """
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=_LONGEST_LINE)
    try:
        writer.write(_head(address, method, path, body) + (body or b""))
        yield await _read_head(reader)
    finally:
        writer.close()


def _head(address: Address, method: str, path: str, body: bytes | None) -> bytes:
    lines = [
        f"{method} {address.prefix}{path} HTTP/1.1",
        f"Host: {address.host}:{address.port}",
        "Connection: close",
    ]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def _read_head(reader: asyncio.StreamReader) -> Answer:
    version, _, rest = (await reader.readline()).decode("latin-1").partition(" ")
    if not version:
        raise EOFError("the connection was closed before an answer")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"the answer begins with {version!r}")
    headers = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Answer(int(rest.split()[0]), headers, reader)

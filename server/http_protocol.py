"""HTTP/1.1 as uvicorn speaks it over httptools, with a limit to what a request may hold up."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 32 << 10


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, which would read an endless header or trailer until memory is full.

    httptools takes a fifth of h11's time for a streamed token, but knows no limits: a client that
    sends more than MAX_HEADER_BYTES, and a read of the socket, that complete neither a head nor
    a piece of a body is answered with 400.
    """

    # Bytes in reads since something was complete.
    _incomplete_bytes = 0

    def data_received(self, data: bytes) -> None:
        self._incomplete_bytes += len(data)
        super().data_received(data)
        if self._incomplete_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response(f"Headers must be of at most {MAX_HEADER_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those behind a body, however many, are of no use to anyone.
        if not self._head_is_complete:
            super().on_header(name, value)

    def on_message_begin(self) -> None:
        self._head_is_complete = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_is_complete = True
        self._incomplete_bytes = 0
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEADER_BYTES:
            # The parser stops at it, and it is answered like all that is no HTTP.
            raise ValueError(f"headers of {size} bytes")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._incomplete_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._incomplete_bytes = 0
        super().on_message_complete()

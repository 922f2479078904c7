"""One line in the log for every request, as key=value pairs."""

from __future__ import annotations

import json
import logging
import re
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of a body that is logged: what is longer is cut.
MAX_LOGGED_BODY_BYTES = 64 << 10

_PLAIN = re.compile(r'[^\s"=\\\x00-\x20\x7f-\U0010ffff]+')

logger = logging.getLogger(__name__)


class AccessLog:
    """ASGI middleware: log method, path, status, size and duration of every answer.

    `status` is - where the client was gone before an answer began; `cut=true` says that the
    answer did not reach its end. Probes of /health that succeed are left out. What clients send
    is logged only with `log_prompts`, and nothing of the answers ever. `app` must be or hold
    `RequestIds`.
    """

    def __init__(self, app: ASGIApp, *, log_prompts: bool) -> None:
        self._app = app
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        status = "-"
        sent_bytes = 0
        ended = False
        body = bytearray()

        async def noted_receive() -> Message:
            message = await receive()
            body.extend(message.get("body", b"")[: MAX_LOGGED_BODY_BYTES - len(body)])
            return message

        async def noted_send(message: Message) -> None:
            nonlocal status, sent_bytes, ended
            await send(message)
            if message["type"] == "http.response.start":
                status = str(message["status"])
            elif message["type"] == "http.response.body":
                sent_bytes += len(message.get("body", b""))
                ended = not message.get("more_body", False)

        try:
            await self._app(scope, noted_receive if self._log_prompts else receive, noted_send)
        finally:
            fields = {
                "id": scope["state"]["request_id"],
                "client": (scope.get("client") or ("-",))[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "bytes": str(sent_bytes),
                "ms": f"{(time.monotonic() - started) * 1e3:.1f}",
            }
            if not ended:
                fields["cut"] = "true"
            if body:
                fields["body"] = body.decode("utf-8", errors="replace")
            if (scope["path"], status) != ("/health", "200"):
                logger.info("request %s", " ".join(map(_pair, fields.items())))


def _pair(item: tuple[str, str]) -> str:
    """key=value; a value that could be taken for more than one is quoted as in JSON, in ASCII."""
    key, value = item
    return f"{key}={value if _PLAIN.fullmatch(value) else json.dumps(value)}"

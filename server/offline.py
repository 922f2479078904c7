"""The API without a network: requests go straight to the application, in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace
from starlette.types import ASGIApp, Message

from qwell.runtime.engine_options import EngineOptions
from qwell.server.app import build_app
from qwell.server.engine_client import EngineClient
from qwell.server.engine_process import WORKER_COMMAND
from qwell.server.metrics import Metrics
from qwell.server.protocol.models import DEFAULT_MODEL_ID
from qwell.server.service import Service, load_text_side

_POLL_S = 0.05
_MAX_BODY_BYTES = 1 << 28


@dataclass(frozen=True)
class OfflineAnswer:
    """A whole answer: its HTTP status, its x-request-id, and its body as JSON."""

    status: int
    request_id: str
    body: bytes


class OfflineApi:
    """Answers as `qwell serve` would: the same checks, the same defaults, the same errors."""

    def __init__(self, app: ASGIApp, engine: EngineClient, supervisor: asyncio.Task[None]) -> None:
        self._app = app
        self._engine = engine
        self._supervisor = supervisor

    async def ready(self) -> None:
        """Wait until an engine runs. Raises StartError if the first does not start."""
        while self._engine.status != "ok":
            if self._supervisor.done():
                self._supervisor.result()
            await asyncio.sleep(_POLL_S)

    async def post(self, path: str, body: bytes) -> OfflineAnswer:
        """The answer to a POST; of a body that asks for a stream, its events."""
        received = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if not received:
                # The client stays until it is answered; then nobody waits here any more.
                await asyncio.Event().wait()
            return received.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(_scope(path, len(body)), receive, send)
        headers = dict(sent[0]["headers"])
        return OfflineAnswer(
            status=sent[0]["status"],
            request_id=headers[b"x-request-id"].decode(),
            body=b"".join(message.get("body", b"") for message in sent[1:]),
        )


@contextlib.asynccontextmanager
async def offline_api(
    options: EngineOptions, worker: Sequence[str] = WORKER_COMMAND
) -> AsyncIterator[OfflineApi]:
    """The API of a model, which loads while the block runs; its engine ends with the block.

    `worker` is the command of the engine process. Raises CheckpointError.
    """
    text = await asyncio.to_thread(load_text_side, Path(options.model))
    options = replace(options, eos_token_ids=text.defaults.eos_token_ids)
    engine = EngineClient(options, Metrics(DEFAULT_MODEL_ID), worker)
    supervisor = asyncio.create_task(engine.run())
    try:
        app = build_app(Service(engine, text, (), _MAX_BODY_BYTES))
        yield OfflineApi(app, engine, supervisor)
    finally:
        supervisor.cancel()
        await asyncio.wait({supervisor})


def _scope(path: str, length: int) -> dict[str, object]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
        ],
        "client": None,
        "server": None,
    }

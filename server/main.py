"""`qwell serve`: the server process from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
from msgspec.structs import replace
from starlette.types import ASGIApp

from qwell import __version__
from qwell.runtime.errors import QwellError
from qwell.server.access_log import AccessLog
from qwell.server.app import build_app
from qwell.server.endpoints.page import ChatPage
from qwell.server.engine_client import EngineClient
from qwell.server.engine_process import WORKER_COMMAND
from qwell.server.errors import StartError
from qwell.server.http_protocol import HttpProtocol
from qwell.server.lifecycle import Lifecycle, StopSignals
from qwell.server.listen import listen
from qwell.server.metrics import Metrics
from qwell.server.options import ServeOptions
from qwell.server.protocol.models import listed_ids
from qwell.server.service import Service, load_text_side
from qwell.server.systemd import notify

EXIT_ERROR = 1
EXIT_CUT_OFF = 3
# For clients that have not read the end of their answer yet, or the error which ends it.
_LAST_READ_S = 2
# Longer than common clients keep idle connections (5 s and less), so that it is never the
# server who closes one just as the next request is on its way.
_KEEP_ALIVE_S = 30
_TICK_S = 1.0

logger = logging.getLogger(__name__)


def serve(options: ServeOptions, *, worker: Sequence[str] = WORKER_COMMAND) -> int:
    """Serve until SIGINT or SIGTERM; the exit status.

    `worker` is the command of the engine process. The status is 0 when every request was answered
    to its end, EXIT_CUT_OFF when the time to drain was over or a second signal came before that,
    and after one line on stderr EXIT_ERROR when the server could not start.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("qwell").setLevel(logging.INFO)
    try:
        finished = asyncio.run(_serve(options, worker))
    except QwellError as error:
        print(f"qwell: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0 if finished else EXIT_CUT_OFF


async def _serve(options: ServeOptions, worker: Sequence[str]) -> bool:
    """Serve to the end; whether every request was answered."""
    signals = StopSignals()
    signals.listen()
    is_guarded = bool(options.api_keys) or options.api_auth is not None
    listeners = listen(
        options.host, options.port, loopback_only=not (is_guarded or options.insecure)
    )
    _log_start(options, listeners)
    text = await asyncio.to_thread(load_text_side, Path(options.engine.model))
    engine_options = replace(options.engine, eos_token_ids=text.defaults.eos_token_ids)
    metrics = Metrics(listed_ids(options.served_model_names)[0])
    engine = EngineClient(engine_options, metrics, worker)
    service = Service(engine, text, options.served_model_names, options.max_body_bytes)
    app = build_app(
        service,
        api_keys=options.api_keys,
        api_auth=options.api_auth,
        cors_origins=options.cors_origins,
        page=ChatPage(options.model_name) if options.ui else None,
    )
    app = AccessLog(app, log_prompts=options.log_prompts)
    server = _HttpServer(_uvicorn_config(app, options))
    supervisor = asyncio.create_task(engine.run())
    serving = asyncio.create_task(server.serve(listeners))
    ready = asyncio.create_task(_announce(engine))
    stop = asyncio.create_task(signals.first.wait())
    try:
        await asyncio.wait({supervisor, serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        finished = not stop.done() or await _drain(
            service.lifecycle, options.drain_seconds, signals
        )
    finally:
        # Once only: a second cancellation would keep the supervisor from ending its process.
        for task in (supervisor, ready, stop):
            task.cancel()
        server.stop()
        await asyncio.wait({supervisor, serving})
    serving.result()
    if not supervisor.cancelled():
        supervisor.result()
    return finished


async def _announce(engine: EngineClient) -> None:
    await engine.wait_until_ready()
    notify("READY=1")


async def _drain(lifecycle: Lifecycle, seconds: float, signals: StopSignals) -> bool:
    """Let running requests finish; whether all did."""
    notify("STOPPING=1")
    if lifecycle.running:
        logger.info(
            "draining: %d requests have up to %g s; a second signal ends them now",
            lifecycle.running,
            seconds,
        )
    finished = await lifecycle.drain(seconds, signals.second)
    if not finished:
        logger.warning("ending %d requests that have not finished", lifecycle.running)
    return finished


class _HttpServer(uvicorn.Server):
    """uvicorn, which otherwise ends the process by the signal that it caught.

    It would also wake ten times a second to see whether it is to stop.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Take no more connections, and end once those that there are have ended."""
        self.should_exit = True
        self._stopped.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        # The number of a tick at which it renews the `date` of answers.
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _TICK_S)


def _uvicorn_config(app: ASGIApp, options: ServeOptions) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        timeout_graceful_shutdown=_LAST_READ_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
    )
    try:
        config.load()
    except OSError as error:  # those of TLS, too
        raise StartError(
            f"cannot use the certificate {options.ssl_certfile} with the key "
            f"{options.ssl_keyfile or options.ssl_certfile}: {error}"
        ) from error
    return config


def _log_start(options: ServeOptions, listeners: Sequence[socket.socket]) -> None:
    demo = ", the demo model," if options.is_demo else ""
    model = options.model_name
    logger.info("qwell %s serves %s%s from %s", __version__, model, demo, options.engine.model)
    host = f"[{options.host}]" if ":" in options.host else options.host
    ids = ", ".join(listed_ids(options.served_model_names))
    scheme = "http" if options.ssl_certfile is None else "https"
    port = listeners[0].getsockname()[1]
    logger.info("listening on %s://%s:%d as %s", scheme, host, port, ids)
    if not options.api_keys and options.api_auth is None and options.insecure:
        logger.warning("anyone who can reach the server can use it: no key is set")

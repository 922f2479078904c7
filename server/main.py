"""`qwell serve`: the server process from start to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
from msgspec.structs import replace
from starlette.types import ASGIApp

from qwell import __version__
from qwell.runtime.errors import QwellError
from qwell.server.app import build_app
from qwell.server.engine_client import EngineClient
from qwell.server.engine_process import WORKER_COMMAND
from qwell.server.errors import StartError
from qwell.server.listen import listen
from qwell.server.options import ServeOptions
from qwell.server.protocol.models import listed_ids
from qwell.server.service import Service, load_text_side

# Requests in flight get this long to finish once the server is told to stop.
GRACE_S = 5.0
# Then they are answered with an error; this is for clients that do not even read that.
_CUT_S = 1.0
# Longer than common clients keep idle connections (5 s and less), so that it is never the
# server who closes one just as the next request is on its way.
_KEEP_ALIVE_S = 30
_MAX_HEADER_BYTES = 32 << 10

logger = logging.getLogger(__name__)


def serve(options: ServeOptions, *, worker: Sequence[str] = WORKER_COMMAND) -> int:
    """Serve until SIGINT or SIGTERM; the exit status.

    `worker` is the command of the engine process. A failure to start is one line on stderr and
    status 1.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("qwell").setLevel(logging.INFO)
    try:
        asyncio.run(_serve(options, worker))
    except QwellError as error:
        print(f"qwell: error: {error}", file=sys.stderr)
        return 1
    return 0


async def _serve(options: ServeOptions, worker: Sequence[str]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop.set)

    is_guarded = bool(options.api_keys) or options.api_auth is not None
    listeners = listen(
        options.host, options.port, loopback_only=not (is_guarded or options.insecure)
    )
    _log_start(options, listeners)
    text = await asyncio.to_thread(load_text_side, Path(options.engine.model))
    engine_options = replace(options.engine, eos_token_ids=text.defaults.eos_token_ids)
    engine = EngineClient(engine_options, worker)
    supervisor = asyncio.create_task(engine.run())
    supervisor.add_done_callback(lambda _: stop.set())
    try:
        service = Service(engine, text, options.served_model_names, options.max_body_bytes)
        server = _HttpServer(_uvicorn_config(build_app(service, options), options))
        serving = asyncio.create_task(server.serve(listeners))
        serving.add_done_callback(lambda _: stop.set())
        await stop.wait()
        server.should_exit = True
        loop.call_later(GRACE_S, supervisor.cancel)
        await serving
    finally:
        supervisor.cancel()
        await asyncio.wait({supervisor})
    if not supervisor.cancelled():
        supervisor.result()


class _HttpServer(uvicorn.Server):
    """uvicorn, which otherwise ends the process by the signal that it caught."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: ASGIApp, options: ServeOptions) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(GRACE_S + _CUT_S),
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
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

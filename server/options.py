"""What the server is started with."""

from __future__ import annotations

import msgspec

from qwell.runtime.engine_options import EngineOptions

DEFAULT_DRAIN_S = 20.0


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of `qwell serve`.

    Attributes:
        engine: the model folder and how to run it.
        model_name: the model as the user named it, for the log.
        is_demo: no model was named and the bundled demo model is served.
        host: address to listen on.
        port: TCP port; 0 lets the system choose one.
        served_model_names: ids that clients may ask for; empty accepts any.
        api_keys: keys of which clients must send one as `Authorization: Bearer KEY`.
        api_auth: user and password that clients must send as HTTP Basic. With `api_keys` too,
            either will do.
        insecure: listen on addresses that others can reach although neither of the two is set.
        cors_origins: web pages of these origins may use the server; "*" is any.
        ssl_certfile: PEM file of a certificate and its chain; with it the server speaks TLS only.
        ssl_keyfile: PEM file of its private key, where that is not in `ssl_certfile`.
        log_prompts: log the bodies of requests.
        ui: serve the chat page at /.
        drain_seconds: how long running requests may still run once the server is told to stop.
        max_body_bytes: longest request body.
    """

    engine: EngineOptions
    model_name: str
    is_demo: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    api_auth: tuple[str, str] | None = None
    insecure: bool = False
    cors_origins: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    log_prompts: bool = False
    ui: bool = True
    drain_seconds: float = DEFAULT_DRAIN_S
    max_body_bytes: int = 16 << 20

"""`qwell serve`."""

from __future__ import annotations

import argparse
import os

from msgspec.structs import replace

from qwell.cli.model_options import engine_options
from qwell.cli.serve_options import DEFAULT_HOST, DEFAULT_PORT
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.demo_model import DEMO_MODEL_NAME
from qwell.server.api_keys import collect_api_keys
from qwell.server.main import serve
from qwell.server.options import ServeOptions


def run(arguments: argparse.Namespace) -> int:
    if arguments.ssl_keyfile is not None and arguments.ssl_certfile is None:
        arguments.fail("argument --ssl-keyfile: goes with --ssl-certfile")
    api_keys = collect_api_keys(arguments.api_key, os.environ, arguments.api_key_file)
    engine = replace(
        engine_options(arguments, str(resolve_model(arguments.model))),
        max_queue=arguments.max_queue,
        target_itl_ms=arguments.target_itl_ms,
        prefix_cache_file=arguments.prefix_cache_file,
    )
    options = ServeOptions(
        engine=engine,
        model_name=arguments.model or DEMO_MODEL_NAME,
        is_demo=arguments.model is None,
        host=DEFAULT_HOST if arguments.host is None else arguments.host,
        port=DEFAULT_PORT if arguments.port is None else arguments.port,
        served_model_names=tuple(arguments.served_model_name),
        api_keys=api_keys,
        api_auth=arguments.api_auth,
        insecure=arguments.insecure,
        cors_origins=tuple(arguments.cors_origin),
        ssl_certfile=arguments.ssl_certfile,
        ssl_keyfile=arguments.ssl_keyfile,
        log_prompts=arguments.log_prompts,
        ui=arguments.ui,
        drain_seconds=arguments.drain_seconds,
    )
    return serve(options)

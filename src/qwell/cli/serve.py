"""`qwell serve`."""

from __future__ import annotations

import argparse

from msgspec.structs import replace

from qwell.cli.model_options import engine_options
from qwell.cli.parser import DEFAULT_HOST, DEFAULT_PORT
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.demo_model import DEMO_MODEL_NAME
from qwell.server.main import serve
from qwell.server.options import ServeOptions


def run(arguments: argparse.Namespace) -> int:
    engine = replace(
        engine_options(arguments, str(resolve_model(arguments.model))),
        max_queue=arguments.max_queue,
        target_itl_ms=arguments.target_itl_ms,
    )
    options = ServeOptions(
        engine=engine,
        model_name=arguments.model or DEMO_MODEL_NAME,
        is_demo=arguments.model is None,
        host=DEFAULT_HOST if arguments.host is None else arguments.host,
        port=DEFAULT_PORT if arguments.port is None else arguments.port,
        served_model_names=tuple(arguments.served_model_name),
        api_key=arguments.api_key,
        api_auth=arguments.api_auth,
    )
    return serve(options)

"""`qwell bench serve`."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import msgspec

from qwell.bench.serving.client import Endpoint
from qwell.bench.serving.load import Load
from qwell.bench.serving.prompts import Lengths
from qwell.bench.serving.report import Report
from qwell.bench.serving.results import Limits, Run
from qwell.bench.serving.run import Plan, measure
from qwell.bench.serving.servers import Server, StartedServer, named_server, qwell_server
from qwell.cli.model_options import engine_options
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.demo_model import DEMO_MODEL_NAME
from qwell.server.options import ServeOptions


def run_serve(arguments: argparse.Namespace) -> int:
    """Measure, print tables; status 1 if no request succeeded."""
    if arguments.plot is not None:
        # What is missing is to be said before minutes of measuring.
        from qwell.bench.serving.plot import plot
    servers = _servers(arguments)
    plan = _plan(arguments)
    runs = asyncio.run(_measure(servers, plan))
    limits = Limits(
        first_token=_seconds(arguments.ttft_limit_ms),
        between_tokens=_seconds(arguments.itl_limit_ms),
    )
    report = Report.of(servers, plan, limits, runs)
    print(report.text())
    if arguments.json is not None:
        text = msgspec.json.format(msgspec.json.encode(report), indent=1)
        Path(arguments.json).write_bytes(text + b"\n")
    if arguments.plot is not None:
        plot(report, Path(arguments.plot))
    return 0 if any(outcome.error is None for run in runs for outcome in run.outcomes) else 1


def own_server(arguments: argparse.Namespace) -> StartedServer:
    """qwell with the model options that were given."""
    engine = engine_options(arguments, str(resolve_model(arguments.model)))
    return qwell_server(ServeOptions(engine=engine, model_name=arguments.model or DEMO_MODEL_NAME))


async def _measure(servers: list[Server], plan: Plan) -> list[Run]:
    return [run async for run in measure(servers, plan)]


def _servers(arguments: argparse.Namespace) -> list[Server]:
    if arguments.url is not None and arguments.model is not None:
        arguments.fail("argument --url: the server there has a model already; leave out --model")
    if arguments.url is not None:
        first: Server = named_server("server", arguments.url)
    else:
        first = own_server(arguments)
    return (
        [first] if arguments.compare is None else [first, named_server("peer", arguments.compare)]
    )


def _plan(arguments: argparse.Namespace) -> Plan:
    loads = [Load(rate=rate) for rate in arguments.rate or ()]
    loads += [Load(clients=clients) for clients in arguments.clients or ()]
    default_endpoint: Endpoint = "chat" if arguments.dataset == "chat" else "completions"
    return Plan(
        dataset=arguments.dataset,
        lengths=Lengths(
            input_tokens=arguments.input_tokens,
            output_tokens=arguments.output_tokens,
            spread=arguments.spread,
            system_tokens=arguments.system_tokens,
            turns=arguments.turns,
        ),
        endpoint=arguments.endpoint or default_endpoint,
        loads=tuple(loads or [Load(clients=1)]),
        requests=arguments.requests,
        runs=arguments.runs,
        seed=arguments.seed,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3

"""`qwell bench soak`."""

from __future__ import annotations

import argparse
import asyncio

from qwell.bench.serving.servers import StartedServer
from qwell.bench.serving.soak import Soak, soak
from qwell.cli.bench_serve import own_server

_SHOWN_FAULTS = 10
_CACHE_TOKENS = 2048


def run_soak(arguments: argparse.Namespace) -> int:
    """Keep a server of the model busy; status 1 if anything was wrong."""
    if arguments.kv_cache_tokens is None:
        # A pool that is soon used to its last block: what grows after that is no cache.
        arguments.kv_cache_tokens = _CACHE_TOKENS
    result = asyncio.run(_soak(own_server(arguments), arguments))
    for fault in result.faults[:_SHOWN_FAULTS]:
        print(f"fault: {fault}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result.requests.items()))
    print(f"{kinds}; {len(result.faults)} faults; anonymous memory grew by {result.growth:.1%}")
    return 0 if result.passed else 1


async def _soak(server: StartedServer, arguments: argparse.Namespace) -> Soak:
    async with server.run() as running:
        assert running.pid is not None, "it was started just now"
        seconds = 60.0 * arguments.minutes
        return await soak(
            running.address, running.pid, seconds, arguments.clients, arguments.seed, _say
        )


def _say(line: str) -> None:
    print(line, flush=True)

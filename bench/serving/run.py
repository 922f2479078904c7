"""Measures servers under loads, in turns."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from qwell.bench.serving.client import Endpoint, connect
from qwell.bench.serving.load import Load, run_load
from qwell.bench.serving.memory import MemoryWatch
from qwell.bench.serving.prompts import Dataset, Lengths, conversations
from qwell.bench.serving.results import Run
from qwell.bench.serving.servers import Running, Server


@dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
        loads: one after the other, on the same server.
        requests: conversations under each load.
        seed: of prompts, lengths and arrivals; both servers get the same.
    """

    dataset: Dataset
    lengths: Lengths
    endpoint: Endpoint
    loads: tuple[Load, ...]
    requests: int
    runs: int
    seed: int


async def measure(servers: Sequence[Server], plan: Plan) -> AsyncIterator[Run]:
    """All loads on the first server, then on the second, `plan.runs` times: A B A B.

    A server that is started for it ends with its turn, so that never two are loaded at once.
    Prompts differ from load to load and from run to run: no server knows one from before.

    Raises ServingError if a server does not start, or answers nothing.
    """
    for number in range(plan.runs):
        for server in servers:
            async with server.run() as running:
                for place, load in enumerate(plan.loads):
                    yield await _measure(server, running, plan, load, f"{number} {place}")


async def _measure(server: Server, running: Running, plan: Plan, load: Load, which: str) -> Run:
    seed = f"{plan.seed} {which}"
    asked = conversations(plan.dataset, plan.lengths, plan.requests, seed)
    client = await connect(running.address, plan.endpoint)
    taken = time.process_time()
    if running.pid is None:
        outcomes, seconds = await run_load(client, load, asked, seed)
        memory = None
    else:
        async with MemoryWatch(running.pid) as watch:
            outcomes, seconds = await run_load(client, load, asked, seed)
        memory = watch.memory
    return Run(
        server=server.name,
        load=load,
        seconds=seconds,
        client_seconds=time.process_time() - taken,
        outcomes=outcomes,
        memory=memory,
    )

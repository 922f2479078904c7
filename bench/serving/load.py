"""Conversations put to a server: by so many clients, or as they arrive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence

import msgspec

from qwell.bench.serving.client import Client, Message, Outcome
from qwell.bench.serving.prompts import Conversation


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How much is asked at a time: one of the two is given.

    Attributes:
        clients: that each put their next conversation when the last has ended (closed loop).
        rate: conversations that arrive in a second, at random times (open loop, Poisson).
    """

    clients: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return f"{self.clients} client{'s' if self.clients != 1 else ''}"


async def run_load(
    client: Client, load: Load, conversations: Sequence[Conversation], seed: str
) -> tuple[list[Outcome], float]:
    """Put all conversations; how each request went, and the seconds that all took together."""
    start = client.clock()
    if load.rate is not None:
        outcomes = await _open_loop(client, load.rate, conversations, random.Random(seed))
    else:
        outcomes = await _closed_loop(client, load.clients or 1, conversations)
    return outcomes, client.clock() - start


async def _closed_loop(
    client: Client, clients: int, conversations: Sequence[Conversation]
) -> list[Outcome]:
    waiting = iter(conversations)
    outcomes: list[Outcome] = []
    await asyncio.gather(*(_one_client(client, waiting, outcomes) for _ in range(clients)))
    return outcomes


async def _one_client(
    client: Client, waiting: Iterator[Conversation], outcomes: list[Outcome]
) -> None:
    for conversation in waiting:
        outcomes.extend(await _converse(client, conversation))


async def _open_loop(
    client: Client, rate: float, conversations: Sequence[Conversation], draw: random.Random
) -> list[Outcome]:
    loop = asyncio.get_running_loop()
    due = loop.time()
    running = []
    for conversation in conversations:
        await asyncio.sleep(due - loop.time())
        running.append(asyncio.create_task(_converse(client, conversation)))
        due += draw.expovariate(rate)
    return [outcome for outcomes in await asyncio.gather(*running) for outcome in outcomes]


async def _converse(client: Client, conversation: Conversation) -> list[Outcome]:
    """All turns; none follows one that failed."""
    messages: list[Message] = [("system", conversation.system)] if conversation.system else []
    outcomes: list[Outcome] = []
    for place, turn in enumerate(conversation.turns):
        outcome, text = await client.ask(turn, messages, place)
        outcomes.append(outcome)
        if outcome.error is not None:
            break
        messages += [("user", turn.text), ("assistant", text)]
    return outcomes

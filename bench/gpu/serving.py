"""Tokens a second through the engine: scheduling, sampling and the host's work included."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qwell.bench.gpu.model_speed import Speed, speed
from qwell.bench.work import Ceilings, Work
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.loader import LoadedModel
from qwell.runtime.sampling_params import SamplingParams

Clock = Callable[[], float]

BATCH_TOKENS = 8192
"""Most tokens of a step."""


@dataclass(frozen=True)
class Throughput:
    """Offline serving: all requests at once, as many together as fit.

    Attributes:
        requests, finished: how many there were, and how many ended before the time was up.
        floor_seconds: what reading weights and cache takes at the measured bandwidth.
    """

    model: str
    requests: int
    finished: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    tokens_per_second: float
    floor_seconds: float
    share: float


def engine(model: LoadedModel, max_num_seqs: int, *, eager: bool) -> Engine:
    """An engine over a model that is loaded already; no id ends a completion.

    It computes every prompt: a warm-up must not leave it less to do.
    """
    options = EngineOptions(
        model="",
        eager=eager,
        max_batch_tokens=BATCH_TOKENS,
        max_num_seqs=max_num_seqs,
        prefix_cache=False,
    )
    return Engine(model, options)


def engine_speeds(
    name: str,
    model: LoadedModel,
    ceilings: Ceilings,
    batches: Sequence[int],
    context: int,
    steps: int,
    clock: Clock = time.perf_counter,
) -> Iterator[Speed]:
    """Decodes through the engine: `steps` steps of each batch, from `context` tokens on."""
    work = Work.of(model)
    for graphs in (True, False):
        if graphs and model.device.type != "cuda":
            continue
        running = engine(model, max(batches), eager=not graphs)
        for batch in batches:
            seconds = _decode_seconds(running, batch, context, steps, clock)
            contexts = [context + steps // 2] * batch
            floor = work.decode_floor(ceilings, contexts)
            yield speed(name, "decode engine", batch, context, graphs, seconds, batch, floor)


def _decode_seconds(running: Engine, batch: int, context: int, steps: int, clock: Clock) -> float:
    """Seconds a step, once every sequence decodes."""
    params = SamplingParams(max_tokens=running.info.max_model_len - context, temperature=0.0)
    for i in range(batch):
        running.add(str(i), [(i + place) % 256 for place in range(context)], params)
    started: set[str] = set()
    while len(started) < batch:
        started |= {output.request_id for output in running.step()}
    start = clock()
    for _ in range(steps):
        running.step()
    seconds = clock() - start
    for i in range(batch):
        running.abort(str(i))
    return seconds / steps


def throughput(
    name: str,
    model: LoadedModel,
    ceilings: Ceilings,
    requests: int,
    shortest: int,
    longest: int,
    limit_seconds: float,
    clock: Clock = time.perf_counter,
) -> Throughput:
    """Complete `requests` prompts, both parts `shortest` to `longest` tokens long by lot.

    What is not done after `limit_seconds` stays so. The load is that of nano-vllm's benchmark
    (https://github.com/GeeeekExplorer/nano-vllm, bench.py): 256 sequences, 100 to 1024 tokens.
    """
    draw = random.Random(0)
    sizes = [[draw.randint(shortest, longest) for _ in range(2)] for _ in range(requests)]
    prompts = [[draw.randrange(256) for _ in range(size)] for size, _ in sizes]
    running = engine(model, requests, eager=False)
    _warm_up(running, prompts)
    work = Work.of(model)
    contexts: dict[str, int] = {}
    for i, (ids, (_, wanted)) in enumerate(zip(prompts, sizes, strict=True)):
        running.add(str(i), ids, SamplingParams(max_tokens=wanted, temperature=0.6))
        contexts[str(i)] = len(ids)
    prompt_tokens = sum(contexts.values())
    output_tokens = finished = 0
    floor = 0.0
    start = clock()
    while running.has_work and clock() - start < limit_seconds:
        outputs = running.step()
        floor += work.decode_floor(ceilings, [contexts[o.request_id] for o in outputs])
        output_tokens += len(outputs)
        for output in outputs:
            contexts[output.request_id] += 1
            finished += output.finish_reason is not None
    seconds = clock() - start
    return Throughput(
        name,
        requests,
        finished,
        prompt_tokens,
        output_tokens,
        seconds,
        output_tokens / seconds,
        floor,
        floor / seconds,
    )


def _warm_up(running: Engine, prompts: Sequence[list[int]]) -> None:
    """Have kernels for steps of every kind compiled: the same prompts, two tokens each."""
    for i, ids in enumerate(prompts):
        running.add(str(i), ids, SamplingParams(max_tokens=2, temperature=0.6))
    while running.has_work:
        running.step()

"""Tokens a second of a model's steps, and how many of them the hardware allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from qwell.bench.gpu.model import step_batch
from qwell.bench.gpu.timing import Timer
from qwell.bench.work import Ceilings, Work
from qwell.runtime.decode_graphs import Capture, DecodeGraphs
from qwell.runtime.loader import LoadedModel


@dataclass(frozen=True)
class Speed:
    """Tokens a second in one phase.

    Attributes:
        phase: "decode step" and "prefill step" are the model alone; "decode engine" has the
            scheduling and sampling of a server's steps as well.
        share: part of the time that bytes and arithmetic need at the measured ceilings.
    """

    model: str
    phase: str
    batch: int
    context: int
    graphs: bool
    milliseconds: float
    tokens_per_second: float
    floor_milliseconds: float
    share: float


def speeds(
    name: str,
    model: LoadedModel,
    timer: Timer,
    ceilings: Ceilings,
    new_capture: Callable[[], Capture] | None,
    decodes: Sequence[tuple[int, int]],
    prefills: Sequence[int],
) -> Iterator[Speed]:
    """Steps alone: decodes of (batch, context) with and without graphs, prompts of so many
    tokens."""
    work = Work.of(model)
    for batch, context in decodes:
        floor = work.decode_floor(ceilings, [context] * batch)
        for graphs in (True, False):
            if new_capture is not None or not graphs:
                # One of its own each time: captures of one share memory, and so must their lives.
                capture = new_capture() if graphs and new_capture is not None else None
                seconds = _decode_seconds(model, timer, capture, batch, context)
                yield speed(name, "decode step", batch, context, graphs, seconds, batch, floor)
    for tokens in prefills:
        seconds = _prefill_seconds(model, timer, tokens)
        floor = work.prefill_floor(ceilings, tokens)
        yield speed(name, "prefill step", 1, tokens, False, seconds, tokens, floor)


@torch.inference_mode()
def _decode_seconds(
    model: LoadedModel, timer: Timer, capture: Capture | None, batch: int, context: int
) -> float:
    step = step_batch(model.device, [(context - 1, context)] * batch, [context] * batch)
    if capture is None:
        return timer.seconds(lambda: model.decoder.forward(step, model.cache))
    graphs = DecodeGraphs(
        model.decoder,
        model.cache,
        sizes=[batch],
        max_model_len=model.max_model_len,
        device=model.device,
        capture=capture,
    )
    return timer.seconds(lambda: graphs.run(step))


@torch.inference_mode()
def _prefill_seconds(model: LoadedModel, timer: Timer, tokens: int) -> float:
    step = step_batch(model.device, [(0, tokens)], [tokens])
    return timer.seconds(lambda: model.decoder.forward(step, model.cache))


def speed(
    name: str,
    phase: str,
    batch: int,
    context: int,
    graphs: bool,
    seconds: float,
    tokens: int,
    floor: float,
) -> Speed:
    """Of a step of so many tokens that took `seconds`, where `floor` is the least."""
    return Speed(
        name,
        phase,
        batch,
        context,
        graphs,
        milliseconds=seconds * 1e3,
        tokens_per_second=tokens / seconds,
        floor_milliseconds=floor * 1e3,
        share=floor / seconds,
    )

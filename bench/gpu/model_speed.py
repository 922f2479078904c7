"""Tokens a second of a model's steps, and how many of them the hardware allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from qwell.bench.gpu.calls import matrices
from qwell.bench.gpu.ceilings import Ceilings
from qwell.bench.gpu.model import step_batch
from qwell.bench.gpu.timing import Timer
from qwell.bench.kernels.models import Model
from qwell.runtime.decode_graphs import Capture, DecodeGraphs
from qwell.runtime.kv_cache import bytes_per_token
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


@dataclass(frozen=True)
class Work:
    """What a model's steps read and compute."""

    weight_bytes: int
    cache_bytes_per_token: int
    layer_weights: int
    head_weights: int
    attention_width: int

    @classmethod
    def of(cls, model: LoadedModel) -> Work:
        c = model.config
        sizes = Model(
            "",
            c.hidden_size,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            c.intermediate_size,
            c.vocab_size,
        )
        *layer, (_, vocabulary, hidden) = matrices(sizes)
        weights = c.num_layers * sum(n * k for _, n, k in layer)
        return cls(
            weight_bytes=(weights + vocabulary * hidden) * model.dtype.itemsize,
            cache_bytes_per_token=bytes_per_token(c, model.dtype),
            layer_weights=weights,
            head_weights=vocabulary * hidden,
            attention_width=c.num_layers * c.num_heads * c.head_dim,
        )

    def decode_floor(self, ceilings: Ceilings, contexts: Sequence[int]) -> float:
        """Seconds of a step of one token for sequences that are so long then."""
        moved = self.weight_bytes + self.cache_bytes_per_token * sum(contexts)
        return ceilings.floor(moved, self._flops(len(contexts), len(contexts), sum(contexts)))

    def prefill_floor(self, ceilings: Ceilings, tokens: int) -> float:
        """Seconds of a step that computes one prompt, and the logits of its last token."""
        moved = self.weight_bytes + self.cache_bytes_per_token * tokens
        return ceilings.floor(moved, self._flops(tokens, 1, tokens * (tokens + 1) // 2))

    def _flops(self, tokens: int, rows: int, met: int) -> int:
        """Of `tokens` with `rows` of logits, whose queries meet `met` keys in all."""
        products = tokens * self.layer_weights + rows * self.head_weights
        return 2 * products + 4 * met * self.attention_width


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

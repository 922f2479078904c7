"""Engines under test: run requests to their end, and read the logits each token was drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qwell.kernels.reference.sample import sample as reference_sample
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.sampler import uniform
from qwell.runtime.sampling_params import SamplingParams


def start_engine(
    folder: Path, kernels: Mapping[str, Callable[..., Any]] | None = None, **options: Any
) -> Engine:
    """On a CPU, and without a file of packed weights unless `weight_cache` says so."""
    options = {"device": "cpu", "weight_cache": False, **options}
    return Engine.start(EngineOptions(model=str(folder), **options), kernels=kernels)


def run_to_end(engine: Engine) -> dict[str, list[int]]:
    """Generated ids by request id."""
    tokens: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    return tokens


def greedy(engine: Engine, prompt: list[int], max_tokens: int) -> list[int]:
    engine.add("greedy", prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0))
    return run_to_end(engine)["greedy"]


class LogitsRecorder:
    """A `sample` op that keeps every row it saw.

    Rows carry no names, but the uniform number of a row is a function of seed and step: with a
    seed of its own every request finds its rows again. Greedy rows draw no number: to follow the
    maximum, ask for top_k=1.
    """

    def __init__(self) -> None:
        self._rows: dict[float, Tensor] = {}

    def __call__(self, logits: Tensor, *, uniform: Tensor, **parameters: Tensor) -> Tensor:
        for row, key in zip(logits, uniform.tolist(), strict=True):
            self._rows[key] = row.clone()
        return reference_sample(logits, uniform=uniform, **parameters)

    def row(self, seed: int, step: int) -> Tensor:
        """Logits [V] that generated token `step` of the request with this seed came from."""
        return self._rows[uniform(seed, step)]

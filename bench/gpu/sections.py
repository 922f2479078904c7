"""The sections of `qwell bench gpu`, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.ceilings import Ceilings, measure
from qwell.bench.gpu.isolation import Row, Section
from qwell.bench.gpu.kernels import kernel_steps, kernel_times
from qwell.bench.gpu.model import random_model
from qwell.bench.gpu.model_parity import logits_parity
from qwell.bench.gpu.model_speed import speeds
from qwell.bench.gpu.parity import parity, parity_steps
from qwell.bench.gpu.serving import engine_speeds, throughput
from qwell.bench.gpu.timing import timer_for
from qwell.kernels.ops import Ops
from qwell.kernels.registry import build_ops
from qwell.runtime.decode_graphs import cuda_capture
from qwell.runtime.kv_cache import BLOCK_SIZE, bytes_per_token
from qwell.runtime.loader import LoadedModel

TOTAL_SECONDS = 450.0
"""Of all sections together: with what surrounds them, less than eight minutes."""

MAX_MODEL_LEN = 4096
DTYPE = torch.bfloat16

_BATCHES = (1, 8, 64)
_CONTEXT = 1024
_PROMPTS = (512, 4096)
# Space for the largest batch, and for what it generates.
_CACHE_TOKENS = max(_BATCHES) * (_CONTEXT + 256)

_REQUESTS = 256
_SHORTEST, _LONGEST = 100, 1024
_SERVING_SECONDS = 35.0


def gpu_sections() -> tuple[Section, ...]:
    """All of them; the last one takes what time the others leave."""
    return (
        Section("ceilings", _ceilings, 40.0),
        Section("op parity", _parity, 120.0),
        Section("model parity", _model_parity, 40.0),
        Section("qwen3-0.6b", partial(_speeds, "qwen3-0.6b"), 75.0),
        Section("serving", _serving, 75.0),
        Section("qwen3-8b", partial(_speeds, "qwen3-8b"), 60.0),
        Section("kernels", _kernels, TOTAL_SECONDS),
    )


def _gpu() -> torch.device:
    return torch.device("cuda")


def _ops(dtype: torch.dtype = DTYPE) -> Ops:
    return build_ops(_gpu(), dtype)


def _ceilings(_: Ceilings) -> Iterator[Row]:
    yield measure(_gpu(), timer_for(_gpu()))


def _parity(_: Ceilings) -> Iterator[Row]:
    yield from parity(_gpu(), _ops, parity_steps())


def _model_parity(_: Ceilings) -> Iterator[Row]:
    config = true_config("qwen3-0.6b") | {"num_hidden_layers": 4}
    yield from logits_parity(config, _ops(), DTYPE, _gpu(), cuda_capture())


def _model(name: str, cache_tokens: int) -> LoadedModel:
    return random_model(true_config(name), _ops(), cache_tokens, MAX_MODEL_LEN, DTYPE, _gpu())


def _speeds(name: str, ceilings: Ceilings) -> Iterator[Row]:
    model = _model(name, _CACHE_TOKENS)
    decodes = [(batch, _CONTEXT) for batch in _BATCHES]
    yield from speeds(name, model, timer_for(_gpu()), ceilings, cuda_capture(), decodes, _PROMPTS)
    yield from engine_speeds(name, model, ceilings, _BATCHES, _CONTEXT, steps=50)


def _serving(ceilings: Ceilings) -> Iterator[Row]:
    name = "qwen3-0.6b"
    # As much as all requests can need, or what a smaller GPU has.
    token_bytes = bytes_per_token(_model(name, BLOCK_SIZE).config, DTYPE)
    torch.cuda.empty_cache()
    fitting = int(0.6 * torch.cuda.mem_get_info()[0]) // token_bytes
    model = _model(name, min(fitting, 2 * _LONGEST * _REQUESTS))
    yield throughput(name, model, ceilings, _REQUESTS, _SHORTEST, _LONGEST, _SERVING_SECONDS)


def _kernels(ceilings: Ceilings) -> Iterator[Row]:
    timer = timer_for(_gpu())
    yield from kernel_times(_gpu(), DTYPE, _ops(), timer, ceilings, kernel_steps())

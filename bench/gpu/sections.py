"""The sections of `qwell bench gpu`, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.calls import Step, decode
from qwell.bench.gpu.ceilings import measure
from qwell.bench.gpu.fused_calls import FUSED_LINEARS, FusedCalls
from qwell.bench.gpu.isolation import Row, Section
from qwell.bench.gpu.kernels import kernel_steps, kernel_times
from qwell.bench.gpu.model import random_model, read_config
from qwell.bench.gpu.model_parity import logits_parity
from qwell.bench.gpu.model_speed import speeds
from qwell.bench.gpu.parity import parity, parity_steps
from qwell.bench.gpu.serving import engine_speeds, throughput
from qwell.bench.gpu.timing import timer_for
from qwell.bench.kernels.models import MODELS
from qwell.bench.work import Ceilings
from qwell.kernels.fused_ops import MAX_FUSED_TOKENS, FusedOps
from qwell.kernels.ops import OP_NAMES, Ops
from qwell.kernels.registry import build_fused_ops, build_ops
from qwell.runtime.decode_graphs import cuda_capture
from qwell.runtime.kv_cache import bytes_per_token
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


def gpu_sections() -> tuple[tuple[Section, ...], ...]:
    """All of them, in groups that run at once; the last one takes what time the others leave."""
    return (
        (Section("ceilings", _ceilings, 40.0),),
        tuple(_parity_sections()),
        (Section("model parity", _model_parity, 40.0),),
        (Section("qwen3-0.6b", partial(_speeds, "qwen3-0.6b"), 75.0),),
        (Section("not batch-invariant", _not_invariant, 45.0),),
        (Section("serving", _serving, 75.0),),
        (Section("qwen3-8b", partial(_speeds, "qwen3-8b"), 60.0),),
        (Section("kernels", _kernels, TOTAL_SECONDS),),
    )


def _parity_sections() -> Iterator[Section]:
    """One an op, and for linear, which has most kernels to compile, one a step.

    At once, because nothing is timed and compiling takes a core each; what they compile, the
    timed sections find on disk.
    """
    every = parity_steps()
    for op in OP_NAMES:
        if op != "linear":
            yield Section(f"parity of {op}", partial(_parity, op, every), 120.0)
    for dtype, steps in every.items():
        for step in steps:
            name = f"parity of linear, {step.name} {str(dtype).removeprefix('torch.')}"
            yield Section(name, partial(_parity, "linear", {dtype: (step,)}), 120.0)
    yield Section("parity of fused ops", _fused_parity, 120.0)


def _gpu() -> torch.device:
    return torch.device("cuda")


def _ops(dtype: torch.dtype = DTYPE) -> Ops:
    return build_ops(_gpu(), dtype)


def _fused_ops(dtype: torch.dtype = DTYPE) -> FusedOps:
    ops = build_fused_ops(_gpu(), dtype)
    assert ops is not None, "a GPU that the other ops have run on"
    return ops


def _ceilings(_: Ceilings) -> Iterator[Row]:
    yield measure(_gpu(), timer_for(_gpu()))


def _parity(op: str, steps: dict[torch.dtype, tuple[Step, ...]], _: Ceilings) -> Iterator[Row]:
    yield from parity(_gpu(), _ops, steps, (op,))


def _fused_steps() -> tuple[Step, ...]:
    batches = (1, MAX_FUSED_TOKENS)
    return tuple(decode(model, batch, _CONTEXT) for model in MODELS for batch in batches)


def _fused_parity(_: Ceilings) -> Iterator[Row]:
    steps = {DTYPE: _fused_steps()}
    yield from parity(_gpu(), _fused_ops, steps, FUSED_LINEARS, FusedCalls)


def _model_parity(_: Ceilings) -> Iterator[Row]:
    config = true_config("qwen3-0.6b") | {"num_hidden_layers": 4}
    yield from logits_parity(config, _ops(), DTYPE, _gpu(), cuda_capture())


def _model(name: str, cache_tokens: int) -> LoadedModel:
    return random_model(true_config(name), _ops(), cache_tokens, MAX_MODEL_LEN, DTYPE, _gpu())


def _speeds(name: str, ceilings: Ceilings) -> Iterator[Row]:
    model = _model(name, _CACHE_TOKENS)
    decodes = [(batch, _CONTEXT) for batch in _BATCHES]
    yield from speeds(name, model, timer_for(_gpu()), ceilings, cuda_capture, decodes, _PROMPTS)
    yield from engine_speeds(name, model, ceilings, _BATCHES, _CONTEXT, steps=50)


def _not_invariant(ceilings: Ceilings) -> Iterator[Row]:
    """What --no-batch-invariant is worth: fused ops for small decodes, BLAS for the rest."""
    ops = build_ops(_gpu(), DTYPE, batch_invariant=False)
    config = true_config("qwen3-0.6b")
    model = random_model(config, ops, _CACHE_TOKENS, MAX_MODEL_LEN, DTYPE, _gpu(), _fused_ops())
    name = "qwen3-0.6b --no-batch-invariant"
    decodes = [(batch, _CONTEXT) for batch in _BATCHES]
    yield from speeds(name, model, timer_for(_gpu()), ceilings, cuda_capture, decodes, _PROMPTS)


def _serving(ceilings: Ceilings) -> Iterator[Row]:
    name = "qwen3-0.6b"
    # As much as all requests can need, or what a smaller GPU has.
    token_bytes = bytes_per_token(read_config(true_config(name)), DTYPE)
    fitting = int(0.6 * torch.cuda.mem_get_info()[0]) // token_bytes
    model = _model(name, min(fitting, 2 * _LONGEST * _REQUESTS))
    yield throughput(name, model, ceilings, _REQUESTS, _SHORTEST, _LONGEST, _SERVING_SECONDS)


def _kernels(ceilings: Ceilings) -> Iterator[Row]:
    timer = timer_for(_gpu())
    fused = _fused_ops()
    # First, being few: what there is no time for is left out.
    yield from kernel_times(_gpu(), DTYPE, fused, timer, ceilings, _fused_steps(), FusedCalls)
    yield from kernel_times(_gpu(), DTYPE, _ops(), timer, ceilings, kernel_steps())

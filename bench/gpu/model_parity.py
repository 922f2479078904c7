"""Whether a whole model computes the logits that plain torch does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qwell.bench.gpu.model import random_model, step_batch
from qwell.bench.gpu.parity import REFERENCE
from qwell.kernels.ops import Ops
from qwell.runtime.batch import Batch
from qwell.runtime.decode_graphs import Capture, DecodeGraphs
from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for

# Where a prompt is cut in two.
_BORDER = 120
# Sequences beside the five that decode: every number of tokens that linear has settings for.
_OTHERS = (11, 59, 251, 295)


@dataclass(frozen=True)
class LogitsParity:
    """Logits of a step, against the reference ops in fp32 over the same weights.

    Attributes:
        error: root mean square of the difference, as a share of the logits'.
        reference_error: the same of the reference ops in the model's own dtype: what rounding
            to it costs in any case.
        equal: bits are those of the same tokens in another step; None if there is none.
        equal_to_prefill: bits are those of the same tokens as prompts, whose attention is another
            kernel; no fault where they are not (docs/gpu.md).
    """

    step: str
    error: float
    reference_error: float
    ok: bool
    equal: bool | None = None
    equal_to_prefill: bool | None = None


@torch.inference_mode()
def logits_parity(
    config: Mapping[str, Any],
    ops: Ops,
    dtype: torch.dtype,
    device: torch.device,
    capture: Capture | None,
) -> Iterator[LogitsParity]:
    """Prompts, one of them in two chunks, then decodes; then again in steps of other sizes.

    Right is what errs at most twice as much as plain torch in the same dtype.
    """
    lengths = (1, 15, 16, 17, 200)
    prompts = [(0, length) for length in lengths]
    decodes = [(length - 1, length) for length in lengths]
    tokens = (sum(map(blocks_for, lengths)) + max(_OTHERS)) * BLOCK_SIZE
    model = random_model(config, ops, tokens, tokens, dtype, device)
    exact = random_model(config, REFERENCE, tokens, tokens, torch.float32, device)
    plain = random_model(config, REFERENCE, tokens, tokens, dtype, device)

    def judge(step: str, logits: Tensor, batch: Batch, equal: bool | None = None) -> LogitsParity:
        expected = exact.decoder.forward(batch, exact.cache)
        usual = _distance(plain.decoder.forward(batch, plain.cache), expected)
        error = _distance(logits, expected)
        # At fp32 both may be as good as exact; NaN is never right.
        ok = error <= max(2 * usual, 1e-5)
        return LogitsParity(step, error, usual, ok, equal)

    batch = step_batch(device, [*prompts[:-1], (0, _BORDER)], lengths, all_logits=True)
    yield judge("prompts", model.decoder.forward(batch, model.cache), batch)
    batch = step_batch(device, [*decodes[:-1], (_BORDER, lengths[-1])], lengths, all_logits=True)
    chunk = model.decoder.forward(batch, model.cache)
    yield judge("decodes and a second chunk", chunk, batch)
    batch = step_batch(device, prompts, lengths, all_logits=True)
    whole = model.decoder.forward(batch, model.cache)
    rows = lengths[-1] - _BORDER
    equal = torch.equal(whole[-rows:], chunk[-rows:])
    yield judge("a prompt whole, against its second chunk", whole, batch, equal)
    batch = step_batch(device, decodes, lengths)
    eager = model.decoder.forward(batch, model.cache)
    last = batch.seq_lens.cumsum(0) - 1
    row = judge("decode", eager, batch)
    yield replace(row, equal_to_prefill=torch.equal(whole[last], eager))
    for others in _OTHERS:
        beside = step_batch(device, [*decodes, *[(0, 1)] * others], [*lengths, *[1] * others])
        logits = model.decoder.forward(beside, model.cache)
        equal = torch.equal(logits[: len(lengths)], eager)
        yield judge(f"decode beside {others} others", logits, beside, equal)
    if capture is not None:
        graphs = DecodeGraphs(
            model.decoder,
            model.cache,
            sizes=[8],  # so that there is padding
            max_model_len=model.max_model_len,
            device=device,
            capture=capture,
        )
        replayed = graphs.run(batch)
        yield judge("decode captured", replayed, batch, torch.equal(replayed, eager))


def _distance(logits: Tensor, expected: Tensor) -> float:
    difference = (logits - expected).double().square().mean().sqrt()
    return (difference / expected.double().square().mean().sqrt()).item()

"""What is compiled anew from step to step: nothing, or a request would wait for a compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from qwell.bench.kernels.case import cache, ints, meta
from qwell.bench.kernels.compile import compile_only
from qwell.kernels.ops import Extent
from qwell.kernels.triton.adjust_logits import adjust_logits
from qwell.kernels.triton.attention import attention
from qwell.kernels.triton.embedding import embedding
from qwell.kernels.triton.linear import linear
from qwell.kernels.triton.logprobs import logprobs
from qwell.kernels.triton.rms_norm import rms_norm
from qwell.kernels.triton.rope import rope
from qwell.kernels.triton.sample import sample
from qwell.kernels.triton.silu_mul import silu_mul

HEADS, KV_HEADS, D = 4, 2, 64
HIDDEN, MLP, VOCABULARY = 256, 1536, 1000


def model_step(decodes: int, prompt: int, context: int) -> None:
    """Ops of a step: sequences of one token, then perhaps one of `prompt` tokens."""
    tokens, sequences = decodes + prompt, decodes + (prompt > 0)
    kv = cache(4096, KV_HEADS, D, torch.bfloat16)
    x = embedding(ints(tokens), meta(VOCABULARY, HIDDEN))
    rms_norm(x, meta(HIDDEN), 1e-6, x)
    qkv = meta(tokens, (HEADS + 2 * KV_HEADS) * D)
    angles, norm = meta(4096, D, dtype=torch.float32), meta(D)
    q = rope(qkv, ints(tokens), angles, norm, norm, 1e-6, *kv, ints(tokens))
    attention(
        q,
        *kv,
        ints(sequences, -(-context // 16)),
        ints(sequences + 1),
        ints(sequences),
        Extent(decodes, max(prompt, 1), context),
        D**-0.5,
    )
    # With parts of K, and without.
    linear(silu_mul(meta(tokens, 2 * MLP)), meta(HIDDEN, MLP))
    linear(x, meta(2 * MLP, HIDDEN))


def draw(rows: int, listed: int, top: int) -> None:
    """Ops between the logits of a step and its ids."""
    logits = meta(rows, VOCABULARY, dtype=torch.float32)

    def doubles(count: int) -> Tensor:
        return meta(count, dtype=torch.float64)

    one, counts = doubles(rows), ints(rows)
    adjust_logits(
        logits,
        ids=ints(listed),
        counts=ints(listed),
        biases=doubles(listed),
        cu_ids=ints(rows + 1),
        newest=counts,
        repetition_penalty=one,
        presence_penalty=one,
        frequency_penalty=one,
        only_listed=counts,
    )
    sample(logits, one, counts, one, one, one, one)
    logprobs(logits, counts, top)


def test_steps_of_other_sizes_compile_nothing() -> None:
    with compile_only("sm_90") as launches:
        # Both forms of decode, whose keys are in one part or in some.
        model_step(3, 10, 600)
        model_step(3, 10, 200)
        draw(3, 50, 5)
        known = {launch.kernel.hash for launch in launches}
        # 1, multiples of 16 and other numbers are different arguments to Triton.
        for decodes, prompt, context in ((1, 0, 1), (16, 0, 4096), (0, 1, 1), (7, 0, 4095)):
            model_step(decodes, prompt, context)
        for decodes, prompt, context in ((1, 15, 16), (0, 16, 257), (0, 7, 4096), (5, 2, 300)):
            model_step(decodes, prompt, context)
        for rows, listed, top in ((1, 1, 0), (16, 16, 1), (2, 0, 16), (17, 333, 20)):
            draw(rows, listed, top)
    added = [launch.kernel.name for launch in launches if launch.kernel.hash not in known]
    assert added == []

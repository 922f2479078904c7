"""From logits to next ids: gathers the parameters of a step's sequences and draws."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from qwell.kernels.ops import Ops
from qwell.runtime.sampled_ids import IdColumn, SampledIds
from qwell.runtime.scheduler import Sequence
from qwell.runtime.transfer import to_device

_MASK = 2**64 - 1


def sample_next(
    ops: Ops,
    logits: Tensor,
    sequences: SequenceOf[Sequence],
    sampled: SampledIds | None = None,
) -> Tensor:
    """Next id of every sequence, int32 [S] on the device, from fp32 logits [S, V].

    An id depends on its own row, parameters, seed and place in the sequence alone: not on
    the neighbours, nor on how the sequence was scheduled. `sampled` holds ids in flight.
    """
    if not sequences:
        return torch.empty(0, dtype=torch.int32, device=logits.device)
    params = [sequence.params for sequence in sequences]
    seen = IdColumn(sampled)
    cu_seen = [0]
    for sequence in sequences:
        seen.extend(sequence.seen_ids)
        if sequence.penalised and sequence.num_in_flight:
            # It may have been seen before: kernels give an id listed twice the penalty once.
            seen.append_in_flight(sequence)
        cu_seen.append(len(seen.ids))

    draws = [uniform(sequence.seed, sequence.num_generated) for sequence in sequences]
    temperature, top_p, min_p, penalty, draw = to_device(
        (
            [p.temperature for p in params],
            [p.top_p for p in params],
            [p.min_p for p in params],
            [p.repetition_penalty for p in params],
            draws,
        ),
        torch.float64,
        logits.device,
    )
    top_k, known_ids, sources, cu_seen_ids = to_device(
        ([p.top_k for p in params], seen.ids, seen.sources, cu_seen), torch.int32, logits.device
    )
    return ops.sample(
        logits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seen_ids=seen.complete(known_ids, sources),
        cu_seen=cu_seen_ids,
        uniform=draw,
    )


def uniform(seed: int, step: int) -> float:
    """The number in [0, 1) that draws generated token `step` of a sequence with this seed.

    Counter-based (Philox4x64-10, Salmon et al. 2011): there is no state to lose when a sequence
    is preempted or runs in another batch. It is the first number of numpy's
    Philox(key=seed, counter=[0, 0, 0, step]), which takes 150 us to set up in a decode step.
    """
    c0, c1, c2, c3 = 1, 0, 0, step
    k0, k1 = seed & _MASK, 0
    for _ in range(10):
        p0, p1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & _MASK, (p0 >> 64) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return (c0 >> 11) * 2.0**-53

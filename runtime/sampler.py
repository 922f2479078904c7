"""From logits to next ids: gathers the parameters of a step's sequences and draws."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qwell.kernels.ops import Ops
from qwell.runtime.sampled_ids import IdColumn, SampledIds
from qwell.runtime.scheduler import Sequence
from qwell.runtime.transfer import arrays_to_device

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
    if not any(p.temperature or p.repetition_penalty != 1.0 for p in params):
        return ops.sample(logits, **_greedy(len(params), logits.device))
    seen = IdColumn(sampled)
    cu_seen = [0]
    for sequence in sequences:
        seen.extend(sequence.seen_ids)
        if sequence.penalised and sequence.num_in_flight:
            # It may have been seen before: kernels give an id listed twice the penalty once.
            seen.append_in_flight(sequence)
        cu_seen.append(len(seen.ids))

    rows = np.array(
        [
            (p.temperature, p.top_p, p.min_p, p.repetition_penalty, _draw(sequence))
            for sequence, p in zip(sequences, params, strict=True)
        ]
    )
    *columns, top_k, known_ids, sources, cu_seen_ids = arrays_to_device(
        [
            *np.ascontiguousarray(rows.T),
            *(
                np.array(ints, dtype=np.int32)
                for ints in ([p.top_k for p in params], seen.ids, seen.sources, cu_seen)
            ),
        ],
        logits.device,
    )
    temperature, top_p, min_p, penalty, draw = columns
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


@lru_cache(maxsize=256)
def _greedy(rows: int, device: torch.device) -> dict[str, Tensor]:
    """Parameters of so many greedy rows: always the same, and so they stay on the device."""
    zeros = torch.zeros(rows, dtype=torch.float64, device=device)
    ones = torch.ones_like(zeros)
    nothing = torch.zeros(rows + 1, dtype=torch.int32, device=device)
    return {
        "temperature": zeros,
        "top_k": torch.zeros(rows, dtype=torch.int32, device=device),
        "top_p": ones,
        "min_p": zeros,
        "repetition_penalty": ones,
        "seen_ids": nothing[:0],
        "cu_seen": nothing,
        "uniform": zeros,
    }


def _draw(sequence: Sequence) -> float:
    """Its next random number; greedy rows draw none."""
    if sequence.params.temperature == 0.0:
        return 0.0
    return uniform(sequence.seed, sequence.num_generated)


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

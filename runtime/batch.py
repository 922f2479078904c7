"""One step's tokens as tensors: whose they are, where they stand, where they are cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwell.kernels.ops import Extent
from qwell.runtime.sampled_ids import IdColumn, SampledIds
from qwell.runtime.sequence import Chunk
from qwell.runtime.transfer import to_device


@dataclass(frozen=True)
class Batch:
    """Tokens of all sequences of a step, concatenated; every tensor is int32.

    T tokens, S sequences, R rows whose logits are wanted.

    Attributes:
        input_ids: [T].
        positions: [T], place of a token in its sequence.
        slot_mapping: [T], cache slot that the token's k and v go to.
        block_table: [S, most blocks of a sequence], padded with 0.
        cu_seqlens_q: [S + 1], first row of every sequence, then T.
        seq_lens: [S], cached tokens of a sequence once this step has run.
        logit_rows: [R].
        extent: bounds of the above that the host knows.
    """

    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    logit_rows: Tensor
    extent: Extent


def build_batch(
    chunks: Sequence[Chunk],
    block_size: int,
    device: torch.device,
    *,
    sampled: SampledIds | None = None,
    all_logits: bool = False,
) -> Batch:
    """The batch of the scheduled chunks.

    Logits are wanted for the last token of every chunk that completes its sequence and for the
    guesses that follow it, and for every token of one that scores its prompt; with `all_logits`
    for every token. Ids that a step
    in flight has `sampled` are taken from there.
    """
    input_ids = IdColumn(sampled)
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    logit_rows: list[int] = []
    for chunk in chunks:
        blocks = chunk.sequence.blocks
        input_ids.extend(chunk.sequence.token_ids[chunk.start : chunk.end])
        if chunk.end > len(chunk.sequence.token_ids):
            input_ids.append_in_flight(chunk.sequence)
        input_ids.extend(chunk.draft_ids)
        positions += range(chunk.start, chunk.stop)
        slots += (
            blocks[position // block_size] * block_size + position % block_size
            for position in range(chunk.start, chunk.stop)
        )
        starts.append(len(input_ids.ids))
        if all_logits or chunk.scored:
            logit_rows += range(starts[-2], starts[-1])
        else:
            logit_rows += range(starts[-1] - chunk.num_drawn, starts[-1])
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    # A sequence may have blocks already for tokens of later steps.
    needed = [-(-chunk.stop // block_size) for chunk in chunks]
    width = max(needed)
    table: list[int] = []
    for chunk, count in zip(chunks, needed, strict=True):
        table += chunk.sequence.blocks[:count] + [0] * (width - count)
    seq_lens = [chunk.stop for chunk in chunks]
    known_ids, sources, *columns = to_device(
        (
            input_ids.ids,
            input_ids.sources,
            positions,
            slots,
            table,
            starts,
            seq_lens,
            logit_rows,
        ),
        torch.int32,
        device,
    )
    return Batch(
        input_ids=input_ids.complete(known_ids, sources),
        positions=columns[0],
        slot_mapping=columns[1],
        block_table=columns[2].view(len(chunks), width),
        cu_seqlens_q=columns[3],
        seq_lens=columns[4],
        logit_rows=columns[5],
        extent=Extent(
            num_decodes=next((i for i, n in enumerate(lengths) if n > 1), len(lengths)),
            max_query_len=max(lengths),
            max_seq_len=max(seq_lens),
        ),
    )

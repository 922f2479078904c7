"""One step's tokens as tensors: whose they are, where they stand, where they are cached."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from qwell.kernels.ops import Extent
from qwell.runtime.sampled_ids import IdColumn, SampledIds
from qwell.runtime.sequence import Chunk, Sequence
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


@dataclass
class Layout:
    """A step's tokens as lists on the host: what a Batch of them holds.

    Attributes:
        input_ids, positions, slot_mapping, cu_seqlens_q, seq_lens, logit_rows: as in Batch.
        block_lists: the blocks that each sequence needs, in its order.
        num_decodes: leading sequences of one token.
        max_query_len: most tokens of a sequence in this step.
        scores_prompts: some rows of logits are for the log-probabilities of prompt tokens.
        drawn: the chunks after which tokens are drawn.
        rows: the sequence of every token that is drawn: behind a chunk's last one and its guesses.
        places: how many tokens of that sequence are generated before it.
        more_tokens: those of prompts, and guesses.
    """

    input_ids: IdColumn
    positions: list[int]
    slot_mapping: list[int]
    block_lists: list[list[int]]
    cu_seqlens_q: list[int]
    seq_lens: list[int]
    logit_rows: list[int]
    num_decodes: int
    max_query_len: int
    scores_prompts: bool
    drawn: list[Chunk]
    rows: list[Sequence]
    places: list[int]
    more_tokens: int

    def to_device(self, device: torch.device) -> Batch:
        """The same as tensors, block lists padded to a table; one copy, without a wait."""
        width = max(map(len, self.block_lists))
        table: list[int] = []
        for blocks in self.block_lists:
            table += blocks
            table += [0] * (width - len(blocks))
        known_ids, sources, *columns = to_device(
            (
                self.input_ids.ids,
                self.input_ids.sources,
                self.positions,
                self.slot_mapping,
                table,
                self.cu_seqlens_q,
                self.seq_lens,
                self.logit_rows,
            ),
            torch.int32,
            device,
        )
        return Batch(
            input_ids=self.input_ids.complete(known_ids, sources),
            positions=columns[0],
            slot_mapping=columns[1],
            block_table=columns[2].view(len(self.block_lists), width),
            cu_seqlens_q=columns[3],
            seq_lens=columns[4],
            logit_rows=columns[5],
            extent=Extent(
                num_decodes=self.num_decodes,
                max_query_len=self.max_query_len,
                max_seq_len=max(self.seq_lens),
            ),
        )


def lay_out(
    chunks: SequenceOf[Chunk],
    block_size: int,
    *,
    sampled: SampledIds | None = None,
    all_logits: bool = False,
) -> Layout:
    """The scheduled chunks, those of one token first, as one step computes them.

    Logits are wanted for the last token of every chunk that completes its sequence and for the
    guesses that follow it, and for every token of one that scores its prompt; with `all_logits`
    for every token. Ids that a step in flight has `sampled` are taken from there.
    """
    input_ids = IdColumn(sampled)
    ids = input_ids.ids
    positions: list[int] = []
    slots: list[int] = []
    block_lists: list[list[int]] = []
    starts = [0]
    seq_lens: list[int] = []
    logit_rows: list[int] = []
    drawn: list[Chunk] = []
    rows: list[Sequence] = []
    places: list[int] = []
    num_decodes = max_query_len = more_tokens = 0
    scores_prompts = False
    for chunk in chunks:
        sequence, start, end, draft_ids = chunk
        blocks = sequence.blocks
        ids += sequence.token_ids[start:end]
        if end > len(sequence.token_ids):
            input_ids.append_in_flight(sequence)
        ids += draft_ids
        stop = end + len(draft_ids)
        for position in range(start, stop):
            positions.append(position)
            slots.append(blocks[position // block_size] * block_size + position % block_size)
        # It may have blocks already for tokens of later steps.
        block_lists.append(blocks[: -(-stop // block_size)])
        seq_lens.append(stop)
        starts.append(len(ids))
        length = stop - start
        max_query_len = max(max_query_len, length)
        if max_query_len == 1:
            num_decodes += 1
        more_tokens += length if end > start + 1 else len(draft_ids)
        wanted = 0
        if chunk.completes:
            drawn.append(chunk)
            place = sequence.num_generated
            wanted = 1 + len(draft_ids)
            for ahead in range(wanted):
                rows.append(sequence)
                places.append(place + ahead)
        if all_logits or chunk.scored:
            wanted, scores_prompts = length, True
        logit_rows += range(len(ids) - wanted, len(ids))
    return Layout(
        input_ids=input_ids,
        positions=positions,
        slot_mapping=slots,
        block_lists=block_lists,
        cu_seqlens_q=starts,
        seq_lens=seq_lens,
        logit_rows=logit_rows,
        num_decodes=num_decodes,
        max_query_len=max_query_len,
        scores_prompts=scores_prompts,
        drawn=drawn,
        rows=rows,
        places=places,
        more_tokens=more_tokens,
    )


def build_batch(
    chunks: SequenceOf[Chunk],
    block_size: int,
    device: torch.device,
    *,
    sampled: SampledIds | None = None,
    all_logits: bool = False,
) -> Batch:
    """As `lay_out`, on `device`."""
    return lay_out(chunks, block_size, sampled=sampled, all_logits=all_logits).to_device(device)

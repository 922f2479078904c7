"""The forward pass recorded once and replayed on CPUs: one call a step, without Python in it.

A recording holds the addresses that its ops read and write, and the number of tokens is open: so
any step, of prompts, decodes or both, is copied into static columns and replayed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qwell.kernels.ops import Extent
from qwell.runtime.batch import Batch, Layout
from qwell.runtime.decode_graphs import Decoder
from qwell.runtime.kv_cache import KVCache, blocks_for

if TYPE_CHECKING:  # a checkout that is not built runs on GPUs
    from qwell.kernels.native.runner import Runner

log = logging.getLogger(__name__)

Column = npt.NDArray[np.int32]


class RecordedForward:
    """Replays steps of up to so many tokens, sequences and rows of logits.

    Attributes:
        replay: what is run; its result are the logits, fp32 [most rows, V].
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        runner: Runner,
        *,
        max_tokens: int,
        max_seqs: int,
        max_rows: int,
        max_model_len: int,
    ) -> None:
        """Record a forward pass; nothing is computed.

        Args:
            decoder, cache: what a step computes and where its keys and values go.
            runner: where all ops of the decoder's forward pass go.
            max_tokens: most tokens of a step.
            max_seqs: most sequences.
            max_rows: most rows of logits.
            max_model_len: most tokens of a sequence.
        """
        self._input_ids = _column(max_tokens)
        self._positions = _column(max_tokens)
        self._slot_mapping = _column(max_tokens)
        self._block_table = _column(max_seqs, blocks_for(max_model_len))
        self._cu_seqlens_q = _column(max_seqs + 1)
        self._seq_lens = _column(max_seqs)
        self._logit_rows = _column(max_rows)
        batch = Batch(
            input_ids=torch.from_numpy(self._input_ids),
            positions=torch.from_numpy(self._positions),
            slot_mapping=torch.from_numpy(self._slot_mapping),
            block_table=torch.from_numpy(self._block_table),
            cu_seqlens_q=torch.from_numpy(self._cu_seqlens_q),
            seq_lens=torch.from_numpy(self._seq_lens),
            logit_rows=torch.from_numpy(self._logit_rows),
            extent=Extent(num_decodes=0, max_query_len=max_tokens, max_seq_len=max_model_len),
        )
        self.replay = runner.record(
            lambda: decoder.forward(batch, cache), batch.input_ids, batch.logit_rows
        )
        log.info("recorded the forward pass: %d ops", len(self.replay))

    def serves(self, layout: Layout) -> bool:
        """Whether `run` takes this step: it has no more of anything than was recorded."""
        return (
            len(layout.positions) <= len(self._positions)
            and len(layout.seq_lens) <= len(self._seq_lens)
            and len(layout.logit_rows) <= len(self._logit_rows)
            and max(map(len, layout.block_lists)) <= self._block_table.shape[1]
        )

    def run(self, layout: Layout) -> Tensor:
        """Logits [R, V] of a step that `serves` accepts; valid until the next run."""
        tokens, seqs = len(layout.positions), len(layout.seq_lens)
        rows = len(layout.logit_rows)
        # Entries beyond are of older steps. No op looks at more rows than it is told, and attention
        # at no sequences after those whose rows, in cu_seqlens_q, come to the number of tokens.
        self._input_ids[:tokens] = layout.input_ids.wait()
        self._positions[:tokens] = layout.positions
        self._slot_mapping[:tokens] = layout.slot_mapping
        for seq, blocks in enumerate(layout.block_lists):
            self._block_table[seq, : len(blocks)] = blocks
        self._seq_lens[:seqs] = layout.seq_lens
        self._logit_rows[:rows] = layout.logit_rows
        self._cu_seqlens_q[: seqs + 1] = layout.cu_seqlens_q
        return self.replay(tokens, rows)


def _column(*shape: int) -> Column:
    return np.zeros(shape, dtype=np.int32)

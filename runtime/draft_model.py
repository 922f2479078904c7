"""Drafts by a smaller model of the same tokenizer: its most likely tokens, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from qwell.runtime.batch import lay_out
from qwell.runtime.block_pool import BlockPool
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineStartError
from qwell.runtime.forward import Forward
from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for
from qwell.runtime.loader import LoadedModel, load_model
from qwell.runtime.sequence import Chunk, Sequence


@dataclass(eq=False)
class _Follower:
    """A sequence as the draft model has it: `sequence` ends in guesses once it has guessed."""

    sequence: Sequence
    num_known: int = 0

    def follow(self, token_ids: list[int]) -> None:
        """Take over the tokens of the original; what is computed stays as far as they agree."""
        own = self.sequence
        agree = self.num_known
        most = min(len(token_ids), len(own.token_ids))
        while agree < most and token_ids[agree] == own.token_ids[agree]:
            agree += 1
        del own.token_ids[agree:]
        own.token_ids += token_ids[agree:]
        # The last token is computed again at the least: its logits are the first guess.
        own.num_computed = min(own.num_computed, agree, len(token_ids) - 1)
        self.num_known = len(token_ids)


class DraftModel:
    """Guesses for sequences of another engine, over a KV cache of its own."""

    def __init__(self, model: LoadedModel, options: EngineOptions, vocab_size: int) -> None:
        """Of a model that runs with `options`; it guesses ids below `vocab_size`."""
        self._forward = Forward(model, options)
        self._max_len = model.max_model_len
        self._vocab_size = vocab_size
        self._max_batch_tokens = options.max_batch_tokens
        self._pool = BlockPool(model.num_blocks, prefix_cache=False)
        self._followers: dict[Sequence, _Follower] = {}

    @torch.inference_mode()
    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """As Drafter. A sequence far ahead, as after a long prompt, is first caught up with."""
        guesses: dict[Sequence, list[int]] = {}
        chunks = self._catch_up(wanted)
        while chunks:
            ready = [(original, chunk) for original, chunk in chunks.items() if chunk.completes]
            layout = lay_out(list(chunks.values()), BLOCK_SIZE)
            ids = self._forward(layout)[:, : self._vocab_size].argmax(dim=-1).tolist()
            for chunk in chunks.values():
                chunk.sequence.num_computed = chunk.end
            chunks = {}
            for (original, chunk), token_id in zip(ready, ids, strict=True):
                guess = guesses.setdefault(original, [])
                guess.append(token_id)
                if len(guess) < wanted[original]:
                    own = chunk.sequence
                    own.token_ids.append(token_id)
                    chunks[original] = Chunk(own, chunk.end, chunk.end + 1)
        return guesses

    def forget(self, sequence: Sequence) -> None:
        """As Drafter."""
        follower = self._followers.pop(sequence, None)
        if follower is not None:
            self._pool.give_back(follower.sequence.blocks)

    def _catch_up(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, Chunk]:
        """A step that computes what is missing of the wanted sequences, as much as one step may."""
        budget = self._max_batch_tokens
        chunks = {}
        for original, count in wanted.items():
            if original.num_tokens + count > self._max_len:
                continue
            follower = self._followers.get(original)
            if follower is None:
                own = Sequence(original.request_id, [], 0, original.params, seed=0)
                follower = self._followers[original] = _Follower(own)
            follower.follow(original.token_ids)
            own = follower.sequence
            missing = blocks_for(own.num_tokens + count) - len(own.blocks)
            if budget == 0 or not self._make_room(missing, wanted):
                continue
            own.blocks += self._pool.take(max(0, missing))
            end = own.num_computed + min(own.num_uncomputed, budget)
            chunks[original] = Chunk(own, own.num_computed, end)
            budget -= end - own.num_computed
        return chunks

    def _make_room(self, blocks: int, wanted: Mapping[Sequence, int]) -> bool:
        """Forget sequences that want nothing, as those that were preempted, for free blocks."""
        for idle in [other for other in self._followers if other not in wanted]:
            if blocks <= self._pool.num_free:
                break
            self.forget(idle)
        return blocks <= self._pool.num_free


def load_draft_model(options: EngineOptions, target: LoadedModel) -> DraftModel | None:
    """The draft model that `options` name for `target`, if they name one.

    Raises:
        EngineStartError: it has another tokenizer, or guesses are of no use on this device.
        CheckpointError, UnsupportedModelError: see `load_model`.
    """
    if options.draft_model is None:
        return None
    if target.device.type != "cpu":
        raise EngineStartError("draft models are for CPUs so far; leave draft_model out")
    # Imported here: GPUs run from a checkout where no tokenizers are installed.
    from qwell.runtime.tokenizer import Tokenizer, has_tokenizer

    folders = [Path(options.model), Path(options.draft_model)]
    if all(has_tokenizer(folder) for folder in folders):
        own, other = (Tokenizer.from_dir(folder) for folder in folders)
        if not own.has_the_ids_of(other):
            raise EngineStartError(
                f"{options.draft_model} has another tokenizer than {options.model}; "
                "a draft model must have the same one"
            )
    own_options = msgspec.structs.replace(
        options,
        model=options.draft_model,
        draft_model=None,
        max_model_len=None,
        kv_cache_tokens=target.num_blocks * BLOCK_SIZE,
    )
    model = load_model(own_options)
    vocab_size = min(model.config.vocab_size, target.config.vocab_size)
    return DraftModel(model, own_options, vocab_size)

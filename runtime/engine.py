"""The engine: add requests, step, abort. Synchronous; the only door to the runtime.

On a GPU a step is launched before the ids of the one before are known on the host: they are
copied back meanwhile, and come out one step late. What is drawn does not depend on that.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwell.kernels.registry import is_native
from qwell.runtime.batch import Batch, build_batch
from qwell.runtime.block_pool import BlockPool
from qwell.runtime.decode_graphs import DecodeGraphs, bucket_sizes, cuda_capture
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import RequestError
from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for
from qwell.runtime.loader import LoadedModel, load_model
from qwell.runtime.messages import EngineInfo, FinishReason, StepStats, TokenOutput
from qwell.runtime.precision import dtype_name
from qwell.runtime.sampled_ids import SampledIds
from qwell.runtime.sampler import sample_next
from qwell.runtime.sampling_params import (
    SamplingParams,
    check_some_id_is_left,
    check_token_ids,
)
from qwell.runtime.scheduler import Chunk, Scheduler, Sequence
from qwell.runtime.step_budget import StepBudget
from qwell.runtime.step_clock import StepClock
from qwell.runtime.step_logprobs import SampledScores, completing_rows, score_prompts

if TYPE_CHECKING:
    from qwell.runtime.recorded_forward import RecordedForward


class Engine:
    """Runs the requests of one model, many at a time, one step after the other."""

    def __init__(
        self,
        model: LoadedModel,
        options: EngineOptions,
        *,
        overlap: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """An engine over a loaded model.

        Args:
            model, options: the model, and how to run it.
            overlap: launch a step before the ids of the last one are known on the host; None
                does so on devices that run on their own while the host goes on.
            clock: seconds, from which the engine learns how long steps take.
        """
        self.model = model
        self._overlap = model.device.type != "cpu" if overlap is None else overlap
        self._eos = frozenset(options.eos_token_ids)
        self._max_batch_tokens = options.max_batch_tokens
        self._max_queue = options.max_queue
        self._pool = BlockPool(model.num_blocks, prefix_cache=options.prefix_cache)
        self._scheduler = Scheduler(
            self._pool,
            max_batch_tokens=options.max_batch_tokens,
            max_num_seqs=options.max_num_seqs,
        )
        target_ms = options.target_itl_ms
        self._budget = StepBudget(
            None if target_ms is None else target_ms / 1e3, options.max_batch_tokens
        )
        self._clock = StepClock(clock)
        self._captured = None if options.eager else _capture(model, options)
        self._sequences: dict[str, Sequence] = {}
        # Requests for no tokens at all: done, but reported by a step like every other.
        self._done: list[TokenOutput] = []
        self._in_flight: SampledIds | None = None
        self._prefill_tokens = 0  # of the step that was launched last
        self._steps = 0

    @classmethod
    def start(
        cls,
        options: EngineOptions,
        kernels: Mapping[str, Callable[..., Any] | str] | None = None,
    ) -> Engine:
        """Load a model and make it ready to step.

        Args:
            options: the checkpoint and how to run it.
            kernels: implementations of single ops that replace the chosen ones, by op name.

        Raises:
            CheckpointError, UnsupportedModelError, EngineStartError: see `load_model`.
        """
        return cls(load_model(options, kernels), options)

    @property
    def info(self) -> EngineInfo:
        model = self.model
        return EngineInfo(
            max_model_len=model.max_model_len,
            kv_cache_tokens=model.num_blocks * BLOCK_SIZE,
            vocab_size=model.config.vocab_size,
            device=str(model.device),
            dtype=dtype_name(model.dtype),
            weights=model.weights,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: compute, or bring tokens that are in flight."""
        return bool(self._done) or self._in_flight is not None or self._scheduler.has_work

    @property
    def stats(self) -> StepStats:
        """How the engine is now, and what it has done since its start."""
        scheduler, pool, seconds = self._scheduler, self._pool, self._clock.sums
        return StepStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            blocks_used=pool.num_blocks - pool.num_free,
            blocks_total=pool.num_blocks,
            steps=self._steps,
            prompt_tokens=scheduler.num_prompt_tokens,
            prefix_hit_tokens=scheduler.num_cached_tokens,
            preemptions=scheduler.num_preemptions,
            schedule_s=seconds["schedule"],
            forward_s=seconds["forward"],
            sample_s=seconds["sample"],
            rest_s=seconds["rest"],
        )

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free

    def add(
        self,
        request_id: str,
        prompt_ids: SequenceOf[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> None:
        """Queue a request; its tokens come out of later steps.

        Args:
            request_id: names it in outputs and to `abort`.
            prompt_ids, params: what is to be continued, and how.
            priority: lower runs first; among equals, those that came first.
            cache_salt: only requests of the same salt share cached prefixes.

        Raises:
            RequestError: an empty prompt, an id outside the vocabulary, more tokens than the
                context holds (code "context_length_exceeded"), bans that leave no id, or too many
                requests that wait (code "queue_full").
        """
        if request_id in self._sequences:
            raise RequestError(f"the request id {request_id!r} is in use")
        scores_prompt = params.prompt_logprobs is not None
        # A prompt is only computed with room for the token after it.
        self._check(prompt_ids, max(params.max_tokens, int(scores_prompt)))
        check_token_ids(params, self.model.config.vocab_size)
        if params.max_tokens == 0 and not scores_prompt:
            self._done.append(TokenOutput(request_id, [], "length"))
            return
        if self._max_queue is not None and self._scheduler.num_queued >= self._max_queue:
            raise RequestError(
                f"{self._max_queue} requests wait already, which is the most allowed; try later",
                code="queue_full",
            )
        sequence = Sequence(
            request_id=request_id,
            token_ids=list(prompt_ids),
            num_prompt_tokens=len(prompt_ids),
            params=params,
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            end_ids=self._eos_of(params).union(params.stop_token_ids),
            priority=priority,
            cache_salt=cache_salt,
        )
        check_some_id_is_left(params, sequence.end_ids)
        self._sequences[request_id] = sequence
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Forget a request; its blocks are free at once. Unknown ids are ignored."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.remove(sequence)
        self._done = [output for output in self._done if output.request_id != request_id]

    @torch.inference_mode()
    def step(self) -> list[TokenOutput]:
        """Launch one batch; the new tokens of this one, or with overlap of the one before."""
        self._clock.start()
        outputs, self._done = self._done, []
        prefill_tokens = self._prefill_tokens
        ready = self._launch()
        if self._overlap:
            ready, self._in_flight = self._in_flight, ready
        else:
            prefill_tokens = self._prefill_tokens
        if ready is not None:
            outputs += self._collect(ready)
        self._clock.ended("rest")
        if ready is not None:
            self._steps += 1
            self._budget.observe(prefill_tokens, self._clock.step_s)
        return outputs

    @torch.inference_mode()
    def logits(self, token_ids: SequenceOf[int]) -> Tensor:
        """Logits of every position, fp32 [T, V], in chunks through the cache as in serving.

        Raises:
            RequestError: as `add`.
        """
        self._check(token_ids, 0)
        sequence = Sequence("logits", list(token_ids), len(token_ids), SamplingParams(), seed=0)
        if blocks_for(len(token_ids)) > self._pool.num_free:
            raise RequestError("the KV cache is in use by running requests; let them finish first")
        sequence.blocks += self._pool.take(blocks_for(len(token_ids)))
        try:
            pieces = []
            for start in range(0, len(token_ids), self._max_batch_tokens):
                end = min(start + self._max_batch_tokens, len(token_ids))
                chunk = Chunk(sequence, start, end)
                batch = build_batch([chunk], BLOCK_SIZE, self.model.device, all_logits=True)
                pieces.append(self.model.decoder.forward(batch, self.model.cache))
            return torch.cat(pieces)
        finally:
            self._pool.give_back(sequence.blocks)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of a batch's logit_rows, fp32 [R, V], replayed where steps are captured.

        Valid until the next call. Reads and writes the cache blocks that the batch names, whoever
        holds them: for measurements of an engine that runs no requests, and keeps no prefixes.
        """
        if self._captured is not None and self._captured.serves(batch):
            return self._captured.run(batch)
        return self.model.decoder.forward(batch, self.model.cache)

    def _launch(self) -> SampledIds | None:
        """Start the next batch without waiting for the device; None where nothing is to do."""
        chunks = self._scheduler.schedule(self._budget.prefill_tokens)
        sizes = [chunk.end - chunk.start for chunk in chunks]
        self._prefill_tokens = sum(size for size in sizes if size > 1)
        if not chunks:
            return None
        batch = build_batch(chunks, BLOCK_SIZE, self.model.device, sampled=self._in_flight)
        self._clock.ended("schedule")
        ops = self.model.decoder.ops
        logits = self.forward(batch)
        self._clock.ended("forward")
        prompt_scores = score_prompts(ops, logits, chunks)
        logits = completing_rows(logits, chunks)
        self._scheduler.computed(chunks)
        sequences = [chunk.sequence for chunk in chunks if chunk.completes]
        sampled_scores = SampledScores(logits, sequences)
        ids = sample_next(ops, logits, sequences, self._in_flight)
        scores = sampled_scores.of(ops, ids)
        self._clock.ended("sample")
        for sequence in sequences:
            sequence.num_in_flight += 1
            if sequence.num_generated >= sequence.params.max_tokens:
                # This end is known before the id: the sequence is in no later step.
                self._scheduler.remove(sequence)
        return SampledIds(sequences, ids, scores, prompt_scores)

    def _collect(self, sampled: SampledIds) -> list[TokenOutput]:
        """Wait for a step's ids and give them to their sequences."""
        outputs = []
        ids, scores, prompt_scores = sampled.wait(), sampled.scores(), sampled.prompt_scores()
        for sequence, token_id in zip(sampled.sequences, ids, strict=True):
            is_first = len(sequence.token_ids) == sequence.num_prompt_tokens
            sequence.arrived(token_id)
            # Others were aborted, or found at their end when this step had been launched.
            if self._sequences.get(sequence.request_id) is sequence:
                reason = self._finish_reason(sequence)
                if reason is not None:
                    del self._sequences[sequence.request_id]
                    self._scheduler.remove(sequence)
                cached = (sequence.num_cached_tokens or 0) if is_first else 0
                outputs.append(
                    TokenOutput(
                        sequence.request_id,
                        # One that is to get none was computed for its prompt's sake.
                        [token_id] if sequence.params.max_tokens else [],
                        reason,
                        cached,
                        scores.get(sequence),
                        prompt_scores.pop(sequence, None),
                    )
                )
        outputs += [
            TokenOutput(sequence.request_id, [], prompt_logprobs=logprobs)
            for sequence, logprobs in prompt_scores.items()
            if self._sequences.get(sequence.request_id) is sequence
        ]
        return outputs

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        """Why the last known token of a sequence is its last; None if it is not."""
        known = len(sequence.token_ids) - sequence.num_prompt_tokens
        if known <= sequence.params.max_tokens and sequence.token_ids[-1] in sequence.end_ids:
            return "stop"
        return "length" if known >= sequence.params.max_tokens else None

    def _eos_of(self, params: SamplingParams) -> frozenset[int]:
        return frozenset() if params.ignore_eos else self._eos

    def _check(self, prompt_ids: SequenceOf[int], max_tokens: int) -> None:
        if not prompt_ids:
            raise RequestError("the prompt is empty; it must have at least one token")
        vocab_size = self.model.config.vocab_size
        for token_id in prompt_ids:
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"the prompt holds the token id {token_id}; ids must be in 0..{vocab_size - 1}",
                    param="prompt",
                )
        total, limit = len(prompt_ids) + max_tokens, self.model.max_model_len
        if total > limit:
            raise RequestError(
                f"this model's context is {limit} tokens, but {total} were asked for "
                f"({len(prompt_ids)} in the prompt, {max_tokens} for the completion)",
                param="max_tokens" if len(prompt_ids) < limit else "prompt",
                code="context_length_exceeded",
            )


@torch.inference_mode()
def _capture(model: LoadedModel, options: EngineOptions) -> DecodeGraphs | RecordedForward | None:
    """Steps to replay: decodes on GPUs; all on CPUs, where the whole forward pass is native."""
    if model.device.type == "cuda":
        return DecodeGraphs(
            model.decoder,
            model.cache,
            sizes=bucket_sizes(options.max_num_seqs),
            max_model_len=model.max_model_len,
            device=model.device,
            capture=cuda_capture(),
        )
    decoder = model.decoder
    # Fused ops are chosen step by step, which a recording is not.
    if model.runner is None or decoder.fused is not None or not is_native(decoder.ops):
        return None
    # Imported here: GPUs need no native code, and a checkout that is not built has none.
    from qwell.runtime.recorded_forward import RecordedForward

    return RecordedForward(
        model.decoder,
        model.cache,
        model.runner,
        max_tokens=options.max_batch_tokens,
        max_seqs=min(options.max_num_seqs, options.max_batch_tokens),
        max_model_len=model.max_model_len,
    )

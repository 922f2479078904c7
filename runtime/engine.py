"""The engine: add requests, step, abort. Synchronous; the only door to the runtime.

On a GPU a step is launched before the ids of the one before are known on the host: they are
copied back meanwhile, and come out one step late. What is drawn does not depend on that.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qwell.runtime.all_logits import all_logits
from qwell.runtime.batch import lay_out
from qwell.runtime.block_pool import BlockPool
from qwell.runtime.broken_logits import WHY, broken_rows
from qwell.runtime.constraints import Constraints
from qwell.runtime.draft_model import load_draft_model
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineStartError, RequestError
from qwell.runtime.forward import Forward
from qwell.runtime.kv_cache import BLOCK_SIZE
from qwell.runtime.loader import LoadedModel, load_model
from qwell.runtime.messages import EngineInfo, StepStats, TokenOutput
from qwell.runtime.prompt_check import check_prompt
from qwell.runtime.prompt_lookup import PromptLookups
from qwell.runtime.sampled_ids import SampledIds
from qwell.runtime.sampler import Sampler
from qwell.runtime.sampling_params import SamplingParams, check_some_id_is_left, check_token_ids
from qwell.runtime.scheduler import Scheduler
from qwell.runtime.sequence import Sequence
from qwell.runtime.speculation import Drafter, Speculator, kept_ids
from qwell.runtime.step_budget import StepBudget
from qwell.runtime.step_clock import StepClock
from qwell.runtime.step_logprobs import SampledScores, Scores, completing_rows, score_prompts
from qwell.runtime.step_stats import step_stats

if TYPE_CHECKING:
    from qwell.runtime.prefix_file import PrefixFile

# An abort takes effect this late while nothing runs but grammars are compiled.
_COMPILE_WAIT_S = 0.01


class Engine:
    """Runs the requests of one model, many at a time, one step after the other.

    Attributes:
        model: as it was loaded.
        forward: computes the steps. Calling it reads and writes the cache blocks that the batch
            names, whoever holds them: for measurements of an engine that runs no requests and
            keeps no prefixes.
        sampler: draws from the logits of a step.
    """

    def __init__(
        self,
        model: LoadedModel,
        options: EngineOptions,
        *,
        overlap: bool | None = None,
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """An engine over a loaded model.

        Args:
            model, options: the model, and how to run it.
            overlap: launch a step before the ids of the last one are known on the host; None
                does so on devices that run on their own while the host goes on.
            drafter: guesses tokens ahead; None looks them up in the text so far.
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
        # With overlap the ids that guesses would follow are not known in time.
        self._speculator = (
            Speculator(drafter or PromptLookups(), clock)
            if options.speculation and not self._overlap
            else None
        )
        self.forward = Forward(model, options)
        self._constraints = Constraints(Path(options.model), model.config.vocab_size)
        self.sampler = Sampler(model.decoder.ops, self.forward.draw)
        self._sequences: dict[str, Sequence] = {}
        # Requests for no tokens at all: done, but reported by a step like every other.
        self._done: list[TokenOutput] = []
        self._in_flight: SampledIds | None = None
        self._prefix_file: PrefixFile | None = None
        if options.prefix_cache_file is not None and options.prefix_cache:
            # Imported here: GPUs run from a checkout where safetensors is not installed.
            from qwell.runtime.prefix_file import PrefixFile

            self._prefix_file = PrefixFile(Path(options.prefix_cache_file), options, model)
            self._prefix_file.load(self._pool, model.cache)
        # Prompt tokens and guesses of the step that was launched last.
        self._more_tokens = 0
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
        try:
            model = load_model(options, kernels)
            return cls(model, options, drafter=load_draft_model(options, model))
        except torch.OutOfMemoryError as error:
            raise EngineStartError(
                "weights and the largest steps do not fit the GPU's memory; free some, or lower "
                f"--max-batch-tokens, --max-num-seqs or --max-model-len: {error}"
            ) from error

    @property
    def info(self) -> EngineInfo:
        return self.model.info

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: compute, or bring tokens that are in flight."""
        return (
            bool(self._done)
            or self._in_flight is not None
            or self._scheduler.has_work
            or self._constraints.num_waiting > 0
        )

    @property
    def stats(self) -> StepStats:
        """How the engine is now, and what it has done since its start."""
        return step_stats(self._scheduler, self._pool, self._speculator, self._clock, self._steps)

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
                requests that wait (code "queue_full"). A grammar that is none ends its request
                later, with an `error`: see `check_grammar`.
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
        num_queued = self._scheduler.num_queued + self._constraints.num_waiting
        if self._max_queue is not None and num_queued >= self._max_queue:
            raise RequestError(
                f"{self._max_queue} requests wait already, which is the most allowed; try later",
                code="queue_full",
            )
        ends = frozenset(params.stop_token_ids)
        sequence = Sequence(
            request_id=request_id,
            token_ids=list(prompt_ids),
            num_prompt_tokens=len(prompt_ids),
            params=params,
            seed=secrets.randbits(64) if params.seed is None else params.seed,
            priority=priority,
            cache_salt=cache_salt,
            end_ids=(ends if params.ignore_eos else self._eos | ends),
            late_ids=self._eos | ends,
        )
        check_some_id_is_left(params, sequence.late_ids)
        self._sequences[request_id] = sequence
        if self._constraints.add(sequence):
            self._scheduler.add(sequence)

    def close(self) -> None:
        """Abort all requests, and keep the prefixes of the cache where the options say so."""
        for request_id in list(self._sequences):
            self.abort(request_id)
        if self._prefix_file is not None:
            self._prefix_file.save(self._pool, self.model.cache)
        self._constraints.close()

    def abort(self, request_id: str) -> None:
        """Forget a request; its blocks are free at once. Unknown ids are ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._forget(sequence)
        self._done = [output for output in self._done if output.request_id != request_id]

    def step(self) -> list[TokenOutput]:
        """Launch one batch; the new tokens of this one, or with overlap of the one before.

        A loop of steps does well to enter torch's inference mode once, around all of them.
        """
        if torch.is_inference_mode_enabled():
            return self._step()
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[TokenOutput]:
        self._clock.start()
        if self._constraints.num_waiting:
            self._admit_compiled()
        outputs, self._done = self._done, []
        more_tokens = self._more_tokens
        is_step = self._in_flight is not None
        ready = self._launch(outputs)
        if self._overlap:
            ready, self._in_flight = self._in_flight, ready
        else:
            is_step = ready is not None
            more_tokens = self._more_tokens
        if ready is not None:
            outputs += self._collect(ready)
        self._clock.ended("rest")
        if is_step:
            self._steps += 1
            self._budget.observe(more_tokens, self._clock.step_s)
        return outputs

    @torch.inference_mode()
    def logits(self, token_ids: SequenceOf[int]) -> Tensor:
        """Logits of every position, fp32 [T, V], in chunks through the cache as in serving.

        Raises:
            RequestError: as `add`.
        """
        self._check(token_ids, 0)
        return all_logits(self.model, self._pool, token_ids, self._max_batch_tokens)

    def _launch(self, outputs: list[TokenOutput]) -> SampledIds | None:
        """Start the next batch without waiting for it; None where nothing is to do.

        Where masks depend on ids in flight, these are waited for while the batch is computed;
        what they give is added to `outputs`.
        """
        prefill_tokens, now_s = self._budget.prefill_tokens, self._clock.step_start
        chunks = self._scheduler.schedule(prefill_tokens, self._guess, now_s)
        if not chunks:
            self._more_tokens = 0
            return None
        layout = lay_out(chunks, BLOCK_SIZE, sampled=self._in_flight)
        self._more_tokens = layout.more_tokens
        drawn = layout.drawn
        awaited = self._in_flight if any(c.sequence.awaits_id for c in drawn) else None
        masks = None if awaited is not None else self._constraints.masks(drawn)
        self._clock.ended("schedule")
        ops = self.model.decoder.ops
        logits = self.forward(layout)
        prompt_scores: Scores = dict
        if layout.scores_prompts:
            prompt_scores = score_prompts(ops, logits, chunks)
            logits = completing_rows(logits, chunks)
        self._clock.ended("forward")
        self._scheduler.computed(chunks)
        if awaited is not None:
            outputs += self._collect(awaited)
            self._in_flight = None
            masks = self._constraints.masks(drawn)
        broken = broken_rows(logits)
        sampled_scores = SampledScores(logits, layout.rows)
        stuck = [] if masks is None else masks.apply(logits)
        ids = self.sampler.next_ids(logits, layout.rows, layout.places, self._in_flight)
        scores = sampled_scores.of(ops, ids)
        self._clock.ended("sample")
        for sequence, *_ in drawn:
            sequence.num_in_flight += 1
            if sequence.num_generated >= sequence.params.max_tokens:
                # This end is known before the id: the sequence is in no later step.
                self._scheduler.remove(sequence)
        for sequence, ahead in stuck:
            if not ahead:
                self._end_stuck(sequence)
        drafts = [chunk.draft_ids for chunk in drawn]
        # Of one that is stuck at once the id is nobody's, but it is one id.
        limits = {sequence: max(ahead, 1) for sequence, ahead in stuck}
        return SampledIds(
            [chunk.sequence for chunk in drawn], ids, drafts, scores, prompt_scores, limits, broken
        )

    def _guess(self, decoding: list[Sequence]) -> Mapping[Sequence, SequenceOf[int]]:
        """Tokens that may follow the sequences that decode in the next step."""
        if self._speculator is None:
            return {}
        budget = self._budget
        return self._speculator.propose(decoding, step_s=budget.step_s, token_s=budget.token_s)

    def _collect(self, sampled: SampledIds) -> list[TokenOutput]:
        """Wait for a step's ids and give them to their sequences."""
        outputs = []
        scores, prompt_scores = sampled.scores(), sampled.prompt_scores()
        for sequence, drawn, draft_ids, num_sound in sampled.by_sequence():
            is_first = len(sequence.token_ids) == sequence.num_prompt_tokens
            kept = kept_ids(drawn, draft_ids) if draft_ids else drawn
            if self._speculator is not None and draft_ids:
                self._speculator.verified(sequence, drafted=len(draft_ids), accepted=len(kept) - 1)
            token_ids = sequence.take(kept)
            if len(token_ids) > 1:
                self._scheduler.accepted(sequence)
            reason = sequence.finish_reason
            # Others were aborted, or found at their end when this step had been launched.
            if self._sequences.get(sequence.request_id) is not sequence:
                continue
            is_fault = len(token_ids) > num_sound
            if reason is not None or is_fault:
                self._forget(sequence)
            if is_fault:
                outputs.append(TokenOutput(sequence.request_id, [], error=WHY, is_fault=True))
                continue
            outputs.append(
                TokenOutput(
                    sequence.request_id,
                    # One that is to get none was computed for its prompt's sake.
                    token_ids if sequence.params.max_tokens else [],
                    reason,
                    cached_tokens=(sequence.num_cached_tokens or 0) if is_first else 0,
                    prefill_s=self._clock.since(sequence.started_s) if is_first else 0.0,
                    logprobs=scores.get(sequence),
                    prompt_logprobs=prompt_scores.pop(sequence, None),
                )
            )
        outputs += [
            TokenOutput(sequence.request_id, [], prompt_logprobs=logprobs)
            for sequence, logprobs in prompt_scores.items()
            if self._sequences.get(sequence.request_id) is sequence
        ]
        return outputs

    def _admit_compiled(self) -> None:
        """Queue sequences whose grammars are compiled; wait for one if there is nothing else."""
        idle = not (self._done or self._in_flight or self._scheduler.has_work)
        for sequence, error in self._constraints.ready(_COMPILE_WAIT_S if idle else 0.0):
            if error:
                self._forget(sequence)
                self._done.append(TokenOutput(sequence.request_id, [], error=error))
            else:
                self._scheduler.add(sequence)

    def _end_stuck(self, sequence: Sequence) -> None:
        """End a request for which no id was left: what was drawn instead is nobody's."""
        constraint = sequence.constraint
        assert constraint is not None, "only constraints leave no id"
        self._forget(sequence)
        output = TokenOutput(sequence.request_id, [], error=constraint.problem)
        if constraint.is_complete:
            output = TokenOutput(sequence.request_id, [], "stop")
        self._done.append(output)

    def _forget(self, sequence: Sequence) -> None:
        """A request has ended or is aborted; what a step in flight draws for it is nobody's."""
        del self._sequences[sequence.request_id]
        self._constraints.forget(sequence)
        self._scheduler.remove(sequence)
        if self._speculator is not None:
            self._speculator.forget(sequence)

    def _check(self, prompt_ids: SequenceOf[int], max_tokens: int) -> None:
        model = self.model
        check_prompt(prompt_ids, max_tokens, model.config.vocab_size, model.max_model_len)

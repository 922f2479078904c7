"""LLM: a model in this process, for scripts, notebooks and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import msgspec
from torch import Tensor

from qwell.runtime.chat_template import ChatTemplate, load_chat_template
from qwell.runtime.checkpoint.generation_config import load_generation_defaults
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import CacheDType, Device, DType, EngineOptions, Weights
from qwell.runtime.errors import ModelError, RequestError
from qwell.runtime.grammar import check_grammar
from qwell.runtime.messages import EngineInfo, FinishReason, TokenLogprob, TokenOutput
from qwell.runtime.progress import Progress
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.text_stream import TextStream
from qwell.runtime.tokenizer import Tokenizer, has_tokenizer


@dataclass(frozen=True)
class Completion:
    """One finished completion.

    Attributes:
        token_ids: the generated ids, an end id included.
        logprobs: of each of these; None unless asked for.
        prompt_logprobs: of each prompt token, None for the first; None unless asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None


class LLM:
    """A model to generate with; calls from several threads take turns.

        >>> LLM("Qwen/Qwen3-0.6B").generate(["Hello"], SamplingParams(max_tokens=8))

    Args:
        model: folder or id of a checkpoint; None is the demo model.
        device, dtype, weights, weight_cache, kv_cache_dtype, max_model_len,
            kv_cache_tokens, prefix_cache, speculation, gpu_memory_utilization, threads, isa,
            eager, max_batch_tokens, max_num_seqs: see `EngineOptions`.
        draft_model: folder or id of a smaller checkpoint that guesses tokens ahead.
        kernels: what replaces the chosen implementation of an op, by op name: a callable, or the
            name of a family ("reference", "native", "triton").

    Raises:
        CheckpointError, UnsupportedModelError, DownloadError, EngineStartError.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: Device = "auto",
        dtype: DType = "auto",
        weights: Weights = "auto",
        weight_cache: bool = True,
        kv_cache_dtype: CacheDType = "auto",
        max_model_len: int | None = None,
        kv_cache_tokens: int | None = None,
        prefix_cache: bool = True,
        speculation: bool = True,
        draft_model: str | Path | None = None,
        gpu_memory_utilization: float = 0.9,
        threads: int | None = None,
        isa: str | None = None,
        eager: bool = False,
        max_batch_tokens: int = 512,
        max_num_seqs: int = 64,
        kernels: Mapping[str, Callable[..., Any] | str] | None = None,
    ) -> None:
        options = EngineOptions(
            model=str(resolve_model(None if model is None else str(model))),
            device=device,
            dtype=dtype,
            weights=weights,
            weight_cache=weight_cache,
            kv_cache_dtype=kv_cache_dtype,
            max_model_len=max_model_len,
            kv_cache_tokens=kv_cache_tokens,
            prefix_cache=prefix_cache,
            speculation=speculation,
            draft_model=None if draft_model is None else str(resolve_model(str(draft_model))),
            gpu_memory_utilization=gpu_memory_utilization,
            threads=threads,
            isa=isa,
            eager=eager,
            max_batch_tokens=max_batch_tokens,
            max_num_seqs=max_num_seqs,
        )
        self._start(options, kernels)

    @classmethod
    def from_options(cls, options: EngineOptions) -> LLM:
        """A model with all options in one value; end ids are added to the ones it names."""
        llm = cls.__new__(cls)
        llm._start(options, None)
        return llm

    def _start(
        self, options: EngineOptions, kernels: Mapping[str, Callable[..., Any] | str] | None
    ) -> None:
        self._folder = Path(options.model)
        # A checkpoint without a tokenizer still runs on token ids.
        self.defaults = load_generation_defaults(
            self._folder, self.tokenizer if has_tokenizer(self._folder) else None
        )
        eos_token_ids = (*options.eos_token_ids, *self.defaults.eos_token_ids)
        options = msgspec.structs.replace(options, eos_token_ids=eos_token_ids)
        self._turn = RLock()
        self._engine = Engine.start(options, kernels)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises CheckpointError where the checkpoint has none."""
        return Tokenizer.from_dir(self._folder)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        return load_chat_template(self._folder)

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits of every position, fp32 [len(token_ids), vocab_size]."""
        with self._turn:
            return self._engine.logits(token_ids)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        *,
        on_text: Callable[[int, str], None] | None = None,
        progress: bool = False,
    ) -> list[Completion]:
        """Complete every prompt, in one batch as far as the cache holds them.

        Args:
            prompts: texts or token ids.
            params: sampling of all prompts; None is the model's own defaults.
            on_text: called with the prompt's index and each piece of its text as it comes.
            progress: say on stderr how far it is, tokens a second and the time that is left.

        Raises:
            RequestError: a prompt or a grammar that cannot be served; none of them is generated
                then. Or a grammar whose next token is banned, or takes too much to find.
            ModelError: logits that are no numbers.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list; for one prompt pass [prompt]")
        params = self.default_params() if params is None else params
        if params.grammar is not None:
            check_grammar(params.grammar)
        with self._turn:
            return self._generate(prompts, params, on_text, progress)

    def _generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams,
        on_text: Callable[[int, str], None] | None,
        progress: bool,
    ) -> list[Completion]:
        running: dict[str, _Running] = {}
        try:
            for index, prompt in enumerate(prompts):
                if isinstance(prompt, str):
                    ids = self.tokenizer.encode_prompt(prompt)
                else:
                    ids = list(prompt)
                request_id = str(index)
                self._engine.add(request_id, ids, params)
                stream = TextStream(self.tokenizer, params.stop, params.include_stop_str_in_output)
                running[request_id] = _Running(
                    ids,
                    stream,
                    logprobs=None if params.logprobs is None else [],
                    prompt_logprobs=None if params.prompt_logprobs is None else [None],
                )
            with Progress(len(running)) if progress else nullcontext() as shown:
                return self._run(running, params.max_tokens, on_text, shown)
        finally:
            # Also after an error or Ctrl-C: the next call starts with a clean engine.
            for request_id in running:
                self._engine.abort(request_id)

    def default_params(self) -> SamplingParams:
        """The checkpoint's own sampling defaults where its generation_config.json has any."""
        own = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            if (value := getattr(self.defaults, name)) is not None
        }
        return replace(SamplingParams(), **own)

    def _run(
        self,
        running: dict[str, _Running],
        max_tokens: int,
        on_text: Callable[[int, str], None] | None,
        progress: Progress | None,
    ) -> list[Completion]:
        while any(request.reason is None for request in running.values()):
            for output in self._engine.step():
                request = running[output.request_id]
                if output.error is not None:
                    error = ModelError if output.is_fault else RequestError
                    raise error(f"prompt {output.request_id}: {output.error}")
                before = request.share(max_tokens)
                piece = request.take(output)
                request.reason = output.finish_reason
                if request.stream.stopped:
                    self._engine.abort(output.request_id)
                    request.reason = "stop"
                if request.reason is not None:
                    piece += request.stream.finish()
                request.text += piece
                if progress is not None:
                    share = request.share(max_tokens) - before
                    progress.advance(tokens=len(output.token_ids), requests=share)
                if piece and on_text is not None:
                    on_text(int(output.request_id), piece)
        return [request.completion() for request in running.values()]


@dataclass
class _Running:
    prompt_ids: list[int]
    stream: TextStream
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None

    def take(self, output: TokenOutput) -> str:
        """Go on by what the engine says; the text that can be shown now."""
        piece = ""
        for token_id in output.token_ids:
            # Tokens that came along with the one that ends a stop string are not part of it.
            if not self.stream.stopped:
                self.token_ids.append(token_id)
                piece += self.stream.push([token_id])
        if self.logprobs is not None and output.logprobs is not None:
            self.logprobs += output.logprobs.tokens()
        if self.prompt_logprobs is not None and output.prompt_logprobs is not None:
            self.prompt_logprobs += output.prompt_logprobs.tokens()
        return piece

    def share(self, max_tokens: int) -> float:
        """How much of it is done, as far as can be known."""
        return 1.0 if self.reason is not None else len(self.token_ids) / max(max_tokens, 1)

    def completion(self) -> Completion:
        assert self.reason is not None, "only finished requests are returned"
        return Completion(
            self.text,
            self.token_ids,
            self.reason,
            self.prompt_ids,
            self.logprobs,
            self.prompt_logprobs,
        )

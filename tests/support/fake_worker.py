"""An engine process without a model: the prompt says what it is to do.

The real loop runs a scripted engine, so that faults and timing are the test's to choose:

    say:TEXT    generate TEXT byte by byte, then the end token
    slow:TEXT   the same with 10 ms a token
    ids:1,2 3   generate tokens of these ids, those between commas in one step, then the end token
    hold        accept, and never give a token
    crash       end the process by SIGKILL, after the tokens of any say: before it
    params      generate the sampling parameters as JSON
    place       generate priority and cache salt
    report      generate how many requests run and how many were aborted
    full        refuse, as if too many were waiting
    busy        the same, but only every other time
    again       say that all of the prompt but a token was cached

The last that is said in a conversation counts. Anything else is answered with "ok". An id of
`stop_token_ids` ends it too. With `ignore_eos` the text starts again at its end. Log-probabilities
are a function of the token's id.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qwell.runtime.engine_loop import run
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import RequestError
from qwell.runtime.messages import (
    EngineInfo,
    Logprobs,
    StartFailed,
    StepStats,
    TokenOutput,
    encode_frame,
)
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.tokenizer import Tokenizer

STEP_S = 0.01
PREFILL_S = 1e-6  # less than it takes to tell
_SCRIPT = re.compile(r"(say|slow):(.*?)(?=<\|im_end\|>|crash|$)", re.DOTALL)
_IDS = re.compile(r"ids:([\d, ]*)")


@dataclass
class _Request:
    reply: Iterator[list[int]]
    params: SamplingParams
    left: int
    slow: bool
    crashes: bool
    cached_tokens: int
    unscored_prompt: Sequence[int]


class ScriptedEngine:
    """The engine that the module's description promises."""

    def __init__(self, tokenizer: Tokenizer, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        end = tokenizer.token_id("<|im_end|>")
        if end is None:
            raise RequestError("the tokenizer has no <|im_end|>")
        self._end = end
        self._requests: dict[str, _Request] = {}
        self._held: set[str] = set()
        self._aborted = 0
        self._busy = False
        self.info = EngineInfo(
            max_model_len=max_model_len,
            kv_cache_tokens=max_model_len,
            vocab_size=tokenizer.vocab_size,
            device="cpu",
            dtype="float32",
            weights="f32",
        )

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def stats(self) -> StepStats:
        return StepStats(running=len(self._requests) + len(self._held))

    def add(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int,
        cache_salt: str,
    ) -> None:
        limit = self.info.max_model_len
        for token_id in prompt_ids:
            if token_id >= self.info.vocab_size:
                raise RequestError(f"token id {token_id} is out of range", param="prompt")
        if len(prompt_ids) + params.max_tokens > limit:
            raise RequestError(
                f"this model's maximum context length is {limit} tokens, but "
                f"{len(prompt_ids) + params.max_tokens} were asked for",
                param="max_tokens",
                code="context_length_exceeded",
            )
        prompt = self._tokenizer.decode(prompt_ids, skip_special=False)
        self._busy ^= "busy" in prompt
        if "full" in prompt or ("busy" in prompt and self._busy):
            raise RequestError("0 requests wait already", code="queue_full")
        if "hold" in prompt:
            self._held.add(request_id)
            return
        script = _script(prompt)
        self._requests[request_id] = _Request(
            reply=self._reply(
                _steps(
                    prompt,
                    f"{priority} {cache_salt}" if "place" in prompt else self._text(prompt, params),
                ),
                params.ignore_eos,
            ),
            params=params,
            left=params.max_tokens,
            slow=script is not None and script[1] == "slow",
            crashes="crash" in prompt,
            cached_tokens=len(prompt_ids) - 1 if "again" in prompt else 0,
            unscored_prompt=() if params.prompt_logprobs is None else prompt_ids[1:],
        )

    def abort(self, request_id: str) -> None:
        if request_id in self._requests or request_id in self._held:
            self._aborted += 1
        self._requests.pop(request_id, None)
        self._held.discard(request_id)

    def step(self) -> list[TokenOutput]:
        if any(request.slow for request in self._requests.values()):
            time.sleep(STEP_S)
        return [self._advance(name, request) for name, request in list(self._requests.items())]

    def _advance(self, name: str, request: _Request) -> TokenOutput:
        drawn = next(request.reply)[: request.left]
        ends = (self._end, *request.params.stop_token_ids)
        place = next((i for i, token_id in enumerate(drawn) if token_id in ends), None)
        ended = place is not None
        if ended:
            drawn = drawn[: place + 1]
        is_first = request.left == request.params.max_tokens
        request.left -= len(drawn)
        if ended and request.crashes:
            os.kill(os.getpid(), signal.SIGKILL)
        if ended or not request.left:
            del self._requests[name]
        cached, request.cached_tokens = request.cached_tokens, 0
        unscored, request.unscored_prompt = request.unscored_prompt, ()
        return TokenOutput(
            name,
            drawn,
            "stop" if ended else None if request.left else "length",
            cached,
            prefill_s=PREFILL_S if is_first else 0.0,
            logprobs=self._scores(drawn, request.params.logprobs),
            prompt_logprobs=self._scores(unscored, request.params.prompt_logprobs),
        )

    def _scores(self, token_ids: Sequence[int], top: int | None) -> Logprobs | None:
        if top is None or not token_ids:
            return None
        vocab_size = self.info.vocab_size
        likely = [(token_id + 1 + k) % vocab_size for token_id in token_ids for k in range(top)]
        return Logprobs(
            chosen=array("f", [-token_id / 8 for token_id in token_ids]).tobytes(),
            top_ids=array("i", likely).tobytes(),
            top=array("f", [-token_id / 16 for token_id in likely]).tobytes(),
        )

    def _text(self, prompt: str, params: SamplingParams) -> str:
        script = _script(prompt)
        if script is not None:
            return script[2]
        if "crash" in prompt:
            return ""
        if "params" in prompt:
            return msgspec.json.encode(params).decode()
        if "report" in prompt:
            running = len(self._requests) + len(self._held)
            return f"running={running} aborted={self._aborted}"
        return "ok"

    def _reply(self, steps: list[list[int]], endless: bool) -> Iterator[list[int]]:
        while True:
            yield from steps
            if not endless:
                yield [self._end]


def _script(prompt: str) -> re.Match[str] | None:
    return max(_SCRIPT.finditer(prompt), key=re.Match.start, default=None)


def _steps(prompt: str, text: str) -> list[list[int]]:
    """The tokens of each step: those of `ids:` in the prompt, else the bytes of `text`."""
    ids = _IDS.search(prompt)
    if ids is None:
        return [[byte] for byte in text.encode()]
    return [[int(token_id) for token_id in step.split(",")] for step in ids[1].split()]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--load-until", type=Path, help="load until this file exists")
    parser.add_argument("--fail", default="")
    parser.add_argument("--die", action="store_true")
    parser.add_argument("options")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=arguments.fd)
    options = msgspec.json.decode(arguments.options, type=EngineOptions)
    while arguments.load_until is not None and not arguments.load_until.exists():
        time.sleep(STEP_S)
    if arguments.fail:
        connection.sendall(encode_frame(StartFailed(arguments.fail)))
        return
    if arguments.die:
        os.kill(os.getpid(), signal.SIGKILL)
    engine = ScriptedEngine(Tokenizer.from_dir(Path(options.model)), options.max_model_len or 4096)
    run(engine, connection)


if __name__ == "__main__":
    main()

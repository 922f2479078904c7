"""What crosses the pipe between the server process and the engine process.

Frames are a 4-byte little-endian length and a msgpack body. msgspec decodes into the types
below and nothing else: no pickle, no code. Torch-free.
"""

from __future__ import annotations

from array import array
from typing import Literal, NamedTuple

import msgspec

from qwell.runtime.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]


class Add(msgspec.Struct, tag=True, frozen=True):
    """Server -> engine: run this request."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Server -> engine: forget this request; unknown or finished ids are ignored."""

    request_id: str


class EngineInfo(msgspec.Struct, tag=True, frozen=True):
    """Engine -> server, once: the model is loaded and steps can run.

    `max_model_len` counts prompt and generated tokens together, `kv_cache_tokens` is the size
    of the whole pool. `dtype` is that of activations, `weights` the format of the matrices.
    """

    max_model_len: int
    kv_cache_tokens: int
    vocab_size: int
    device: str
    dtype: str
    weights: str


class StartFailed(msgspec.Struct, tag=True, frozen=True):
    """Engine -> server: the model cannot be loaded; the process ends. One line for the user."""

    message: str


class TokenLogprob(NamedTuple):
    """Log-probability of a token, and the most likely (id, log-probability), highest first."""

    logprob: float
    top: list[tuple[int, float]]


class Logprobs(msgspec.Struct, array_like=True, frozen=True):
    """Log-probabilities of n tokens that follow each other, with k most likely ids each.

    Numbers of 4 bytes as this machine stores them: fp32 `chosen` [n] and `top` [n, k], int32
    `top_ids` [n, k]. As msgpack numbers they would take twice the bytes and ten times as long.
    """

    chosen: bytes
    top_ids: bytes
    top: bytes

    def tokens(self) -> list[TokenLogprob]:
        """The same, token by token."""
        chosen = array("f", self.chosen)
        likely = list(zip(array("i", self.top_ids), array("f", self.top), strict=True))
        k = len(likely) // len(chosen)
        return [
            TokenLogprob(logprob, likely[i * k : i * k + k]) for i, logprob in enumerate(chosen)
        ]

    def then(self, later: Logprobs) -> Logprobs:
        """These, and those of the tokens that follow, with as many likely ids each."""
        return Logprobs(
            self.chosen + later.chosen, self.top_ids + later.top_ids, self.top + later.top
        )


class TokenOutput(msgspec.Struct, frozen=True):
    """New tokens of one request. With a `finish_reason` or an `error` nothing more follows.

    An end-of-sequence id that ended the request is the last of `token_ids`. With the first token
    come `cached_tokens`, how many of the prompt were found in the prefix cache, and `prefill_s`,
    the seconds since the request first ran. Requests that ask get `logprobs` of these tokens, and
    `prompt_logprobs` of the prompt's tokens but the first: piece by piece, in order, the last no
    later than the first new token. `error` says why a request cannot go on: its grammar and its
    bans leave no token, or it takes too much. It `is_fault` where that is the model's and not the
    request's.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    prefill_s: float = 0.0
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    error: str | None = None
    is_fault: bool = False


class StepStats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine after a step.

    Attributes:
        running, waiting: requests now.
        blocks_used, blocks_total: blocks of the KV cache that running requests own, and all.
        steps: since the start, like all that follows.
        prompt_tokens: of requests that have begun to run.
        prefix_hit_tokens: those of them that were found in the cache.
        preemptions: how often a request gave its blocks back and was computed again.
        drafted_tokens, accepted_tokens: guessed ahead and verified, and right ones of these.
        schedule_s, forward_s, sample_s, rest_s: what the steps took, in seconds: choosing and
            laying out tokens, computing logits, drawing, and waiting for ids and handing them on.
    """

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    schedule_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    rest_s: float = 0.0


class StepOutputs(msgspec.Struct, tag=True, frozen=True):
    """Engine -> server: what one step produced, and how the engine is after it."""

    outputs: list[TokenOutput]
    stats: StepStats


class Accepted(msgspec.Struct, tag=True, frozen=True):
    """Engine -> server: `engine.add` took the request; its tokens follow."""

    request_id: str


class Rejected(msgspec.Struct, tag=True, frozen=True):
    """Engine -> server: a request that `engine.add` refused (a RequestError's fields)."""

    request_id: str
    message: str
    param: str | None = None
    code: str | None = None


ToEngine = Add | Abort
FromEngine = EngineInfo | StartFailed | Accepted | Rejected | StepOutputs

MAX_FRAME_BYTES = 1 << 28
_LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """One message as it goes over the pipe."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


class FrameReader:
    """Cuts a byte stream into messages; feed it whatever arrived."""

    def __init__(self, message_type: object) -> None:
        self._buffer = bytearray()
        self._decoder = msgspec.msgpack.Decoder(message_type)

    def feed(self, data: bytes) -> list:
        """The messages that `data` completes, in order.

        Raises:
            msgspec.ValidationError, ValueError: the peer does not speak this protocol.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are sent")
            end = _LENGTH_BYTES + size
            if len(self._buffer) < end:
                break
            messages.append(self._decoder.decode(self._buffer[_LENGTH_BYTES:end]))
            del self._buffer[:end]
        return messages

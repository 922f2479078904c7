"""How one completion is to be sampled. Torch-free: the server process builds it too."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import Grammar
from qwell.runtime.thinking import Thinking

MAX_STOP_STRINGS = 16
# They are prepared for every choice of a request, in the process that serves all others.
MAX_STOP_CHARACTERS = 1024
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 100.0
MAX_PENALTY = 2.0
SEED_RANGE = (-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class SamplingParams:
    """Parameters of one completion.

    Attributes:
        max_tokens: most tokens to generate; 0 generates none.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens whose probability reaches it, in [0, 1];
            0 keeps the most probable one.
        top_k: keep the k most probable tokens; 0 keeps all.
        min_p: drop tokens below min_p x the highest probability, in [0, 1].
        typical_p: keep the tokens whose surprise is nearest to the entropy until their
            probability reaches it, in (0, 1]; 1 keeps all (arXiv 2202.00666).
        repetition_penalty: > 0; logits of ids in the prompt or the output are divided
            (logit >= 0) or multiplied by it.
        presence_penalty: taken off the logits of ids in the output, in [-2, 2].
        frequency_penalty: taken off for each time that an id is in the output, in [-2, 2].
        logit_bias: id -> what is added to its logit, in [-100, 100].
        allowed_token_ids: the only ids that may be generated; None allows all.
        bad_token_ids: ids that are never generated.
        min_tokens: as long as there are fewer, no id that ends the text is generated, nor one of
            the model's own end-of-sequence ids that is ignored. Where a grammar leaves no other,
            it comes and does not end the text. Stop strings end it all the same.
        seed: same seed, prompt and parameters give the same tokens; None draws one.
        stop: strings that end the text; they are not part of it.
        include_stop_str_in_output: they are part of it.
        stop_token_ids: ids that end the text, beside the model's own.
        ignore_eos: go on past the model's end-of-sequence ids.
        logprobs: report the log-probability of every generated token and of so many most likely
            ones, at most 20, before any of the above; None reports none.
        prompt_logprobs: the same of the prompt's tokens, but the first.
        grammar: what the text must be; None is anything. The text ends where it is complete and
            cannot go on, with an id that ends it if one may come; it is cut off at `max_tokens`.
        thinking: how the completion thinks before it answers; None where it does not, or where
            that is of no account.

    Penalties come first, then biases and bans, temperature, top-k, top-p, min-p, typical-p.

    Raises:
        RequestError: a value outside its range; `param` names the field.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    thinking: Thinking | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        _require(self.max_tokens >= 0, "max_tokens", "at least 0", self.max_tokens)
        _require(0.0 <= self.temperature <= 2.0, "temperature", "in [0, 2]", self.temperature)
        _require(0.0 <= self.top_p <= 1.0, "top_p", "in [0, 1]", self.top_p)
        _require(self.top_k >= 0, "top_k", "at least 0 (0 keeps all)", self.top_k)
        _require(0.0 <= self.min_p <= 1.0, "min_p", "in [0, 1]", self.min_p)
        _require(0.0 < self.typical_p <= 1.0, "typical_p", "in (0, 1]", self.typical_p)
        self._check_penalties()
        self._check_ids()
        _require(
            0 <= self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"in 0..{self.max_tokens} (max_tokens)",
            self.min_tokens,
        )
        if self.seed is not None:
            low, high = SEED_RANGE
            _require(low <= self.seed <= high, "seed", "a signed 64-bit integer", self.seed)
        count = len(self.stop)
        _require(count <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings", count)
        _require(all(self.stop), "stop", "a list of non-empty strings", list(self.stop))
        longest = max(map(len, self.stop), default=0)
        allowed = f"strings of at most {MAX_STOP_CHARACTERS} characters"
        _require(longest <= MAX_STOP_CHARACTERS, "stop", allowed, longest)

        for name in ("logprobs", "prompt_logprobs"):
            top = getattr(self, name)
            sound = top is None or 0 <= top <= MAX_LOGPROBS
            _require(sound, name, f"in 0..{MAX_LOGPROBS}", top)

    def _check_penalties(self) -> None:
        penalty = self.repetition_penalty
        sound = math.isfinite(penalty) and penalty > 0.0
        _require(sound, "repetition_penalty", "finite and above 0", penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            sound = -MAX_PENALTY <= penalty <= MAX_PENALTY
            _require(sound, name, f"in [{-MAX_PENALTY:g}, {MAX_PENALTY:g}]", penalty)
        for token_id, bias in self.logit_bias.items():
            sound = -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS
            expected = f"in [{-MAX_LOGIT_BIAS:g}, {MAX_LOGIT_BIAS:g}] for every id"
            _require(sound, "logit_bias", expected, {token_id: bias})

    def _check_ids(self) -> None:
        for name in ("allowed_token_ids", "bad_token_ids", "stop_token_ids"):
            ids = getattr(self, name)
            if isinstance(ids, list):
                object.__setattr__(self, name, tuple(ids))
        if self.allowed_token_ids is not None:
            left = set(self.allowed_token_ids).difference(self.bad_token_ids)
            _require(
                bool(left),
                "allowed_token_ids",
                "ids of which one at least is not in bad_token_ids",
                list(self.allowed_token_ids),
            )


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Check the ids that parameters name against a model's vocabulary.

    Raises:
        RequestError: an id outside of it; `param` names the field.
    """
    for name in ("logit_bias", "allowed_token_ids", "bad_token_ids", "stop_token_ids"):
        for token_id in getattr(params, name) or ():
            sound = 0 <= token_id < vocab_size
            _require(sound, name, f"about token ids in 0..{vocab_size - 1}", token_id)


def check_some_id_is_left(params: SamplingParams, late_ids: Collection[int]) -> None:
    """Check that `min_tokens` leaves an id to generate before those that it holds back.

    Raises:
        RequestError: it bans all that `allowed_token_ids` allows.
    """
    if params.min_tokens and params.allowed_token_ids is not None:
        left = set(params.allowed_token_ids).difference(params.bad_token_ids, late_ids)
        expected = "0, as allowed_token_ids has only ids that end the text,"
        _require(bool(left), "min_tokens", expected, params.min_tokens)


def _require(sound: bool, param: str, expected: str, given: object) -> None:
    if not sound:
        raise RequestError(f"{param} must be {expected}, got {given!r}", param=param)

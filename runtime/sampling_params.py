"""How one completion is to be sampled. Torch-free: the server process builds it too."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwell.runtime.errors import RequestError

MAX_STOP_STRINGS = 16
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
        repetition_penalty: > 0; ids already seen are divided (logit >= 0) or multiplied by it.
        seed: same seed, prompt and parameters give the same tokens; None draws one.
        stop: strings that end the text; they are not part of it.
        ignore_eos: go on past the model's end-of-sequence ids.

    Raises:
        RequestError: a value outside its range; `param` names the field.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        _require(self.max_tokens >= 0, "max_tokens", "at least 0", self.max_tokens)
        _require(0.0 <= self.temperature <= 2.0, "temperature", "in [0, 2]", self.temperature)
        _require(0.0 <= self.top_p <= 1.0, "top_p", "in [0, 1]", self.top_p)
        _require(self.top_k >= 0, "top_k", "at least 0 (0 keeps all)", self.top_k)
        _require(0.0 <= self.min_p <= 1.0, "min_p", "in [0, 1]", self.min_p)
        penalty = self.repetition_penalty
        sound = math.isfinite(penalty) and penalty > 0.0
        _require(sound, "repetition_penalty", "finite and above 0", penalty)
        if self.seed is not None:
            low, high = SEED_RANGE
            _require(low <= self.seed <= high, "seed", "a signed 64-bit integer", self.seed)
        count = len(self.stop)
        _require(count <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings", count)
        _require(all(self.stop), "stop", "a list of non-empty strings", list(self.stop))


def _require(sound: bool, param: str, expected: str, given: object) -> None:
    if not sound:
        raise RequestError(f"{param} must be {expected}, got {given!r}", param=param)

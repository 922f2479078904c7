"""How many prompt tokens a step may compute while others wait for their next token."""

from __future__ import annotations

AUTO_TARGET_S = 0.1
"""Shortest step that is worth a limit of its own: 10 tokens a second are more than people read."""

# Fewer would hardly be faster, and prompts must go on even where the target cannot be met.
_LEAST_TOKENS = 16
# Share of the last step in an estimate, and the most that one step may be off: something else
# ran on the machine, or pages were read from disk.
_GAIN = 0.3
_MOST_OFF = 2.0


class StepBudget:
    """Learns what steps take: so much by themselves, and so much for every further token.

    Both are corrected after every step in proportion to their part in what was expected, so their
    sum is right for steps like the last ones even where no step shows one of them alone.

    Args:
        target_s: longest that a step should take, in seconds; None is twice what it takes without
            prompts, but at least AUTO_TARGET_S.
        max_tokens: most prompt tokens of a step.

    Attributes:
        step_s: of a step that computes one token of each sequence, in seconds; 0 if none was seen.
        token_s: of a prompt token or a guess.
    """

    def __init__(self, target_s: float | None, max_tokens: int) -> None:
        self._target_s = target_s
        self._max_tokens = max_tokens
        self.step_s = 0.0
        self.token_s = 0.0

    @property
    def prefill_tokens(self) -> int:
        """The prompt tokens that the next step has time for, if others decode in it."""
        target = self._target_s or max(AUTO_TARGET_S, 2 * self.step_s)
        room = max(0.0, target - self.step_s)
        if room >= self._max_tokens * self.token_s:
            return self._max_tokens
        return min(self._max_tokens, max(_LEAST_TOKENS, int(room / self.token_s)))

    def observe(self, more_tokens: int, seconds: float) -> None:
        """A step with so many prompt tokens and guesses has taken so long."""
        if more_tokens == 0 and self.step_s == 0.0:
            self.step_s = seconds
        elif more_tokens and self.token_s == 0.0:
            self.token_s = max(0.0, seconds - self.step_s) / more_tokens
        else:
            expected = self.step_s + self.token_s * more_tokens
            off = min(max(seconds / expected, 1 / _MOST_OFF), _MOST_OFF) - 1.0
            alone = self.step_s / expected
            self.step_s *= 1.0 + _GAIN * off * alone
            self.token_s *= 1.0 + _GAIN * off * (1.0 - alone)

"""The budget of prompt tokens: what it makes of steps of known times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwell.runtime.step_budget import AUTO_TARGET_S, StepBudget


def learned(
    target_s: float | None, step_s: float, token_s: float, max_tokens: int = 10_000
) -> StepBudget:
    """After a prompt alone, decodes, and steps with as many prompt tokens as it allows."""
    budget = StepBudget(target_s, max_tokens)
    budget.observe(max_tokens, step_s + max_tokens * token_s)
    for _ in range(10):
        budget.observe(0, step_s)
    for _ in range(40):
        count = budget.prefill_tokens
        budget.observe(count, step_s + count * token_s)
    return budget


@settings(deadline=None)
@given(step_ms=st.floats(1, 40), token_us=st.floats(5, 2000), room_ms=st.floats(40, 200))
def test_steps_come_to_take_what_they_may(step_ms: float, token_us: float, room_ms: float) -> None:
    step_s, token_s, target_s = step_ms / 1e3, token_us / 1e6, (step_ms + room_ms) / 1e3
    count = learned(target_s, step_s, token_s, 100_000).prefill_tokens
    assert step_s + count * token_s == pytest.approx(target_s, rel=0.1)


def test_without_a_target_prompts_get_half_of_the_time_or_what_nobody_notices() -> None:
    assert learned(None, 0.1, 1e-3).prefill_tokens == pytest.approx(100, rel=0.1)
    room = AUTO_TARGET_S - 0.005
    assert learned(None, 0.005, 1e-4).prefill_tokens == pytest.approx(room / 1e-4, rel=0.1)


def test_a_target_that_cannot_be_met_still_lets_prompts_go_on() -> None:
    assert learned(0.01, 0.1, 1e-3).prefill_tokens == 16


def test_never_more_than_a_step_holds() -> None:
    assert learned(1.0, 0.01, 1e-6, max_tokens=300).prefill_tokens == 300
    assert StepBudget(0.01, 8).prefill_tokens == 8
    assert learned(0.01, 0.1, 1e-3, max_tokens=8).prefill_tokens == 8


def test_one_slow_step_is_soon_forgotten() -> None:
    budget = learned(0.1, 0.02, 1e-3)
    before = budget.prefill_tokens
    budget.observe(before, 20.0)
    assert budget.prefill_tokens > 0.6 * before
    for _ in range(10):
        count = budget.prefill_tokens
        budget.observe(count, 0.02 + count * 1e-3)
    assert budget.prefill_tokens == pytest.approx(before, rel=0.1)


def test_a_load_that_grows_without_a_step_of_decodes_alone_is_noticed() -> None:
    budget = learned(0.1, 0.02, 1e-3)
    for _ in range(40):
        count = budget.prefill_tokens
        budget.observe(count, 0.06 + count * 1e-3)
    assert budget.prefill_tokens == pytest.approx(40, rel=0.15)

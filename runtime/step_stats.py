"""What an engine tells of itself after a step."""

from __future__ import annotations

from qwell.runtime.block_pool import BlockPool
from qwell.runtime.messages import StepStats
from qwell.runtime.scheduler import Scheduler
from qwell.runtime.speculation import Speculator
from qwell.runtime.step_clock import StepClock


def step_stats(
    scheduler: Scheduler,
    pool: BlockPool,
    speculator: Speculator | None,
    clock: StepClock,
    steps: int,
) -> StepStats:
    """How the parts of an engine are after so many steps, and what they did since its start."""
    seconds = clock.sums
    return StepStats(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        blocks_used=pool.num_blocks - pool.num_free,
        blocks_total=pool.num_blocks,
        steps=steps,
        prompt_tokens=scheduler.num_prompt_tokens,
        prefix_hit_tokens=scheduler.num_cached_tokens,
        preemptions=scheduler.num_preemptions,
        drafted_tokens=0 if speculator is None else speculator.num_drafted,
        accepted_tokens=0 if speculator is None else speculator.num_accepted,
        schedule_s=seconds["schedule"],
        forward_s=seconds["forward"],
        sample_s=seconds["sample"],
        rest_s=seconds["rest"],
    )

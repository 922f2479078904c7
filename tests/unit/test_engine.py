"""The engine's door: add, step, abort, logits, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from engines import greedy, run_to_end, start_engine
from token_model import token_model

from qwell.kernels.ops import OP_NAMES, Extent
from qwell.kernels.triton.configs.attention_decode import SPLIT
from qwell.kernels.triton.configs.linear import DENSE
from qwell.runtime.batch import Batch
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineStartError, RequestError, UnsupportedModelError
from qwell.runtime.kv_cache import KVCache
from qwell.runtime.largest_step import largest_step, smaller_steps
from qwell.runtime.loader import load_model
from qwell.runtime.messages import TokenOutput
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.scheduler import MOST_SCORED

PROMPT = [5, 3, 8, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, "qwen3")
    return path


@pytest.fixture
def engine(folder: Path) -> Engine:
    return start_engine(folder)


def params(max_tokens: int = 8, **settings: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **settings)


def test_a_request_ends_at_max_tokens(engine: Engine) -> None:
    engine.add("a", PROMPT, params(3))
    outputs = [engine.step()[0] for _ in range(3)]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    assert not engine.has_work


def test_a_request_ends_at_an_eos_id_unless_told_not_to(folder: Path) -> None:
    text = greedy(start_engine(folder), PROMPT, 20)
    eos = text[6]
    engine = start_engine(folder, eos_token_ids=(eos,))
    assert greedy(engine, PROMPT, 20) == text[: text.index(eos) + 1]
    engine.add("on", PROMPT, params(20, ignore_eos=True))
    assert run_to_end(engine)["on"] == text
    engine.add("never", PROMPT, params(20, ignore_eos=True, min_tokens=20))
    without = run_to_end(engine)["never"]
    assert len(without) == 20
    assert eos not in without
    assert without[:6] == text[:6]


def test_zero_tokens_are_reported_by_the_next_step(engine: Engine) -> None:
    engine.add("none", PROMPT, params(0))
    assert engine.has_work
    assert engine.step() == [TokenOutput("none", [], "length")]
    assert not engine.has_work


def test_an_aborted_request_frees_its_blocks_at_once_and_leaves_others_alone(
    engine: Engine,
) -> None:
    alone = greedy(engine, PROMPT, 12)
    free = engine.num_free_blocks
    engine.add("kept", PROMPT, params(12))
    engine.add("gone", PROMPT * 30, params(50))
    tokens = [output.token_ids for _ in range(4) for output in engine.step()]
    assert len(tokens) > 4
    engine.abort("gone")
    engine.abort("never added")
    rest = run_to_end(engine)
    assert set(rest) == {"kept"}
    assert engine.num_free_blocks == free
    assert greedy(engine, PROMPT, 12) == alone


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_abort_at_any_moment(folder: Path, steps: int) -> None:
    engine = start_engine(folder, max_batch_tokens=16)
    engine.add("a", PROMPT * 10, params(50))
    for _ in range(steps):
        engine.step()
    engine.abort("a")
    assert not engine.has_work
    assert engine.step() == []
    assert engine.num_free_blocks * 16 == engine.info.kv_cache_tokens


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message", "code"),
    [
        ([], 8, "the prompt is empty", None),
        ([199], 8, r"token id 199; ids must be in 0\.\.198", None),
        ([-1], 8, "token id -1", None),
        ([1] * 250, 8, r"context length is 256 tokens, but 258 .*250 in the prompt, 8", "context"),
        ([1] * 300, 1, "context length is 256 tokens, but 301", "context"),
    ],
)
def test_requests_that_cannot_be_served(
    engine: Engine, prompt: list[int], max_tokens: int, message: str, code: str | None
) -> None:
    with pytest.raises(RequestError, match=message) as error:
        engine.add("a", prompt, params(max_tokens))
    assert error.value.code == (code and "context_length_exceeded")
    assert not engine.has_work


def test_a_full_queue_is_refused_and_a_batch_that_can_run_at_once_is_not(folder: Path) -> None:
    engine = start_engine(folder, max_num_seqs=2, max_queue=3)
    for i in range(5):
        engine.add(str(i), PROMPT, params(4))
    with pytest.raises(RequestError, match="3 requests wait already") as error:
        engine.add("5", PROMPT, params(4))
    assert error.value.code == "queue_full"
    engine.step()
    assert (engine.stats.running, engine.stats.waiting) == (2, 3)
    engine.abort("4")
    engine.add("5", PROMPT, params(4))
    assert set(run_to_end(engine)) == {"0", "1", "2", "3", "5"}


def test_requests_that_wait_for_blocks_fill_the_queue_too(folder: Path) -> None:
    engine = start_engine(folder, kv_cache_tokens=64, max_model_len=64, max_queue=1)
    engine.add("a", [1] * 40, params(8))
    engine.add("b", [2] * 40, params(8))
    engine.step()
    assert (engine.stats.running, engine.stats.waiting) == (1, 1)
    with pytest.raises(RequestError, match="1 requests wait"):
        engine.add("c", [3] * 40, params(8))


def test_what_can_never_fit_is_refused_also_where_the_cache_is_the_limit(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, max_position_embeddings=4096)
    engine = start_engine(tmp_path, kv_cache_tokens=512)
    with pytest.raises(RequestError, match="context length is 512 tokens, but 513") as error:
        engine.add("never", [1] * 500, params(13))
    assert error.value.code == "context_length_exceeded"
    engine.add("fits", [1] * 500, params(12))
    assert len(run_to_end(engine)["fits"]) == 12


def test_cached_prompt_tokens_come_with_the_first_token(engine: Engine) -> None:
    prompt = [place % 7 for place in range(40)]
    greedy(engine, prompt, 3)
    engine.add("again", prompt, params(3))
    engine.add("apart", prompt, params(3), cache_salt="apart")
    outputs = [output for _ in range(3) for output in engine.step()]
    assert [o.cached_tokens for o in outputs if o.request_id == "again"] == [32, 0, 0]
    assert [o.cached_tokens for o in outputs if o.request_id == "apart"] == [0, 0, 0]


def test_without_a_prefix_cache_everything_is_computed(folder: Path) -> None:
    engine = start_engine(folder, prefix_cache=False)
    prompt = [place % 7 for place in range(40)]
    for _ in range(2):
        greedy(engine, prompt, 3)
    assert (engine.stats.prompt_tokens, engine.stats.prefix_hit_tokens) == (80, 0)


def test_lower_priorities_run_first(folder: Path) -> None:
    engine = start_engine(folder, max_num_seqs=1)
    for name, priority in (("a", 1), ("b", 0), ("c", -1)):
        engine.add(name, PROMPT, params(2), priority=priority)
    assert list(run_to_end(engine)) == ["c", "b", "a"]


def test_stats_tell_what_runs_and_what_was_done(folder: Path) -> None:
    engine = start_engine(folder, kv_cache_tokens=256, max_batch_tokens=16)
    assert engine.stats.blocks_total == 16
    engine.add("a", [place % 7 for place in range(40)], params(4))
    engine.add("b", [5, 6], params(4))
    engine.step()
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.blocks_used, stats.steps) == (2, 0, 4, 1)
    run_to_end(engine)
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert (stats.prompt_tokens, stats.prefix_hit_tokens, stats.preemptions) == (42, 0, 0)
    assert min(stats.schedule_s, stats.forward_s, stats.sample_s, stats.rest_s) > 0


def test_the_time_that_a_prompt_takes_does_not_count_its_wait() -> None:
    seconds = 0.0
    options = EngineOptions(
        model="", eager=True, speculation=False, max_batch_tokens=16, max_num_seqs=1
    )
    running = Engine(token_model(32), options, clock=lambda: seconds)
    running.add("first", [1] * 40, params(8, ignore_eos=True))
    running.add("second", [1], params(8, ignore_eos=True))
    forward = running.model.decoder.forward

    def timed(batch: Batch, cache: KVCache) -> torch.Tensor:
        nonlocal seconds
        seconds += 1.0
        return forward(batch, cache)

    running.model.decoder.forward = timed

    outputs = [output for _ in range(18) for output in running.step()]

    told = {output.request_id: output.prefill_s for output in outputs if output.prefill_s}
    assert told == {"first": 3.0, "second": 1.0}
    assert [output.request_id for output in outputs] == ["first"] * 8 + ["second"] * 8


def test_prompts_beside_a_decode_keep_to_the_time_that_a_step_may_take() -> None:
    seconds = 0.0
    running = Engine(
        token_model(32),
        EngineOptions(
            model="", eager=True, speculation=False, max_batch_tokens=128, target_itl_ms=60
        ),
        clock=lambda: seconds,
    )
    decoder = running.model.decoder
    forward = decoder.forward

    def timed(batch: Batch, cache: KVCache) -> torch.Tensor:
        nonlocal seconds
        seconds += 0.02 + 0.002 * (len(batch.input_ids) - batch.extent.num_decodes)
        return forward(batch, cache)

    decoder.forward = timed
    running.add("a", [1] * 100, params(40, ignore_eos=True))
    for _ in range(10):
        running.step()
    running.add("b", [2] * 200, params(1))
    for _ in range(8):
        running.step()
    assert decoder.steps[:2] == [100, 1], "nobody waits for a token yet"
    assert all(16 <= count <= 22 for count in decoder.steps[12:18])


def test_a_prompt_can_be_aborted_between_its_chunks(folder: Path) -> None:
    engine = start_engine(folder, max_batch_tokens=16)
    alone = greedy(engine, PROMPT, 20)
    for steps in range(4):
        engine.add("kept", PROMPT, params(20))
        for _ in range(2):
            engine.step()
        engine.add("gone", [steps + 1] * 100, params(8))
        for _ in range(steps):
            engine.step()
        blocks = engine.stats.blocks_used
        engine.abort("gone")
        assert engine.stats.blocks_used == (blocks - 7 if steps else blocks) == 1
        rest = run_to_end(engine)
        assert set(rest) == {"kept"}
        assert rest["kept"] == alone[-len(rest["kept"]) :]


def test_a_request_id_in_use_is_refused(engine: Engine) -> None:
    engine.add("a", PROMPT, params())
    with pytest.raises(RequestError, match="'a' is in use"):
        engine.add("a", PROMPT, params())


def test_the_whole_context_can_be_used(folder: Path) -> None:
    engine = start_engine(folder, kv_cache_tokens=256)
    assert len(greedy(engine, [1] * 200, 56)) == 56


def test_a_context_longer_than_trained_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"257 .*max_position_embeddings is 256"):
        start_engine(folder, max_model_len=257)


def test_a_cache_that_is_too_small_is_refused(folder: Path) -> None:
    with pytest.raises(EngineStartError, match="room for 64 tokens, at least 100"):
        start_engine(folder, kv_cache_tokens=64, max_model_len=100)


def test_a_cache_that_no_machine_has_is_refused(folder: Path) -> None:
    with pytest.raises(EngineStartError, match=r"GiB, which cannot be had .*--kv-cache-tokens"):
        start_engine(folder, kv_cache_tokens=10**14)


def test_a_small_cache_shortens_the_context(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, max_position_embeddings=4096)
    assert start_engine(tmp_path, kv_cache_tokens=512).info.max_model_len == 512


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_of_gpu_memory_that_is_none_is_refused(folder: Path, share: float) -> None:
    with pytest.raises(EngineStartError, match=r"gpu_memory_utilization .* in \(0, 1\]"):
        start_engine(folder, gpu_memory_utilization=share)


@torch.inference_mode()
def test_the_largest_step_has_all_tokens_and_rows_of_logits_and_draws(folder: Path) -> None:
    # More tokens than a sequence may have, and than there may be rows of logits.
    options = EngineOptions(
        model=str(folder), device="cpu", weight_cache=False, max_batch_tokens=700, max_num_seqs=7
    )
    decoder = load_model(options).decoder
    seen: list[int] = []
    extents: list[Extent] = []
    drawn: list[str] = []

    def linear(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(x))
        return decoder.ops.linear(x, *rest)

    def attention(*arguments: Any) -> torch.Tensor:
        extents.append(arguments[6])
        return decoder.ops.attention(*arguments)

    def watched(op: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            drawn.append(op)
            return getattr(decoder.ops, op)(*arguments, **named)

        return run

    draws = {op: watched(op) for op in ("adjust_logits", "sample", "logprobs")}
    ops = replace(decoder.ops, linear=linear, attention=attention, **draws)
    logits = largest_step(options, replace(decoder, ops=ops), torch.float32, torch.device("cpu"))
    assert logits.shape == (7 + MOST_SCORED, 199)
    assert logits.isfinite().all()
    assert seen == [700] * (len(seen) - 1) + [7 + MOST_SCORED]
    assert set(extents) == {Extent(num_decodes=6, max_query_len=256, max_seq_len=256)}
    assert sorted(drawn) == sorted(draws)

    # The others are of all sizes that have launch settings of their own, and of few keys.
    seen.clear()
    extents.clear()
    smaller_steps(options, replace(decoder, ops=ops), torch.float32, torch.device("cpu"))
    assert sorted(set(seen)) == sorted({row.max_rows for row in DENSE["default"][:-1]})
    assert {extent.max_seq_len for extent in extents} == {SPLIT}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(EngineStartError, match="no GPU"):
        Engine.start(EngineOptions(model=str(folder), device="cuda"))


def test_a_gpu_that_is_too_small_is_one_clear_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("qwell.runtime.engine.load_model", too_large)
    with pytest.raises(EngineStartError, match=r"lower --max-batch-tokens, .* allocate 20\.00 GiB"):
        start_engine(folder)


def test_an_unknown_kernel_is_refused(folder: Path) -> None:
    with pytest.raises(EngineStartError, match=f"nonsense.*{OP_NAMES[0]}"):
        start_engine(folder, {"nonsense": print})


def test_logits_need_no_running_request_to_stop(engine: Engine) -> None:
    before = engine.logits(PROMPT)
    engine.add("a", PROMPT, params(20))
    engine.step()
    assert torch.equal(engine.logits(PROMPT), before)
    free = engine.num_free_blocks
    run_to_end(engine)
    assert engine.num_free_blocks > free

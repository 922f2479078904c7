"""A token's result does not depend on what else runs, nor on how the work was cut up.

fp32 logits agree within 1e-5 of the largest and greedy tokens are equal. Each property has
its inverse: with an op that breaks it on purpose the same check must fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from compare import assert_close
from engines import LogitsRecorder, run_to_end, start_engine
from torch import Tensor

from qwell.kernels.reference.attention import attention
from qwell.kernels.reference.linear import linear
from qwell.runtime.engine import Engine
from qwell.runtime.sampling_params import SamplingParams

RELATIVE = 1e-5
STEPS = 24
VOCAB = 199


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    make_checkpoint(path, request.param)
    return path


def prompt_of(seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (5 + 11 * seed % 60,), generator=draw).tolist()


def generate(engine: Engine, seeds: list[int]) -> dict[str, list[int]]:
    for seed in seeds:
        params = SamplingParams(max_tokens=STEPS, top_k=1, seed=seed)
        engine.add(str(seed), prompt_of(seed), params)
    return run_to_end(engine)


def size_dependent_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every row's result shifts with the number of rows: what a batch-variant kernel does."""
    return linear(x, weight, bias) * (1.0 + 1e-4 * x.shape[0])


def forgetful_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> Tensor:
    """Sees the tokens of its own chunk only, as if the cached prefix were lost."""
    *tables, extent, scale, _ = rest
    return attention(q, k_cache, v_cache, *tables, extent, scale, extent.max_query_len)


def check_alone_equals_batch(folder: Path, kernels: dict[str, Any]) -> None:
    seeds = list(range(8))
    together = LogitsRecorder()
    batch_tokens = generate(start_engine(folder, {"sample": together, **kernels}), seeds)
    for seed in seeds:
        alone = LogitsRecorder()
        tokens = generate(start_engine(folder, {"sample": alone, **kernels}), [seed])
        for step in range(STEPS):
            assert_close(
                together.row(seed, step)[None],
                alone.row(seed, step)[None],
                relative=RELATIVE,
                what=f"request {seed}, token {step}",
            )
        assert tokens[str(seed)] == batch_tokens[str(seed)]


def check_chunked_equals_whole(folder: Path, kernels: dict[str, Any]) -> None:
    ids = [i % VOCAB for i in range(7, 7 + 150)]
    whole = start_engine(folder, kernels, max_batch_tokens=512).logits(ids)
    for size in (1, 7, 16, 64):
        chunked = start_engine(folder, kernels, max_batch_tokens=size).logits(ids)
        assert_close(chunked, whole, relative=RELATIVE, what=f"chunks of {size}")
        assert torch.equal(chunked.argmax(-1), whole.argmax(-1))


def check_decode_equals_prefill(folder: Path, kernels: dict[str, Any]) -> None:
    recorder = LogitsRecorder()
    engine = start_engine(folder, {"sample": recorder, **kernels})
    tokens = generate(engine, [3])["3"]
    prompt = prompt_of(3)
    prefill = engine.logits(prompt + tokens)
    for step in range(STEPS):
        assert_close(
            recorder.row(3, step)[None],
            prefill[len(prompt) - 1 + step][None],
            relative=RELATIVE,
            what=f"token {step}",
        )
    assert prefill[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens


CHECKS = [check_alone_equals_batch, check_chunked_equals_whole, check_decode_equals_prefill]


@pytest.mark.parametrize("check", CHECKS)
def test_invariant(check: Any, folder: Path) -> None:
    check(folder, {})


@pytest.mark.parametrize("check", CHECKS)
def test_a_kernel_that_depends_on_the_batch_is_caught(check: Any, folder: Path) -> None:
    with pytest.raises(AssertionError, match="of the tolerance"):
        check(folder, {"linear": size_dependent_linear})


@pytest.mark.parametrize("check", CHECKS[1:])
def test_attention_that_loses_the_prefix_is_caught(check: Any, folder: Path) -> None:
    with pytest.raises(AssertionError, match="of the tolerance"):
        check(folder, {"attention": forgetful_attention})


def check_preempted_equals_undisturbed(folder: Path, kernels: dict[str, Any]) -> None:
    seeds = list(range(8))
    roomy = generate(start_engine(folder, kernels), seeds)
    tight = start_engine(folder, kernels, kv_cache_tokens=112, max_model_len=112)
    assert generate(tight, seeds) == roomy
    assert tight.stats.preemptions > 0


def test_preempted_requests_give_the_same_tokens(folder: Path) -> None:
    check_preempted_equals_undisturbed(folder, {})


def test_preemption_that_shows_is_caught(folder: Path) -> None:
    with pytest.raises(AssertionError):
        check_preempted_equals_undisturbed(folder, {"linear": size_dependent_linear})


def check_any_threads_give_the_same_bits(folder: Path, kernels: dict[str, Any]) -> None:
    rows = []
    for threads in (1, 2, 3):
        recorder = LogitsRecorder()
        generate(start_engine(folder, {"sample": recorder, **kernels}, threads=threads), [3])
        rows.append(torch.stack([recorder.row(3, step) for step in range(STEPS)]))
    assert all(torch.equal(rows[0], other) for other in rows[1:])


def thread_dependent_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return linear(x, weight, bias) * (1.0 + 1e-6 * torch.get_num_threads())


def test_threads_change_no_bits(folder: Path) -> None:
    check_any_threads_give_the_same_bits(folder, {})


def test_a_kernel_that_depends_on_the_threads_is_caught(folder: Path) -> None:
    with pytest.raises(AssertionError):
        check_any_threads_give_the_same_bits(folder, {"linear": thread_dependent_linear})


# torch's product of a row depends on the number of rows, so both runs must have the same chunks.
@pytest.mark.parametrize(("family", "max_batch_tokens"), [("native", 512), ("reference", 64)])
def test_a_cached_prefix_gives_the_same_bits(
    folder: Path, family: str, max_batch_tokens: int
) -> None:
    prompt = [7 * place % VOCAB for place in range(75)]
    kernels = dict.fromkeys(("linear", "attention", "rms_norm", "rope"), family)

    def rows(before: list[int], *, cached: int) -> list[Tensor]:
        """Logits that the tokens after the prompt came from, where `before` was served first."""
        recorder = LogitsRecorder()
        engine = start_engine(
            folder, {"sample": recorder, **kernels}, max_batch_tokens=max_batch_tokens, threads=1
        )
        for seed, ids in enumerate((before, prompt)):
            engine.add(str(seed), ids, SamplingParams(max_tokens=8, temperature=0.8, seed=seed))
            run_to_end(engine)
        assert engine.stats.prefix_hit_tokens == cached
        return [recorder.row(1, step) for step in range(8)]

    computed = rows([3], cached=0)
    found = rows([*prompt[:70], 1, 2], cached=64)
    assert all(map(torch.equal, found, computed))


@pytest.mark.parametrize(
    "options", [{}, {"weights": "int8", "kv_cache_dtype": "bfloat16"}], ids=["fp32", "int8"]
)
def test_the_second_turn_gives_the_same_bits_as_if_it_were_the_first(
    folder: Path, options: dict[str, Any]
) -> None:
    def rows(engine: Engine, recorder: LogitsRecorder, turn: list[int]) -> list[Tensor]:
        params = SamplingParams(max_tokens=STEPS, temperature=0.8, seed=9)
        engine.add("9", turn, params)
        run_to_end(engine)
        return [recorder.row(9, step) for step in range(STEPS)]

    recorder = LogitsRecorder()
    engine = start_engine(folder, {"sample": recorder}, **options)
    [answer] = generate(engine, [5]).values()
    turn = [*prompt_of(5), *answer, 1, 2, 3]
    found = rows(engine, recorder, turn)
    # What was generated is in the cache too, but for the last token.
    assert engine.stats.prefix_hit_tokens == (len(turn) - 4) // 16 * 16 > len(prompt_of(5))
    fresh = LogitsRecorder()
    computed = rows(start_engine(folder, {"sample": fresh}, **options), fresh, turn)
    assert all(map(torch.equal, found, computed))


def test_a_seed_gives_the_same_sample_alone_and_among_others(folder: Path) -> None:
    def sampled(seeds: list[int]) -> dict[str, list[int]]:
        engine = start_engine(folder)
        for seed in seeds:
            params = SamplingParams(
                max_tokens=STEPS, temperature=1.3, top_p=0.9, top_k=50, seed=seed
            )
            engine.add(str(seed), prompt_of(2), params)
        return run_to_end(engine)

    together = sampled([1, 2, 3, 4])
    assert len({tuple(tokens) for tokens in together.values()}) == 4
    assert sampled([3])["3"] == together["3"]

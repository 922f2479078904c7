"""The recorded forward pass: the bits of an eager one, whatever the steps are made of."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from engines import LogitsRecorder, greedy, run_to_end, start_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from qwell.kernels.errors import KernelError
from qwell.kernels.native.runner import Runner
from qwell.runtime.batch import Layout, lay_out
from qwell.runtime.block_pool import BlockPool
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for
from qwell.runtime.loader import LoadedModel, load_model
from qwell.runtime.recorded_forward import RecordedForward
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Chunk, Sequence

CPU = torch.device("cpu")
MAX_TOKENS, MAX_SEQS = 48, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(path, "qwen3", use_sliding_window=True, sliding_window=40, max_window_layers=1)
    return path


def load(folder: Path) -> LoadedModel:
    return load_model(
        EngineOptions(model=str(folder), device="cpu", kv_cache_tokens=4096, threads=2)
    )


@torch.inference_mode()
def record(model: LoadedModel) -> RecordedForward:
    assert model.runner is not None
    return RecordedForward(
        model.decoder,
        model.cache,
        model.runner,
        max_tokens=MAX_TOKENS,
        max_seqs=MAX_SEQS,
        max_rows=MAX_SEQS,
        max_model_len=model.max_model_len,
    )


class Steps:
    """The same steps for two models: each advances some sequences by some tokens."""

    def __init__(self, num_blocks: int, lengths: Iterable[int]) -> None:
        pool = BlockPool(num_blocks)
        draw = torch.Generator().manual_seed(7)
        self.sequences = []
        for i, length in enumerate(lengths):
            ids = torch.randint(0, 199, (length,), generator=draw).tolist()
            blocks = pool.take(blocks_for(length))[::-1]
            self.sequences.append(Sequence(str(i), ids, length, SamplingParams(), i, blocks=blocks))

    def layout(self, counts: Iterable[int]) -> Layout:
        """Sequence i goes on by counts[i] tokens, decodes first as the scheduler has them."""
        chunks = []
        for sequence, count in zip(self.sequences, counts, strict=True):
            end = min(sequence.num_computed + count, len(sequence.token_ids))
            if end > sequence.num_computed:
                chunks.append(Chunk(sequence, sequence.num_computed, end))
                sequence.num_computed = end
        chunks.sort(key=lambda chunk: chunk.end - chunk.start)
        return lay_out(chunks, BLOCK_SIZE, all_logits=len(chunks) == 1)


LENGTHS = [200, 90, 33, 150, 60, 17]
# Prompts alone, decodes alone, both; many sequences, then few: nothing of a step may stay behind.
STEPS = [
    [MAX_TOKENS, 0, 0, 0, 0, 0],
    [1, 40, 2, 1, 3, 1],
    [0, 0, 1, 0, 0, 0],
    [1, 1, 1, 1, 1, 1],
    [0, 0, 0, 45, 0, 1],
    [5, 0, 0, 0, 0, 0],
    [1, 1, 0, 9, 20, 15],
    [0, 1, 1, 0, 0, 0],
]


@torch.inference_mode()
def logits_of_both(
    eager: LoadedModel, replayed: RecordedForward, counts: list[list[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of the steps, computed by a model and by another one that is recorded."""
    steps = Steps(eager.num_blocks, LENGTHS)
    logits = []
    for step in counts:
        layout = steps.layout(step)
        del layout.logit_rows[MAX_SEQS:]
        assert replayed.serves(layout)
        expected = eager.decoder.forward(layout.to_device(CPU), eager.cache)
        logits.append((expected, replayed.run(layout).clone()))
    return logits


def test_a_replayed_step_has_the_bits_of_an_eager_one(folder: Path) -> None:
    model = load(folder)
    results = logits_of_both(load(folder), record(model), STEPS)
    assert any(len(expected) > 1 for expected, _ in results)
    for expected, logits in results:
        assert torch.equal(logits, expected)
    # Weights are read where they are: had one been another, these logits would be too.
    model = load(folder)
    replayed = record(model)
    with torch.inference_mode():
        model.decoder.final_norm[5].mul_(1 + 1e-6)
    assert not all(torch.equal(*pair) for pair in logits_of_both(load(folder), replayed, STEPS))


@settings(max_examples=20)
@given(
    st.lists(
        st.lists(st.integers(0, MAX_TOKENS // MAX_SEQS), min_size=6, max_size=6).filter(any),
        max_size=6,
    )
)
def test_whatever_the_steps(folder: Path, counts: list[list[int]]) -> None:
    model = load(folder)
    for expected, logits in logits_of_both(load(folder), record(model), counts):
        assert torch.equal(logits, expected)


def test_what_was_recorded_outlives_the_model(folder: Path) -> None:
    replayed = record(load(folder))
    gc.collect()
    churn = [torch.full((1 << 16,), torch.nan) for _ in range(64)]  # over what was freed, if any
    for expected, logits in logits_of_both(load(folder), replayed, STEPS):
        assert torch.equal(logits, expected)
    del churn


def test_batches_that_do_not_fit_are_left_to_the_decoder(folder: Path) -> None:
    replayed = record(load(folder))
    fits = Steps(64, [MAX_TOKENS]).layout([MAX_TOKENS])
    del fits.logit_rows[MAX_SEQS:]
    assert replayed.serves(fits)
    assert not replayed.serves(Steps(64, [MAX_TOKENS + 1]).layout([MAX_TOKENS + 1]))
    assert not replayed.serves(Steps(64, [1] * (MAX_SEQS + 1)).layout([1] * (MAX_SEQS + 1)))
    # One row of logits too many.
    assert not replayed.serves(Steps(64, [MAX_SEQS + 1]).layout([MAX_SEQS + 1]))


# Tokens of the prompt, and of the completion.
REQUESTS = [(70, 30), (9, 40), (100, 20), (30, 60), (1, 50), (5, 9)]


def all_logits(folder: Path, **options: object) -> tuple[Engine, list[torch.Tensor]]:
    """Requests that share chunked, mixed steps and preempt each other; each token's logits."""
    seen = LogitsRecorder()
    sizes = {"max_batch_tokens": 40, "max_num_seqs": 5, "kv_cache_tokens": 320}
    engine = start_engine(folder, {"sample": seen}, **sizes, **options)
    for seed, (length, count) in enumerate(REQUESTS):
        params = SamplingParams(max_tokens=count, top_k=1, seed=seed, ignore_eos=True)
        engine.add(str(seed), [(7 * seed + i) % 199 for i in range(length)], params)
    tokens = run_to_end(engine)
    return engine, [
        seen.row(seed, step)
        for seed in range(len(REQUESTS))
        for step in range(len(tokens[str(seed)]))
    ]


@pytest.mark.parametrize("weights", ["f32", "bf16", "int4"])
def test_an_engine_replays_every_step_with_the_bits_of_an_eager_one(
    folder: Path, weights: str
) -> None:
    eager, expected = all_logits(folder, weights=weights, eager=True, threads=1)
    assert eager.forward.recorded is None
    for threads in (1, 3):
        engine, logits = all_logits(folder, weights=weights, threads=threads)
        assert engine.forward.recorded is not None
        assert len(logits) == len(expected) > 200
        assert all(map(torch.equal, logits, expected))


def test_no_step_of_an_engine_runs_op_by_op(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start_engine(folder)
    monkeypatch.setattr(type(engine.model.decoder), "forward", None)
    assert len(greedy(engine, [5, 3, 8] * 40, 20)) == 20


@pytest.mark.parametrize(
    "options", [{"eager": True}, {"kernels": {"silu_mul": "reference"}}, {"dtype": "bfloat16"}]
)
def test_models_with_an_op_that_is_not_native_run_op_by_op(
    folder: Path, options: dict[str, object]
) -> None:
    engine = start_engine(folder, **options)
    assert engine.forward.recorded is None
    assert len(greedy(engine, [5, 3, 8], 4)) == 4


def test_ops_of_another_runner_are_not_recorded(folder: Path) -> None:
    model = load(folder)
    with pytest.raises(KernelError, match="native op of this runner"):
        RecordedForward(
            model.decoder,
            model.cache,
            Runner(1),
            max_tokens=8,
            max_seqs=2,
            max_rows=2,
            max_model_len=64,
        )

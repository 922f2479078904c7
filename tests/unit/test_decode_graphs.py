"""Captured decode steps: the padding and the static tensors, with a capture that runs eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from checkpoints import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from qwell.runtime.batch import Batch, build_batch
from qwell.runtime.block_pool import BlockPool
from qwell.runtime.decode_graphs import DecodeGraphs, Step, bucket_sizes, cuda_capture
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.kv_cache import BLOCK_SIZE, blocks_for
from qwell.runtime.loader import LoadedModel, load_model
from qwell.runtime.sampled_ids import SampledIds
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Chunk, Sequence

CPU = torch.device("cpu")


class Running:
    """Sequences that have been prefilled, and the batch of their next decode step."""

    @torch.inference_mode()
    def __init__(self, model: LoadedModel, lengths: list[int]) -> None:
        self.model = model
        self.pool = BlockPool(model.num_blocks)
        draw = torch.Generator().manual_seed(len(lengths))
        self.sequences = []
        for i, length in enumerate(lengths):
            ids = torch.randint(0, 199, (length,), generator=draw).tolist()
            sequence = Sequence(str(i), ids, length, SamplingParams(), seed=i)
            sequence.blocks += self.pool.take(blocks_for(length + 8))
            self.sequences.append(sequence)
        self.forward([Chunk(s, 0, len(s.token_ids) - 1) for s in self.sequences])

    def forward(self, chunks: list[Chunk]) -> None:
        self.model.decoder.forward(build_batch(chunks, BLOCK_SIZE, CPU), self.model.cache)

    def decode_batch(self, count: int) -> Batch:
        last = [(s, len(s.token_ids) - 1) for s in self.sequences[:count]]
        return build_batch([Chunk(s, n, n + 1) for s, n in last], BLOCK_SIZE, CPU)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, "qwen3")
    options = EngineOptions(
        model=str(folder), device="cpu", weight_cache=False, kv_cache_tokens=2048
    )
    return load_model(options)


@pytest.fixture(scope="module")
@torch.inference_mode()
def graphs(model: LoadedModel) -> DecodeGraphs:
    captured = 0

    def eager(step: Step) -> Step:
        nonlocal captured
        captured += 1
        step()  # a capture runs the step over padding alone: that must be harmless
        return step

    result = DecodeGraphs(
        model.decoder,
        model.cache,
        sizes=[1, 2, 4, 8],
        max_model_len=model.max_model_len,
        device=CPU,
        capture=eager,
    )
    assert captured == 4
    return result


@torch.inference_mode()
def test_a_replayed_step_gives_what_the_step_gives(
    model: LoadedModel, graphs: DecodeGraphs
) -> None:
    running = Running(model, [3, 40, 17, 2, 65, 9, 33, 16])
    # Up and down: what a large batch left in the static tensors must not reach a smaller one.
    for count in (8, 1, 3, 2, 5, 4, 7, 1, 6):
        batch = running.decode_batch(count)
        assert graphs.serves(batch)
        expected = model.decoder.forward(batch, model.cache)
        logits = graphs.run(batch)
        assert logits.shape == expected.shape
        scale = expected.abs().max()
        # Not the same bits on CPUs: torch's products round by the number of rows.
        assert ((logits - expected).abs() <= 1e-5 * scale).all()


@torch.inference_mode()
def test_a_replayed_step_takes_ids_that_only_the_device_knows(
    model: LoadedModel, graphs: DecodeGraphs
) -> None:
    running = Running(model, [4, 19, 33])
    expected = graphs.run(running.decode_batch(3)).clone()
    in_flight = running.sequences[::-1]
    ids = [sequence.token_ids.pop() for sequence in in_flight]
    for sequence in in_flight[1:]:
        sequence.num_in_flight = 1
    # The step in flight has rows in another order, and one more than this step needs.
    in_flight[0].token_ids.append(ids[0])
    sampled = SampledIds(in_flight, torch.tensor([198, *ids[1:]], dtype=torch.int32))
    chunks = [Chunk(s, s.num_tokens - 1, s.num_tokens) for s in running.sequences]
    batch = build_batch(chunks, BLOCK_SIZE, CPU, sampled=sampled)
    assert torch.equal(graphs.run(batch), expected)


@torch.inference_mode()
def test_a_replayed_step_caches_its_tokens_and_nothing_else(
    model: LoadedModel, graphs: DecodeGraphs
) -> None:
    running = Running(model, [5, 20, 30])
    batch = running.decode_batch(3)
    before = [cache.clone() for cache in (*model.cache.k, *model.cache.v)]
    graphs.run(batch)
    written = torch.zeros(model.num_blocks, BLOCK_SIZE, dtype=torch.bool)
    written.view(-1)[batch.slot_mapping.long()] = True
    for old, new in zip(before, (*model.cache.k, *model.cache.v), strict=True):
        changed = (old.nan_to_num(7.0) != new.nan_to_num(7.0)).any(dim=3).any(dim=1)
        assert not (changed & ~written).any()
        assert changed[written].all()


def test_prefills_and_larger_batches_are_left_to_the_decoder(
    model: LoadedModel, graphs: DecodeGraphs
) -> None:
    running = Running(model, [3] * 9)
    assert not graphs.serves(running.decode_batch(9))
    mixed = [Chunk(running.sequences[0], 2, 3), Chunk(running.sequences[1], 1, 3)]
    assert not graphs.serves(build_batch(mixed, BLOCK_SIZE, CPU))


@torch.inference_mode()
def test_a_prompt_in_single_tokens_is_no_decode(model: LoadedModel, graphs: DecodeGraphs) -> None:
    # A full step may have room for one token of a prompt, after which nothing is drawn.
    running = Running(model, [3, 40])
    chunks = [Chunk(running.sequences[0], 2, 3), Chunk(running.sequences[1], 7, 8)]
    batch = build_batch(chunks, BLOCK_SIZE, CPU)
    assert batch.extent.num_decodes == 2
    assert not graphs.serves(batch)


@torch.inference_mode()
def test_steps_of_all_sizes_share_the_memory_of_their_logits(
    model: LoadedModel, graphs: DecodeGraphs
) -> None:
    running = Running(model, [3] * 8)
    places = {graphs.run(running.decode_batch(count)).data_ptr() for count in (1, 3, 8)}
    assert len(places) == 1


def test_a_capture_comes_after_runs_that_compile_and_a_replay_launches_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def inside(what: object, pool: str = "") -> Iterator[None]:
        name = what.name if isinstance(what, Stream) else f"capture into {pool}"
        log.append(f"begin {name}")
        yield
        log.append(f"end {name}")

    main = Stream("main")
    stubs = {"graph_pool_handle": lambda: "pool", "Stream": Stream, "CUDAGraph": Graph}
    stubs |= {"current_stream": lambda: main, "stream": inside, "graph": inside}
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    logits = torch.zeros(1)

    def step() -> torch.Tensor:
        log.append("step")
        return logits

    replay = cuda_capture()(step)
    assert replay() is logits
    assert log == [
        *("side waits for main", "begin side", "step", "step", "end side", "main waits for side"),
        *("begin capture into pool", "step", "end capture into pool", "replay"),
    ]


@given(st.integers(1, 300))
def test_bucket_sizes_cover_every_batch_with_little_padding(max_num_seqs: int) -> None:
    sizes = bucket_sizes(max_num_seqs)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    for count in range(1, max_num_seqs + 1):
        bucket = next(size for size in sizes if size >= count)
        assert bucket < 2 * count or bucket - count < 8

"""Steps that start before the ids of the last one are known: the same tokens, one step later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from engines import greedy, run_to_end
from hypothesis import given, settings
from hypothesis import strategies as st
from token_model import VOCAB, token_model
from torch import Tensor

from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.loader import load_model
from qwell.runtime.messages import TokenOutput
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.thinking import Thinking

EOS = 0
PROMPT = [5, 3, 8, 1]


def engine(
    overlap: bool, num_blocks: int = 16, sample: Callable[..., Tensor] | None = None, **options: Any
) -> Engine:
    values = EngineOptions(model="", eager=True, eos_token_ids=(EOS,), **options)
    return Engine(token_model(num_blocks, sample), values, overlap=overlap)


def params(max_tokens: int, **settings: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, **settings})


@dataclass(frozen=True)
class Load:
    """A request, the step before which it arrives, and the one before which it is aborted."""

    prompt: list[int]
    params: SamplingParams
    arrival: int
    aborted: int | None


@dataclass
class Stream:
    token_ids: list[int]
    reason: str | None = None


def serve(running: Engine, loads: list[Load], *, aborts: bool) -> list[Stream]:
    """The tokens of every load, from an engine that must then be empty."""
    free = running.num_free_blocks
    streams = [Stream([]) for _ in loads]
    work = sum(len(load.prompt) + load.params.max_tokens for load in loads)
    for step in range(100 + 60 * work):
        for i, load in enumerate(loads):
            if load.arrival == step:
                running.add(str(i), load.prompt, load.params)
            if aborts and load.aborted == step:
                running.abort(str(i))
        outputs = running.step()
        assert len({output.request_id for output in outputs}) == len(outputs)
        for output in outputs:
            stream = streams[int(output.request_id)]
            assert stream.reason is None, "a token after the end"
            stream.token_ids += output.token_ids
            stream.reason = output.finish_reason
        if step > 40 and not running.has_work:
            break
    assert not running.has_work
    assert running.step() == []
    assert running.num_free_blocks == free
    return streams


requests = st.builds(
    Load,
    prompt=st.builds(
        lambda shared, own: [place % 5 for place in range(shared)] + own,
        st.sampled_from((0, 0, 20, 36)),
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24),
    ),
    params=st.builds(
        SamplingParams,
        max_tokens=st.integers(0, 36),
        temperature=st.sampled_from((0.0, 1.0)),
        repetition_penalty=st.sampled_from((1.0, 1.0, 1.4)),
        seed=st.integers(0, 5),
        ignore_eos=st.booleans(),
        thinking=st.none()
        | st.builds(
            Thinking,
            start_id=st.just(9),
            end_id=st.just(10),
            opened=st.booleans(),
            budget=st.integers(0, 6),
            close_ids=st.sampled_from(((10,), (11, 10, 11))),
        ),
    ),
    arrival=st.integers(0, 20),
    aborted=st.none() | st.integers(1, 40),
)


@settings(max_examples=100)
@given(
    loads=st.lists(requests, min_size=1, max_size=8),
    num_blocks=st.integers(6, 14),
    budget=st.integers(1, 48),
    max_num_seqs=st.integers(1, 6),
)
def test_tokens_do_not_depend_on_overlap_or_on_aborts_beside(
    loads: list[Load], num_blocks: int, budget: int, max_num_seqs: int
) -> None:
    options = {"max_batch_tokens": budget, "max_num_seqs": max_num_seqs}
    whole = serve(engine(False, num_blocks, **options), loads, aborts=False)
    assert serve(engine(True, num_blocks, **options), loads, aborts=False) == whole
    for overlap in (False, True):
        streams = serve(engine(overlap, num_blocks, **options), loads, aborts=True)
        for load, stream, expected in zip(loads, streams, whole, strict=True):
            if stream.reason is None:
                assert load.aborted is not None
                assert stream.token_ids == expected.token_ids[: len(stream.token_ids)]
            else:
                assert stream == expected


def test_a_real_model_gives_the_same_tokens(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "qwen3")
    options = EngineOptions(
        model=str(tmp_path), device="cpu", kv_cache_tokens=256, max_batch_tokens=32
    )
    model = load_model(options)
    tokens = []
    for overlap in (False, True):
        running = Engine(model, options, overlap=overlap)
        for i, settings_ in enumerate(
            ({}, {"temperature": 0.8}, {"repetition_penalty": 1.3}, {"temperature": 1.0})
        ):
            prompt = [(7 * i + place) % 199 for place in range(20 + 9 * i)]
            running.add(str(i), prompt, params(40, seed=i, **settings_))
        tokens.append(run_to_end(running))
    assert {len(ids) for ids in tokens[0].values()} == {40}
    assert tokens[0] == tokens[1]


class Device:
    """A device that runs on its own: the host may read what it computes only after a wait.

    `log` says when steps were launched and when the host waited for which.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self._on_device = False
        self._copies = 0
        for name in ("tolist", "item", "__int__", "__bool__", "__index__", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._guarded(getattr(torch.Tensor, name)))
        monkeypatch.setattr("qwell.runtime.sampled_ids.to_host", self._to_host)
        # On a CPU, which is what the tensors are on, it reads at once.
        monkeypatch.setattr("qwell.runtime.engine.broken_rows", lambda _: frozenset)

    def engine(self, overlap: bool, **options: Any) -> Engine:
        running = engine(overlap, sample=self._argmax, **options)
        decoder = running.model.decoder
        forward = decoder.forward

        def launch(*arguments: Any) -> Tensor:
            self.log.append(f"launch {len(decoder.steps)}")
            with self._inside():
                return forward(*arguments)

        decoder.forward = launch
        return running

    def _argmax(self, logits: Tensor, **_: Tensor) -> Tensor:
        return logits.argmax(dim=1).to(torch.int32)

    def _to_host(self, values: Tensor) -> Callable[[], list[int]]:
        number = self._copies
        self._copies += 1

        def wait() -> list[int]:
            self.log.append(f"wait {number}")
            with self._inside():
                return values.tolist()

        return wait

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._on_device = True
        yield
        self._on_device = False

    def _guarded(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any) -> Any:
            assert self._on_device, "the host reads a tensor that may not be computed yet"
            return read(*arguments)

        return guarded


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        (False, ["launch 0", "wait 0", "launch 1", "wait 1", "launch 2", "wait 2"]),
        (True, ["launch 0", "launch 1", "wait 0", "launch 2", "wait 1", "wait 2"]),
    ],
)
def test_a_step_is_launched_before_the_host_waits_for_the_last_one(
    monkeypatch: pytest.MonkeyPatch, overlap: bool, expected: list[str]
) -> None:
    device = Device(monkeypatch)
    running = device.engine(overlap)
    running.add("a", PROMPT, params(3, ignore_eos=True))
    running.add("b", PROMPT, params(3, ignore_eos=True, repetition_penalty=1.2))
    tokens = run_to_end(running)
    assert device.log == expected
    assert [len(ids) for ids in tokens.values()] == [3, 3]


def test_at_most_one_step_is_ahead_also_while_a_prompt_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)
    running = device.engine(True, max_batch_tokens=8)
    running.add("a", [1] * 30, params(1))
    run_to_end(running)
    assert device.log == [
        "launch 0",
        "launch 1",
        "wait 0",
        "launch 2",
        "wait 1",
        "launch 3",
        "wait 2",
        "wait 3",
    ]


def test_an_end_at_max_tokens_costs_no_step_and_an_end_id_one_token() -> None:
    text = greedy(engine(False), PROMPT, 60)
    assert text[-1] == EOS, "the prompt must lead to an end id"
    for max_tokens, wasted in ((len(text) - 1, 0), (len(text), 0), (60, 1)):
        computed = []
        for overlap in (False, True):
            running = engine(overlap)
            assert greedy(running, PROMPT, max_tokens) == text[:max_tokens]
            computed.append(sum(running.model.decoder.steps))
        assert computed[1] == computed[0] + wasted


def test_results_in_flight_are_work_until_they_are_delivered() -> None:
    running = engine(True)
    running.add("a", PROMPT, params(1, ignore_eos=True))
    assert running.step() == []
    assert running.has_work
    [output] = running.step()
    assert (output.request_id, output.finish_reason) == ("a", "length")
    assert not running.has_work


@pytest.mark.parametrize("steps", range(5))
def test_blocks_of_an_aborted_request_serve_the_next_one_at_once(steps: int) -> None:
    prompt = [place % VOCAB for place in range(50)]
    alone = greedy(engine(False, 4), prompt, 14)
    running = engine(True, 4)
    running.add("a", [9] * 52, params(12, ignore_eos=True))
    for _ in range(steps):
        running.step()
    running.abort("a")
    assert running.num_free_blocks == 4
    assert greedy(running, prompt, 14) == alone


def test_a_sequence_preempted_in_flight_keeps_the_token_that_was_drawn() -> None:
    prompts = [[1] * 31, [2] * 30]
    alone = []
    for prompt in prompts:
        running = engine(False, 4)
        running.add("a", prompt, params(20, ignore_eos=True))
        alone.append(run_to_end(running)["a"])
    running = engine(True, 4)
    for i, prompt in enumerate(prompts):
        running.add(str(i), prompt, params(20, ignore_eos=True))
    tokens = run_to_end(running)
    assert [tokens["0"], tokens["1"]] == alone
    # The younger gave its 31 cached tokens back when the older needed a third block.
    assert sum(running.model.decoder.steps) == 31 + 30 + 2 * 19 + 31


def test_an_id_that_is_used_again_gets_no_token_of_its_aborted_namesake() -> None:
    alone = greedy(engine(False), [7, 7], 6)
    running = engine(True)
    running.add("greedy", PROMPT, params(30, ignore_eos=True))
    for _ in range(3):
        running.step()
    running.abort("greedy")
    assert greedy(running, [7, 7], 6) == alone


def test_an_abort_in_the_last_step_leaves_nothing() -> None:
    running = engine(True)
    running.add("a", PROMPT, params(1))
    running.add("none", PROMPT, params(0))
    assert running.step() == [TokenOutput("none", [], "length")]
    running.abort("a")
    assert running.step() == []
    assert not running.has_work
    assert running.num_free_blocks == 16

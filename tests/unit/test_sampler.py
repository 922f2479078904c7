"""Sampling as a user meets it: parameters do what they say, seeds repeat, greedy is greedy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwell.kernels.registry import build_ops
from qwell.runtime.errors import RequestError
from qwell.runtime.sampler import Sampler, uniform
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Sequence

OPS = build_ops(torch.device("cpu"), torch.float32)
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.0])


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    return torch.as_tensor(Sampler(OPS).next_ids(logits, sequences)).tolist()


def draws(count: int, prompt: tuple[int, ...] = (4,), **settings: Any) -> list[int]:
    params = SamplingParams(**settings)
    sequences = [Sequence(str(i), list(prompt), len(prompt), params, seed=i) for i in range(count)]
    return sample(LOGITS.repeat(count, 1), sequences)


def test_frequencies_are_the_softmax_of_the_logits() -> None:
    count = 4000
    seen = Counter(draws(count, temperature=0.7))
    expected = (LOGITS / 0.7).softmax(0).tolist()
    # Pearson's statistic: above 23.5 once in 10,000 with four degrees of freedom.
    statistic = sum((seen[i] - count * p) ** 2 / (count * p) for i, p in enumerate(expected))
    assert statistic < 23.5


def test_temperature_zero_takes_the_first_maximum() -> None:
    assert set(draws(50, temperature=0.0)) == {0}


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1, 4}),  # ids 1 and 4 tie for the second place: both stay
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {0}),  # id 0 alone has 0.52
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 1e-9}, {0}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.3}, {0, 1, 4}),
        ({"min_p": 1.0}, {0}),
        ({"temperature": 1e-6}, {0}),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.3}, {0, 1, 4}),
    ],
)
def test_truncation_keeps_exactly_the_likely_ids(
    settings: dict[str, Any], possible: set[int]
) -> None:
    assert set(draws(400, **settings)) == possible


def test_repetition_penalty_counts_prompt_and_output_once() -> None:
    # 2 / 2.5 = 0.8 is below id 1's 1.0; seen twice must not divide twice.
    assert set(draws(3, (0, 0), temperature=0.0, repetition_penalty=1.5)) == {0}
    assert set(draws(3, (0, 0), temperature=0.0, repetition_penalty=2.5)) == {1}
    assert set(draws(3, (0, 1), temperature=0.0, repetition_penalty=2.5)) == {4}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # LOGITS are 2, 1, 0, -1, 1.
        ({"logit_bias": {3: 3.5}}, 3),
        ({"bad_token_ids": (0,)}, 1),
        ({"allowed_token_ids": (2, 3)}, 2),
        ({"allowed_token_ids": (2, 3), "logit_bias": {3: 1.5, 0: 100.0}}, 3),
        ({"allowed_token_ids": (2, 3, 4), "bad_token_ids": (4,)}, 2),
    ],
)
def test_biases_and_bans_decide_which_id_is_likely(settings: dict[str, Any], expected: int) -> None:
    assert draws(1, temperature=0.0, **settings) == [expected]


@pytest.mark.parametrize("count", [16, 17, 40])
def test_any_number_of_ids_may_be_biased_and_banned(count: int) -> None:
    logits = torch.arange(128.0) / 2
    biased = dict.fromkeys(range(count), 80.0)
    upper_half = tuple(range(count // 2, count))

    def likeliest(**settings: Any) -> int:
        params = SamplingParams(temperature=0.0, **settings)
        (token_id,) = sample(logits.repeat(1, 1), [Sequence("a", [0], 1, params, seed=0)])
        return token_id

    assert likeliest(logit_bias=biased) == count - 1
    assert likeliest(bad_token_ids=tuple(range(128 - count, 128))) == 127 - count
    assert likeliest(logit_bias=biased, bad_token_ids=upper_half) == count // 2 - 1
    assert likeliest(allowed_token_ids=tuple(biased), bad_token_ids=upper_half) == count // 2 - 1


@pytest.mark.parametrize(
    ("generated", "settings", "expected"),
    [
        ((), {"presence_penalty": 2.0}, 0),  # the prompt holds id 0, which does not count
        ((0,), {"presence_penalty": 0.9}, 0),
        ((0,), {"presence_penalty": 1.1}, 1),
        ((0, 0), {"presence_penalty": 0.9}, 0),
        ((0,), {"frequency_penalty": 0.6}, 0),
        ((0, 0), {"frequency_penalty": 0.6}, 1),
        ((0, 0), {"frequency_penalty": 0.4, "presence_penalty": 0.3}, 1),
        ((2, 2), {"frequency_penalty": -1.1}, 2),
    ],
)
def test_openais_penalties_count_generated_tokens(
    generated: tuple[int, ...], settings: dict[str, Any], expected: int
) -> None:
    params = SamplingParams(temperature=0.0, **settings)
    known = Sequence("a", [0, *generated], 1, params, seed=0)
    arriving = Sequence("b", [0], 1, params, seed=0)
    for token_id in generated:
        arriving.num_in_flight += 1
        arriving.arrived(token_id)
    assert sample(LOGITS.repeat(2, 1), [known, arriving]) == [expected] * 2


def test_ids_that_end_a_text_are_banned_until_min_tokens() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2)
    ends = frozenset((0, 1))
    texts = [[9, 9], [9, 9, 4], [9, 9, 4, 4]]
    sequences = [Sequence("a", text, 2, params, seed=0, late_ids=ends) for text in texts]
    assert sample(LOGITS.repeat(3, 1), sequences) == [4, 4, 0]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    mixed = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.5, top_p=0.8),
        SamplingParams(temperature=1.0, repetition_penalty=1.3, top_k=3),
        SamplingParams(temperature=1.2, typical_p=0.7, logit_bias={5: 4.0, 2: -3.0}),
        SamplingParams(temperature=1.2, allowed_token_ids=(3, 5, 7), presence_penalty=1.0),
    ] * 5
    sequences = [Sequence(str(i), [1, 2], 2, p, seed=7 * i) for i, p in enumerate(mixed)]
    logits = torch.randn(len(mixed), 300, generator=torch.Generator().manual_seed(0))
    together = sample(logits.clone(), sequences)
    alone = [
        sample(logits[i : i + 1].clone(), [sequence])[0] for i, sequence in enumerate(sequences)
    ]
    assert together == alone


@given(seed=st.integers(-(2**63), 2**63 - 1), step=st.integers(0, 2**31))
def test_the_draw_is_a_function_of_seed_and_step(seed: int, step: int) -> None:
    assert 0.0 <= uniform(seed, step) < 1.0
    assert uniform(seed, step) == uniform(seed, step)
    assert uniform(seed, step) != uniform(seed, step + 1)
    bits = np.random.Philox(key=seed % 2**64, counter=[0, 0, 0, step])
    assert uniform(seed, step) == np.random.Generator(bits).random()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"typical_p": 1.1}, "typical_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"logit_bias": {3: 100.5}}, "logit_bias"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias"),
        ({"allowed_token_ids": ()}, "allowed_token_ids"),
        ({"allowed_token_ids": (1, 2), "bad_token_ids": (2, 1)}, "allowed_token_ids"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x",) * 17}, "stop"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError, match=field) as error:
        SamplingParams(**settings)
    assert error.value.param == field

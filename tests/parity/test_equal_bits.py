"""Log-probabilities have the same bits however a request is run: what packed weights promise."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from engines import start_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwell.kernels.reference.linear import linear
from qwell.runtime.engine import Engine
from qwell.runtime.sampling_params import SamplingParams

# The last one is too small for all prompts at once.
WAYS = [{"threads": 2}, {"max_batch_tokens": 7, "eager": True}, {"kv_cache_tokens": 272}]
PHRASE = [5, 9, 2, 60]
# Some begin alike, some repeat themselves, which is guessed; one is of a single token.
PROMPTS = [[7], PHRASE * 6, PHRASE * 6 + [1, 2], [*range(3, 70)], [*range(3, 60)] + PHRASE * 3]


@dataclass
class Answer:
    token_ids: list[int]
    bits: bytes


def ask(engine: Engine, places: list[int]) -> dict[int, Answer]:
    """Of some prompts at once: one in two greedy, one in two with the prompt's scores."""
    answers = {place: Answer([], b"") for place in places}
    for place in places:
        params = SamplingParams(
            max_tokens=24,
            temperature=float(place % 2),
            seed=place,
            logprobs=3 if place % 3 else None,
            prompt_logprobs=None if place % 2 else 1,
            ignore_eos=True,
        )
        engine.add(str(place), PROMPTS[place], params)
    while engine.has_work:
        for output in engine.step():
            answer = answers[int(output.request_id)]
            answer.token_ids += output.token_ids
            for scores in (output.prompt_logprobs, output.logprobs):
                answer.bits += b"" if scores is None else scores.chosen
    return answers


def check(folder: Path, options: dict[str, Any], kernels: dict[str, Any]) -> None:
    plain = {"prefix_cache": False, "speculation": False, "threads": 1}
    engine = start_engine(folder, kernels, **plain, **options)
    places = list(range(len(PROMPTS)))
    alone = {place: ask(engine, [place])[place] for place in places}
    for way in WAYS:
        engine = start_engine(folder, kernels, **options, **way)
        # The second time prompts are found in the cache.
        for order in (places, places[::-1]):
            assert ask(engine, order) == alone, way


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    family=st.sampled_from(("qwen2", "qwen3")),
    heads=st.sampled_from(((4, 2), (3, 1), (2, 2))),
    head_dim=st.sampled_from((16, 64, 80)),
    window=st.sampled_from((None, 5, 16, 33)),
    weights=st.sampled_from(("f32", "bf16", "int8", "int4")),
    cache=st.sampled_from(("float32", "bfloat16", "int8")),
)
def test_bits_do_not_depend_on_how_a_request_is_run(
    family: str,
    heads: tuple[int, int],
    head_dim: int,
    window: int | None,
    weights: str,
    cache: str,
) -> None:
    sizes: dict[str, Any] = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    if window is not None:
        sizes |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    if heads[0] * head_dim % 32:
        weights = "bf16"  # integers come in groups of 32
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), family, head_dim=head_dim, **sizes)
        check(Path(folder), {"weights": weights, "kv_cache_dtype": cache}, {})


def test_an_op_that_depends_on_the_batch_is_caught(tmp_path: Path) -> None:
    def changing(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, weight, bias) * (1.0 + 1e-4 * len(x))

    make_checkpoint(tmp_path)
    with pytest.raises(AssertionError, match="threads"):
        check(tmp_path, {}, {"linear": changing})

"""Decoder layers by fused ops: five calls each, for steps of a few decodes, and the same text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, make_checkpoint
from composed_ops import ComposedOps
from engines import greedy, run_to_end, start_engine

from qwell.kernels.fused_ops import FUSED_OP_NAMES, MAX_FUSED_TOKENS
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.loader import load_model
from qwell.runtime.sampling_params import SamplingParams

PROMPT = [5, 3, 8, 13]
LAYERS = SMALL["num_hidden_layers"]


def fused_engine(folder: Path) -> tuple[Engine, ComposedOps]:
    options = EngineOptions(model=str(folder), device="cpu", weight_cache=False)
    model = load_model(options)
    composed = ComposedOps(model.decoder.ops)
    decoder = replace(model.decoder, fused=composed.fused())
    return Engine(replace(model, decoder=decoder), options), composed


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_the_text_is_the_same_by_five_calls_a_layer(family: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, family)
    expected = greedy(start_engine(tmp_path), PROMPT, 9)
    engine, composed = fused_engine(tmp_path)
    assert greedy(engine, PROMPT, 9) == expected
    # The prompt comes first, and its last token gives the first of the nine.
    assert composed.calls == dict.fromkeys(FUSED_OP_NAMES, 8 * LAYERS)


def test_larger_steps_and_prompts_run_separate_ops(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "qwen3")
    expected = greedy(start_engine(tmp_path), PROMPT, 4)
    engine, composed = fused_engine(tmp_path)
    many = [str(i) for i in range(MAX_FUSED_TOKENS + 1)]
    for name in many:
        engine.add(name, PROMPT, SamplingParams(max_tokens=4, temperature=0.0))
    assert run_to_end(engine) == dict.fromkeys(many, expected)
    assert not composed.calls


def test_logits_of_prompts_are_the_same_bits(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "qwen2")
    engine, composed = fused_engine(tmp_path)
    assert torch.equal(engine.logits(PROMPT), start_engine(tmp_path).logits(PROMPT))
    assert not composed.calls

"""Penalties and truncation against Hugging Face's logits processors: the same ids are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from qwell.kernels.registry import build_ops
from qwell.runtime.sampler import Sampler, uniform
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.sequence import Sequence

NATIVE = build_ops(torch.device("cpu"), torch.float32)
REFERENCE = build_ops(
    torch.device("cpu"),
    torch.float32,
    {"sample": "reference", "adjust_logits": "reference"},
)
VOCAB = 300
ROWS = 100

PROCESSORS: dict[str, Callable[..., Any]] = {
    "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor,
    "temperature": hf.TemperatureLogitsWarper,
    "top_k": hf.TopKLogitsWarper,
    "top_p": hf.TopPLogitsWarper,
    "min_p": hf.MinPLogitsWarper,
    "typical_p": hf.TypicalLogitsWarper,
}
"""In the order in which generate() applies them."""

SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "temperature": 0.8},
    {"top_k": 20},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"typical_p": 0.9},
    {"typical_p": 0.2, "temperature": 1.5},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.5, "top_k": 60, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.7},
    {"repetition_penalty": 1.2, "temperature": 0.6, "top_p": 0.95, "typical_p": 0.5},
]


def expected(logits: Tensor, texts: Tensor, settings: dict[str, Any], draws: Tensor) -> list[int]:
    for name, processor in PROCESSORS.items():
        if name in settings:
            logits = processor(settings[name])(texts, logits)
    cumulative = logits.double().softmax(dim=1).cumsum(dim=1)
    return torch.searchsorted(cumulative, draws.unsqueeze(1), right=True).squeeze(1).tolist()


@pytest.mark.parametrize("ops", [NATIVE, REFERENCE], ids=["native", "reference"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_ids_are_drawn(settings: dict[str, Any], ops: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(ROWS, VOCAB, generator=generator)
    texts = torch.randint(VOCAB, (ROWS, 80), generator=generator)
    params = SamplingParams(**settings)
    sequences = [
        Sequence(str(seed), text, 50, params, seed) for seed, text in enumerate(texts.tolist())
    ]
    draws = torch.tensor([uniform(s.seed, s.num_generated) for s in sequences], dtype=torch.float64)
    wanted = expected(logits, texts, settings, draws)
    assert torch.as_tensor(Sampler(ops).next_ids(logits, sequences)).tolist() == wanted

"""A whole engine on a GPU that is made up: the tokens of a CPU, and no wait but for them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import torch
from pretended_gpu import CUDA, PretendedGpu, gpu_ops, moved
from small_config import SMALL

from qwell.bench.checkpoints import true_config
from qwell.bench.gpu.model import random_model
from qwell.bench.gpu.parity import REFERENCE
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.largest_step import largest_step, smaller_steps
from qwell.runtime.loader import LoadedModel
from qwell.runtime.messages import TokenOutput
from qwell.runtime.sampling_params import SamplingParams
from qwell.runtime.thinking import Thinking

CONFIG = true_config("qwen3-0.6b") | SMALL | {"num_hidden_layers": 1}
OPTIONS = EngineOptions(
    model="", max_batch_tokens=64, max_num_seqs=12, eos_token_ids=(7,), speculation=False
)
THINKING = Thinking(start_id=9, end_id=10, opened=True, budget=5, close_ids=(11, 10, 12))
REQUESTS = {
    "plain": ([1, 2, 3], SamplingParams(max_tokens=12, temperature=0.0)),
    "long": ([5] * 100, SamplingParams(max_tokens=9, temperature=0.8, seed=1, top_k=40)),
    "penalised": (
        [4, 4, 6],
        SamplingParams(
            max_tokens=12,
            temperature=0.9,
            top_p=0.9,
            seed=2,
            repetition_penalty=1.3,
            frequency_penalty=0.4,
            logit_bias={5: 2.0},
        ),
    ),
    "scored": ([8] * 70, SamplingParams(max_tokens=6, logprobs=3, prompt_logprobs=2, seed=3)),
    "thinks": ([3] * 9, SamplingParams(max_tokens=14, temperature=1.0, seed=4, thinking=THINKING)),
    "few": (
        [2] * 17,
        SamplingParams(
            max_tokens=12, allowed_token_ids=[1, 2, 3, 7], min_tokens=9, temperature=1.0, seed=5
        ),
    ),
}


def outputs_of(engine: Engine) -> dict[str, list[TokenOutput]]:
    """What came out for every request, until there is nothing left to do."""
    found: dict[str, list[TokenOutput]] = {name: [] for name in REQUESTS}
    for name, (prompt, params) in REQUESTS.items():
        engine.add(name, prompt, params)
    while engine.has_work:
        for output in engine.step():
            found[output.request_id].append(output)
    return found


def tokens(outputs: dict[str, list[TokenOutput]]) -> dict[str, list[int]]:
    return {name: [i for o in each for i in o.token_ids] for name, each in outputs.items()}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return random_model(CONFIG, REFERENCE, 1024, 512, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("eager", [True, False])
def test_an_engine_runs_beside_its_gpu(
    model: LoadedModel, eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs_of(Engine(model, OPTIONS, overlap=False))
    decoder = replace(moved(model.decoder), ops=gpu_ops(REFERENCE))
    on_gpu = replace(model, decoder=decoder, cache=moved(model.cache), device=CUDA)
    monkeypatch.setattr("qwell.runtime.forward.cuda_capture", lambda: lambda step: step)
    with PretendedGpu(monkeypatch) as gpu:
        largest_step(OPTIONS, decoder, torch.float32, CUDA)
        smaller_steps(OPTIONS, decoder, torch.float32, CUDA)
        engine = Engine(on_gpu, msgspec.structs.replace(OPTIONS, eager=eager))
        found = outputs_of(engine)
    assert gpu.waits > 0
    assert tokens(found) == tokens(expected)
    assert {name: each[-1].finish_reason for name, each in found.items()} == {
        name: each[-1].finish_reason for name, each in expected.items()
    }
    assert top_ids(found["scored"]) == top_ids(expected["scored"])


def top_ids(outputs: list[TokenOutput]) -> list[bytes]:
    """The most likely ids at the tokens of a prompt, then at those that were drawn."""
    scores = [[o.prompt_logprobs for o in outputs], [o.logprobs for o in outputs]]
    return [b"".join(s.top_ids for s in of_some if s is not None) for of_some in scores]

"""A model that computes no numbers says so: a draw from NaN would be one token for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from engines import greedy, start_engine
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from serving import ServerProcess
from tiny_tokenizers import tiny_backend
from token_model import VOCAB, token_model
from torch import Tensor

from qwell import LLM, SamplingParams
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import ModelError

BAD = ord("x")
TEXT = "hello, hello, hello"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which the embedding of one token, x, is damaged."""
    path = tmp_path_factory.mktemp("damaged")
    backend = tiny_backend()
    make_checkpoint(path, vocab_size=backend.get_vocab_size())
    backend.save(str(path / "tokenizer.json"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][BAD, 3] = torch.nan
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("options", [{}, {"eager": True}, {"dtype": "bfloat16"}])
def test_one_request_ends_and_those_beside_it_do_not(folder: Path, options: dict[str, Any]) -> None:
    engine = start_engine(folder, **options)
    alone = greedy(engine, list(TEXT.encode()), 8)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    engine.add("damaged", list(b"axb"), params)
    engine.add("sound", list(TEXT.encode()), params)
    outputs = [output for _ in range(12) for output in engine.step()]
    [last] = [output for output in outputs if output.request_id == "damaged"]
    assert last.is_fault
    assert last.token_ids == []
    assert "not numbers" in str(last.error)
    assert [i for o in outputs if o.request_id == "sound" for i in o.token_ids] == alone
    assert not engine.has_work


def test_in_python_it_is_an_error_of_the_model(folder: Path) -> None:
    llm = LLM(folder, device="cpu", weight_cache=False)
    with pytest.raises(ModelError, match=r"prompt 1: .*not numbers"):
        llm.generate([TEXT, "axb"], SamplingParams(max_tokens=4, temperature=1.0, seed=0))
    assert len(llm.generate([TEXT], SamplingParams(max_tokens=4))[0].token_ids) <= 4


def test_over_http_it_is_a_500_that_is_not_to_be_tried_again(folder: Path, tmp_path: Path) -> None:
    with ServerProcess(folder, tmp_path / "log", worker=()) as server:
        fields = {"model": "m", "max_tokens": 4}
        plain = server.post("/v1/completions", {**fields, "prompt": "axb"})
        streamed = server.post("/v1/completions", {**fields, "prompt": "axb", "stream": True})
        assert (plain.status_code, plain.headers["x-should-retry"]) == (500, "false")
        for answer in (plain, streamed):
            assert '"code":"model_error"' in answer.text
        assert server.post("/v1/completions", {**fields, "prompt": TEXT}).status_code == 200


@given(bad=st.integers(0, 5), overlap=st.booleans())
def test_steps_that_overlap_end_it_too(bad: int, overlap: bool) -> None:
    """The step after the one that is broken may be under way already."""
    model = token_model(num_blocks=8)
    forward, calls = model.decoder.forward, 0

    def break_one(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        logits: Tensor = forward(*args)
        return torch.full_like(logits, torch.nan) if calls == bad + 1 else logits

    model.decoder.forward = break_one
    options = EngineOptions(model="", eager=True, speculation=False)
    engine = Engine(model, options, overlap=overlap)
    free = engine.num_free_blocks
    engine.add("a", [1, VOCAB - 1], SamplingParams(max_tokens=6, temperature=0.0))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [output.is_fault for output in outputs] == [False] * bad + [True]
    assert sum(len(output.token_ids) for output in outputs) == bad
    assert engine.num_free_blocks == free

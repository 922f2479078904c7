"""The first generation against an independent transcription of its published formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_close, mean_kl
from engines import greedy, start_engine
from qwen_v1 import CONFIG, forward, make_weights, write_checkpoint

from qwell.runtime.errors import RequestError, UnsupportedModelError

FIRST_RELEASE_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
}


def ids_of(count: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, CONFIG["vocab_size"], (count,), generator=draw)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_dynamic_ntk": False, "use_logn_attn": False, "rotary_emb_base": 1000000},
        {"layer_norm_epsilon": 1e-5, "num_hidden_layers": 1},
        {"kv_channels": 24, "num_attention_heads": 3, "hidden_size": 72},
    ],
)
def test_fp32_logits_and_greedy_text(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = CONFIG | changes
    weights = make_weights(config, seed=3)
    write_checkpoint(tmp_path, config, weights)
    engine = start_engine(tmp_path)
    ids = ids_of(config["seq_length"])
    assert_close(engine.logits(ids.tolist()), forward(config, weights, ids), relative=1e-4)

    text = ids[:10].tolist()
    for _ in range(64):
        text.append(int(forward(config, weights, torch.tensor(text))[-1].argmax()))
    assert greedy(engine, text[:10], 64) == text[10:]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_bf16_distributions(tmp_path: Path, dtype: str) -> None:
    config = CONFIG | {"bf16": True, "fp32": False}
    weights = {name: t.bfloat16() for name, t in make_weights(config, seed=5).items()}
    write_checkpoint(tmp_path, config, weights)
    ids = ids_of(100)
    engine = start_engine(tmp_path, dtype=dtype)
    assert mean_kl(forward(config, weights, ids), engine.logits(ids.tolist())) <= 1e-3


def test_the_names_of_the_first_release(tmp_path: Path) -> None:
    weights = make_weights(CONFIG, seed=3)
    renamed = {new: old for old, new in FIRST_RELEASE_NAMES.items()}
    write_checkpoint(tmp_path, {renamed.get(k, k): v for k, v in CONFIG.items()}, weights)
    ids = ids_of(20)
    logits = start_engine(tmp_path).logits(ids.tolist())
    assert_close(logits, forward(CONFIG, weights, ids), relative=1e-4)


def test_buffers_of_early_files_are_let_pass(tmp_path: Path) -> None:
    weights = make_weights(CONFIG, seed=3)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    weights["transformer.h.1.rotary_emb.inv_freq"] = torch.ones(8)
    write_checkpoint(tmp_path, CONFIG, weights)
    assert start_engine(tmp_path).info.vocab_size == CONFIG["vocab_size"]


def test_contexts_end_at_the_training_length(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, make_weights(CONFIG, seed=3))
    with pytest.raises(UnsupportedModelError, match=r"129.*seq_length is 128.*use_dynamic_ntk"):
        start_engine(tmp_path, max_model_len=129)
    engine = start_engine(tmp_path)
    assert engine.info.max_model_len == 128
    with pytest.raises(RequestError, match="128 tokens, but 129"):
        engine.logits(ids_of(129).tolist())


def test_beyond_the_training_length_the_original_differs(tmp_path: Path) -> None:
    """Why the limit is there: the plain formulas are not the model's any more."""
    config = CONFIG | {"seq_length": 64}
    weights = make_weights(config, seed=3)
    write_checkpoint(tmp_path, config | {"seq_length": 128}, weights)
    ids = ids_of(100)
    engine = start_engine(tmp_path)
    with pytest.raises(AssertionError, match="of the tolerance"):
        assert_close(engine.logits(ids.tolist()), forward(config, weights, ids), relative=1e-4)

"""Small models whose every op is Triton's, against Hugging Face."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from compare import assert_close
from engines import greedy, start_engine

from qwell.kernels.fused_ops import FusedOps
from qwell.kernels.ops import OP_NAMES
from qwell.kernels.registry import describe
from qwell.kernels.triton.adjust_logits import adjust_logits
from qwell.kernels.triton.attention import attention
from qwell.kernels.triton.embedding import embedding
from qwell.kernels.triton.linear import linear
from qwell.kernels.triton.linear_add import linear_add
from qwell.kernels.triton.logprobs import logprobs
from qwell.kernels.triton.merge_linear_add import merge_linear_add
from qwell.kernels.triton.norm_linear import norm_linear
from qwell.kernels.triton.norm_linear_silu_mul import norm_linear_silu_mul
from qwell.kernels.triton.rms_norm import rms_norm
from qwell.kernels.triton.rope import rope
from qwell.kernels.triton.rope_attention import rope_attention
from qwell.kernels.triton.sample import sample
from qwell.kernels.triton.silu_mul import silu_mul
from qwell.runtime.engine import Engine
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.loader import load_model

OPS = {
    "adjust_logits": adjust_logits,
    "attention": attention,
    "embedding": embedding,
    "linear": linear,
    "logprobs": logprobs,
    "rms_norm": rms_norm,
    "rope": rope,
    "sample": sample,
    "silu_mul": silu_mul,
}
FUSED = FusedOps(
    norm_linear=norm_linear,
    rope_attention=rope_attention,
    merge_linear_add=merge_linear_add,
    norm_linear_silu_mul=norm_linear_silu_mul,
    linear_add=linear_add,
)
PROMPT = [7, 3, 100, 42, 5, 9, 77, 12, 60, 31, 2]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_whole_model_equals_hugging_face(family: str, tmp_path: Path, interp_guard) -> None:
    model = make_checkpoint(
        tmp_path,
        family,
        vocab_size=103,
        num_hidden_layers=2,
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        intermediate_size=56,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
    )
    engine = start_engine(tmp_path, OPS, max_batch_tokens=7)
    assert set(OPS) == set(OP_NAMES)
    assert set(describe(engine.model.decoder.ops).values()) == {"triton"}
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
        text = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=4, do_sample=False, eos_token_id=None
        )[0, len(PROMPT) :].tolist()
    with interp_guard():
        assert_close(engine.logits(PROMPT), expected, relative=1e-4)
        assert greedy(engine, PROMPT, 4) == text


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_whole_model_decodes_the_same_text_by_fused_ops(
    family: str, tmp_path: Path, interp_guard
) -> None:
    model = make_checkpoint(
        tmp_path,
        family,
        vocab_size=103,
        num_hidden_layers=2,
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        intermediate_size=56,
    )
    options = EngineOptions(model=str(tmp_path), device="cpu", weight_cache=False)
    loaded = load_model(options, OPS)
    decoder = replace(loaded.decoder, fused=FUSED)
    with torch.no_grad():
        text = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=4, do_sample=False, eos_token_id=None
        )[0, len(PROMPT) :].tolist()
    with interp_guard():
        engine = Engine(replace(loaded, decoder=decoder), options)
        assert greedy(engine, PROMPT, 4) == text

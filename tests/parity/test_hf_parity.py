"""The forward pass against Hugging Face on random small checkpoints of the true architectures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from compare import assert_close, mean_kl
from engines import greedy, start_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from qwell.kernels.reference.rope import rope

FP32_TOLERANCE = 1e-4  # x max|logit|
BF16_MEAN_KL = 1e-3  # nats


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A family and settings: GQA ratios, head sizes, tied or not, odd vocabularies, shards."""
    family = draw(st.sampled_from(("qwen2", "qwen3")))
    kv_heads = draw(st.sampled_from((1, 2, 3)))
    # 24 and 80 are no powers of two; heads x head_dim need not be the hidden size.
    head_dim = draw(st.sampled_from((16, 24, 64, 80, 128)))
    config: dict[str, Any] = {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.sampled_from((1, 2, 4, 7))),
        "head_dim": head_dim,
        "hidden_size": draw(st.sampled_from((32, 56, 96))),
        "intermediate_size": draw(st.sampled_from((40, 97, 160))),
        "num_hidden_layers": draw(st.sampled_from((1, 3))),
        "vocab_size": draw(st.sampled_from((151, 256, 499))),
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from((1e-6, 1e-5))),
        "max_shard_size": draw(st.sampled_from(("1GB", "60KB"))),
        "seed": draw(st.integers(0, 2**16)),
    }
    theta = draw(st.sampled_from((1e4, 1e6)))
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if draw(st.booleans()):
        config["rope_parameters"] = {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    if draw(st.booleans()):
        config |= {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    return family, config


def hf_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def hf_greedy(model: PreTrainedModel, ids: list[int], max_tokens: int) -> list[int]:
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(ids) :].tolist()


def random_ids(count: int, vocab_size: int, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (count,), generator=draw).tolist()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoint=checkpoints(), length=st.integers(1, 90))
def test_fp32_logits_and_greedy_text_equal_hugging_face(
    checkpoint: tuple[str, dict[str, Any]], length: int
) -> None:
    family, config = checkpoint
    with tempfile.TemporaryDirectory() as folder:
        model = make_checkpoint(Path(folder), family, **config)
        engine = start_engine(Path(folder), max_batch_tokens=37)
        ids = random_ids(length, config["vocab_size"], config["seed"])
        assert_close(engine.logits(ids), hf_logits(model, ids), relative=FP32_TOLERANCE)
        prompt = ids[:20]
        assert greedy(engine, prompt, 64) == hf_greedy(model, prompt, 64)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_bf16_distributions_are_those_of_hugging_face(
    tmp_path: Path, family: str, tied: bool, dtype: str
) -> None:
    model = make_checkpoint(
        tmp_path,
        family,
        dtype=torch.bfloat16,
        hidden_size=256,
        num_attention_heads=8,
        head_dim=32,
        intermediate_size=512,
        vocab_size=1000,
        tie_word_embeddings=tied,
    )
    exact_model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = random_ids(200, 1000, seed=1)
    exact, theirs = hf_logits(exact_model, ids), hf_logits(model, ids)
    ours = start_engine(tmp_path, dtype=dtype).logits(ids)
    # The criterion has teeth only where distributions are not nearly flat.
    assert exact.softmax(-1).amax(-1).mean() > 0.02
    # Against the same weights in fp32, rounding costs no more here than it does there; with
    # activations in fp32 less than half, and what is left between the two is mostly theirs.
    if dtype == "bfloat16":
        assert mean_kl(theirs, ours) <= BF16_MEAN_KL
        assert mean_kl(exact, ours) <= mean_kl(exact, theirs)
    else:
        assert mean_kl(exact, ours) <= mean_kl(exact, theirs) / 2
        assert mean_kl(exact, ours) <= BF16_MEAN_KL / 2


def test_a_wrong_rotation_is_noticed(tmp_path: Path) -> None:
    """The criterion can fail: rotating with half the angles is far out of tolerance."""

    def slow_rope(*args: Any) -> torch.Tensor:
        qkv, positions, *rest = args
        return rope(qkv, positions // 2, *rest)

    model = make_checkpoint(tmp_path)
    engine = start_engine(tmp_path, kernels={"rope": slow_rope})
    ids = random_ids(30, 199, seed=1)
    with pytest.raises(AssertionError, match="of the tolerance"):
        assert_close(engine.logits(ids), hf_logits(model, ids), relative=FP32_TOLERANCE)

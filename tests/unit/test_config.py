"""config.json: missing, wrong type and unsupported are three errors; nothing is ignored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from qwen_v1 import CONFIG as QWEN_V1
from transformers import Qwen2Config, Qwen3Config

from qwell.runtime.checkpoint.config import ModelConfig
from qwell.runtime.errors import (
    CheckpointError,
    ConfigKeyError,
    ConfigTypeError,
    UnsupportedModelError,
)
from qwell.runtime.models.registry import read_model_config

# As in the published files of Qwen2.5-7B-Instruct and Qwen3-0.6B.
QWEN2_5_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_0_6B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def read(folder: Path, config: dict[str, Any]) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    return read_model_config(folder)[1]


def test_published_configs(tmp_path: Path) -> None:
    qwen2 = read(tmp_path, QWEN2_5_7B)
    assert (qwen2.num_heads, qwen2.num_kv_heads, qwen2.head_dim) == (28, 4, 128)
    assert (qwen2.qkv_bias, qwen2.qk_norm, qwen2.tie_word_embeddings) == (True, False, False)
    assert qwen2.windows == (None,) * 28
    assert (qwen2.rope.theta, qwen2.rope.yarn) == (1e6, None)
    assert (qwen2.dtype, qwen2.max_position) == ("bfloat16", 32768)

    qwen3 = read(tmp_path, QWEN3_0_6B)
    assert (qwen3.num_heads, qwen3.num_kv_heads, qwen3.head_dim) == (16, 8, 128)
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.tie_word_embeddings) == (False, True, True)

    qwen = read(tmp_path, QWEN_V1)
    assert (qwen.intermediate_size, qwen.head_dim, qwen.max_position) == (96, 16, 128)


@pytest.mark.parametrize("config_class", [Qwen2Config, Qwen3Config])
def test_both_spellings_of_transformers_give_one_config(tmp_path: Path, config_class: Any) -> None:
    old = QWEN2_5_7B if config_class is Qwen2Config else QWEN3_0_6B
    new = json.loads(config_class(**old).to_json_string(use_diff=False))
    assert "rope_parameters" in new
    assert "layer_types" in new
    assert read(tmp_path, new) == read(tmp_path, old)


@pytest.mark.parametrize("base", [QWEN2_5_7B, QWEN3_0_6B])
def test_yarn(tmp_path: Path, base: dict[str, Any]) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = read(tmp_path, base | {"rope_scaling": scaling})
    assert config.max_position == 131072
    assert config.rope.yarn is not None
    assert config.rope.yarn.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_sliding_window_layers(tmp_path: Path) -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 26}
    assert read(tmp_path, QWEN2_5_7B | sliding).windows == (None,) * 26 + (64, 64)
    kinds = ["sliding_attention", "full_attention"] * 14
    mixed = read(tmp_path, QWEN2_5_7B | sliding | {"layer_types": kinds})
    assert mixed.windows == (64, None) * 14


@pytest.mark.parametrize("key", ["sliding_window", "max_window_layers"])
def test_a_window_of_unknown_size_or_place_is_not_taken_for_none(tmp_path: Path, key: str) -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 26}
    with pytest.raises(ConfigKeyError, match=f"use_sliding_window is true.* {key}"):
        read(tmp_path, QWEN2_5_7B | sliding | {key: None})


def test_an_empty_rope_scaling_does_not_hide_rope_parameters(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e6}
    config = read(tmp_path, QWEN3_0_6B | {"rope_scaling": {}, "rope_parameters": rope})
    assert config.rope.theta == 5e6


def test_qwen3_has_heads_of_128_unless_it_says_otherwise(tmp_path: Path) -> None:
    """As in transformers; hidden_size / num_attention_heads would be 64 here."""
    assert read(tmp_path, {k: v for k, v in QWEN3_0_6B.items() if k != "head_dim"}).head_dim == 128


@pytest.mark.parametrize("base", [QWEN2_5_7B, QWEN3_0_6B, QWEN_V1])
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_attention_heads", "vocab_size", "intermediate_size"]
)
def test_a_missing_key_is_named(tmp_path: Path, base: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigKeyError, match=f"{key} is missing"):
        read(tmp_path, {k: v for k, v in base.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "1024"),
        ("hidden_size", 1024.0),
        ("num_hidden_layers", True),
        ("rms_norm_eps", "1e-6"),
        ("tie_word_embeddings", 1),
        ("architectures", "Qwen3ForCausalLM"),
        ("rope_scaling", [4.0]),
        ("torch_dtype", 16),
        ("layer_types", ["full_attention"] * 27),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigTypeError, match=key):
        read(tmp_path, QWEN3_0_6B | {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["Qwen3MoeForCausalLM"]),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("hidden_size", 0),
        ("num_key_value_heads", 5),
        ("head_dim", 127),
        ("rms_norm_eps", -1e-6),
        ("dtype", "float8_e4m3fn"),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "mscale_per_layer": [1.0]}),
        ("layer_types", ["linear_attention"] * 28),
        ("layer_types", ["sliding_attention"] * 28),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("logit_softcap", 30.0),
    ],
)
def test_what_the_forward_pass_would_not_honour_is_refused(
    tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(UnsupportedModelError, match=key) as refusal:
        read(tmp_path, QWEN3_0_6B | {key: value})
    assert str(tmp_path / "config.json") in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("no_bias", False), ("rotary_pct", 0.25), ("intermediate_size", 193), ("fp16", True)],
)
def test_first_generation_settings_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        read(tmp_path, QWEN_V1 | {key: value})


def test_settings_that_are_off_are_let_pass(tmp_path: Path) -> None:
    read(tmp_path, QWEN3_0_6B | {"quantization_config": None, "use_mtp": False, "pruned_heads": {}})
    with pytest.raises(UnsupportedModelError, match="shift=0"):
        read(tmp_path, QWEN3_0_6B | {"shift": 0})


@pytest.mark.parametrize("base", [QWEN2_5_7B, QWEN3_0_6B, QWEN_V1])
def test_what_training_leaves_behind_is_let_pass(tmp_path: Path, base: dict[str, Any]) -> None:
    """As in files of transformers 4.4x, of its full dumps, and of fine-tunes by unsloth."""
    left = {"_attn_implementation_autoset": True, "unsloth_fixed": True, "pretraining_tp": 1}
    dumped = {"max_length": 20, "min_length": 0, "num_beams": 1, "top_k": 50, "temperature": 1.0}
    assert read(tmp_path, base | left | dumped) == read(tmp_path, base)


def test_an_unsupported_family_is_told_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM.*Qwen3ForCausalLM"):
        read(tmp_path, QWEN3_0_6B | {"architectures": ["LlamaForCausalLM"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[1]", "must hold a JSON object"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_model_config(tmp_path)
    assert str(path) in str(error.value)


def test_no_config_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_model_config(tmp_path)

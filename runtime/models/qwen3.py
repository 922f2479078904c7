"""Qwen3 dense (`Qwen3ForCausalLM`): RMS norms on q and k per head, no projection biases."""

from __future__ import annotations

from dataclasses import replace

from qwell.runtime.checkpoint.config import ModelConfig
from qwell.runtime.checkpoint.json_object import JsonObject
from qwell.runtime.models import qwen2

ARCHITECTURE = "Qwen3ForCausalLM"
DEFAULT_HEAD_DIM = 128

NAMES = replace(qwen2.NAMES, q_norm="self_attn.q_norm.weight", k_norm="self_attn.k_norm.weight")


def read_config(config: JsonObject) -> ModelConfig:
    """ModelConfig of a Qwen3 checkpoint."""
    config.require("attention_bias", (False,), default=False)
    return qwen2.read_dense_config(
        config, ARCHITECTURE, qkv_bias=False, qk_norm=True, head_dim=DEFAULT_HEAD_DIM
    )

"""Qwen1.5, Qwen2, Qwen2.5 dense (`Qwen2ForCausalLM`): biased q/k/v projections."""

from __future__ import annotations

from qwell.runtime.checkpoint.config import (
    GENERIC_KEYS,
    ModelConfig,
    read_dtype,
    read_heads,
    read_rope,
    read_windows,
)
from qwell.runtime.checkpoint.json_object import JsonObject
from qwell.runtime.models.dense import TensorNames

ARCHITECTURE = "Qwen2ForCausalLM"

NAMES = TensorNames(
    embedding="model.embed_tokens.weight",
    layer="model.layers.{i}.",
    input_norm="input_layernorm.weight",
    qkv=("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    o="self_attn.o_proj.weight",
    post_norm="post_attention_layernorm.weight",
    gate="mlp.gate_proj.weight",
    up="mlp.up_proj.weight",
    down="mlp.down_proj.weight",
    final_norm="model.norm.weight",
    head="lm_head.weight",
)


def read_config(config: JsonObject) -> ModelConfig:
    """ModelConfig of a Qwen2 checkpoint."""
    return read_dense_config(config, ARCHITECTURE, qkv_bias=True, qk_norm=False)


def read_dense_config(
    config: JsonObject,
    architecture: str,
    *,
    qkv_bias: bool,
    qk_norm: bool,
    head_dim: int | None = None,
) -> ModelConfig:
    """The keys that Qwen2 and Qwen3 share; the two flags are all that tells them apart.

    `head_dim` is that of files which do not say; None is hidden_size / num_attention_heads.
    """
    config.require("hidden_act", ("silu",), default="silu")
    config.ignore(*GENERIC_KEYS)
    hidden_size = config.integer("hidden_size")
    num_layers = config.integer("num_hidden_layers")
    num_heads, num_kv_heads, head_dim = read_heads(config, hidden_size, head_dim)
    trained = config.integer("max_position_embeddings")
    rope = read_rope(config, trained)
    max_position, reason = trained, f"max_position_embeddings is {trained}"
    if rope.yarn is not None:
        extended = int(rope.yarn.factor * rope.yarn.original_max_position)
        max_position = max(trained, extended)
        reason = f"YaRN extends {rope.yarn.original_max_position} by {rope.yarn.factor:g}"
    result = ModelConfig(
        architecture=architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size"),
        rms_norm_eps=config.number("rms_norm_eps", default=1e-6),
        rope=rope,
        windows=read_windows(config, num_layers),
        max_position=max_position,
        max_position_reason=reason,
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        dtype=read_dtype(config),
    )
    config.refuse_unread()
    return result

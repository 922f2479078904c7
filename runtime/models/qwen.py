"""The first generation (`QWenLMHeadModel`: Qwen-1.8B, 7B, 14B, 72B and their chat models).

The decoder computes what Qwen2's does, under other names: q, k and v are stored as one
matrix, `w2` is the gate and `w1` the up projection, and `intermediate_size` is twice the MLP
width. Beyond `seq_length` the original changes its rotary base by the prompt's length
(dynamic NTK) and scales queries by position (logn attention); up to it both are the identity,
so sequences end there.
"""

from __future__ import annotations

from qwell.runtime.checkpoint.config import GENERIC_KEYS, ModelConfig, Rope, check_head_dim
from qwell.runtime.checkpoint.json_object import JsonObject
from qwell.runtime.errors import UnsupportedModelError
from qwell.runtime.models.dense import TensorNames

ARCHITECTURE = "QWenLMHeadModel"

NAMES = TensorNames(
    embedding="transformer.wte.weight",
    layer="transformer.h.{i}.",
    input_norm="ln_1.weight",
    qkv=("attn.c_attn.",),
    o="attn.c_proj.weight",
    post_norm="ln_2.weight",
    gate="mlp.w2.weight",
    up="mlp.w1.weight",
    down="mlp.c_proj.weight",
    final_norm="transformer.ln_f.weight",
    head="lm_head.weight",
    # Buffers that early files carry along.
    buffers=("rotary_emb.inv_freq", "attn.masked_bias"),
)


def read_config(config: JsonObject) -> ModelConfig:
    """ModelConfig of a first-generation checkpoint, also in the key names of its first release."""
    config.ignore(
        *GENERIC_KEYS,
        "attn_dropout_prob",
        "attn_pdrop",
        "emb_dropout_prob",
        "embd_pdrop",
        "onnx_safe",
        "resid_pdrop",
        "rope_theta",
        "softmax_in_fp32",
        "use_flash_attn",
    )
    config.require("no_bias", (True,), default=True)
    config.require("rotary_pct", (1.0, 1), default=1.0)
    config.require("scale_attn_weights", (True,), default=True)
    hidden_size = config.integer("hidden_size", "n_embd")
    num_layers = config.integer("num_hidden_layers", "n_layer")
    num_heads = config.integer("num_attention_heads", "n_head")
    head_dim = config.integer("kv_channels", default=128)
    check_head_dim(config, head_dim)
    doubled_width = config.integer("intermediate_size", "ffn_hidden_size")
    if doubled_width % 2:
        raise UnsupportedModelError(
            f"{config.where}: intermediate_size {doubled_width} must be even (w1 and w2 together)"
        )
    positions = config.integer("max_position_embeddings", "n_positions", default=8192)
    trained = config.integer("seq_length", default=positions)
    tricks = {
        "use_dynamic_ntk": config.boolean("use_dynamic_ntk", default=True),
        "use_logn_attn": config.boolean("use_logn_attn", default=True),
    }
    used = " and ".join(name for name, on in tricks.items() if on)
    result = ModelConfig(
        architecture=ARCHITECTURE,
        vocab_size=config.integer("vocab_size", "padded_vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=doubled_width // 2,
        rms_norm_eps=config.number("layer_norm_epsilon", default=1e-6),
        rope=Rope(theta=config.number("rotary_emb_base", default=10000.0)),
        windows=(None,) * num_layers,
        max_position=trained,
        max_position_reason=f"seq_length is {trained}"
        + (f", and {used} beyond it is not supported" if used else ""),
        tie_word_embeddings=config.boolean("tie_word_embeddings", default=False),
        qkv_bias=True,
        qk_norm=False,
        dtype=_dtype(config),
    )
    config.refuse_unread()
    return result


def _dtype(config: JsonObject) -> str:
    """The original picks a dtype by flags, bfloat16 where the device has it."""
    flags = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    chosen = [dtype for dtype, flag in flags.items() if config.boolean(flag, default=False)]
    named: str | None = config.string("dtype", "torch_dtype", default=None)
    if len(chosen) > 1 or (named is not None and named not in flags):
        raise UnsupportedModelError(
            f"{config.where}: at most one of bf16, fp16, fp32 may be true, and torch_dtype must "
            f"be one of {', '.join(flags)}; got {chosen} and {named!r}"
        )
    return chosen[0] if chosen else named or "bfloat16"

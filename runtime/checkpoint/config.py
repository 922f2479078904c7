"""ModelConfig: what the forward pass needs to know of a checkpoint, read from config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwell.runtime.checkpoint.json_object import JsonObject
from qwell.runtime.errors import ConfigKeyError, ConfigTypeError, UnsupportedModelError

DTYPES = ("bfloat16", "float16", "float32")

# How text is generated, which transformers 4 wrote into config.json when it wrote all it had.
_GENERATION_KEYS = (
    "diversity_penalty",
    "encoder_no_repeat_ngram_size",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
)

# Written by transformers, or who trains with it, into config.json files; none changes the logits.
GENERIC_KEYS = (
    *_GENERATION_KEYS,
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "tokenizer_class",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
)


@dataclass(frozen=True)
class Yarn:
    """Context extension by YaRN (arXiv 2309.00071); `attention_factor` scales cos and sin."""

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding over the whole head; `yarn` is None without scaling."""

    theta: float
    yarn: Yarn | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A dense Qwen decoder.

    `windows` holds one entry a layer: the number of last positions a query sees, or None for
    all. `max_position` is the longest sequence the model computes as it was trained; where a
    longer one is refused, `max_position_reason` says why.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    max_position: int
    max_position_reason: str
    tie_word_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    dtype: str


def read_dtype(config: JsonObject) -> str:
    """The dtype of the stored weights; transformers 4 and 5 spell the key differently."""
    dtype: str = config.string("dtype", "torch_dtype", default="float32")
    if dtype not in DTYPES:
        raise UnsupportedModelError(
            f"{config.where}: dtype is {dtype!r}; supported are {', '.join(DTYPES)}"
        )
    return dtype


def read_heads(
    config: JsonObject, hidden_size: int, default_head_dim: int | None
) -> tuple[int, int, int]:
    """(query heads, key/value heads, head_dim), consistent with each other.

    `default_head_dim` is the family's; None divides the hidden size among the query heads.
    """
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"{config.where}: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    head_dim = config.integer("head_dim", default=default_head_dim or hidden_size // num_heads)
    check_head_dim(config, head_dim)
    return num_heads, num_kv_heads, head_dim


def check_head_dim(config: JsonObject, head_dim: int) -> None:
    """Rotation pairs the two halves of a head."""
    if head_dim < 2 or head_dim % 2:
        raise UnsupportedModelError(f"{config.where}: head_dim {head_dim} must be even, above 0")


def read_rope(config: JsonObject, max_position_embeddings: int) -> Rope:
    """RoPE in the spelling of transformers 5 (rope_parameters) or 4 (rope_theta, rope_scaling)."""
    scaling = config.child("rope_scaling", "rope_parameters")
    if scaling is None:
        return Rope(theta=config.number("rope_theta", default=10000.0))
    theta = scaling.number("rope_theta", default=config.number("rope_theta", default=10000.0))
    kind = scaling.string("rope_type", "type", default="default")
    scaling.require("partial_rotary_factor", (1.0, 1), default=1.0)
    yarn = None
    if kind == "yarn":
        yarn = _read_yarn(scaling, max_position_embeddings)
    elif kind != "default":
        raise UnsupportedModelError(
            f"{scaling.where}: rope_type is {kind!r}; supported are 'default' and 'yarn'"
        )
    scaling.refuse_unread()
    return Rope(theta=theta, yarn=yarn)


def _read_yarn(scaling: JsonObject, max_position_embeddings: int) -> Yarn:
    factor = scaling.number("factor")
    attention_factor = scaling.number("attention_factor", default=None)
    mscale = scaling.number("mscale", default=None)
    mscale_all = scaling.number("mscale_all_dim", default=None)
    if attention_factor is None:
        both = mscale is not None and mscale_all is not None
        attention_factor = (
            yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all)
            if both
            else yarn_mscale(factor, 1.0)
        )
    return Yarn(
        factor=factor,
        original_max_position=scaling.integer(
            "original_max_position_embeddings", default=max_position_embeddings
        ),
        beta_fast=scaling.number("beta_fast", default=32.0),
        beta_slow=scaling.number("beta_slow", default=1.0),
        truncate=scaling.boolean("truncate", default=True),
        attention_factor=attention_factor,
    )


def yarn_mscale(factor: float, scale: float) -> float:
    """YaRN's attention temperature, 0.1 s ln(f) + 1."""
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def read_windows(config: JsonObject, num_layers: int) -> tuple[int | None, ...]:
    """Sliding windows per layer: `layer_types` decides, else the three older keys."""
    enabled = config.boolean("use_sliding_window", default=False)
    window = config.integer("sliding_window", default=None)
    first = config.integer("max_window_layers", default=None, minimum=0)
    kinds = config.strings("layer_types", default=None)
    if kinds is None:
        if enabled and (window is None or first is None):
            # transformers would fill in 4096 and 28, whatever the model was trained with.
            raise ConfigKeyError(
                f"{config.where}: use_sliding_window is true, which needs sliding_window and "
                "max_window_layers"
            )
        sliding = [enabled and i >= first for i in range(num_layers)]
        return tuple(window if slides else None for slides in sliding)
    if len(kinds) != num_layers:
        raise ConfigTypeError(
            f"{config.where}: layer_types has {len(kinds)} entries for {num_layers} layers"
        )
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedModelError(
            f"{config.where}: layer_types holds {sorted(unknown)}; supported are "
            "'full_attention' and 'sliding_attention'"
        )
    if "sliding_attention" in kinds and not (enabled and window is not None):
        raise UnsupportedModelError(
            f"{config.where}: layer_types asks for sliding_attention, which needs "
            "use_sliding_window true and a sliding_window"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)

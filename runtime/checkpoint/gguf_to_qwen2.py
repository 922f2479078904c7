"""Write a Llama-architecture GGUF model as a Qwen2 checkpoint that computes the same function.

A Qwen2 layer is a Llama layer plus biases on q, k and v, so zero biases make one the other.
Weights are stored as float32: Q4_1 values, scale x 4 bits + minimum, have no exact bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from qwell.runtime.checkpoint.gguf import GgufFile
from qwell.runtime.errors import CheckpointError

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)

_GLOBAL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_BIASED = ("attn_q.weight", "attn_k.weight", "attn_v.weight")

# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4


def write_qwen2_checkpoint(gguf: GgufFile, folder: Path) -> None:
    """Write CHECKPOINT_FILES into `folder`.

    Raises:
        CheckpointError: the model is none that Qwen2 can express (another architecture,
            partial or scaled RoPE, another head size), or its tokenizer is not SmolLM's.
    """
    config = _config(gguf)
    _write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", {**ids, "do_sample": False})
    _write_json(folder / "tokenizer.json", _tokenizer(gguf))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(gguf, config))
    save_file(_tensors(gguf, config), folder / "model.safetensors", metadata={"format": "pt"})


def _config(gguf: GgufFile) -> dict[str, Any]:
    def integer(key: str) -> int:
        return gguf.need(key, int)

    def number(key: str) -> float:
        # The shortest decimal that reads back as the same float32: 1e-05, not 9.99999974e-06.
        return float(str(np.float32(gguf.need(key, float))))

    hidden, heads = integer("llama.embedding_length"), integer("llama.attention.head_count")
    _require(gguf, "general.architecture", gguf.need("general.architecture", str), "llama")
    if heads <= 0 or hidden % heads:
        raise CheckpointError(f"{gguf.name}: {hidden} features do not divide by {heads} heads")
    head_dim = hidden // heads
    for key in ("llama.rope.dimension_count", "llama.attention.key_length"):
        _require(gguf, key, gguf.get(key, int, head_dim), head_dim)
    scaling = "llama.rope.scaling.type"
    _require(gguf, scaling, gguf.get(scaling, str, "none"), "none")
    layers = integer("llama.block_count")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": integer("tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": integer("llama.feed_forward_length"),
        "max_position_embeddings": integer("llama.context_length"),
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": integer("llama.attention.head_count_kv"),
        "pad_token_id": integer("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": number("llama.rope.freq_base"),
        "sliding_window": None,
        "tie_word_embeddings": "output.weight" not in gguf.tensor_names,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": integer("llama.vocab_size"),
    }


def _require(gguf: GgufFile, key: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise CheckpointError(
            f"{gguf.name}: {key} is {found!r}; only {wanted!r} can be written as Qwen2"
        )


def _tensors(gguf: GgufFile, config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the checkpoint under its Qwen2 name."""
    heads = {
        "attn_q.weight": config["num_attention_heads"],
        "attn_k.weight": config["num_key_value_heads"],
    }
    tensors: dict[str, NDArray[np.float32]] = {}
    for name in gguf.tensor_names:
        if name in _GLOBAL_TENSORS:
            tensors[_GLOBAL_TENSORS[name]] = gguf.tensor(name)
            continue
        block, _, rest = name.removeprefix("blk.").partition(".")
        if not block.isdigit() or rest not in _LAYER_TENSORS:
            raise CheckpointError(f"{gguf.name}: the tensor {name!r} has no place in Qwen2")
        weight = gguf.tensor(name)
        if rest in heads:
            weight = unpermute_rows(weight, heads[rest])
        target = f"model.layers.{block}.{_LAYER_TENSORS[rest]}"
        tensors[target] = np.ascontiguousarray(weight)
        if rest in _BIASED:
            bias = target.removesuffix("weight") + "bias"
            tensors[bias] = np.zeros(weight.shape[0], np.float32)
    return tensors


def unpermute_rows(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Put the rows of a q or k weight [heads * D, d] back into Hugging Face's order.

    llama.cpp rotates neighbours (2i, 2i + 1) and stores the rows of each head so; Qwen2 rotates
    (i, i + D/2). Stored row 2i + j is row j * D/2 + i.
    """
    rows, columns = weight.shape
    half = rows // heads // 2
    return weight.reshape(heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(gguf: GgufFile) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE with SmolLM's splits (single digits, then GPT-2's words)."""
    for key, wanted in (("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")):
        _require(gguf, key, gguf.need(key, str), wanted)
    tokens = gguf.need_list("tokenizer.ggml.tokens", str)
    kinds = gguf.need_list("tokenizer.ggml.token_type", int)
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{gguf.name}: {len(tokens)} tokens but {len(kinds)} token types")
    # Some bytes (rare control characters, 0xF1 and up) have no token of their own.
    unknown = tokens[_token_id(gguf, "unknown", len(tokens))]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == _CONTROL,
            }
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "add_prefix_space": False},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [
                merge.split(" ", 1) for merge in gguf.need_list("tokenizer.ggml.merges", str)
            ],
        },
    }


def _tokenizer_config(gguf: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    tokens = gguf.need_list("tokenizer.ggml.tokens", str)
    ids = {
        f"{role}_token": _token_id(gguf, key, len(tokens))
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    return {
        "add_prefix_space": False,
        "chat_template": gguf.need("tokenizer.chat_template", str),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{role: tokens[index] for role, index in ids.items()},
    }


def _token_id(gguf: GgufFile, key: str, token_count: int) -> int:
    key = f"tokenizer.ggml.{key}_token_id"
    index = gguf.need(key, int)
    if not 0 <= index < token_count:
        raise CheckpointError(f"{gguf.name}: {key} is {index}, not one of {token_count} tokens")
    return index


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

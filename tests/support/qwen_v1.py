"""The first Qwen generation transcribed from its published formulas, in plain torch.

An oracle for the runtime: it shares no code with it. One unpadded sequence, no cache. Written
with the length-dependent parts (dynamic NTK, logn attention) as published, so that a test
within the training length also shows that they are the identity there.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "attn_dropout_prob": 0.0,
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": True,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 192,
    "kv_channels": 16,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 256,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 128,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": 199,
}


def make_weights(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Random tensors under the names of the original checkpoints."""
    draw = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw) * 1.5 * columns**-0.5

    def vector(size: int, mean: float) -> Tensor:
        return mean + 0.3 * torch.randn(size, generator=draw)

    d, width = config["hidden_size"], config["intermediate_size"] // 2
    inner = config["kv_channels"] * config["num_attention_heads"]
    weights = {
        "transformer.wte.weight": matrix(config["vocab_size"], d),
        "transformer.ln_f.weight": vector(d, 1.0),
        "lm_head.weight": matrix(config["vocab_size"], d),
    }
    for i in range(config["num_hidden_layers"]):
        h = f"transformer.h.{i}."
        weights |= {
            h + "ln_1.weight": vector(d, 1.0),
            h + "attn.c_attn.weight": matrix(3 * inner, d),
            h + "attn.c_attn.bias": vector(3 * inner, 0.0),
            h + "attn.c_proj.weight": matrix(d, inner),
            h + "ln_2.weight": vector(d, 1.0),
            h + "mlp.w1.weight": matrix(width, d),
            h + "mlp.w2.weight": matrix(width, d),
            h + "mlp.c_proj.weight": matrix(d, width),
        }
    return weights


def write_checkpoint(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")


def forward(config: dict[str, Any], weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """fp64 logits [T, V] of one sequence of ids [T]."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, dim = config["num_attention_heads"], config["kv_channels"]
    count = len(ids)
    x = w["transformer.wte.weight"][ids]
    cos, sin = _angles(config, count)
    for i in range(config["num_hidden_layers"]):
        h = f"transformer.h.{i}."
        y = _norm(x, w[h + "ln_1.weight"], config)
        mixed = y @ w[h + "attn.c_attn.weight"].T + w[h + "attn.c_attn.bias"]
        q, k, v = (part.reshape(count, heads, dim) for part in mixed.split(heads * dim, dim=1))
        q = _rotated(q, cos, sin) * _logn(config, count)[:, None, None]
        k = _rotated(k, cos, sin)
        out = torch.zeros(count, heads, dim, dtype=torch.float64)
        for head in range(heads):
            scores = q[:, head] @ k[:, head].T / math.sqrt(dim)
            scores += torch.full((count, count), -math.inf, dtype=torch.float64).triu(1)
            out[:, head] = scores.softmax(-1) @ v[:, head]
        x = x + out.reshape(count, -1) @ w[h + "attn.c_proj.weight"].T
        y = _norm(x, w[h + "ln_2.weight"], config)
        gate, up = y @ w[h + "mlp.w2.weight"].T, y @ w[h + "mlp.w1.weight"].T
        x = x + (up * gate * torch.sigmoid(gate)) @ w[h + "mlp.c_proj.weight"].T
    return _norm(x, w["transformer.ln_f.weight"], config) @ w["lm_head.weight"].T


def _norm(x: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    mean_square = (x * x).sum(-1, keepdim=True) / x.shape[-1]
    return x / torch.sqrt(mean_square + config["layer_norm_epsilon"]) * weight


def _angles(config: dict[str, Any], count: int) -> tuple[Tensor, Tensor]:
    dim, base = config["kv_channels"], float(config["rotary_emb_base"])
    if config["use_dynamic_ntk"]:
        alpha = max(2 ** math.ceil(math.log2(count / config["seq_length"]) + 1) - 1, 1)
        base *= alpha ** (dim / (dim - 2))
    frequency = torch.tensor([base ** (-2 * j / dim) for j in range(dim // 2)], dtype=torch.float64)
    angle = torch.arange(count, dtype=torch.float64)[:, None] * frequency[None, :]
    return angle.cos()[:, None], angle.sin()[:, None]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _logn(config: dict[str, Any], count: int) -> Tensor:
    factors = [
        max(1.0, math.log(p + 1) / math.log(config["seq_length"]))
        if config["use_logn_attn"]
        else 1.0
        for p in range(count)
    ]
    return torch.tensor(factors, dtype=torch.float64)

"""Small random checkpoints of the true architectures, written by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}

SMALL: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


def make_checkpoint(
    folder: Path,
    family: str = "qwen2",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **settings: Any,
) -> PreTrainedModel:
    """Write a checkpoint to `folder`; returns the transformers model with the same weights."""
    torch.manual_seed(seed)
    config = CONFIGS[family](**{**SMALL, **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            randomise(name, parameter)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    # Read back rather than kept: `to` also rounds the rotary frequencies, loading does not.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def randomise(name: str, parameter: torch.Tensor) -> None:
    """Weights that make every term matter: lively activations, logits a few units apart."""
    if name.endswith("bias"):
        parameter.normal_(0.0, 0.5)
    elif parameter.dim() == 1:
        parameter.normal_(1.0, 0.2)
    elif "embed" in name or "wte" in name:
        # Also the head where tied: the norm before it has length sqrt(d).
        parameter.normal_(0.0, 2.0 * parameter.shape[1] ** -0.5)
    else:
        parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5)

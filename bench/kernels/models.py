"""The models whose sizes kernels are measured at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """Sizes of a model: the letters of kernels/ops.py spelt out."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int


MODELS = (
    Model("Qwen3-0.6B", 1024, 16, 8, 128, 3072, 151936),
    Model("Qwen3-8B", 4096, 32, 8, 128, 12288, 151936),
)
"""A small and a large one."""

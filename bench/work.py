"""What the steps of a model must read and compute, and how long that takes at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qwell.kernels.native.packed import PackedWeight
from qwell.kernels.weights import Weight
from qwell.runtime.kv_cache import BLOCK_SIZE
from qwell.runtime.loader import LoadedModel


@dataclass(frozen=True)
class Ceilings:
    """Measured on the device, not taken from a datasheet.

    Attributes:
        bandwidth: bytes a second.
        flops: multiplications and additions a second, both counted.
    """

    bandwidth: float
    flops: float

    def floor(self, bytes_moved: float, flops: float) -> float:
        """Seconds that moving these bytes and this arithmetic take at least, overlapped."""
        return max(bytes_moved / self.bandwidth, flops / self.flops)


@dataclass(frozen=True)
class Demand:
    """What a step takes: bytes of weights and cache, multiplications and additions."""

    bytes_moved: int
    flops: int


@dataclass(frozen=True)
class Work:
    """What a model's steps read and compute."""

    layer_bytes: int
    head_bytes: int
    cache_bytes_per_token: int
    layer_weights: int
    head_weights: int
    attention_width: int

    @classmethod
    def of(cls, model: LoadedModel) -> Work:
        decoder, c = model.decoder, model.config
        matrices = [
            weight
            for layer in decoder.layers
            for weight in (
                layer.attention.qkv,
                layer.attention.o,
                layer.mlp.gate_up,
                layer.mlp.down,
            )
        ]
        cache = sum(tensor.nbytes for tensor in (*model.cache.k, *model.cache.v))
        return cls(
            layer_bytes=sum(map(weight_bytes, matrices)),
            head_bytes=weight_bytes(decoder.head),
            cache_bytes_per_token=cache // (model.num_blocks * BLOCK_SIZE),
            layer_weights=sum(math.prod(matrix.shape) for matrix in matrices),
            head_weights=math.prod(decoder.head.shape),
            attention_width=c.num_layers * c.num_heads * c.head_dim,
        )

    @property
    def weight_bytes(self) -> int:
        """Of all matrices; norms, biases and the embedding's rows are too small to count."""
        return self.layer_bytes + self.head_bytes

    def step(self, pieces: Sequence[tuple[int, int]], rows: int) -> Demand:
        """Of a step that computes tokens start .. end of each sequence, and `rows` of logits."""
        tokens = sum(end - start for start, end in pieces)
        # A query meets the keys up to its own.
        met = sum((end - start) * (start + 1 + end) // 2 for start, end in pieces)
        products = tokens * self.layer_weights + rows * self.head_weights
        cached = self.cache_bytes_per_token * sum(end for _, end in pieces)
        return Demand(
            bytes_moved=self.layer_bytes + (self.head_bytes if rows else 0) + cached,
            flops=2 * products + 4 * met * self.attention_width,
        )

    def decode_floor(self, ceilings: Ceilings, contexts: Sequence[int]) -> float:
        """Seconds of a step of one token for sequences that are so long then."""
        demand = self.step([(context - 1, context) for context in contexts], len(contexts))
        return ceilings.floor(demand.bytes_moved, demand.flops)

    def prefill_floor(self, ceilings: Ceilings, tokens: int) -> float:
        """Seconds of a step that computes one prompt, and the logits of its last token."""
        demand = self.step([(0, tokens)], 1)
        return ceilings.floor(demand.bytes_moved, demand.flops)


def weight_bytes(weight: Weight | PackedWeight) -> int:
    """What reading a linear weight moves."""
    if isinstance(weight, Tensor):
        return weight.nbytes
    if isinstance(weight, PackedWeight):
        return weight.data.nbytes
    parts = (weight.words, weight.scales, getattr(weight, "zeros", None))
    return sum(part.nbytes for part in parts if part is not None)

"""Models of true sizes and random weights, made where they run, and steps for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qwell.bench.checkpoints import fill_randomly, tensor_shapes
from qwell.bench.sequences import sequences
from qwell.kernels.fused_ops import FusedOps
from qwell.kernels.ops import Ops
from qwell.runtime.batch import Batch, build_batch
from qwell.runtime.checkpoint.config import ModelConfig
from qwell.runtime.checkpoint.json_object import JsonObject
from qwell.runtime.errors import EngineStartError
from qwell.runtime.kv_cache import BLOCK_SIZE, allocate, blocks_for, bytes_per_token
from qwell.runtime.loader import LoadedModel
from qwell.runtime.models.dense import expected_shapes, load_dense
from qwell.runtime.models.registry import FAMILIES
from qwell.runtime.precision import FORMATS, dtype_name
from qwell.runtime.sequence import Chunk


class RandomWeights:
    """Weights that are drawn where they are wanted: nothing is written, read or copied.

    They are the same in any dtype.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self._draw = torch.Generator(device).manual_seed(seed)

    def vector(self, *names: str) -> Tensor:
        """The named tensors, concatenated along their first dimension."""
        shapes = [self._shapes[name] for name in names]
        rows = [shape[0] for shape in shapes]
        result = torch.empty((sum(rows), *shapes[0][1:]), dtype=self._dtype, device=self._device)
        for name, part in zip(names, result.split(rows), strict=True):
            stored = torch.empty(part.shape, dtype=torch.bfloat16, device=self._device)
            fill_randomly(name, stored, self._draw)
            part.copy_(stored)
        return result

    matrix = vector


@torch.inference_mode()
def random_model(
    config: Mapping[str, Any],
    ops: Ops,
    cache_tokens: int,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    fused: FusedOps | None = None,
) -> LoadedModel:
    """A model with this config.json, and a cache of so many tokens.

    Raises EngineStartError if a GPU has too little memory for them.
    """
    shapes = tensor_shapes(config)
    parsed = read_config(config)
    needed = sum(map(math.prod, shapes.values())) * dtype.itemsize
    needed += cache_tokens * bytes_per_token(parsed, dtype)
    if device.type == "cuda" and (free := torch.cuda.mem_get_info(device)[0]) < needed:
        raise EngineStartError(
            f"weights and cache take {needed / 2**30:.1f} GiB, the GPU has {free / 2**30:.1f} free"
        )
    family = FAMILIES[parsed.architecture]
    assert shapes == expected_shapes(family.names, parsed)
    weights = RandomWeights(shapes, dtype, device)
    decoder = load_dense(weights, family.names, parsed, ops, fused, max_model_len, device)
    blocks = blocks_for(cache_tokens)
    cache = allocate(parsed, blocks, dtype, device, ops)
    for tensor in (*cache.k, *cache.v):
        assert isinstance(tensor, Tensor)  # GPUs have no other cache
        tensor.normal_()
    return LoadedModel(
        parsed, decoder, cache, blocks, max_model_len, device, dtype, FORMATS[dtype_name(dtype)]
    )


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """What the runtime reads out of a config.json."""
    architecture: str = config["architectures"][0]
    return FAMILIES[architecture].read_config(JsonObject(dict(config), architecture))


def step_batch(
    device: torch.device,
    pieces: Sequence[tuple[int, int]],
    room: Sequence[int],
    *,
    all_logits: bool = False,
) -> Batch:
    """A step that computes tokens start .. end of each sequence.

    Sequences have blocks of their own, for `room` tokens each. Logits are of the last tokens.
    """
    running = sequences([end for _, end in pieces], room)
    chunks = [
        Chunk(sequence, start, end) for sequence, (start, end) in zip(running, pieces, strict=True)
    ]
    return build_batch(chunks, BLOCK_SIZE, device, all_logits=all_logits)

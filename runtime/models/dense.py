"""The dense decoder that the Qwen families share; a family adds its config and tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qwell.kernels.fused_ops import MAX_FUSED_TOKENS, FusedOps
from qwell.kernels.native.packed import Format, PackedWeight
from qwell.kernels.ops import Ops
from qwell.kernels.weights import Weight
from qwell.runtime.batch import Batch
from qwell.runtime.checkpoint.config import ModelConfig
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.checkpoint.weights import WeightSource
from qwell.runtime.errors import CheckpointError
from qwell.runtime.kv_cache import KVCache
from qwell.runtime.layers.attention import Attention
from qwell.runtime.layers.decoder import DecoderLayer
from qwell.runtime.layers.mlp import Mlp
from qwell.runtime.layers.rotary import cos_sin_table


@dataclass(frozen=True)
class TensorNames:
    """What a family calls its tensors; `layer` is the prefix of the names between the norms.

    `qkv` holds prefixes of weight and bias, three for separate q, k, v or one for a fused
    matrix. `buffers` may stand in a layer without being used.
    """

    embedding: str
    layer: str
    input_norm: str
    qkv: tuple[str, ...]
    o: str
    post_norm: str
    gate: str
    up: str
    down: str
    final_norm: str
    head: str
    q_norm: str = ""
    k_norm: str = ""
    buffers: tuple[str, ...] = ()


@dataclass(frozen=True)
class DenseDecoder:
    """Embedding, decoder layers, final norm, head. Weights are plain data, the math is ops.

    Attributes:
        fused: ops for steps of a few decodes, where their bits need not be those of `ops`.
    """

    config: ModelConfig
    ops: Ops
    fused: FusedOps | None
    embedding: Tensor | PackedWeight
    layers: list[DecoderLayer]
    final_norm: Tensor
    head: Weight
    cos_sin: Tensor

    def forward(self, batch: Batch, cache: KVCache, out: Tensor | None = None) -> Tensor:
        """Logits of the batch's logit_rows, fp32 [R, V]; keys and values go to the cache.

        The logits are in `out`, if it is given.
        """
        ops = self.ops
        x = ops.embedding(batch.input_ids, self.embedding)
        residual: Tensor | None = None
        for layer, k_cache, v_cache in zip(self.layers, cache.k, cache.v, strict=True):
            if self.fused is not None and _is_small_decode(batch):
                x = layer.fused(self.fused, x, batch, self.cos_sin, k_cache, v_cache)
            else:
                x, residual = layer(ops, x, residual, batch, self.cos_sin, k_cache, v_cache)
        x = ops.embedding(batch.logit_rows, x)
        if residual is not None:
            residual = ops.embedding(batch.logit_rows, residual)
        x, _ = ops.rms_norm(x, self.final_norm, self.config.rms_norm_eps, residual)
        logits = ops.linear(x, self.head)
        return logits.float() if out is None else out.copy_(logits)


def _is_small_decode(batch: Batch) -> bool:
    return batch.extent.num_decodes == len(batch.input_ids) <= MAX_FUSED_TOKENS


def verify_dense(shards: Shards, names: TensorNames, config: ModelConfig) -> None:
    """Check that a checkpoint holds the decoder's tensors, before any is loaded.

    Raises:
        CheckpointError: the tensors are not the ones that config.json promises.
        UnsupportedModelError: they are stored in a dtype that is not loaded.
    """
    ignored = [prefix + buffer for prefix in _prefixes(names, config) for buffer in names.buffers]
    if config.tie_word_embeddings:
        # Some writers store the tied head a second time.
        ignored.append(names.head)
    shards.verify(expected_shapes(names, config), ignored)
    stored_twice = config.tie_word_embeddings and names.head in shards
    if stored_twice and not shards.looks_like(names.head, names.embedding):
        # A head that was trained apart; programs differ in which of the two they obey.
        raise CheckpointError(
            f"{names.head} is stored and is not {names.embedding}, though tie_word_embeddings in "
            "config.json says that they are one; set it to false to compute with the stored head"
        )


def load_dense(
    weights: WeightSource,
    names: TensorNames,
    config: ModelConfig,
    ops: Ops,
    fused: FusedOps | None,
    max_model_len: int,
    device: torch.device,
) -> DenseDecoder:
    """A decoder on `device` with the weights of a checkpoint that verify_dense has passed."""
    # The largest first: while one is packed, its original takes memory beside all before it.
    embedding = weights.matrix(names.embedding)
    head = embedding if config.tie_word_embeddings else weights.matrix(names.head)
    return DenseDecoder(
        config=config,
        ops=ops,
        fused=fused,
        embedding=embedding,
        layers=[
            _load_layer(weights, names, prefix, config, config.windows[i])
            for i, prefix in enumerate(_prefixes(names, config))
        ],
        final_norm=weights.vector(names.final_norm),
        head=head,
        cos_sin=cos_sin_table(config.rope, config.head_dim, max_model_len, device),
    )


def matrix_formats(
    names: TensorNames, config: ModelConfig, layers: Format
) -> dict[tuple[str, ...], Format]:
    """What load_dense asks its weights for as matrices, and formats: `layers` of those in layers.

    Beside layers in 4 bits, embedding and head have 8: there a byte does more for predictions.
    """
    ends: Format = "int8" if layers == "int4" else layers
    formats: dict[tuple[str, ...], Format] = {(names.embedding,): ends}
    if not config.tie_word_embeddings:
        formats[(names.head,)] = ends
    for prefix in _prefixes(names, config):
        formats |= {
            tuple(prefix + name + "weight" for name in names.qkv): layers,
            (prefix + names.o,): layers,
            (prefix + names.gate, prefix + names.up): layers,
            (prefix + names.down,): layers,
        }
    return formats


def _prefixes(names: TensorNames, config: ModelConfig) -> list[str]:
    return [names.layer.format(i=i) for i in range(config.num_layers)]


def _load_layer(
    weights: WeightSource,
    names: TensorNames,
    prefix: str,
    config: ModelConfig,
    window: int | None,
) -> DecoderLayer:
    matrix, vector = weights.matrix, weights.vector
    qkv = [prefix + name for name in names.qkv]
    return DecoderLayer(
        input_norm=vector(prefix + names.input_norm),
        attention=Attention(
            qkv=matrix(*(name + "weight" for name in qkv)),
            qkv_bias=vector(*(name + "bias" for name in qkv)) if config.qkv_bias else None,
            o=matrix(prefix + names.o),
            q_norm=vector(prefix + names.q_norm) if config.qk_norm else None,
            k_norm=vector(prefix + names.k_norm) if config.qk_norm else None,
            eps=config.rms_norm_eps,
            scale=config.head_dim**-0.5,
            window=window,
        ),
        post_norm=vector(prefix + names.post_norm),
        mlp=Mlp(
            gate_up=matrix(prefix + names.gate, prefix + names.up),
            down=matrix(prefix + names.down),
        ),
        eps=config.rms_norm_eps,
    )


def expected_shapes(names: TensorNames, c: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Every tensor that the checkpoint must hold, with its shape."""
    q_rows, kv_rows = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    parts = (q_rows, kv_rows, kv_rows)
    qkv_rows = parts if len(names.qkv) == 3 else (sum(parts),)
    shapes: dict[str, tuple[int, ...]] = {
        names.embedding: (c.vocab_size, c.hidden_size),
        names.final_norm: (c.hidden_size,),
    }
    if not c.tie_word_embeddings:
        shapes[names.head] = (c.vocab_size, c.hidden_size)
    for i in range(c.num_layers):
        prefix = names.layer.format(i=i)
        shapes[prefix + names.input_norm] = (c.hidden_size,)
        shapes[prefix + names.post_norm] = (c.hidden_size,)
        for name, rows in zip(names.qkv, qkv_rows, strict=True):
            shapes[f"{prefix}{name}weight"] = (rows, c.hidden_size)
            if c.qkv_bias:
                shapes[f"{prefix}{name}bias"] = (rows,)
        if c.qk_norm:
            shapes[prefix + names.q_norm] = (c.head_dim,)
            shapes[prefix + names.k_norm] = (c.head_dim,)
        shapes[prefix + names.o] = (c.hidden_size, q_rows)
        shapes[prefix + names.gate] = (c.intermediate_size, c.hidden_size)
        shapes[prefix + names.up] = (c.intermediate_size, c.hidden_size)
        shapes[prefix + names.down] = (c.hidden_size, c.intermediate_size)
    return shapes

"""Checkpoints of true sizes and random weights: to measure on, not to talk to.

The sizes are those of the releases' config.json files on the Hugging Face hub.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from qwell.runtime.checkpoint.shards import INDEX, SINGLE
from qwell.runtime.errors import CheckpointError

STANDARD_DEVIATION = 0.02
SHARD_BYTES = 4 << 30
ITEM_BYTES = 2  # bfloat16

# What is drawn and written at a time.
_PIECE = 1 << 22


@dataclass(frozen=True)
class Sizes:
    """A dense Qwen model: the columns of the table below.

    Attributes:
        tied: the head is the embedding.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool
    vocabulary: int = 151936


QWEN3 = {
    "qwen3-0.6b": Sizes(1024, 28, 16, 8, 3072, True),
    "qwen3-1.7b": Sizes(2048, 28, 16, 8, 6144, True),
    "qwen3-4b": Sizes(2560, 36, 32, 8, 9728, True),
    "qwen3-8b": Sizes(4096, 36, 32, 8, 12288, False),
    "qwen3-14b": Sizes(5120, 40, 40, 8, 17408, False),
    "qwen3-32b": Sizes(5120, 64, 64, 8, 25600, False),
}
QWEN2 = {
    "qwen2.5-0.5b": Sizes(896, 24, 14, 2, 4864, True),
    "qwen2.5-1.5b": Sizes(1536, 28, 12, 2, 8960, True),
    "qwen2.5-3b": Sizes(2048, 36, 16, 2, 11008, True),
    "qwen2.5-7b": Sizes(3584, 28, 28, 4, 18944, False, 152064),
    "qwen2.5-14b": Sizes(5120, 48, 40, 8, 13824, False, 152064),
    "qwen2.5-32b": Sizes(5120, 64, 40, 8, 27648, False, 152064),
    "qwen2.5-72b": Sizes(8192, 80, 64, 8, 29568, False, 152064),
}
NAMES = (*QWEN3, *QWEN2)
"""Models that there is a config for."""


def true_config(name: str) -> dict[str, Any]:
    """The config.json of a release, as far as it says what to compute.

    Raises CheckpointError for a name that is not in NAMES.
    """
    if name in QWEN3:
        sizes = QWEN3[name]
        own = {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 128,
            "attention_bias": False,
            "max_position_embeddings": 40960,
        }
    elif name in QWEN2:
        sizes = QWEN2[name]
        own = {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "max_position_embeddings": 32768,
        }
    else:
        raise CheckpointError(f"there is no config for {name!r}; there is for {', '.join(NAMES)}")
    return {
        **own,
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "intermediate_size": sizes.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "use_sliding_window": False,
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": "bfloat16",
    }


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a checkpoint with this config.json holds."""
    hidden, mlp, vocabulary = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    rows = {"q": heads * head_dim, **dict.fromkeys("kv", config["num_key_value_heads"] * head_dim)}
    is_qwen3 = config["model_type"] == "qwen3"
    layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for part, size in rows.items():
        layer[f"self_attn.{part}_proj.weight"] = (size, hidden)
        if not is_qwen3:
            layer[f"self_attn.{part}_proj.bias"] = (size,)
    if is_qwen3:
        layer |= {f"self_attn.{part}_norm.weight": (head_dim,) for part in "qk"}
    layer |= {
        "self_attn.o_proj.weight": (hidden, rows["q"]),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (mlp, hidden),
        "mlp.up_proj.weight": (mlp, hidden),
        "mlp.down_proj.weight": (hidden, mlp),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def fill_randomly(name: str, tensor: torch.Tensor, draw: torch.Generator | None) -> None:
    """Weights as training starts with: norms 1, all else normal with deviation 0.02."""
    if name.endswith("norm.weight"):
        tensor.fill_(1.0)
    else:
        tensor.normal_(0.0, STANDARD_DEVIATION, generator=draw)


def make_checkpoint(
    config: Mapping[str, Any], folder: Path, *, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write config.json and bfloat16 weights into `folder`, which must be new or empty.

    Takes a few megabytes of memory whatever the model's size. config.json comes last: what was
    broken off before is not taken for a checkpoint. Raises CheckpointError if there are files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; name a new folder")
    shapes = tensor_shapes(config)
    shards = list(_shards(shapes, shard_bytes))
    draw = torch.Generator().manual_seed(seed)
    owner: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE
        with (folder / file).open("wb") as stream:
            _write_shard(stream, {name: shapes[name] for name in names}, draw)
        owner |= dict.fromkeys(names, file)
    if len(shards) > 1:
        size = sum(map(_bytes, shapes.values()))
        index = {"metadata": {"total_size": size}, "weight_map": owner}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _bytes(shape: tuple[int, ...]) -> int:
    return ITEM_BYTES * math.prod(shape)


def _shards(shapes: Mapping[str, tuple[int, ...]], limit: int) -> Iterator[list[str]]:
    """Names of the tensors of each file; a file is larger than the limit only for one tensor."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + _bytes(shape) > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += _bytes(shape)
    yield names


def _write_shard(
    stream: BinaryIO, shapes: Mapping[str, tuple[int, ...]], draw: torch.Generator
) -> None:
    """One file (https://github.com/huggingface/safetensors, "Format")."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned in memory then
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        left = math.prod(shape)
        while left:
            piece = torch.empty(min(left, _PIECE), dtype=torch.bfloat16)
            fill_randomly(name, piece, draw)
            stream.write(piece.view(torch.int16).numpy().data)
            left -= piece.numel()

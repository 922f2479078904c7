"""Prefixes of the KV cache on disk, from one run of an engine to the next.

A safetensors file of the hottest blocks: their tokens, which block each follows, and what the cache
holds of them. Its metadata holds a key, which stands for everything that the bits of a cache depend
on, and a checksum; a file of another key or checksum is not used. Blocks of salted requests are
never written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import zlib
from collections.abc import Iterator
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwell import __version__
from qwell.kernels.cache import Int8Cache
from qwell.runtime.block_pool import BlockPool, Prefix
from qwell.runtime.checkpoint.shards import Shards
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.kv_cache import BLOCK_SIZE, KVCache
from qwell.runtime.loader import LoadedModel

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
"""Of cache that is written: a second or two when an engine stops, and when it starts."""


class PrefixFile:
    """The file of one model as it runs."""

    def __init__(self, path: Path, options: EngineOptions, model: LoadedModel) -> None:
        self._path = path
        parts = [part for _, part in _parts(model.cache)]
        block_bytes = sum(part.nbytes for part in parts) // model.num_blocks
        self._most_blocks = MOST_BYTES // block_bytes
        described = [
            __version__,
            torch.__version__,
            Shards(Path(options.model)).fingerprint(),
            # Rotary bases, windows and the like are in no tensor, and config.json is edited.
            repr(model.config),
            platform.machine() if model.runner is None else model.runner.isa,
            str(model.device),
            str(model.dtype),
            model.weights,
            sorted(options.kernels.items()),
            options.batch_invariant,
            [(str(part.dtype), part.shape[1:], part.stride()) for part in parts],
        ]
        self._key = hashlib.sha256(json.dumps(described).encode()).hexdigest()

    @torch.inference_mode()
    def save(self, pool: BlockPool, cache: KVCache) -> None:
        """Write the hottest idle blocks in place of what the file held."""
        blocks, prefixes = pool.hottest(self._most_blocks)
        if not blocks:
            return
        rows = torch.tensor(blocks)
        tensors = {name: part[rows.to(part.device)].cpu() for name, part in _parts(cache)}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        tensors["token_ids"] = torch.tensor([p.token_ids for p in prefixes], dtype=torch.int32)
        tensors["follows"] = torch.tensor([p.follows for p in prefixes], dtype=torch.int32)
        metadata = {"key": self._key, "crc32": _checksum(tensors)}
        temporary = self._path.with_suffix(".part")
        try:
            # Whoever reads it reads prompts.
            temporary.touch(mode=0o600)
            save_file(tensors, temporary, metadata)
            temporary.replace(self._path)
        except (OSError, safetensors.SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            log.warning("the prefix cache cannot be kept in %s: %s", self._path, error)
            return
        log.info("kept %d tokens of prefixes in %s", len(blocks) * BLOCK_SIZE, self._path)

    @torch.inference_mode()
    def load(self, pool: BlockPool, cache: KVCache) -> None:
        """Put what the file holds into the cache, as much as half of it takes."""
        if not os.access(self._path.parent, os.W_OK):
            log.warning(
                "the prefix cache will not be kept in %s: its folder is not there or not writable",
                self._path,
            )
        if not self._path.exists():
            return
        try:
            tensors = self._read()
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            log.warning("the prefix cache starts empty: %s: %s", self._path, error)
            return
        prefixes = [
            Prefix(token_ids, follows)
            for token_ids, follows in zip(
                tensors["token_ids"].tolist(), tensors["follows"].tolist(), strict=True
            )
        ]
        prefixes = prefixes[: pool.num_free // 2]
        blocks = pool.restore(prefixes)
        rows = torch.tensor(blocks)
        for name, part in _parts(cache):
            part[rows.to(part.device)] = tensors[name][: len(blocks)].to(part.device)
        pool.give_back(blocks)
        log.info("found %d tokens of prefixes in %s", len(prefixes) * BLOCK_SIZE, self._path)

    def _read(self) -> dict[str, Tensor]:
        """Raises ValueError where the file is not the one of this model, or is damaged."""
        with safetensors.safe_open(self._path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("key") != self._key:
            raise ValueError("it is of another model, or of one that ran in another way")
        tensors = load_file(self._path)
        if metadata.get("crc32") != _checksum(tensors):
            raise ValueError("it is damaged")
        return tensors


def _parts(cache: KVCache) -> Iterator[tuple[str, Tensor]]:
    """The cache's tensors by name, each [num_blocks, ...]."""
    for kind, layers in (("k", cache.k), ("v", cache.v)):
        for layer, part in enumerate(layers):
            if isinstance(part, Int8Cache):
                yield f"{kind}.{layer}", part.values
                yield f"{kind}.{layer}.scales", part.scales
            else:
                yield f"{kind}.{layer}", part


def _checksum(tensors: dict[str, Tensor]) -> str:
    crc = 0
    for name in sorted(tensors):
        data = tensors[name].contiguous().view(torch.uint8).numpy().data
        crc = zlib.crc32(data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"

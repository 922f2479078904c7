"""Reading of safetensors files, memory-mapped and validated before any tensor is touched.

Format: an 8-byte little-endian header length, a JSON header {name: {dtype, shape,
data_offsets}}, then the data, which the offsets must cover without hole or overlap
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwell.runtime.errors import CheckpointError

# The limits of the format's own library, and one on the count: a header within the size limit
# can still name enough tensors to exhaust memory.
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8

COPY_BYTES = 4 << 20

PAGE_BYTES = 4096
SAMPLED_PAGES = 64

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `begin` and `end` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One memory-mapped file.

    Attributes:
        tensors: the place of each tensor, by name.
        metadata: what its writer noted.
        head: the bytes before the data.
    """

    def __init__(self, path: Path) -> None:
        """Map and validate.

        Raises:
            CheckpointError: the file is missing, or its header is not sound.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                # Private and writable only because torch warns about read-only buffers;
                # nothing writes, so pages stay shared with the page cache.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                self._changed_ns = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be mapped: {error}") from error
        self.tensors, self.metadata = _parse_header(self._map, path)
        self.head = self._map[: 8 + int.from_bytes(self._map[:8], "little")]

    def read_ahead(self) -> None:
        """Have the system read the file from disk while other work goes on."""
        if hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED)

    def fingerprint(self) -> str:
        """Stands for the content: a hash of size, time of change, header and sampled pages."""
        size = len(self._map)
        described = hashlib.sha256(f"{size} {self._changed_ns} ".encode())
        described.update(self.head)
        last = max(size - PAGE_BYTES, 0)
        for i in range(SAMPLED_PAGES):
            start = last * i // (SAMPLED_PAGES - 1)
            described.update(self._map[start : start + PAGE_BYTES])
        return described.hexdigest()

    def stored_bytes(self, name: str) -> memoryview:
        """A tensor's bytes as a view of the mapping."""
        info = self.tensors[name]
        return memoryview(self._map)[info.begin : info.end]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as a view of the mapping: no copy, its pages are read when touched."""
        info = self.tensors[name]
        dtype = TORCH_DTYPES[info.dtype]
        if info.begin == info.end:
            return torch.empty(info.shape, dtype=dtype)
        count = (info.end - info.begin) // dtype.itemsize
        if info.begin % dtype.itemsize:
            data = bytearray(self._map[info.begin : info.end])
            return torch.frombuffer(data, dtype=dtype).view(info.shape)
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=info.begin)
        return flat.view(info.shape)

    def copy_to(self, name: str, target: torch.Tensor) -> None:
        """Copy a tensor into `target` of its shape, converting to its dtype.

        Piece by piece, giving the file's pages back behind it: a conversion takes no more
        memory than its result and one piece.
        """
        source, wanted = self.tensor(name).flatten(), target.flatten()
        count = COPY_BYTES // source.itemsize
        for start in range(0, source.numel(), count):
            wanted[start : start + count].copy_(source[start : start + count])
            self.drop_pages()

    def drop_pages(self) -> None:
        """Give back the memory of what was read; pages come back when they are next touched.

        The whole file: the kernel maps pages around the ones that are read.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _parse_header(data: mmap.mmap, path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    size = len(data)
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path}: the header length is {length} in a file of {size} bytes; at most "
            f"{MAX_HEADER_BYTES} are allowed. The file is cut short or not safetensors"
        )
    try:
        header = json.loads(
            data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_object_without_doubles
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not sound JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header must be a JSON object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict):
        metadata = {}
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(header)} tensors; at most {MAX_TENSORS} are allowed")

    start = 8 + length
    tensors = {name: _parse_entry(name, entry, start, path) for name, entry in header.items()}
    position = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            fault = "overlaps its neighbour" if info.begin < position else "leaves a hole before it"
            raise CheckpointError(f"{path}: tensor {name!r} {fault}; offsets must be contiguous")
        position = info.end
    if position != size:
        raise CheckpointError(
            f"{path}: the tensors end at byte {position}, the file at {size}; it is "
            f"{'cut short' if position > size else 'longer than its header says'}"
        )
    return tensors, metadata


def _object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        doubled, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {doubled!r} appears twice")
    return result


def _parse_entry(name: str, entry: Any, start: int, path: Path) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has the unknown dtype {dtype!r}")
    if not _is_index_list(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{where} has the shape {shape!r}, which is not a list of sizes")
    if not _is_index_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the data_offsets {offsets!r}, not [begin, end]")
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != wanted:
        raise CheckpointError(
            f"{where} of shape {shape} and dtype {dtype} needs {wanted} bytes, its offsets "
            f"{offsets} hold {offsets[1] - offsets[0]}"
        )
    return TensorInfo(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_index_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)

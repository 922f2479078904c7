"""Read a GGUF file: metadata and tensors, as far as the demo model needs the format.

Little-endian version 3; tensors in F32, Q8_0 and Q4_1. Every count, length and offset is held
against the size of the file before it is used. Layout: ggml's docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qwell.runtime.errors import CheckpointError

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]
T = TypeVar("T", int, float, str)

VERSION = 3
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# Value type -> struct letter; strings and arrays are read by hand.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
# Fewest bytes that one entry of each list takes: what bounds its count.
_MIN_PAIR_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_MIN_STRING_BYTES = 8

_Q8_0 = np.dtype([("scale", "<f2"), ("quants", "i1", 32)])
_Q4_1 = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("quants", "u1", 16)])


def _dequantize_f32(data: memoryview) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").astype(np.float32)


def _dequantize_q8_0(data: memoryview) -> NDArray[np.float32]:
    blocks = np.frombuffer(data, _Q8_0)
    scale = blocks["scale"].astype(np.float32)[:, None]
    return scale * blocks["quants"].astype(np.float32)


def _dequantize_q4_1(data: memoryview) -> NDArray[np.float32]:
    blocks = np.frombuffer(data, _Q4_1)
    scale, minimum = (blocks[name].astype(np.float32)[:, None] for name in ("scale", "minimum"))
    # The low nibbles of the 16 bytes are the first half of the block, the high ones the second.
    quants = np.concatenate([blocks["quants"] & 15, blocks["quants"] >> 4], axis=1)
    return scale * quants.astype(np.float32) + minimum


@dataclass(frozen=True)
class _Format:
    """A tensor type: `block_bytes` bytes hold `block_size` values of one row."""

    name: str
    block_size: int
    block_bytes: int
    dequantize: Callable[[memoryview], NDArray[np.float32]]


_FORMATS = {
    0: _Format("F32", 1, 4, _dequantize_f32),
    3: _Format("Q4_1", 32, _Q4_1.itemsize, _dequantize_q4_1),
    8: _Format("Q8_0", 32, _Q8_0.itemsize, _dequantize_q8_0),
}


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    format: _Format
    data: memoryview


class GgufFile:
    """One parsed file.

    Attributes:
        name: what messages call the file.
        metadata: key -> value.
    """

    def __init__(self, data: bytes, name: str) -> None:
        """Parse `data`; tensors stay packed until they are asked for.

        Raises:
            CheckpointError: not a GGUF file of version 3, cut short, inconsistent, or with a
                tensor type other than F32, Q8_0 and Q4_1.
        """
        self.name = name
        cursor = _Cursor(data, name)
        magic, version = cursor.take(4), cursor.number(4)
        if magic != b"GGUF":
            raise CheckpointError(f"{name}: not a GGUF file: it starts with {bytes(magic)!r}")
        if version != VERSION:
            raise CheckpointError(f"{name}: GGUF version {version}; qwell reads version {VERSION}")
        tensor_count = cursor.count("tensors", _MIN_TENSOR_BYTES)
        pair_count = cursor.count("metadata keys", _MIN_PAIR_BYTES)
        self.metadata: dict[str, Value] = {}
        for _ in range(pair_count):
            key = cursor.string()
            if key in self.metadata:
                raise CheckpointError(f"{name}: the metadata key {key!r} occurs twice")
            self.metadata[key] = cursor.value(cursor.number(4))
        self._tensors = self._read_tensors(cursor, tensor_count)

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, _Tensor]:
        entries = [_read_tensor_info(cursor) for _ in range(count)]
        alignment = self.get("general.alignment", int, DEFAULT_ALIGNMENT)
        if alignment <= 0:
            raise CheckpointError(f"{self.name}: general.alignment is {alignment}, not above 0")
        start = -(-cursor.position // alignment) * alignment
        tensors: dict[str, _Tensor] = {}
        for name, shape, kind, offset in entries:
            size = math.prod(shape) // kind.block_size * kind.block_bytes
            if name in tensors:
                raise CheckpointError(f"{self.name}: the tensor {name!r} occurs twice")
            data = cursor.slice(start + offset, size, f"the tensor {name!r}")
            tensors[name] = _Tensor(shape, kind, data)
        return tensors

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names in file order."""
        return tuple(self._tensors)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32, outermost dimension first.

        Raises:
            CheckpointError: there is no tensor of that name.
        """
        if name not in self._tensors:
            raise CheckpointError(f"{self.name}: there is no tensor {name!r}")
        tensor = self._tensors[name]
        return tensor.format.dequantize(tensor.data).reshape(tensor.shape)

    def get(self, key: str, kind: type[T], default: T) -> T:
        """The metadata value of `key`, `default` where the file is silent.

        Raises:
            CheckpointError: the value is not a `kind`.
        """
        value = self.metadata.get(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._wrong_type(key, kind.__name__, value)
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """The metadata value of `key`.

        Raises:
            CheckpointError: the key is missing or its value is not a `kind`.
        """
        if key not in self.metadata:
            raise CheckpointError(f"{self.name}: the metadata key {key!r} is missing")
        return self.get(key, kind, kind())

    def need_list(self, key: str, kind: type[T]) -> list[T]:
        """The metadata array of `key`.

        Raises:
            CheckpointError: the key is missing or its value is not an array of `kind`.
        """
        values = self.metadata.get(key)
        if not isinstance(values, list):
            raise self._wrong_type(key, f"array of {kind.__name__}", values)
        items = [item for item in values if isinstance(item, kind)]
        if len(items) != len(values):
            raise self._wrong_type(key, f"array of {kind.__name__}", "an array of another type")
        return items

    def _wrong_type(self, key: str, wanted: str, value: object) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: the metadata key {key!r} must hold {wanted}, found {value!r}"
        )


def _read_tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], _Format, int]:
    """Name, shape (outermost first), format and offset into the data part."""
    name = cursor.string()
    dimensions = cursor.number(4)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise CheckpointError(
            f"{cursor.name}: the tensor {name!r} has {dimensions} dimensions, "
            f"not 1 to {MAX_DIMENSIONS}"
        )
    shape = tuple(reversed([cursor.number(8) for _ in range(dimensions)]))
    code = cursor.number(4)
    if code not in _FORMATS:
        known = ", ".join(f"{code} ({known.name})" for code, known in sorted(_FORMATS.items()))
        raise CheckpointError(
            f"{cursor.name}: the tensor {name!r} has type {code}; qwell reads {known}"
        )
    kind = _FORMATS[code]
    if shape[-1] % kind.block_size:
        raise CheckpointError(
            f"{cursor.name}: rows of the {kind.name} tensor {name!r} have {shape[-1]} values, "
            f"not a multiple of {kind.block_size}"
        )
    return name, shape, kind, cursor.number(8)


class _Cursor:
    """Reads forward through a file, never past its end."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.position = 0
        self._data = memoryview(data)

    def slice(self, start: int, size: int, what: str) -> memoryview:
        if start + size > len(self._data):
            raise CheckpointError(
                f"{self.name}: cut short or damaged: {what} needs bytes {start} to "
                f"{start + size}, the file has {len(self._data)}"
            )
        return self._data[start : start + size]

    def take(self, size: int) -> memoryview:
        piece = self.slice(self.position, size, "the header")
        self.position += size
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def count(self, what: str, min_bytes: int) -> int:
        count = self.number(8)
        if count * min_bytes > len(self._data) - self.position:
            raise CheckpointError(
                f"{self.name}: cut short or damaged: {count} {what} do not fit the file"
            )
        return count

    def string(self) -> str:
        raw = bytes(self.take(self.number(8)))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.name}: damaged: a string before byte {self.position} is not UTF-8"
            ) from error

    def value(self, code: int) -> Value:
        if code == _STRING:
            return self.string()
        if code != _ARRAY:
            layout = self._layout(code)
            value: Scalar = layout.unpack(self.take(layout.size))[0]
            return value
        item_code = self.number(4)
        if item_code == _STRING:
            return [self.string() for _ in range(self.count("strings", _MIN_STRING_BYTES))]
        layout = self._layout(item_code)
        count = self.count("array items", layout.size)
        return [item for (item,) in layout.iter_unpack(self.take(count * layout.size))]

    def _layout(self, code: int) -> struct.Struct:
        if code not in _SCALARS:
            raise CheckpointError(
                f"{self.name}: a metadata value before byte {self.position} has type {code}, "
                "which qwell does not read"
            )
        return struct.Struct("<" + _SCALARS[code])

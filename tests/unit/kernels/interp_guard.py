"""Makes Triton's CPU interpreter (3.9) right or loud where the stock one is neither.

    with interp_guard():
        kernel[grid](...)

- bfloat16 casts round to nearest even and tl.dot takes bfloat16 operands: the stock interpreter
  truncates the former and multiplies the bit patterns of the latter.
- Other bfloat16 arithmetic is an error, where the stock interpreter computes on bit patterns:
  kernels upcast right after a load and downcast right before a store or a dot.
- Every unmasked lane of a load, store or atomic must fall inside an argument tensor.
- Two programs of a launch must not touch one address without atomics if one of them stores:
  programs run one after another here, so that the result of a race would look right.

Errors reach the caller as triton's InterpreterError with the message of a GuardError inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
from triton.tools.tensor_descriptor import TensorDescriptor

NOBODY = -1
SEVERAL = -2


class GuardError(AssertionError):
    """A kernel did what a GPU would punish or what the interpreter cannot compute."""


@dataclass
class Extent:
    """Bytes of one argument tensor and the programs that touched each of them last."""

    name: str
    start: int
    end: int
    stored_by: np.ndarray = field(init=False)
    loaded_by: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.stored_by = np.full(self.end - self.start, NOBODY)
        self.loaded_by = np.full(self.end - self.start, NOBODY)


class Memory:
    """The argument tensors of one launch."""

    def __init__(self) -> None:
        self.extents: list[Extent] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Allow accesses to a tensor, unless a larger one that was added before holds it."""
        if tensor.numel() == 0:
            return
        start = tensor.data_ptr()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        elements = sum((size - 1) * stride for size, stride in steps) + 1
        end = start + elements * tensor.element_size()
        if not any(known.start <= start and end <= known.end for known in self.extents):
            self.extents.append(Extent(name, start, end))
            self.extents.sort(key=lambda extent: extent.start)

    def find(self, access: str, addresses: np.ndarray, width: int) -> np.ndarray:
        """Index of the extent of each address; GuardError if `width` bytes there leave it."""
        starts = np.array([extent.start for extent in self.extents], np.int64)
        ends = np.array([extent.end for extent in self.extents], np.int64)
        index = np.searchsorted(starts, addresses, side="right") - 1
        outside = (index < 0) | (addresses + width > ends[np.maximum(index, 0)])
        if outside.any():
            first = np.flatnonzero(outside)[0]
            raise GuardError(
                f"out-of-bounds {access} in {outside.sum()} lanes, first "
                f"{self._place(addresses[first], index[first], width)}"
            )
        return index

    def _place(self, address: int, index: int, width: int) -> str:
        if index < 0:
            return "before every argument"
        extent = self.extents[index]
        size = (extent.end - extent.start) // width
        return f"at element {(address - extent.start) // width} of {extent.name}, which has {size}"

    def load(self, addresses: np.ndarray, width: int, program: int) -> None:
        """Record a load; GuardError if another program stored there."""
        for extent, offsets in self._by_extent("load", addresses, width):
            _refuse_others(extent.stored_by[offsets], program, f"loads {extent.name}", "stored")
            others = ~np.isin(extent.loaded_by[offsets], (NOBODY, program))
            extent.loaded_by[offsets] = np.where(others, SEVERAL, program)

    def store(self, addresses: np.ndarray, width: int, program: int) -> None:
        """Record a store; GuardError if another program loaded or stored there."""
        for extent, offsets in self._by_extent("store", addresses, width):
            what = f"stores to {extent.name}"
            _refuse_others(extent.stored_by[offsets], program, what, "stored")
            _refuse_others(extent.loaded_by[offsets], program, what, "loaded")
            extent.stored_by[offsets] = program

    def _by_extent(
        self, access: str, addresses: np.ndarray, width: int
    ) -> Iterator[tuple[Extent, np.ndarray]]:
        index = self.find(access, addresses, width)
        for i in np.unique(index):
            extent = self.extents[i]
            yield extent, addresses[index == i] - extent.start


def _refuse_others(touched_by: np.ndarray, program: int, what: str, did: str) -> None:
    others = touched_by[~np.isin(touched_by, (NOBODY, program))]
    if others.size:
        other = "several" if others[0] == SEVERAL else others[0]
        raise GuardError(f"race: program {program} {what} where program {other} {did}")


class GuardedBuilder(InterpreterBuilder):
    """The interpreter's operations, checked; `memory` is that of the running launch."""

    memory: Memory
    check_races: bool

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> TensorHandle:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == target:
            return TensorHandle(src.data, target)
        if source == tl.bfloat16:
            return self.cast_impl(_widened(src), dst_type)
        if target == tl.bfloat16:
            return TensorHandle(_to_bfloat16(src.data.astype(np.float32)), target)
        return super().cast_impl(src, dst_type)

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any) -> Any:
        # A BLAS sums in an order of its own for every shape of tile and number of threads, a
        # tensor core does not. Sums in fp64 are rounded to fp32 alike, whatever their order.
        if not (a.dtype.is_floating() and b.dtype.is_floating()):
            return super().create_dot(a, b, d, *rest)
        a, b = _widened(a), _widened(b)
        total = np.matmul(a.data, b.data, dtype=np.float64) + d.data
        return TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    def unary_op(self, arg: TensorHandle, op: Callable[..., Any]) -> TensorHandle:
        _refuse_bfloat16(op.__name__, arg)
        return super().unary_op(arg, op)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Callable[..., Any]) -> Any:
        _refuse_bfloat16(op.__name__, lhs, rhs)
        return super().binary_op(lhs, rhs, op)

    def ternary_op(self, a: Any, b: Any, c: Any, op: Callable[..., Any]) -> TensorHandle:
        if op is not np.where:
            _refuse_bfloat16(op.__name__, a, b, c)
        return super().ternary_op(a, b, c, op)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        _refuse_bfloat16("fma", x, y, z)
        return super().create_fma(x, y, z)

    def create_masked_load(self, ptrs: TensorHandle, mask: TensorHandle, *rest: Any) -> Any:
        width = ptrs.get_element_ty().primitive_bitwidth // 8
        addresses = _unmasked(ptrs, mask)
        if self.check_races:
            self.memory.load(addresses, width, self._program())
        else:
            self.memory.find("load", addresses, width)
        return super().create_masked_load(ptrs, mask, *rest)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        width = value.data.dtype.itemsize
        addresses = _unmasked(ptrs, mask)
        if self.check_races:
            self.memory.store(addresses, width, self._program())
        else:
            self.memory.find("store", addresses, width)
        return super().create_masked_store(ptrs, value, mask, *rest)

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        _refuse_bfloat16("atomic", val)
        self.memory.find("atomic", _unmasked(ptr, mask), val.data.dtype.itemsize)
        return super().create_atomic_rmw(op, ptr, val, mask, *rest)

    def _program(self) -> int:
        (x, y, z), (size_x, size_y, _) = self.grid_idx, self.grid_dim
        return x + size_x * (y + size_y * z)


@contextlib.contextmanager
def interp_guard(*, races: bool = True) -> Iterator[None]:
    """Guard every launch inside. races=False suits kernels that hand over through atomics."""
    builder = interpreter.interpreter_builder
    original_init = interpreter.GridExecutor._init_args_hst

    def init_args(self: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        host_args, host_kwargs = original_init(self, args, kwargs)
        builder.memory = Memory()
        named = [*zip(self.arg_names, host_args, strict=False), *host_kwargs.items()]
        tensors = [pair for name, value in named for pair in _tensors(name, value)]
        for name, tensor in sorted(tensors, key=lambda pair: pair[1].numel(), reverse=True):
            builder.memory.add(name, tensor)
        return host_args, host_kwargs

    with contextlib.ExitStack() as stack:
        patch = mock.patch.object
        stack.enter_context(patch(interpreter.GridExecutor, "_init_args_hst", init_args))
        for operation in (interpreter.ReduceOps, interpreter.ScanOps):
            guarded = _guarded_reduction(operation.apply_impl)
            stack.enter_context(patch(operation, "apply_impl", guarded))
        stack.callback(setattr, builder, "__class__", type(builder))
        builder.__class__ = GuardedBuilder
        builder.check_races = races
        yield


def _guarded_reduction(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_impl(self: Any, inputs: Any) -> Any:
        _refuse_bfloat16("reduction", *(tensor.handle for tensor in inputs))
        return original(self, inputs)

    return apply_impl


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, TensorDescriptor):
        yield name, value.base
    elif isinstance(value, tuple):
        for i, element in enumerate(value):
            yield from _tensors(f"{name}[{i}]", element)
    elif isinstance(value, Tensor):
        yield name, value


def _unmasked(pointers: TensorHandle, mask: TensorHandle) -> np.ndarray:
    addresses, active = np.broadcast_arrays(pointers.data, mask.data)
    chosen: np.ndarray = addresses[active.astype(bool)].astype(np.int64)
    return chosen


def _is_bfloat16(handle: TensorHandle) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _refuse_bfloat16(operation: str, *handles: TensorHandle) -> None:
    if any(_is_bfloat16(handle) for handle in handles):
        raise GuardError(f"bfloat16 arithmetic ({operation}): upcast to float32 first")


def _widened(handle: TensorHandle) -> TensorHandle:
    """A bfloat16 handle as float32; others as they are."""
    if not _is_bfloat16(handle):
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)

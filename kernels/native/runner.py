"""Runs native ops, or records them to be run again without Python between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwell.kernels import _native
from qwell.kernels.errors import KernelError
from qwell.kernels.native.arena import Arena

ISAS: dict[str, _native.Isa] = {isa.name: isa for isa in _native.runnable_isas()}
"""Instruction sets that this machine runs, the best one first."""


def choose_isa(wanted: str | None) -> str:
    """The name of an instruction set in ISAS: the best one unless told.

    Raises KernelError for one that this machine does not run.
    """
    if wanted is not None and wanted not in ISAS:
        raise KernelError(f"isa is {wanted!r}; this machine runs {', '.join(ISAS)}")
    return wanted or next(iter(ISAS))


DTYPES = {
    torch.float32: _native.DType.float32,
    torch.bfloat16: _native.DType.bfloat16,
    torch.float16: _native.DType.float16,
}
"""Element types as the native code calls them."""

FORMATS = {
    "f32": _native.WeightFormat.f32,
    "bf16": _native.WeightFormat.bf16,
    "f16": _native.WeightFormat.f16,
    "int8": _native.WeightFormat.int8,
    "int4": _native.WeightFormat.int4,
}
"""Formats of packed weights as the native code calls them."""


class Recording:
    """A tape, and the memory of what its ops compute, reused once a tensor is dropped."""

    def __init__(self, tokens: Tensor, logits: Tensor) -> None:
        self.tape = _native.Tape()
        self.arena = Arena()
        self._rows = {
            tokens.data_ptr(): _native.Rows.tokens,
            logits.data_ptr(): _native.Rows.logits,
        }

    def empty(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An output with the kind of rows that `like` has."""
        rows = self.rows(like)
        output = self.arena.empty(shape, dtype)
        self._rows[output.data_ptr()] = rows
        return output

    def append(self, call: _native.Call, output: Tensor) -> None:
        """Put a call on the tape, with the rows of its output."""
        self.tape.append(call, self.rows(output))

    def rows(self, tensor: Tensor) -> _native.Rows:
        """What the rows of a recorded tensor are."""
        rows = self._rows.get(tensor.data_ptr())
        if rows is None:
            raise KernelError("record: a tensor does not come from a native op of this runner")
        return rows


class Replay:
    """A recorded forward pass; `result` is what its last run computed."""

    def __init__(
        self,
        isa: _native.Isa,
        pool: _native.Pool,
        recording: Recording,
        forward: Callable[[], Tensor],
        result: Tensor,
    ) -> None:
        self._isa = isa
        self._pool = pool
        self._recording = recording
        self._forward = forward  # has the tensors whose addresses are on the tape
        self.result = result
        # A view takes torch longer than all of the rest here.
        self._views: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Number of ops."""
        return len(self._recording.tape)

    def __call__(self, tokens: int, logits: int) -> Tensor:
        """Run it for so many tokens and rows of logits; those rows of its result.

        They are valid until the next call.
        """
        self._recording.tape.replay(self._isa, self._pool, tokens, logits)
        return self.first(logits)

    def first(self, logits: int) -> Tensor:
        """So many rows of the result: always the same tensor."""
        view = self._views.get(logits)
        if view is None:
            view = self._views[logits] = self.result[:logits]
        return view


class Runner:
    """Where native ops go: to the threads of a pool, or onto a tape while one is recorded.

    One thread may use it at a time.
    """

    def __init__(self, threads: int, isa: str = next(iter(ISAS))) -> None:
        """Start a pool of so many threads, the caller's counted, for one of ISAS.

        Raises KernelError where the system gives no more threads.
        """
        self.isa = isa
        self._isa = ISAS[isa]
        try:
            self._pool = _native.Pool(threads)
        except RuntimeError as error:
            raise KernelError(f"{threads} threads cannot be started: {error}") from error
        self._recording: Recording | None = None

    @property
    def threads(self) -> int:
        """Number of threads that share the work of an op."""
        return self._pool.threads

    def empty(self, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An output with the rows of `like` (tokens, or rows of logits), of its dtype unless told.

        The shape leads with len(like).
        """
        dtype = dtype or like.dtype
        if self._recording is None:
            return torch.empty(shape, dtype=dtype)
        return self._recording.empty(like, shape, dtype)

    def run(self, call: _native.Call, output: Tensor) -> None:
        """Run a call whose output came from `empty`, or append it to the tape."""
        if self._recording is None:
            _native.run(self._isa, self._pool, call)
        else:
            self._recording.append(call, output)

    def record(self, forward: Callable[[], Tensor], tokens: Tensor, logits: Tensor) -> Replay:
        """Record what `forward` runs, without running it.

        Args:
            forward: computes over native ops alone; the replay keeps it, and so the weights and
                inputs that it refers to.
            tokens, logits: tensors with a row for each token, and for each row of logits, that a
                replay may have at most; the rows of all others follow from theirs.

        Raises:
            KernelError: something else than an op of this runner computed a tensor.
        """
        self._recording = Recording(tokens, logits)
        try:
            result = forward()
            self._recording.rows(result)
            return Replay(self._isa, self._pool, self._recording, forward, result)
        finally:
            self._recording = None

"""Which implementation serves which op: chosen once, when a model is built, never per call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from qwell.kernels.checks import MODEL_DTYPES
from qwell.kernels.errors import KernelError
from qwell.kernels.fused_ops import FUSED_OP_NAMES, REPLACED_OPS, FusedOps
from qwell.kernels.ops import FORWARD_OP_NAMES, OP_NAMES, Ops

if TYPE_CHECKING:
    from qwell.kernels.native.runner import Runner


@dataclass(frozen=True)
class Candidate:
    """An implementation family: qwell.kernels.<family>.<op> holds a function named like the op.

    Modules of the native family hold `bind(runner)` instead, which returns that function.

    Attributes:
        family: name of the package under qwell.kernels.
        devices: types of torch devices it serves (HIP devices call themselves "cuda"); None
            serves all.
        dtypes: model dtypes it serves.
        batch_invariant: whether a token's bits are the same in every batch, by design.
    """

    family: str
    devices: tuple[str, ...] | None
    dtypes: tuple[torch.dtype, ...] = MODEL_DTYPES
    batch_invariant: bool = True

    def serves(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether tensors of this device and dtype may be given to it."""
        return (self.devices is None or device.type in self.devices) and dtype in self.dtypes


_REFERENCE = Candidate("reference", devices=None)
_NATIVE = Candidate("native", devices=("cpu",))
_NATIVE_F32 = Candidate("native", devices=("cpu",), dtypes=(torch.float32,))
_TRITON = Candidate("triton", devices=("cuda",))
_BLAS = Candidate("blas", devices=("cuda",), batch_invariant=False)

# The first candidate that serves the device and dtype, and is batch-invariant where that is asked
# for, is taken.
_CANDIDATES: dict[str, tuple[Candidate, ...]] = {
    "embedding": (_NATIVE_F32, _TRITON, _REFERENCE),
    "rms_norm": (_NATIVE, _TRITON, _REFERENCE),
    "linear": (_NATIVE_F32, _BLAS, _TRITON, _REFERENCE),
    "rope": (_NATIVE_F32, _TRITON, _REFERENCE),
    "attention": (_NATIVE_F32, _TRITON, _REFERENCE),
    "silu_mul": (_NATIVE_F32, _TRITON, _REFERENCE),
    "adjust_logits": (_NATIVE, _TRITON, _REFERENCE),
    "sample": (_NATIVE, _TRITON, _REFERENCE),
    "logprobs": (_NATIVE, _TRITON, _REFERENCE),
}

# Of the ops that meet matrices, the families that take packed ones. The reference linear does, but
# who asks for it by name is to get torch's product of plain tensors.
_TAKE_PACKED = {
    "linear": (_NATIVE.family,),
    "embedding": (_NATIVE.family, _REFERENCE.family),
}


def build_ops(
    device: torch.device,
    dtype: torch.dtype,
    overrides: Mapping[str, Callable[..., Any] | str] | None = None,
    batch_invariant: bool = True,
    runner: Runner | None = None,
    packed_weights: bool = False,
) -> Ops:
    """Choose one implementation per op for a model on `device` with `dtype` activations.

    overrides maps op names to what serves instead of the choice made here: a callable, or the
    name of a family that serves the device. Without batch_invariant the choice may fall on
    implementations whose bits depend on the batch. Native ops go to `runner`, or to one of their
    own with one thread. packed_weights says that linear is given nothing but PackedWeights. Raises
    KernelError for an op or a family that does not exist, a dtype that nothing serves, or an
    implementation that this installation cannot import.
    """
    wanted = dict(overrides or {})
    unknown = sorted(wanted.keys() - set(OP_NAMES))
    if unknown:
        raise KernelError(f"no op named {', '.join(unknown)}; the ops are {', '.join(OP_NAMES)}")
    if device.type == "cpu" and not packed_weights:
        # The native product reads packed weights alone.
        wanted.setdefault("linear", _REFERENCE.family)
    chosen = {}
    for op in OP_NAMES:
        override = wanted.get(op)
        if override is None or isinstance(override, str):
            candidate = _choose(op, device, dtype, override, batch_invariant)
            module = _import(op, candidate)
            if candidate.family == _NATIVE.family:
                runner = runner or module.Runner(threads=1)
                override = module.bind(runner)
            else:
                override = getattr(module, op)
        chosen[op] = override
    return Ops(**chosen)


def takes_packed_weights(
    device: torch.device, dtype: torch.dtype, overrides: Mapping[str, Any] | None = None
) -> bool:
    """Whether build_ops chooses ops for the same arguments that take a PackedWeight."""
    wanted = overrides or {}
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and all(wanted.get(op) in (None, *families) for op, families in _TAKE_PACKED.items())
    )


def build_fused_ops(
    device: torch.device, dtype: torch.dtype, overridden: Collection[str] = ()
) -> FusedOps | None:
    """The fused ops for a model on `device`, or None where nothing serves.

    None too where one of the ops that they replace is overridden: it is meant to run. Raises
    KernelError where this installation cannot import them.
    """
    if not _TRITON.serves(device, dtype) or REPLACED_OPS.intersection(overridden):
        return None
    return FusedOps(**{op: getattr(_import(op, _TRITON), op) for op in FUSED_OP_NAMES})


def describe(ops: Ops | FusedOps) -> dict[str, str]:
    """Op name -> family that serves it, or module and name of a callable from elsewhere."""
    return {op.name: _origin(getattr(ops, op.name)) for op in fields(ops)}


def is_native(ops: Ops, names: Collection[str] = FORWARD_OP_NAMES) -> bool:
    """Whether what runs over the named ops is native alone, and so can be recorded."""
    families = describe(ops)
    return all(families[op] == _NATIVE.family for op in names)


def wants_transposed_keys(ops: Ops) -> bool:
    """Whether ops read or write keys in the layout of native/paged.py alone."""
    families = describe(ops)
    return _NATIVE.family in (families["rope"], families["attention"])


def _choose(
    op: str, device: torch.device, dtype: torch.dtype, family: str | None, batch_invariant: bool
) -> Candidate:
    """The first candidate that serves, of the named family if there is a name."""
    serving = [c for c in _CANDIDATES[op] if c.serves(device, dtype)]
    for candidate in serving:
        if family == candidate.family:
            return candidate
        if family is None and (candidate.batch_invariant or not batch_invariant):
            return candidate
    known = ", ".join(c.family for c in serving) or "none"
    wanted = "" if family is None else f" in {family!r}"
    raise KernelError(f"{op}: no implementation{wanted} for {dtype} on {device}; there is {known}")


def _import(op: str, candidate: Candidate) -> ModuleType:
    # Imported when chosen: importing Triton takes a second that CPU-only starts need not spend,
    # and there are platforms without it.
    module = f"qwell.kernels.{candidate.family}.{op}"
    try:
        return import_module(module)
    except ImportError as error:
        raise KernelError(f"{op}: cannot load {module}: {error}") from error


def _origin(implementation: Callable[..., Any]) -> str:
    # Instances, such as functools.partial, have no name of their own: their class tells.
    named = implementation if hasattr(implementation, "__qualname__") else type(implementation)
    package, _, rest = named.__module__.removeprefix("qwell.kernels.").partition(".")
    if named.__module__.startswith("qwell.kernels.") and rest:
        return package
    return f"{named.__module__}:{named.__qualname__}"

"""A GPU that is made up: its tensors are the CPU's, but the host must treat them as a GPU's.

Tensors of the two may not meet in an operation, the host may not read the GPU's, and what is
copied back from there without a wait is poison until an event that was recorded after the copy
has been waited for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qwell.kernels.ops import OP_NAMES, Ops

CUDA = torch.device("cuda")
POISON = -77

_READS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}


class GpuTensor(torch.Tensor):
    """A tensor on the GPU; what torch makes of such tensors is one as well."""


def moved(value: Any) -> Any:
    """The tensors in a value, also in lists and dataclasses, on the GPU."""
    if isinstance(value, Tensor):
        return value.as_subclass(GpuTensor)
    if isinstance(value, list):
        return [moved(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, Ops):
        parts = {
            field.name: moved(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **parts)  # type: ignore[type-var]
    return value


def gpu_ops(ops: Ops) -> Ops:
    """Ops of a CPU that run on the GPU: for tensors of the GPU alone."""

    def on_gpu(name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            every = [*arguments, *named.values()]
            assert all(isinstance(v, GpuTensor) for v in every if isinstance(v, Tensor)), name
            with torch._C.DisableTorchFunction():
                plain = {key: _plain(value) for key, value in named.items()}
                result = getattr(ops, name)(*map(_plain, arguments), **plain)
                return tuple(map(moved, result)) if isinstance(result, tuple) else moved(result)

        return run

    return Ops(**{name: on_gpu(name) for name in OP_NAMES})


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, GpuTensor) else value


class PretendedGpu(TorchFunctionMode):
    """What torch does while there is the GPU.

    Attributes:
        waits: how often the host has waited for an event.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits = 0
        self._copies: list[tuple[Tensor, Tensor]] = []
        gpu = self

        class Event:
            def record(self, _stream: object) -> None:
                self._copies, gpu._copies = gpu._copies, []

            def synchronize(self) -> None:
                gpu.waits += 1
                for host, values in self._copies:
                    host.copy_(values)
                self._copies = []

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = func.__name__
        first = args[0] if args else None
        if func == Tensor.device.__get__ and isinstance(first, GpuTensor):
            return torch.device("cuda", 0)
        if name in ("to", "copy_"):
            return self._copy(func, args, named)
        if name == "pin_memory":
            return first
        named.pop("pin_memory", None)
        if name in _READS:
            assert not isinstance(first, GpuTensor), f"the host reads the GPU: {name}"
        on_gpu = torch.device(named.get("device") or "cpu").type == "cuda"
        if on_gpu:
            named["device"] = "cpu"
        met = {isinstance(t, GpuTensor) for t in _tensors((args, named)) if t.dim() > 0}
        assert len(met) < 2, f"{name} of tensors on both devices"
        result = func(*args, **named)
        return moved(result) if on_gpu else result

    def _copy(self, func: Any, args: Any, named: dict[str, Any]) -> Any:
        target = args[1] if len(args) > 1 else None
        if func == Tensor.copy_:
            into, values = args[0], args[1]
            if isinstance(into, GpuTensor) or not isinstance(values, GpuTensor):
                assert isinstance(into, GpuTensor) == isinstance(values, GpuTensor)
                return func(*args, **named)
            assert named["non_blocking"], "the host waits for a copy"
            self._copies.append((into, values.detach().clone().as_subclass(Tensor)))
            return into.fill_(POISON)
        if not isinstance(target, torch.device):
            return func(*args, **named)
        assert target.type == "cuda", "the host waits for a copy"
        assert named.get("non_blocking"), "a copy of pageable memory waits for the GPU"
        return moved(args[0].clone())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))

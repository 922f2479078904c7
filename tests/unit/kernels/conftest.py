"""What kernel tests share: poisoned memory, comparison with a report, rms_norm's definition."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor


@contextlib.contextmanager
def _nan_empty() -> Iterator[None]:
    empty, empty_like = torch.empty, torch.empty_like
    with (
        mock.patch.object(torch, "empty", lambda *a, **k: _poison(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: _poison(empty_like(*a, **k))),
    ):
        yield


def _poison(tensor: Tensor) -> Tensor:
    return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor


def _assert_within(actual: Tensor, expected: Tensor, tolerance: Tensor | float) -> None:
    actual, expected = actual.double(), expected.double()
    tolerance = torch.as_tensor(tolerance, dtype=torch.float64).expand_as(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape} instead of {expected.shape}"
    error = (actual - expected).abs()
    equal = (actual == expected) | (actual.isnan() & expected.isnan())
    # Equal infinities differ by NaN, and no difference is within a tolerance of NaN.
    used = torch.where(equal, 0.0, error / tolerance).nan_to_num(nan=torch.inf)
    if used.numel() == 0 or used.max() <= 1:
        return
    worst = int(used.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), used.shape))
    pytest.fail(
        f"{int((used > 1).sum())} of {used.numel()} elements are off, worst at {index}: "
        f"{actual.flatten()[worst]:.9g} instead of {expected.flatten()[worst]:.9g}, "
        f"{used.flatten()[worst]:.3g} times the tolerance of {tolerance.flatten()[worst]:.3g}"
    )


def _rms_norm_definition(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    s = x if residual is None else (x.double() + residual.double()).float().to(x.dtype)
    normal = s.double() * torch.rsqrt(s.double().square().mean(dim=-1, keepdim=True) + eps)
    # Roundings in fp32 before the first rounding to the model dtype: 32 partial sums of the
    # squares, their tree, the mean, the root, its inverse, the product; with a margin of 2.
    error = (x.shape[-1] / 32 + 16) * torch.finfo(torch.float32).eps / 2
    ends = [
        ((normal * factor).to(x.dtype).double() * weight.double()).to(x.dtype).double()
        for factor in (1 - error, 1 + error)
    ]
    return (ends[0] + ends[1]) / 2, (ends[0] - ends[1]).abs() / 2, s


def _neighbour(name: str) -> ModuleType:
    """A module beside this file, which is no package; imported only by tests that need triton."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def interp_guard() -> Callable[..., AbstractContextManager[None]]:
    """The context manager of interp_guard.py; for tests in interpreter/."""
    guard: Callable[..., AbstractContextManager[None]] = _neighbour("interp_guard").interp_guard
    return guard


@pytest.fixture(scope="session")
def compile_for_gpu() -> Callable[..., Any]:
    """compile_for_gpu of gpu_binary.py."""
    compile_kernel: Callable[..., Any] = _neighbour("gpu_binary").compile_for_gpu
    return compile_kernel


@pytest.fixture(scope="session")
def nan_empty() -> Callable[[], AbstractContextManager[None]]:
    """Context manager: torch.empty and empty_like give NaN, which unwritten outputs keep."""
    return _nan_empty


@pytest.fixture(scope="session")
def assert_within() -> Callable[[Tensor, Tensor, Tensor | float], None]:
    """assert_within(actual, expected, tolerance): NaN and infinities must match; names the worst
    element and how much of the tolerance it used."""
    return _assert_within


@pytest.fixture(scope="session")
def rms_norm_definition() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """rms_norm by its formula in float64 -> (y, tolerance, s).

    y +- tolerance spans what the op's rounding points make of a normalised value that carries
    the error of fp32: for 16-bit dtypes nearly always a single number, so a tolerance of zero.
    """
    return _rms_norm_definition
